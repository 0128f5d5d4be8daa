// SPDX-License-Identifier: Apache-2.0
//! The reader: bytes to [`Tree`] in one pass with an explicit stack.
//!
//! After an error it goes on where it can, so that several mistakes show at once.

use super::atom::Escape;
use super::{Kind, Node, Tree};
use crate::diagnostic::{Collector, Diagnostic};
use bstr::ByteSlice;

pub(super) fn read(source: &[u8]) -> Result<Tree<'_>, Vec<Diagnostic>> {
    let mut reader = Reader {
        source,
        at: 0,
        nodes: Vec::new(),
        open: Vec::new(),
        root: None,
        extra: false,
        suspect: None,
        line_start: 0,
        fresh_line: true,
        errors: Collector::new(),
    };
    reader.run();
    match reader.root {
        Some(root) if reader.errors.is_empty() => Ok(Tree {
            source,
            nodes: reader.nodes,
            root,
        }),
        _ => Err(reader.errors.finish()),
    }
}

struct Reader<'s> {
    source: &'s [u8],
    at: usize,
    nodes: Vec<Node>,
    /// Lists and datum comments that are not closed, outermost first.
    open: Vec<Open>,
    root: Option<usize>,
    /// A second expression was reported.
    extra: bool,
    /// The first list that, going by the indentation of what follows, should have been closed before it was.
    suspect: Option<usize>,
    line_start: usize,
    /// Nothing but blanks was seen on this line.
    fresh_line: bool,
    errors: Collector,
}

/// A list or datum comment that is not closed.
#[derive(Clone, Copy)]
struct Open {
    index: usize,
    line_start: usize,
}

