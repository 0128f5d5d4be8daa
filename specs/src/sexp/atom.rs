// SPDX-License-Identifier: Apache-2.0
//! Atoms: resolving the escapes of a quoted one, and writing any string of bytes as one.
//!
//! Escapes are OCaml's as sexplib v0.15 reads them. Written text is always valid UTF-8: what is not, and what
//! could disturb a terminal or mislead a reader (control and direction characters), is escaped.

use bstr::ByteSlice;
use std::borrow::Cow;
use std::fmt::Write;

/// Resolves the escapes in the inside of a quoted atom that the reader has accepted.
pub(super) fn unescape(inside: &[u8]) -> Cow<'_, [u8]> {
    if inside.find_byte(b'\\').is_none() {
        return Cow::Borrowed(inside);
    }
    let mut value = Vec::with_capacity(inside.len());
    let mut rest = inside;
    while let Some(at) = rest.find_byte(b'\\') {
        value.extend_from_slice(&rest[..at]);
        let (escape, length) = Escape::parse(&rest[at..]);
        match escape {
            Escape::Byte(byte) => value.push(byte),
            Escape::Unknown(byte) => value.extend_from_slice(&[b'\\', byte]),
            // Errors and unfinished escapes were refused by the reader.
            Escape::Nothing | Escape::Unfinished | Escape::Wrong(_) => {}
        }
        rest = &rest[at + length..];
    }
    value.extend_from_slice(rest);
    Cow::Owned(value)
}

/// What a backslash and the bytes after it stand for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// One byte.
    Byte(u8),
    /// Backslash and byte as they stand.
    Unknown(u8),
    /// A line continuation.
    Nothing,
    /// The text ends inside the escape.
    Unfinished,
    /// Not an escape, and why.
    Wrong(&'static str),
}

impl Escape {
    /// Parses the escape at the start of `text`, which begins with a backslash; returns it and its length.
    pub(super) fn parse(text: &[u8]) -> (Self, usize) {
        let Some(&kind) = text.get(1) else {
            return (Self::Unfinished, text.len());
        };
        match kind {
            b'n' => (Self::Byte(b'\n'), 2),
            b't' => (Self::Byte(b'\t'), 2),
            b'b' => (Self::Byte(8), 2),
            b'\\' | b'"' | b'\'' => (Self::Byte(kind), 2),
            b'\n' => (Self::Nothing, 2 + blanks(&text[2..])),
            b'\r' if text.get(2) == Some(&b'\n') => (Self::Nothing, 3 + blanks(&text[3..])),
            // sexplib drops the backslash before a lone carriage return.
            b'r' | b'\r' => (Self::Byte(b'\r'), 2),
            b'0'..=b'9' => Self::number(
                text,
                1,
                3,
                10,
                "`\\` and a digit begin a decimal escape, which needs three digits",
            ),
            b'x' => Self::number(text, 2, 2, 16, "`\\x` needs two hexadecimal digits"),
            _ => (Self::Unknown(kind), 2),
        }
    }

    fn number(
        text: &[u8],
        from: usize,
        digits: usize,
        radix: u32,
        message: &'static str,
    ) -> (Self, usize) {
        let mut value = 0;
        for at in from..from + digits {
            match text.get(at).map(|byte| char::from(*byte).to_digit(radix)) {
                None => return (Self::Unfinished, at),
                Some(None) => return (Self::Wrong(message), at),
                Some(Some(digit)) => value = value * radix + digit,
            }
        }
        match u8::try_from(value) {
            Ok(byte) => (Self::Byte(byte), from + digits),
            Err(_) => (
                Self::Wrong("a decimal escape goes from `\\000` to `\\255`"),
                from + digits,
            ),
        }
    }
}

fn blanks(text: &[u8]) -> usize {
    text.iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count()
}

