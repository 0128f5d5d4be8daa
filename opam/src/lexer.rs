// SPDX-License-Identifier: Apache-2.0
//! Bytes to tokens, the longest first, as opam-file-format 2.1 `src/opamLexer.mll` has them.

use super::MAX_ERRORS;
use super::tree::{EnvOp, PrefixOp, RelationOp, Span};
use bstr::{BStr, ByteSlice};
use std::borrow::Cow;

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Ident(&'a BStr),
    String(Cow<'a, [u8]>),
    Int(i64),
    Bool(bool),
    Colon,
    Open(Bracket),
    Close(Bracket),
    Relation(RelationOp),
    Env(EnvOp),
    Prefix(PrefixOp),
    And,
    Or,
    /// What is no token; the mistake has been noted.
    Bad,
    End,
}

/// The kinds of brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bracket {
    Round,
    Square,
    Curly,
}

impl Bracket {
    /// Returns both, for messages.
    pub(super) fn pair(self) -> (char, char) {
        match self {
            Self::Round => ('(', ')'),
            Self::Square => ('[', ']'),
            Self::Curly => ('{', '}'),
        }
    }
}

/// A byte that words are made of, and whether it is a letter: `ichar` and `alpha` of the OCaml lexer.
const WORD: u8 = 1;
const LETTER: u8 = 2;

/// The class of every byte.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let value = byte as u8;
        if value.is_ascii_alphabetic() {
            classes[byte] = WORD | LETTER;
        } else if value.is_ascii_digit() || value == b'_' || value == b'-' {
            classes[byte] = WORD;
        }
        byte += 1;
    }
    classes
};

/// What an escape stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    Byte(u8),
    Nothing,
    /// It is none, and stays as it is.
    Wrong,
}

/// What the lexer finds wrong.
pub(super) struct Mistake {
    pub(super) span: Span,
    pub(super) message: String,
}

