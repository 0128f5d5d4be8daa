// SPDX-License-Identifier: Apache-2.0
//! The formatter: one layout for every S-expression file, comments kept where they are.
//!
//! A list stands on one line if it fits; else every field has its own line, one column in. The list of a spec's
//! items is always broken, and so is a `run` with several fields. An atom keeps its quotes or their absence, a
//! long or many-line string is laid out with backslash and line end. A comment that stood behind something
//! stays behind it, one on its own line stays on its own line; single blank lines are kept.
//!
//! Whether something is broken depends only on widths and on what the first pass already settles, so
//! formatting twice changes nothing. Nothing recurses, and indentation is bounded, so that output is linear.

use super::atom::{is_plain, push_quoted};
use super::lines::{break_lines, can_break};
use super::{Item, Kind, Tree};
use crate::diagnostic::Diagnostic;
use bstr::ByteSlice;
use std::iter::Peekable;

/// The width that is aimed at, in characters.
pub const WIDTH: usize = 100;
/// The deepest indentation.
const MAX_INDENT: usize = 40;
/// The least room that a string beginning in the middle of a line must have.
const LEAST_ROOM: usize = 30;
/// The flat width of what cannot stand on one line.
const BREAK: usize = usize::MAX;

/// Returns `source`, one expression with comments, in canonical layout.
///
/// The result is read as the same expression, and formatting it again changes nothing.
///
/// # Errors
///
/// Everything that the reader finds wrong.
pub fn format(source: &[u8]) -> Result<Vec<u8>, Vec<Diagnostic>> {
    Ok(layout(&Tree::read(source)?))
}

pub(crate) fn layout(tree: &Tree<'_>) -> Vec<u8> {
    let mut layout = Layout {
        source: tree.source(),
        flat: flat_widths(tree),
        out: Vec::new(),
        column: 0,
    };
    layout.run(tree);
    layout.out.push(b'\n');
    layout.out
}

/// Returns the width of every node on one line, or [`BREAK`].
fn flat_widths(tree: &Tree<'_>) -> Vec<usize> {
    let mut widths = vec![0; tree.len()];
    for index in (0..tree.len()).rev() {
        let item = Item { tree, index };
        widths[index] = match item.kind() {
            Kind::LineComment => BREAK,
            Kind::BlockComment if item.text().contains(&b'\n') => BREAK,
            Kind::BlockComment => item.text().chars().count(),
            Kind::Bare | Kind::Quoted => atom_width(item),
            Kind::List if must_break(item) => BREAK,
            Kind::List | Kind::DatumComment => {
                let mut total = if item.is_list() { 1_usize } else { 2 };
                for element in item.elements() {
                    total = total
                        .saturating_add(widths[element.index])
                        .saturating_add(1);
                }
                // A blank too many was counted for the last element; a list has its `)` there.
                let spare = usize::from(!item.is_list());
                match total {
                    BREAK => BREAK,
                    1 => 2,
                    total => total - spare,
                }
            }
        };
    }
    widths
}

fn atom_width(item: Item<'_>) -> usize {
    let value = item.atom().unwrap_or_default();
    let inside = value.strip_suffix(b"\n").unwrap_or(&value);
    if inside.contains(&b'\n') {
        BREAK
    } else {
        atom_text(item).chars().count()
    }
}

/// Returns an atom on one line.
fn atom_text(item: Item<'_>) -> String {
    if item.kind() == Kind::Bare
        && let Ok(text) = item.text().to_str()
        && text.chars().all(is_plain)
    {
        return text.to_owned();
    }
    let mut text = String::new();
    push_quoted(&mut text, &item.atom().unwrap_or_default());
    text
}

/// Tells whether a list is a spec (items, one of them `from`), or a `run` with several fields.
fn must_break(list: Item<'_>) -> bool {
    let mut children = list.children();
    let Some(first) = children.next() else {
        return false;
    };
    if first.is_list() {
        let is_item = |item: Item<'_>| {
            let head = item.children().next();
            item.is_list() && head.is_some_and(|head| matches!(head.text(), b"from" | b"build"))
        };
        is_item(first) || children.any(is_item)
    } else {
        first.text() == b"run" && children.filter(|child| child.is_list()).nth(1).is_some()
    }
}