impl Reader<'_> {
    fn run(&mut self) {
        while let Some(&byte) = self.source.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\x0c' => {
                    self.at += 1;
                    continue;
                }
                b'\n' => {
                    self.at += 1;
                    self.line_start = self.at;
                    self.fresh_line = true;
                    continue;
                }
                b'\r' => self.carriage_return(),
                b'(' => self.open_list(),
                b')' => self.close_list(),
                b'"' => self.string(),
                b';' => self.line_comment(),
                b'#' if self.next_is(b'|') => self.block_comment(),
                b'#' if self.next_is(b';') => {
                    let index = self.push(Kind::DatumComment, self.at, self.at + 2);
                    self.open.push(Open {
                        index,
                        line_start: self.line_start,
                    });
                    self.at += 2;
                }
                _ => self.bare_atom(),
            }
            self.fresh_line = false;
        }
        self.end_of_file();
    }

    fn next_is(&self, byte: u8) -> bool {
        self.source.get(self.at + 1) == Some(&byte)
    }

    fn error(&mut self, diagnostic: Diagnostic) {
        self.errors.push(diagnostic);
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize) -> usize {
        let index = self.nodes.len();
        self.nodes.push(Node {
            kind,
            start,
            end,
            after: index + 1,
        });
        index
    }

    fn close(&mut self, index: usize) {
        self.nodes[index].end = self.at;
        self.nodes[index].after = self.nodes.len();
    }

    /// Notes that an expression begins here: it may be one too many.
    fn begin_datum(&mut self) {
        let Some(root) = self.root else { return };
        if self.open.is_empty() && !self.extra {
            self.extra = true;
            let first = self.nodes[root].start..self.nodes[root].end;
            self.error(
                Diagnostic::error(self.at..self.at + 1, "a file holds one expression, and here begins a second")
                    .with_note_at(first, "the first one")
                    .with_help("put both inside one pair of parentheses, or look for a `)` too many before this place"),
            );
        }
    }

    /// Books a finished expression into what surrounds it.
    fn finish_datum(&mut self, index: usize) {
        match self.open.last() {
            None => {
                self.root.get_or_insert(index);
            }
            Some(parent) if self.nodes[parent.index].kind == Kind::DatumComment => {
                let parent = parent.index;
                self.open.pop();
                self.close(parent);
            }
            Some(_) => {}
        }
    }

    fn carriage_return(&mut self) {
        if !self.next_is(b'\n') {
            self.error(
                Diagnostic::error(
                    self.at..self.at + 1,
                    "a carriage return that no line feed follows",
                )
                .with_help("end lines with a line feed, alone or after a carriage return"),
            );
        }
        self.at += 1;
    }

    fn open_list(&mut self) {
        self.begin_datum();
        if let (None, true, Some(parent)) = (self.suspect, self.fresh_line, self.open.last()) {
            let column_of_parent = self.nodes[parent.index].start - parent.line_start;
            if parent.line_start < self.line_start && self.at - self.line_start <= column_of_parent
            {
                self.suspect = Some(parent.index);
            }
        }
        let index = self.push(Kind::List, self.at, self.at + 1);
        self.open.push(Open {
            index,
            line_start: self.line_start,
        });
        self.at += 1;
    }

    fn close_list(&mut self) {
        self.drop_empty_datum_comments();
        self.at += 1;
        if let Some(Open { index, .. }) = self.open.pop() {
            self.close(index);
            self.finish_datum(index);
        } else {
            self.error(
                Diagnostic::error(self.at - 1..self.at, "this `)` closes nothing")
                    .with_help("remove it, or add the `(` that it belongs to"),
            );
        }
    }

    fn drop_empty_datum_comments(&mut self) {
        while let Some(&Open { index, .. }) = self.open.last() {
            if self.nodes[index].kind != Kind::DatumComment {
                break;
            }
            self.open.pop();
            self.close(index);
            let start = self.nodes[index].start;
            self.error(
                Diagnostic::error(
                    start..start + 2,
                    "`#;` comments out the expression after it, but there is none",
                )
                .with_help("remove the `#;`"),
            );
        }
    }

    fn string(&mut self) {
        self.begin_datum();
        let start = self.at;
        if self.scan_string("string") {
            self.note_lines(start);
            let index = self.push(Kind::Quoted, start, self.at);
            self.finish_datum(index);
        }
    }

    /// Keeps `line_start` true after a token from `start` that may hold line ends.
    fn note_lines(&mut self, start: usize) {
        if let Some(offset) = self.source[start..self.at].rfind_byte(b'\n') {
            self.line_start = start + offset + 1;
        }
    }

    /// Passes over a quoted string; reports what is wrong in it. Returns whether it ended.
    fn scan_string(&mut self, what: &str) -> bool {
        let start = self.at;
        self.at += 1;
        while let Some(offset) = self.source[self.at..].find_byteset(b"\"\\") {
            self.at += offset;
            if self.source[self.at] == b'"' {
                self.at += 1;
                return true;
            }
            let (escape, length) = Escape::parse(&self.source[self.at..]);
            if let Escape::Wrong(message) = escape {
                let end = self.at + length;
                self.error(
                    Diagnostic::error(self.at..end, message)
                        .with_help("write `\\\\` for a backslash"),
                );
            }
            self.at += length;
        }
        self.at = self.source.len();
        self.error(
            Diagnostic::error(start..start + 1, format!("this {what} is never closed"))
                .with_label("opened here")
                .with_help("close it with `\"`; a `\"` inside it is written `\\\"`"),
        );
        false
    }

    fn line_comment(&mut self) {
        let start = self.at;
        let rest = &self.source[start..];
        self.at += rest.find_byteset(b"\r\n").unwrap_or(rest.len());
        self.push(Kind::LineComment, start, self.at);
    }

    fn block_comment(&mut self) {
        let start = self.at;
        let mut opened = vec![start];
        self.at += 2;
        let mut before = b' ';
        while let Some(&byte) = self.source.get(self.at) {
            match (before, byte) {
                (b'#', b'|') => {
                    opened.push(self.at - 1);
                    before = b' ';
                }
                (b'|', b'#') => {
                    opened.pop();
                    before = b' ';
                    if opened.is_empty() {
                        self.at += 1;
                        self.note_lines(start);
                        self.push(Kind::BlockComment, start, self.at);
                        return;
                    }
                }
                (_, b'"') => {
                    if !self.scan_string("string, inside a block comment,") {
                        return;
                    }
                    before = b' ';
                    continue;
                }
                _ => before = byte,
            }
            self.at += 1;
        }
        let inner = opened.last().copied().unwrap_or(start);
        let mut diagnostic =
            Diagnostic::error(start..start + 2, "this block comment is never closed")
                .with_label("opened here")
                .with_help("close it with `|#`; block comments nest");
        if inner != start {
            diagnostic = diagnostic.with_note_at(
                inner..inner + 2,
                "the innermost one that is open at the end of the file",
            );
        }
        self.error(diagnostic);
    }

    fn bare_atom(&mut self) {
        self.begin_datum();
        let start = self.at;
        let rest = &self.source[start..];
        let length = rest.find_byteset(b" \t\x0c\r\n()\";").unwrap_or(rest.len());
        // `a#;b` is the atom `a#` and a line comment; only at its beginning is `#;` a token of its own.
        let text = &rest[..length];
        if let Some(at) = text
            .windows(2)
            .position(|pair| pair == b"#|" || pair == b"|#")
        {
            let place = start + at..start + at + 2;
            self.error(if text.starts_with(b"|#") {
                Diagnostic::error(place, "`|#` ends a block comment, but none is open here")
                    .with_help("write the atom in quotes if it is meant literally")
            } else {
                Diagnostic::error(place, "an atom without quotes cannot hold `#|` or `|#`")
                    .with_help("write the atom in quotes, or put a blank before the comment")
            });
        }
        self.at += length;
        let index = self.push(Kind::Bare, start, self.at);
        self.finish_datum(index);
    }

    fn end_of_file(&mut self) {
        self.drop_empty_datum_comments();
        // After any other error the parentheses may well be in order; an unclosed string has hidden the rest.
        if !self.errors.is_empty() {
            return;
        }
        let mut lists = self
            .open
            .iter()
            .filter(|open| self.nodes[open.index].kind == Kind::List);
        let count = lists.clone().count();
        let end = self.source.trim_ascii_end().len();
        let Some(innermost) = lists.next_back() else {
            if self.root.is_none() {
                self.error(
                    Diagnostic::error(end..end, "the file holds no expression")
                        .with_help("a spec looks like ((from BASE) (run (shell \"COMMAND\")))"),
                );
            }
            return;
        };
        let start = self.nodes[self.suspect.unwrap_or(innermost.index)].start;
        let missing = if count == 1 {
            "a `)` is".to_owned()
        } else {
            format!("{count} `)` are")
        };
        let diagnostic = Diagnostic::error(start..start + 1, format!("{missing} missing"));
        self.error(if self.suspect.is_some() {
            diagnostic
                .with_label("perhaps at the end of this list")
                .with_note("what follows is indented as if it had ended")
        } else {
            diagnostic
                .with_label("this list is never closed")
                .with_note_at(end..end, "the file ends here")
        });
    }
}
