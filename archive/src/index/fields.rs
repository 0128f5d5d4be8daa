// SPDX-License-Identifier: Apache-2.0
//! The `repo` file: the repository's own fields with ours over them, each once (opam's manual, "repo").

use super::Error;
use crate::opam::{self, Item, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The fields that opam knows, in the order in which they are written. It refuses others.
const KNOWN: [&str; 7] = [
    "opam-version",
    "browse",
    "upstream",
    "redirect",
    "archive-mirrors",
    "announce",
    "stamp",
];

/// What a `repo` file that has none says.
const OPAM_VERSION: &str = "\"2.0\"";

/// What the `repo` file shall say beside, or instead of, what the repository's own says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Values as they stand in the file, by the names of their fields.
    values: BTreeMap<&'static str, String>,
}

impl Fields {
    /// Takes the fields of a text in the format of the `repo` file; they win over those that are there already.
    pub fn merge(&mut self, text: &str) -> Result<(), Error> {
        let parsed = opam::parse(text.as_bytes());
        if let Some(error) = parsed.errors.first() {
            return Err(Error::Fields(error.to_string()));
        }
        for item in &parsed.items {
            let (name, value) = match item {
                Item::Field(field) => (field.name.text, &field.value),
                Item::Block(block) => {
                    return Err(Error::Fields(format!(
                        "there is no section {}",
                        block.kind.text
                    )));
                }
            };
            let known =
                known(name).ok_or_else(|| Error::Fields(format!("there is no field {name}")))?;
            self.values.insert(known, source(text.as_bytes(), value));
        }
        Ok(())
    }

    /// Sets a field to a list of strings.
    pub fn set(&mut self, name: &'static str, texts: &[String]) {
        debug_assert!(KNOWN.contains(&name), "opam knows it");
        let quoted: Vec<String> = texts.iter().map(|text| quote(text)).collect();
        let value = match quoted.as_slice() {
            [one] => one.clone(),
            several => format!("[ {} ]", several.join(" ")),
        };
        self.values.insert(name, value);
    }
}

/// Returns the text of the `repo` file, and what was wrong with the repository's own.
pub(super) fn repo_file(own: Option<&[u8]>, fields: &Fields, stamp: &str) -> (String, Vec<String>) {
    let mut remarks = Vec::new();
    let mut values: BTreeMap<&str, String> = BTreeMap::new();
    values.insert("opam-version", OPAM_VERSION.to_owned());
    let own = own.unwrap_or_default();
    let parsed = opam::parse(own);
    remarks.extend(parsed.errors.iter().map(ToString::to_string));
    let mut seen = Vec::new();
    for item in &parsed.items {
        let field = match item {
            Item::Field(field) => field,
            Item::Block(block) => {
                remarks.push(format!("the section {} is left out", block.kind.text));
                continue;
            }
        };
        match known(field.name.text) {
            None => remarks.push(format!("the field {} is left out", field.name.text)),
            Some(name) if seen.contains(&name) => {
                remarks.push(format!("the field {name} is there twice; the first counts"));
            }
            Some(name) => {
                seen.push(name);
                values.insert(name, source(own, &field.value));
            }
        }
    }
    values.insert("stamp", quote(stamp));
    for (name, value) in &fields.values {
        values.insert(name, value.clone());
    }
    let mut text = String::new();
    for name in KNOWN {
        if let Some(value) = values.get(name) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {value}");
        }
    }
    (text, remarks)
}

fn known(name: &[u8]) -> Option<&'static str> {
    KNOWN.into_iter().find(|known| known.as_bytes() == name)
}

/// Returns a value as it stands in the text.
fn source(text: &[u8], value: &Value<'_>) -> String {
    String::from_utf8_lossy(&text[value.span.range()]).into_owned()
}

/// Writes a string as opam reads it.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_is_there_twice_and_values_stay_as_they_were() {
        let own = br#"opam-version: "2.0"
# a remark
stamp: "old"
announce: [
"""
watch "out" }
""" { opam-version < "2.0.10" | (os = "macos") }
]
browse: "https://a"
archive-mirrors: "https://x/cache"
browse: "https://b"
strange: 7
section { x: 1 }
"#;
        let mut fields = Fields::default();
        fields.set(
            "archive-mirrors",
            &["cache".into(), "https://y\\\"/".into()],
        );
        fields
            .merge("redirect: \"https://new\" { opam-version >= \"9\" }")
            .expect("fields");
        let (text, remarks) = repo_file(Some(own), &fields, "abc");
        insta::assert_snapshot!(text, @r###"
        opam-version: "2.0"
        browse: "https://a"
        redirect: "https://new" { opam-version >= "9" }
        archive-mirrors: [ "cache" "https://y\\\"/" ]
        announce: [
        """
        watch "out" }
        """ { opam-version < "2.0.10" | (os = "macos") }
        ]
        stamp: "abc"
        "###);
        insta::assert_snapshot!(remarks.join("\n"), @r"
        the field browse is there twice; the first counts
        the field strange is left out
        the section section is left out
        ");
        let again = opam::parse(text.as_bytes());
        assert!(again.errors.is_empty());
        assert_eq!(again.items.len(), 6);
    }

    #[test]
    fn a_repository_without_the_file_gets_one() {
        let (text, remarks) = repo_file(None, &Fields::default(), "abc");
        assert_eq!(text, "opam-version: \"2.0\"\nstamp: \"abc\"\n");
        assert!(remarks.is_empty());
    }

    #[test]
    fn what_opam_does_not_know_is_refused() {
        for text in ["x: 1", "a { }", "browse: [", "\0"] {
            Fields::default().merge(text).expect_err(text);
        }
    }
}