/// A list, datum comment or the whole file whose elements are being written.
struct Frame<I: Iterator> {
    elements: Peekable<I>,
    is_list: bool,
    /// Column of the elements that begin a line.
    indent: usize,
    /// How many `)` follow what this frame writes last.
    tail: usize,
    previous: Option<Previous>,
    /// Where the frame ends in the source.
    end: usize,
}

/// The element before the one being placed.
#[derive(Clone, Copy)]
struct Previous {
    kind: Kind,
    end: usize,
    /// It is the first element and stands on one line.
    is_head: bool,
    /// It stands on one line.
    is_flat: bool,
}

struct Layout<'s> {
    source: &'s [u8],
    flat: Vec<usize>,
    out: Vec<u8>,
    column: usize,
}

impl Layout<'_> {
    fn write(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
        match text.rfind_byte(b'\n') {
            Some(at) => self.column = text[at + 1..].chars().count(),
            None => self.column += text.chars().count(),
        }
    }

    fn new_line(&mut self, indent: usize) {
        self.out.push(b'\n');
        self.out.resize(self.out.len() + indent, b' ');
        self.column = indent;
    }

    fn fits(&self, blank: usize, item: Item<'_>, tail: usize) -> bool {
        self.flat[item.index].saturating_add(self.column + blank + tail) <= WIDTH
    }

    fn run<'t>(&mut self, tree: &'t Tree<'t>) {
        let elements: Box<dyn Iterator<Item = Item<'t>>> = Box::new(tree.elements());
        let mut frames = vec![Frame {
            elements: elements.peekable(),
            is_list: false,
            indent: 0,
            tail: 0,
            previous: None,
            end: self.source.len(),
        }];
        while let Some(frame) = frames.last_mut() {
            let Some(item) = frame.elements.next() else {
                let (is_list, indent, end) = (frame.is_list, frame.indent, frame.end);
                let after_comment = frame
                    .previous
                    .is_some_and(|previous| previous.kind == Kind::LineComment);
                frames.pop();
                if is_list {
                    if after_comment {
                        self.new_line(indent);
                    }
                    self.write(b")");
                }
                if let Some(outer) = frames.last_mut() {
                    let kind = if is_list {
                        Kind::List
                    } else {
                        Kind::DatumComment
                    };
                    outer.previous = Some(Previous {
                        kind,
                        end,
                        is_head: false,
                        is_flat: false,
                    });
                }
                continue;
            };
            let is_last = frame.elements.peek().is_none();
            let tail = if is_last {
                frame.tail + usize::from(frame.is_list)
            } else {
                0
            };
            self.separate(frame.previous, item, frame.indent, tail);
            let is_head = frame.previous.is_none();
            let mut previous = Previous {
                kind: item.kind(),
                end: item.span().end,
                is_head,
                is_flat: true,
            };
            match item.kind() {
                Kind::LineComment => self.write(
                    item.text()
                        .trim_end_with(|c| matches!(c, ' ' | '\t' | '\x0c')),
                ),
                Kind::BlockComment => self.write(item.text()),
                Kind::Bare | Kind::Quoted => previous.is_flat = self.atom(item, tail),
                Kind::List | Kind::DatumComment if self.fits(0, item, tail) => self.flat(item),
                kind => {
                    let open: &[u8] = if kind == Kind::List { b"(" } else { b"#;" };
                    let indent = (self.column + open.len()).min(MAX_INDENT);
                    self.write(open);
                    let elements: Box<dyn Iterator<Item = Item<'t>>> = Box::new(item.elements());
                    frames.push(Frame {
                        elements: elements.peekable(),
                        is_list: kind == Kind::List,
                        indent,
                        tail,
                        previous: None,
                        end: item.span().end,
                    });
                    continue;
                }
            }
            frame.previous = Some(previous);
        }
    }

    /// Writes what stands between an element and the one before it: a blank, or one or two line ends.
    fn separate(&mut self, previous: Option<Previous>, item: Item<'_>, indent: usize, tail: usize) {
        let Some(previous) = previous else { return };
        let gap = &self.source[previous.end..item.span().start];
        let line_ends = gap.find_iter("\n").take(2).count();
        if self.stays_on_line(previous, item, line_ends, tail) {
            self.write(b" ");
        } else {
            if line_ends > 1 {
                self.out.push(b'\n');
            }
            self.new_line(indent);
        }
    }

    fn stays_on_line(
        &self,
        previous: Previous,
        item: Item<'_>,
        line_ends: usize,
        tail: usize,
    ) -> bool {
        match (previous.kind, item.kind()) {
            (Kind::LineComment, _) => false,
            (_, Kind::LineComment) => line_ends == 0,
            (_, Kind::BlockComment) => {
                line_ends == 0 && (self.flat[item.index] == BREAK || self.fits(1, item, tail))
            }
            (Kind::BlockComment, _) => line_ends == 0 && self.fits(1, item, tail),
            (Kind::Bare | Kind::Quoted, Kind::Bare | Kind::Quoted) if previous.is_flat => {
                self.fits(1, item, tail)
                    || (previous.is_head
                        && self.column + LEAST_ROOM <= WIDTH
                        && item.kind() == Kind::Quoted
                        && can_break(&item.atom().unwrap_or_default()))
            }
            _ => false,
        }
    }

    /// Writes an atom; tells whether it took one line.
    fn atom(&mut self, item: Item<'_>, tail: usize) -> bool {
        if item.kind() == Kind::Bare || self.fits(0, item, tail) {
            self.write(atom_text(item).as_bytes());
            return true;
        }
        let indent = (self.column + 1).min(MAX_INDENT);
        let room = WIDTH.saturating_sub(indent + 3 + tail.min(10)).max(10);
        let lines = break_lines(&item.atom().unwrap_or_default(), room);
        self.write(b"\"");
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                self.new_line(indent);
            }
            self.write(line.as_bytes());
        }
        self.write(b"\"");
        lines.len() == 1
    }

    /// Writes an element on one line.
    fn flat(&mut self, item: Item<'_>) {
        let tree = item.tree;
        let mut open: Vec<Item<'_>> = Vec::new();
        let mut fresh = true;
        let end = item.node().after;
        for index in item.index..=end {
            while let Some(last) = open.last().filter(|last| last.node().after <= index) {
                if last.is_list() {
                    self.write(b")");
                }
                open.pop();
                fresh = false;
            }
            if index == end {
                break;
            }
            if !fresh {
                self.write(b" ");
            }
            let item = Item { tree, index };
            fresh = false;
            match item.kind() {
                Kind::Bare | Kind::Quoted => self.write(atom_text(item).as_bytes()),
                Kind::LineComment | Kind::BlockComment => self.write(item.text()),
                kind @ (Kind::List | Kind::DatumComment) => {
                    self.write(if kind == Kind::List { b"(" } else { b"#;" });
                    open.push(item);
                    fresh = true;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_stay_in_their_places() {
        let source = br#"#| top |#

; about the build
((from    x) ; the base
 ; before a step


 ; after blank lines
 (run (cache (c (target /c)))   (shell
    "cd /src && make")) #| behind |# ; both
 #;(run ; not now
   (shell "x"))
 (env A #| inside |# "b c") (copy (src a b
  c) (dst /d/)
  ; at the end
 )
 (run (shell "a\n  b\n\nc\n")))
#;(old) ; last"#;
        let expected = r#"#| top |#

; about the build
((from x) ; the base
 ; before a step

 ; after blank lines
 (run
  (cache (c (target /c)))
  (shell "cd /src && make")) #| behind |# ; both
 #;(run ; not now
    (shell "x"))
 (env A #| inside |# "b c")
 (copy
  (src a b c)
  (dst /d/)
  ; at the end
  )
 (run
  (shell "a\
          \n  b\n\
          \n\
          c\n")))
#;(old) ; last
"#;
        let once = format(source).expect("a sound text");
        assert_eq!(once.to_str_lossy(), expected);
        assert_eq!(
            format(&once).expect("a sound text").to_str_lossy(),
            expected
        );
    }

    #[test]
    fn long_lists_of_atoms_are_filled() {
        let words = ["word-number-so-and-so"; 9].join(" ");
        let text = format(std::format!("(copy (src {words}) (dst /x/))").as_bytes())
            .expect("a sound text");
        assert_eq!(
            text.to_str_lossy(),
            "\
(copy
 (src word-number-so-and-so word-number-so-and-so word-number-so-and-so word-number-so-and-so
  word-number-so-and-so word-number-so-and-so word-number-so-and-so word-number-so-and-so
  word-number-so-and-so)
 (dst /x/))
"
        );
    }
}
