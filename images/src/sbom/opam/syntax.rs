// SPDX-License-Identifier: Apache-2.0
//! As much of opam's file syntax as it takes to find strings by the name of their field (opam manual, "Common file format").
//!
//! It refuses nothing: of what is not opam's syntax it finds less. It neither recurses nor keeps more than the text holds.

/// What is kept of one string; more is cut off.
const LONGEST: usize = 4 << 10;

/// The strings of each field, without those in filters and formulas.
#[derive(Debug, Default)]
pub(super) struct Fields {
    fields: Vec<(String, Vec<String>)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Text(String),
    Word(String),
    Mark(u8),
}

impl Fields {
    /// Reads a file. The fields of its section `url` are called `url.src`, `url.checksum` and so on.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut fields = Self::default();
        let mut tokens = Tokens { text, at: 0 }.peekable();
        let mut in_url = false;
        // How many brackets, and how many filters or groups, are open.
        let (mut lists, mut skipped) = (0_usize, 0_usize);
        let mut inside = false;
        while let Some(token) = tokens.next() {
            match token {
                Token::Word(word) if skipped == 0 && lists == 0 => match tokens.peek() {
                    Some(Token::Mark(b':')) => {
                        let prefix = if in_url { "url." } else { "" };
                        fields.fields.push((format!("{prefix}{word}"), Vec::new()));
                        inside = true;
                    }
                    Some(Token::Mark(b'{')) if word == "url" && !in_url => {
                        tokens.next();
                        in_url = true;
                        inside = false;
                    }
                    _ => {}
                },
                Token::Text(string) if skipped == 0 && inside => {
                    if let Some((_, strings)) = fields.fields.last_mut() {
                        strings.push(string);
                    }
                }
                Token::Mark(b'[') if skipped == 0 => lists += 1,
                Token::Mark(b']') if skipped == 0 => lists = lists.saturating_sub(1),
                Token::Mark(b'{' | b'(') => skipped += 1,
                Token::Mark(b'}' | b')') if skipped > 0 => skipped -= 1,
                Token::Mark(b'}') => {
                    in_url = false;
                    inside = false;
                }
                _ => {}
            }
        }
        fields
    }

    /// Returns a field's strings.
    pub(super) fn all(&self, name: &str) -> &[String] {
        let found = self.fields.iter().find(|(found, _)| found == name);
        found.map_or(&[], |(_, strings)| strings)
    }
}

struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let rest = self.text.get(self.at..)?;
            match *rest.first()? {
                byte if byte.is_ascii_whitespace() => self.at += 1,
                b'#' => {
                    let end = rest.iter().position(|byte| *byte == b'\n');
                    self.at += end.unwrap_or(rest.len());
                }
                b'(' if rest.starts_with(b"(*") => self.comment(),
                b'"' if rest.starts_with(b"\"\"\"") => return Some(self.string(b"\"\"\"")),
                b'"' => return Some(self.string(b"\"")),
                byte if is_word(byte) => {
                    let length = rest.iter().position(|byte| !is_word(*byte));
                    let length = length.unwrap_or(rest.len());
                    self.at += length;
                    let word = &rest[..length.min(LONGEST)];
                    return Some(Token::Word(String::from_utf8_lossy(word).into_owned()));
                }
                mark => {
                    self.at += 1;
                    return Some(Token::Mark(mark));
                }
            }
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_+".contains(&byte)
}

impl Tokens<'_> {
    /// Skips a comment, in which others may be.
    fn comment(&mut self) {
        let mut depth = 0_usize;
        while let Some(rest) = self.text.get(self.at..).filter(|rest| !rest.is_empty()) {
            if rest.starts_with(b"(*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with(b"*)") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return;
                }
            } else {
                self.at += 1;
            }
        }
    }

    /// Reads a string up to its closing quotes, or to the end of the text.
    fn string(&mut self, quotes: &[u8]) -> Token {
        self.at += quotes.len();
        let mut bytes = Vec::new();
        while let Some(rest) = self.text.get(self.at..).filter(|rest| !rest.is_empty()) {
            if rest.starts_with(quotes) {
                self.at += quotes.len();
                break;
            }
            let (byte, length) = match (rest[0], rest.get(1)) {
                (b'\\', Some(next)) => escape(*next, rest),
                (byte, _) => (Some(byte), 1),
            };
            self.at += length;
            if bytes.len() < LONGEST {
                bytes.extend(byte);
            }
        }
        Token::Text(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Returns what an escape stands for, and its length.
fn escape(next: u8, rest: &[u8]) -> (Option<u8>, usize) {
    let number = |digits: Option<&[u8]>, radix| {
        let digits = std::str::from_utf8(digits?).ok()?;
        u8::from_str_radix(digits, radix).ok()
    };
    match next {
        b'n' => (Some(b'\n'), 2),
        b't' => (Some(b'\t'), 2),
        b'r' => (Some(b'\r'), 2),
        b'b' => (Some(8), 2),
        b'\n' => {
            // The line goes on where the next one begins.
            let blanks = rest[2..].iter().take_while(|byte| **byte == b' ').count();
            (None, 2 + blanks)
        }
        b'x' => match number(rest.get(2..4), 16) {
            Some(byte) => (Some(byte), 4),
            None => (Some(b'x'), 2),
        },
        b'0'..=b'9' => match number(rest.get(1..4), 10) {
            Some(byte) => (Some(byte), 4),
            None => (Some(next), 2),
        },
        other => (Some(other), 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strings_are_found_by_their_field() {
        let text = br#"opam-version: "2.0"
# "no"
license: ["MIT" "ISC"] (* "no" (* "no" *) *)
depends: ["ocaml" {>= "4.08"} ("a" | "b")]
build: [["dune" "build" name:dev]]
description: """
Several "lines" \"\"\" ""
"""
synopsis: "tab\tA\065\x41\
   joined"
url { src: "https://x/y.tbz" checksum: ["md5=1" "sha256=2"] }
extra-source "z" { src: "no" }
homepage: "h""#;
        let fields = Fields::parse(text);
        assert_eq!(fields.all("license"), ["MIT", "ISC"]);
        assert_eq!(fields.all("depends"), ["ocaml"]);
        assert_eq!(fields.all("synopsis"), ["tab\tAAAjoined"]);
        assert_eq!(fields.all("url.src"), ["https://x/y.tbz"]);
        assert_eq!(fields.all("url.checksum"), ["md5=1", "sha256=2"]);
        assert_eq!(fields.all("src"), [""; 0]);
        assert_eq!(fields.all("homepage"), ["h"]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "[a-z:\"\\\\\\[\\]{}()*#\nx0-9 é]{0,200}") {
            Fields::parse(text.as_bytes());
        }
    }
}
