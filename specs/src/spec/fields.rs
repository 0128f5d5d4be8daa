// SPDX-License-Identifier: Apache-2.0
//! The parser's small parts: named fields, atoms, numbers, and their mistakes.

use super::Spanned;
use super::suggest::did_you_mean;
use crate::diagnostic::{Collector, Diagnostic};
use crate::sexp::{Item, quoted};
use bstr::{BString, ByteSlice};
use std::ops::Range;

/// What a value must be free of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing: any bytes.
    Any,
    /// A NUL byte, which the system cannot pass to a program or have in a path.
    NoNul,
}

/// Collects mistakes while values are taken out of the tree.
pub(super) struct Parser {
    pub(super) errors: Collector,
}

impl Parser {
    pub(super) fn error(&mut self, diagnostic: Diagnostic) {
        self.errors.push(diagnostic);
    }

    /// Returns an atom's value.
    pub(super) fn atom(
        &mut self,
        item: Item<'_>,
        what: &str,
        content: Content,
    ) -> Option<Spanned<BString>> {
        let Some(value) = item.atom() else {
            self.error(
                Diagnostic::error(item.span(), format!("{what} must be an atom, not a list"))
                    .with_help("write a text that holds blanks or parentheses in double quotes"),
            );
            return None;
        };
        if content == Content::NoNul && value.contains(&0) {
            self.error(
                Diagnostic::error(item.span(), format!("{what} holds a NUL byte"))
                    .with_note("programs, paths and variables cannot hold one"),
            );
            return None;
        }
        Some(Spanned::new(BString::from(value.into_owned()), item.span()))
    }

    /// Returns an atom's value that must be UTF-8.
    pub(super) fn name(&mut self, item: Item<'_>, what: &str) -> Option<Spanned<String>> {
        let value = self.atom(item, what, Content::NoNul)?;
        if let Ok(text) = String::from_utf8(value.value.into()) {
            Some(Spanned::new(text, value.span))
        } else {
            self.error(Diagnostic::error(
                value.span,
                format!("{what} is not valid UTF-8"),
            ));
            None
        }
    }