pub(super) struct Lexer<'a> {
    text: &'a [u8],
    /// The next byte to read.
    at: usize,
    /// Up to here runs a word without a letter, as is known from its beginning: a long one is not looked through again for each of the
    /// numbers in it.
    letterless_until: usize,
    pub(super) mistakes: Vec<Mistake>,
    /// How many bytes were looked at, those that were looked at again included.
    pub(super) work: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            letterless_until: 0,
            mistakes: Vec::new(),
            work: 0,
        }
    }

    /// Returns how far the text has been read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Goes to another place of the text.
    pub(super) fn go_to(&mut self, at: usize) {
        self.at = at;
        self.letterless_until = 0;
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    fn mistake(&mut self, start: usize, end: usize, message: impl Into<String>) {
        if self.mistakes.len() < MAX_ERRORS {
            self.mistakes.push(Mistake {
                span: Span::new(start, end.min(self.text.len())),
                message: message.into(),
            });
        }
    }

    /// Reads the next token.
    pub(super) fn next(&mut self) -> (Token<'a>, Span) {
        let before = self.at;
        self.skip_blanks();
        let start = self.at;
        let token = self.token(start);
        self.work += self.at - before;
        (token, Span::new(start, self.at))
    }

    fn token(&mut self, start: usize) -> Token<'a> {
        let Some(byte) = self.byte(start) else {
            return Token::End;
        };
        let next = self.byte(start + 1);
        let (token, length) = match (byte, next) {
            (b'"', _) => return self.string(start),
            (b'=', Some(operator @ (b'+' | b':'))) => {
                let long = self.byte(start + 2) == Some(b'=');
                match (operator, long) {
                    (b'+', true) => (Token::Env(EnvOp::EqualPlusEqual), 3),
                    (b'+', false) => (Token::Env(EnvOp::EqualPlus), 2),
                    (_, false) => (Token::Env(EnvOp::EqualColon), 2),
                    (_, true) => return self.bad(start, 3, "`=:=` is no operator".to_owned()),
                }
            }
            (b'+', Some(b'=')) => (Token::Env(EnvOp::PlusEqual), 2),
            (b':', Some(b'=')) => (Token::Env(EnvOp::ColonEqual), 2),
            (b':', _) => (Token::Colon, 1),
            (b'{', _) => (Token::Open(Bracket::Curly), 1),
            (b'}', _) => (Token::Close(Bracket::Curly), 1),
            (b'[', _) => (Token::Open(Bracket::Square), 1),
            (b']', _) => (Token::Close(Bracket::Square), 1),
            (b'(', _) => (Token::Open(Bracket::Round), 1),
            (b')', _) => (Token::Close(Bracket::Round), 1),
            (b'!', Some(b'=')) => (Token::Relation(RelationOp::NotEqual), 2),
            (b'<', Some(b'=')) => (Token::Relation(RelationOp::LessEqual), 2),
            (b'>', Some(b'=')) => (Token::Relation(RelationOp::GreaterEqual), 2),
            (b'=', _) => (Token::Relation(RelationOp::Equal), 1),
            (b'<', _) => (Token::Relation(RelationOp::Less), 1),
            (b'>', _) => (Token::Relation(RelationOp::Greater), 1),
            (b'~', _) => (Token::Relation(RelationOp::GreaterEqual), 1),
            (b'!', _) => (Token::Prefix(PrefixOp::Not), 1),
            (b'?', _) => (Token::Prefix(PrefixOp::Defined), 1),
            (b'&', _) => (Token::And, 1),
            (b'|', _) => (Token::Or, 1),
            _ if CLASSES[usize::from(byte)] & WORD != 0 => return self.word(start),
            _ => return self.stray(start),
        };
        self.at = start + length;
        token
    }

    fn bad(&mut self, start: usize, length: usize, message: String) -> Token<'a> {
        self.at = (start + length).min(self.text.len());
        self.mistake(start, self.at, message);
        Token::Bad
    }

    /// Reads a character that nothing begins with.
    fn stray(&mut self, start: usize) -> Token<'a> {
        let rest = &self.text[start..];
        let (character, length) = bstr::decode_utf8(rest);
        let message = match character {
            Some('\r') => "a carriage return without a line feed behind it".to_owned(),
            Some('\u{feff}') => "a byte order mark: opam files have none".to_owned(),
            Some('.') => "`.` begins nothing: versions are written in quotes".to_owned(),
            Some(character) if character.is_control() => {
                format!("the control character U+{:04X}", u32::from(character))
            }
            Some(character) => format!("`{character}` begins nothing"),
            None => format!("the byte 0x{:02x}, which is no text", rest[0]),
        };
        self.bad(start, length, message)
    }

    fn skip_blanks(&mut self) {
        while let Some(byte) = self.byte(self.at) {
            match byte {
                b' ' | b'\t' | b'\n' => self.at += 1,
                b'\r' if self.byte(self.at + 1) == Some(b'\n') => self.at += 2,
                b'#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find_byte(b'\n').map_or(rest.len(), |end| end + 1);
                }
                b'(' if self.byte(self.at + 1) == Some(b'*') => self.comment(),
                _ => return,
            }
        }
    }

    /// Skips `(* … *)`. Strings are nothing special in it.
    fn comment(&mut self) {
        let start = self.at;
        let mut depth = 1_usize;
        self.at += 2;
        while depth > 0 {
            let Some(found) = self.text[self.at..].find_byteset(b"(*") else {
                self.at = self.text.len();
                self.mistake(
                    start,
                    start + 2,
                    "this comment is not closed: `*)` is missing",
                );
                return;
            };
            self.at += found;
            match (self.text[self.at], self.byte(self.at + 1)) {
                (b'*', Some(b')')) => {
                    depth -= 1;
                    self.at += 2;
                }
                (b'(', Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
    }

    /// Returns the end of the word that begins at `start`, if there is a letter in it.
    fn id(&mut self, start: usize) -> Option<usize> {
        let (end, letters) = self.run(start);
        letters.then_some(end)
    }

    /// Returns the end of the longest run of bytes that words are made of, and whether one is a letter.
    fn run(&mut self, start: usize) -> (usize, bool) {
        let mut seen = 0;
        let mut end = start;
        while let Some(byte) = self.byte(end) {
            let class = CLASSES[usize::from(byte)];
            if class == 0 {
                break;
            }
            seen |= class;
            end += 1;
        }
        self.work += end - start;
        (end, seen & LETTER != 0)
    }

    fn word(&mut self, start: usize) -> Token<'a> {
        let (end, letters) = if start < self.letterless_until {
            (self.letterless_until, false)
        } else {
            self.run(start)
        };
        if letters {
            self.at = self.word_tail(end);
            let word = &self.text[start..self.at];
            return match word {
                b"true" => Token::Bool(true),
                b"false" => Token::Bool(false),
                _ => Token::Ident(word.as_bstr()),
            };
        }
        self.letterless_until = end;
        if self.text[start] == b'_' {
            // `_` alone is no identifier, but one can begin with it: `_:name`, `_+package:name`.
            let tail = self.word_tail(start + 1);
            if tail > start + 1 {
                self.at = tail;
                return Token::Ident(self.text[start..tail].as_bstr());
            }
        }
        self.number(start)
    }

    /// Returns the end of an identifier whose first part ends at `end`: `(+part)*(:name)?`.
    fn word_tail(&mut self, mut end: usize) -> usize {
        while self.byte(end) == Some(b'+') {
            match self.id(end + 1) {
                Some(part) => end = part,
                None if self.byte(end + 1) == Some(b'_') => end += 2,
                None => break,
            }
        }
        if self.byte(end) == Some(b':') {
            self.id(end + 1).unwrap_or(end)
        } else {
            end
        }
    }

    fn number(&mut self, start: usize) -> Token<'a> {
        let digits = start + usize::from(self.text[start] == b'-');
        let end = self.text[digits..]
            .iter()
            .position(|byte| !byte.is_ascii_digit() && *byte != b'_')
            .map_or(self.text.len(), |length| digits + length);
        if !self.byte(digits).is_some_and(|byte| byte.is_ascii_digit()) {
            let length = (end - start).max(1);
            let shown = self.text[start..start + length.min(20)].as_bstr();
            return self.bad(
                start,
                length,
                format!("`{shown}` is neither a number nor a name"),
            );
        }
        self.at = end;
        let mut value: i64 = 0;
        for byte in &self.text[digits..end] {
            if *byte == b'_' {
                continue;
            }
            let digit = i64::from(*byte - b'0');
            // OCaml's integers have 63 bits.
            match value
                .checked_mul(10)
                .and_then(|value| value.checked_add(digit))
            {
                Some(longer) if longer < 1 << 62 => value = longer,
                _ => {
                    return self.bad(
                        start,
                        end - start,
                        "a number of more than 63 bits".to_owned(),
                    );
                }
            }
        }
        Token::Int(if digits > start { -value } else { value })
    }

    /// Reads `"…"` or `"""…"""`.
    fn string(&mut self, start: usize) -> Token<'a> {
        let triple = self.text[start..].starts_with(b"\"\"\"");
        let quotes = if triple { 3 } else { 1 };
        // Where what has not been copied begins.
        let mut from = start + quotes;
        let mut at = from;
        let mut copy: Option<Vec<u8>> = None;
        loop {
            let Some(found) = self.text[at..].find_byteset(b"\"\\\r") else {
                self.at = self.text.len();
                let kind = if triple { "`\"\"\"`" } else { "`\"`" };
                self.mistake(
                    start,
                    start + quotes,
                    format!("this string is not closed: {kind} is missing"),
                );
                return Token::Bad;
            };
            at += found;
            match self.text[at] {
                b'"' if !triple || self.text[at..].starts_with(b"\"\"\"") => break,
                b'"' => at += 1,
                b'\r' => {
                    if self.byte(at + 1) == Some(b'\n') {
                        copy.get_or_insert_default()
                            .extend_from_slice(&self.text[from..at]);
                        from = at + 1;
                    }
                    at += 1;
                }
                _ => {
                    let (escape, length) = self.escape(at);
                    if escape != Escape::Wrong {
                        let copy = copy.get_or_insert_default();
                        copy.extend_from_slice(&self.text[from..at]);
                        if let Escape::Byte(byte) = escape {
                            copy.push(byte);
                        }
                        from = at + length;
                    }
                    at += length;
                }
            }
        }
        self.at = at + quotes;
        let rest = &self.text[from..at];
        Token::String(match copy {
            None => Cow::Borrowed(rest),
            Some(mut copy) => {
                copy.extend_from_slice(rest);
                Cow::Owned(copy)
            }
        })
    }

    /// Reads the escape whose backslash is at `at`: what it stands for, and its length.
    fn escape(&mut self, at: usize) -> (Escape, usize) {
        let rest = &self.text[at + 1..];
        let one = |byte| (Escape::Byte(byte), 2);
        match rest {
            [b'n', ..] => one(b'\n'),
            [b'r', ..] => one(b'\r'),
            [b't', ..] => one(b'\t'),
            [b'b', ..] => one(8),
            [byte @ (b'\\' | b'"' | b'\'' | b' '), ..] => one(*byte),
            [b'\n', ..] | [b'\r', b'\n', ..] => {
                let end = 1 + usize::from(rest[0] == b'\r');
                let blanks = rest[end..]
                    .iter()
                    .take_while(|byte| matches!(byte, b' ' | b'\t'));
                (Escape::Nothing, 1 + end + blanks.count())
            }
            [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
                let code =
                    u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
                if let Ok(byte) = u8::try_from(code) {
                    return (Escape::Byte(byte), 4);
                }
                self.mistake(at, at + 4, format!("`\\{code}` is beyond `\\255`"));
                (Escape::Wrong, 4)
            }
            [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: u8| match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => (byte | 0x20) - b'a' + 10,
                };
                (Escape::Byte(digit(*high) << 4 | digit(*low)), 4)
            }
            [] => (Escape::Wrong, 1),
            _ => {
                let (character, length) = bstr::decode_utf8(rest);
                let shown = character.unwrap_or('\u{fffd}').escape_debug();
                self.mistake(
                    at,
                    at + 1 + length,
                    format!("`\\{shown}` is no escape; a backslash itself is written `\\\\`"),
                );
                (Escape::Wrong, 1 + length)
            }
        }
    }
}
