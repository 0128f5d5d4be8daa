// SPDX-License-Identifier: Apache-2.0
//! What is wrong with the syntax of an opam file, and where.

use super::tree::Span;
use bstr::ByteSlice;
use std::fmt;

/// A line and a column, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}, column {}", self.line, self.column)
    }
}

/// Returns the line and column of a byte of `text`.
pub fn place(text: &[u8], offset: usize) -> Place {
    let before = &text[..offset.min(text.len())];
    let line_start = before.rfind_byte(b'\n').map_or(0, |at| at + 1);
    Place {
        line: before.find_iter("\n").count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// One mistake in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where it is.
    pub span: Span,
    /// The same for people.
    pub place: Place,
    /// What is wrong, in one line.
    pub message: String,
    /// Another place that it has to do with, and how: a bracket that was opened there.
    pub related: Option<(Span, &'static str)>,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for SyntaxError {}