    /// Returns the one value of `(field VALUE)`; `usage` shows how it is written.
    pub(super) fn only<'t>(&mut self, field: Item<'t>, usage: &str) -> Option<Item<'t>> {
        let mut values = field.children().skip(1);
        match (values.next(), values.next()) {
            (Some(value), None) => Some(value),
            (None, _) => {
                self.error(
                    Diagnostic::error(field.span(), "a value is missing here")
                        .with_help(format!("write {usage}")),
                );
                None
            }
            (Some(_), Some(second)) => {
                self.error(
                    Diagnostic::error(
                        second.span(),
                        "one value is wanted here, and this is a second",
                    )
                    .with_help(format!(
                        "write {usage}; a value that holds blanks must be in double quotes"
                    )),
                );
                None
            }
        }
    }

    /// Returns the values of `(field VALUE…)`.
    pub(super) fn atoms(&mut self, field: Item<'_>, what: &str) -> Vec<Spanned<BString>> {
        field
            .children()
            .skip(1)
            .filter_map(|item| self.atom(item, what, Content::NoNul))
            .collect()
    }

    /// Sorts `(NAME …)` fields by name; reports unknown, repeated and malformed ones, and tells whether there was
    /// none: a field that seems to be missing may be one of those.
    pub(super) fn fields<'t, const N: usize>(
        &mut self,
        owner: &str,
        items: impl Iterator<Item = Item<'t>>,
        known: [&str; N],
    ) -> ([Option<Item<'t>>; N], bool) {
        let mut found = [None; N];
        let mut sound = true;
        for item in items {
            let Some(head) = item.children().next().filter(|_| item.is_list()) else {
                sound = false;
                self.error(
                    Diagnostic::error(
                        item.span(),
                        format!("a field of `{owner}` is a list that begins with its name"),
                    )
                    .with_help(format!("write ({} …)", known.join(" …) or ("))),
                );
                continue;
            };
            let name = head.atom().unwrap_or_default();
            let Some(at) = known.iter().position(|known| known.as_bytes() == &*name) else {
                sound = false;
                let help = did_you_mean(&name.to_str_lossy(), known)
                    .unwrap_or_else(|| format!("its fields are {}", known.join(", ")));
                let diagnostic = if head.is_list() {
                    Diagnostic::error(
                        head.span(),
                        format!("the name of a field of `{owner}` is missing here"),
                    )
                } else {
                    Diagnostic::error(
                        head.span(),
                        format!("`{owner}` has no field {}", quoted(&name)),
                    )
                };
                self.error(diagnostic.with_help(help));
                continue;
            };
            match found[at] {
                None => found[at] = Some(item),
                Some(first) => self.error(
                    Diagnostic::error(item.span(), format!("`{}` is given twice", known[at]))
                        .with_note_at(Item::span(first), "first given here"),
                ),
            }
        }
        (found, sound)
    }

    /// Reports a field that `owner` cannot be without.
    pub(super) fn missing(&mut self, owner: &str, span: Range<usize>, usage: &str) {
        self.error(Diagnostic::error(span, format!("`{owner}` lacks {usage}")));
    }

    /// Returns a user or group id, written as an OCaml integer.
    pub(super) fn id(&mut self, field: Item<'_>, name: &str) -> Option<u32> {
        let item = self.only(field, &format!("({name} NUMBER)"))?;
        let value = self.atom(item, name, Content::Any)?;
        let number = ocaml_integer(&value);
        // The highest number is (uid_t) -1, which chown(2) and setresuid(2) take for "leave as it is".
        match number {
            Some(number) if number < i128::from(u32::MAX) && number >= 0 => {
                u32::try_from(number).ok()
            }
            Some(_) => {
                self.error(
                    Diagnostic::error(value.span, format!("{} is no {name}", quoted(&value.value)))
                        .with_help("ids go from 0 to 4294967294"),
                );
                None
            }
            None => {
                self.error(
                    Diagnostic::error(
                        value.span,
                        format!("{} is not a number", quoted(&value.value)),
                    )
                    .with_help(format!("write a numeric {name}, or (user (name NAME))")),
                );
                None
            }
        }
    }
}

/// Parses what OCaml's `int_of_string` takes: a sign, a base prefix, digits with `_` between them.
///
/// OCaml 4.14 `runtime/ints.c` `parse_sign_and_base`, `caml_int_of_string`. Values too great are cut to a
/// large one.
fn ocaml_integer(text: &[u8]) -> Option<i128> {
    let (sign, text) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let (base, digits) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', b'o' | b'O', rest @ ..] => (8, rest),
        [b'0', b'b' | b'B', rest @ ..] => (2, rest),
        [b'0', b'u' | b'U', rest @ ..] => (10, rest),
        _ => (10, text),
    };
    if matches!(digits.first(), None | Some(b'_')) {
        return None;
    }
    let mut value: i128 = 0;
    for digit in digits.iter().filter(|byte| **byte != b'_') {
        value = (value * base
            + i128::from(char::from(*digit).to_digit(u32::try_from(base).ok()?)?))
        .min(1 << 64);
    }
    Some(sign * value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_ocaml() {
        for (text, value) in [
            ("1000", Some(1000)),
            ("1_000_", Some(1000)),
            ("0x3E8", Some(1000)),
            ("0o1750", Some(1000)),
            ("0b11", Some(3)),
            ("0u7", Some(7)),
            ("+5", Some(5)),
            ("-1", Some(-1)),
            ("0755", Some(755)),
            ("99999999999999999999999999999999999999999", Some(1 << 64)),
            ("", None),
            ("_1", None),
            ("0x", None),
            ("0x_1", None),
            ("1a", None),
            ("0b2", None),
            ("1 ", None),
            ("--1", None),
        ] {
            assert_eq!(ocaml_integer(text.as_bytes()), value, "{text}");
        }
    }
}