/// Tells whether `value` must be quoted to be one atom.
///
/// sexplib v0.15 `Sexp.mach_maybe_esc_str`: empty, special or unprintable characters, comment tokens.
pub fn needs_quotes(value: &[u8]) -> bool {
    value.is_empty()
        || value
            .iter()
            .any(|byte| matches!(byte, b'"' | b'(' | b')' | b';' | b'\\' | 0..=32 | 127..))
        || value.windows(2).any(|pair| pair == b"#|" || pair == b"|#")
}

/// Appends `value` as an atom, with quotes only where they are needed.
pub fn push_atom(text: &mut String, value: &[u8]) {
    if needs_quotes(value) {
        push_quoted(text, value);
    } else {
        text.push_str(&value.to_str_lossy());
    }
}

/// Appends `value` as an atom in quotes, on one line.
pub fn push_quoted(text: &mut String, value: &[u8]) {
    text.push('"');
    escape_into(text, value);
    text.push('"');
}

/// Returns `value` as an atom fit for a message: on one line, shortened.
pub fn quoted(value: &[u8]) -> String {
    const LONGEST: usize = 60;
    let mut text = String::new();
    if value.len() <= LONGEST {
        push_atom(&mut text, value);
    } else {
        push_quoted(&mut text, &value[..LONGEST]);
        text.push('…');
    }
    text
}

/// Appends the inside of a quoted atom that stands for `value`.
pub fn escape_into(text: &mut String, value: &[u8]) {
    for chunk in value.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                '\u{8}' => text.push_str("\\b"),
                character if is_plain(character) => text.push(character),
                character => {
                    let mut bytes = [0; 4];
                    decimal_escapes(text, character.encode_utf8(&mut bytes).as_bytes());
                }
            }
        }
        decimal_escapes(text, chunk.invalid());
    }
}

fn decimal_escapes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "\\{byte:03}").expect("writing to a string cannot fail");
    }
}

/// Tells whether a character shows as itself and nothing else.
pub(super) fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_resolved() {
        for (inside, value) in [
            (&br"a\n\t\b\r\\\x41\065"[..], &b"a\n\t\x08\r\\AA"[..]),
            (br#"\"\'"#, b"\"'"),
            (b"a \\\n \t b", b"a b"),
            (b"a \\\r\n \t b", b"a b"),
            (br"\q\ \(", br"\q\ \("),
            (b"\\\r\\q", b"\r\\q"),
            (br"\255\xfF", b"\xff\xff"),
            (b"a\nb", b"a\nb"),
        ] {
            assert_eq!(unescape(inside).as_bstr(), value.as_bstr());
        }
    }

    #[test]
    fn wrong_escapes_are_told_apart() {
        assert!(matches!(Escape::parse(br"\256"), (Escape::Wrong(_), 4)));
        assert!(matches!(Escape::parse(br"\12x"), (Escape::Wrong(_), 3)));
        assert!(matches!(Escape::parse(br"\xg0"), (Escape::Wrong(_), 2)));
        assert_eq!(Escape::parse(br"\1"), (Escape::Unfinished, 2));
        assert_eq!(Escape::parse(b"\\"), (Escape::Unfinished, 1));
    }

    #[test]
    fn quotes_only_where_needed() {
        let written = |value: &[u8]| {
            let mut text = String::new();
            push_atom(&mut text, value);
            text
        };
        assert_eq!(written(b"a#b|c'd"), "a#b|c'd");
        assert_eq!(written(b""), "\"\"");
        assert_eq!(written(b"a#|b"), "\"a#|b\"");
        assert_eq!(
            written("é\u{202e}\u{1b}".as_bytes()),
            "\"é\\226\\128\\174\\027\""
        );
        assert_eq!(written(b"\xff\x00"), "\"\\255\\000\"");
    }

    proptest! {
        #[test]
        fn escaping_is_undone(value: Vec<u8>) {
            let mut text = String::new();
            escape_into(&mut text, &value);
            prop_assert_eq!(&*unescape(text.as_bytes()), &value[..]);
        }
    }
}
