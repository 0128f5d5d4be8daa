// SPDX-License-Identifier: Apache-2.0
//! A quoted atom over several source lines.
//!
//! A backslash before a line end makes the reader skip the line end and the blanks after it, so a string can be
//! laid out freely as long as no line begins with a blank that belongs to the string.

use super::atom::escape_into;
use std::ops::Range;

/// Returns the inside of a quoted atom for `value` as lines to be joined by a line end and any indentation.
///
/// Lines end where `value` has line ends, and where a stretch is longer than `width` also before shell
/// operators and, if that is not enough, between words.
pub(super) fn break_lines(value: &[u8], width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut stretches = value.split(|byte| *byte == b'\n').peekable();
    while let Some(stretch) = stretches.next() {
        for (number, piece) in wrap(stretch, width).into_iter().enumerate() {
            if number > 0 {
                line.push('\\');
                lines.push(std::mem::take(&mut line));
            }
            escape_into(&mut line, &stretch[piece]);
        }
        let Some(next) = stretches.peek().map(|next| next.first()) else {
            break;
        };
        match next {
            // The blank would be swallowed at the beginning of a line: the line end's escape shields it.
            Some(b' ') => {
                line.push('\\');
                lines.push(std::mem::replace(&mut line, "\\n".to_owned()));
            }
            None if is_last(&stretches) => line.push_str("\\n"),
            _ => {
                line.push_str("\\n\\");
                lines.push(std::mem::take(&mut line));
            }
        }
    }
    lines.push(line);
    lines
}

fn is_last<I: Iterator + Clone>(items: &std::iter::Peekable<I>) -> bool
where
    I::Item: Clone,
{
    items.clone().nth(1).is_none()
}

/// Tells whether [`break_lines`] can make more than one line of `value`.
pub(super) fn can_break(value: &[u8]) -> bool {
    let inside = value.strip_suffix(b"\n").unwrap_or(value);
    inside.contains(&b'\n') || words(inside).nth(1).is_some()
}

/// Splits a stretch into ranges that fit `width` where possible; each but the first begins with a non-blank.
fn wrap(stretch: &[u8], width: usize) -> Vec<Range<usize>> {
    let words: Vec<(Range<usize>, usize)> = words(stretch)
        .map(|word| (word.clone(), escaped_width(&stretch[word])))
        .collect();
    if words.len() < 2 || words.iter().map(|(_, width)| width).sum::<usize>() <= width {
        return std::iter::once(0..stretch.len()).collect();
    }
    let breaks = operators(stretch, &words);
    let mut pieces: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let clause = at;
        at += 1;
        while at < words.len() && !breaks[at] {
            at += 1;
        }
        let mut used = 0;
        for (number, (word, word_width)) in words[clause..at].iter().enumerate() {
            used += word_width;
            match pieces.last_mut() {
                Some(piece) if number > 0 && used <= width => piece.end = word.end,
                _ => {
                    pieces.push(word.clone());
                    used = *word_width;
                }
            }
        }
    }
    pieces
}

/// Tells of every word whether it is an operator of the shell outside parentheses and quotes, as far as counting
/// them tells.
fn operators(stretch: &[u8], words: &[(Range<usize>, usize)]) -> Vec<bool> {
    let (mut depth, mut single, mut double) = (0_i32, false, false);
    let mut found = Vec::with_capacity(words.len());
    for (word, _) in words {
        let word = &stretch[word.clone()];
        let is_operator = matches!(trim_end(word), b"&&" | b"||" | b"|");
        found.push(is_operator && depth <= 0 && !single && !double);
        for byte in word {
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                b'\'' if !double => single = !single,
                b'"' if !single => double = !double,
                _ => {}
            }
        }
    }
    found
}

/// Words with the blanks after them; blanks at the beginning are a word of their own.
fn words(stretch: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let rest = &stretch[from..];
        if rest.is_empty() {
            return None;
        }
        let word = rest
            .iter()
            .position(|byte| *byte == b' ')
            .unwrap_or(rest.len());
        let blanks = rest[word..]
            .iter()
            .position(|byte| *byte != b' ')
            .unwrap_or(rest.len() - word);
        let start = from;
        from += word + blanks;
        Some(start..from)
    })
}

fn trim_end(word: &[u8]) -> &[u8] {
    let end = word
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(0, |at| at + 1);
    &word[..end]
}

fn escaped_width(word: &[u8]) -> usize {
    let mut text = String::new();
    escape_into(&mut text, word);
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::super::atom::unescape;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn breaks_at_line_ends_and_operators() {
        assert_eq!(
            break_lines(b"set -e\nmake\n", 60),
            ["set -e\\n\\", "make\\n"]
        );
        assert_eq!(
            break_lines(b"if x\n  y\n\nz", 60),
            ["if x\\", "\\n  y\\n\\", "\\n\\", "z"]
        );
        assert_eq!(
            break_lines(b"cd ~/src && git fetch origin master && make all", 24),
            [
                "cd ~/src \\",
                "&& git fetch origin \\",
                "master \\",
                "&& make all"
            ]
        );
        assert_eq!(break_lines(b"a | b cd", 4), ["a \\", "| b \\", "cd"]);
        assert_eq!(
            break_lines(b"(a || b) && c '| d' && e", 14),
            ["(a || b) \\", "&& c '| d' \\", "&& e"]
        );
        assert_eq!(break_lines(b"", 3), [""]);
        assert_eq!(break_lines(b"\n", 3), ["\\n"]);
    }

    proptest! {
        #[test]
        fn the_value_stays(value in "[a \\n\\t&|;\"\\\\é]{0,60}", width in 1_usize..30, indent in "[ \t]{0,5}") {
            let text = break_lines(value.as_bytes(), width).join(&format!("\n{indent}"));
            prop_assert_eq!(&*unescape(text.as_bytes()), value.as_bytes());
        }
    }
}
