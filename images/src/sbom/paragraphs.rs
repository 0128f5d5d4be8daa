// SPDX-License-Identifier: Apache-2.0
//! Databases of paragraphs: lines `Name: value`, parted by empty lines, as dpkg and apk write them (deb822(5), apk's installed database).

use bstr::ByteSlice;
use std::borrow::Cow;

/// What is kept of one value; more is cut off. Names, versions and summaries are short.
const LONGEST: usize = 4 << 10;

/// Gives a database's paragraphs one after the other.
pub(super) struct Paragraphs<'a> {
    rest: &'a [u8],
}

/// One record.
#[derive(Debug, Default)]
pub(super) struct Paragraph<'a> {
    fields: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Paragraphs<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { rest: text }
    }
}

impl<'a> Iterator for Paragraphs<'a> {
    type Item = Paragraph<'a>;

    fn next(&mut self) -> Option<Paragraph<'a>> {
        let mut fields = Vec::new();
        while !self.rest.is_empty() {
            let (line, rest) = match self.rest.split_once_str("\n") {
                Some((line, rest)) => (line, rest),
                None => (self.rest, &b""[..]),
            };
            self.rest = rest;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() {
                if fields.is_empty() {
                    continue;
                }
                break;
            }
            // A line that begins with a blank goes on with the value before it. Of those that matter here the first line is enough.
            if matches!(line[0], b' ' | b'\t' | b'#') {
                continue;
            }
            if let Some((name, value)) = line.split_once_str(":") {
                fields.push((name, value.trim_ascii()));
            }
        }
        (!fields.is_empty()).then_some(Paragraph { fields })
    }
}

impl Paragraph<'_> {
    /// Returns a field's value without the blanks around it; names in any case. Of an empty one nothing.
    pub(super) fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let found = self
            .fields
            .iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()));
        found
            .map(|(_, value)| text(value))
            .filter(|value| !value.is_empty())
    }

    /// The same, where upper and lower case differ.
    pub(super) fn get_exact(&self, name: &str) -> Option<Cow<'_, str>> {
        let found = self
            .fields
            .iter()
            .find(|(found, _)| *found == name.as_bytes());
        found
            .map(|(_, value)| text(value))
            .filter(|value| !value.is_empty())
    }
}

/// Returns what a document can hold of a value: text, not too long.
pub(super) fn text(value: &[u8]) -> Cow<'_, str> {
    value[..value.len().min(LONGEST)].to_str_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name_whatever_is_around_them() {
        let text = b"\n\nPackage: a\nDescription: one\n more: x\n\t.\nbroken line\nversion:  1 \r\n\n \nP:x\np:y";
        let all: Vec<Paragraph<'_>> = Paragraphs::new(text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("Version").as_deref(), Some("1"));
        assert_eq!(all[0].get("more"), None);
        assert_eq!(all[0].get("Missing"), None);
        assert_eq!(all[1].get_exact("p").as_deref(), Some("y"));
        assert_eq!(Paragraphs::new(b" \n\n").count(), 0);
    }
}
