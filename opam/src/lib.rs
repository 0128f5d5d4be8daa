// SPDX-License-Identifier: Apache-2.0
//! The opam file format: text to syntax tree to the sources that a package is made of.
//!
//! [`parse`] reads every construct of the format and gives a tree with byte spans; a text with mistakes gives what was
//! understood, and the mistakes. [`sources`] takes from a tree what the archive needs. Both are pure.
//!
//! The grammar is that of opam's manual (section "Common file format") and of opam-file-format 2.1, whose trees over the whole of
//! opam-repository ours are compared with. Its lexer and parser are where the manual leaves something open: precedences, which token is
//! longest, what an escape may be.

mod checksum;
mod error;
mod lexer;
mod parser;
mod recovery;
mod sources;
#[cfg(test)]
mod tests;
pub mod tree;

pub use checksum::{Algorithm, BadChecksum, Checksum};
pub use error::{Place, SyntaxError, place};
pub use sources::{Problem, ProblemKind, Section, Severity, Source, Sources, sources};
pub use tree::{Item, Span, Value};

/// What was understood of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed<'a> {
    /// The fields and sections, in the order of the text.
    pub items: Vec<Item<'a>>,
    /// The mistakes, in the order of the text. At most [`MAX_ERRORS`].
    pub errors: Vec<SyntaxError>,
}

/// The most mistakes that are kept of one text: more help nobody.
pub const MAX_ERRORS: usize = 50;

/// The longest file that is worth reading; the longest of opam-repository has 24 kB. [`parse`] itself reads any length.
pub const MAX_FILE_BYTES: u64 = 8 << 20;

/// How deeply brackets, sections and prefixes may be nested. The deepest of opam-repository has six levels; without a limit a hostile
/// file could use up the stack of whoever walks over the tree.
pub const MAX_DEPTH: usize = 200;

/// Reads an opam file.
///
/// Never fails: a field with a mistake in it is left out and named in `errors`, and reading goes on with the next. Time and memory are
/// linear in the length of the text. Strings without escapes are borrowed from it.
pub fn parse(text: &[u8]) -> Parsed<'_> {
    parser::Parser::new(text).run()
}
