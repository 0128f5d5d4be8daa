// SPDX-License-Identifier: Apache-2.0
//! Where to read on after a mistake.
//!
//! What is wrong is often a quote or a bracket that is missing, and then everything after it is read wrongly, or not at all. But opam
//! files are written with one field to a line, those outside of sections without indentation: so the next line that looks like the
//! beginning of a field is where reading goes on, even if that goes back.

use super::parser::Parser;
use bstr::ByteSlice;

/// How often the whole text may be looked at, so to speak, before reading goes back no more after a mistake: a hostile file could make
/// it go back again and again.
const MAX_WORK: usize = 6;

/// Where reading goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goes {
    /// In the file or section where the mistake is.
    On,
    /// In what surrounds the section.
    Left,
}

impl Parser<'_> {
    /// Goes to where reading can go on after a mistake in the item that begins at `item`, in a section if `nested`.
    pub(super) fn recover(&mut self, item: usize, nested: bool) -> Goes {
        let mistake = self.lexer.at();
        let mut line = next_line(self.text, item);
        let back = mistake.saturating_sub(line);
        if self.lexer.work + back > MAX_WORK * self.text.len() {
            line = next_line(self.text, mistake);
        }
        while line < self.text.len() {
            let goes = match looks(&self.text[line..]) {
                Some(Look::Field { .. } | Look::Close) if nested => Goes::On,
                Some(Look::Block) if nested => Goes::Left,
                Some(Look::Field { indented: false } | Look::Block) => Goes::On,
                _ => {
                    let next = next_line(self.text, line);
                    self.lexer.work += next - line;
                    line = next;
                    continue;
                }
            };
            self.resume(line);
            return goes;
        }
        self.resume(self.text.len());
        Goes::On
    }
}

/// Returns where the line after the one of `at` begins.
fn next_line(text: &[u8], at: usize) -> usize {
    text[at..]
        .find_byte(b'\n')
        .map_or(text.len(), |length| at + length + 1)
}

/// What a line looks like.
enum Look {
    /// `name:`
    Field { indented: bool },
    /// `kind {` or `kind "name" {` without indentation
    Block,
    /// `}`
    Close,
}

fn looks(text: &[u8]) -> Option<Look> {
    let line = &text[..text.find_byte(b'\n').unwrap_or(text.len())];
    let trimmed = line.trim_start_with(|c| c == ' ' || c == '\t');
    let indented = trimmed.len() < line.len();
    if trimmed.first() == Some(&b'}') {
        return Some(Look::Close);
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+');
    let word = trimmed.iter().take_while(|byte| is_word(**byte)).count();
    let rest = trimmed[word..].trim_start_with(|c| c == ' ' || c == '\t');
    let has_letter = trimmed[..word].iter().any(u8::is_ascii_alphabetic);
    match rest {
        _ if !has_letter => None,
        [b':', after @ ..] if after.first() != Some(&b'=') => Some(Look::Field { indented }),
        [b'{', ..] if !indented => Some(Look::Block),
        [b'"', name @ ..] if !indented => {
            let end = name.find_byte(b'"')?;
            let rest = name[end + 1..].trim_start_with(|c| c == ' ' || c == '\t');
            rest.starts_with(b"{").then_some(Look::Block)
        }
        _ => None,
    }
}
