// SPDX-License-Identifier: Apache-2.0
//! S-expressions in OCaml's syntax, as OBuilder's specs are written in them.
//!
//! [`Tree::read`] turns bytes into a flat array of nodes in source order. The array form is what makes any
//! depth of nesting safe: nothing here recurses, dropping included. Comments are nodes too, so that a
//! formatter can keep them; whoever wants the meaning walks [`Item::children`], which skips them.
//!
//! The syntax is that of sexplib's `Sexp.load_sexp` (v0.15), which was also the oracle in testing. One
//! difference: a `#;` comment may stand after the last expression of a file.

mod atom;
mod layout;
mod lines;
mod read;

pub use atom::{escape_into, needs_quotes, push_atom, push_quoted, quoted};
pub(crate) use layout::layout;
pub use layout::{WIDTH, format};

use crate::diagnostic::Diagnostic;
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// What a node of a [`Tree`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An atom without quotes.
    Bare,
    /// An atom in double quotes.
    Quoted,
    /// `( … )`.
    List,
    /// `; …` without the line end.
    LineComment,
    /// `#| … |#`.
    BlockComment,
    /// `#;` with the expression that it comments out.
    DatumComment,
}

impl Kind {
    /// Tells whether the node means nothing.
    pub fn is_comment(self) -> bool {
        matches!(
            self,
            Self::LineComment | Self::BlockComment | Self::DatumComment
        )
    }
}

#[derive(Clone, Copy, Debug)]
struct Node {
    kind: Kind,
    start: usize,
    end: usize,
    /// Index of the first node that is not inside this one.
    after: usize,
}

/// One expression with the comments around and inside it.
pub struct Tree<'s> {
    source: &'s [u8],
    nodes: Vec<Node>,
    root: usize,
}

impl<'s> Tree<'s> {
    /// Reads a text that holds exactly one expression.
    ///
    /// Takes time and memory linear in the length of `source`.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text, in order of place.
    pub fn read(source: &'s [u8]) -> Result<Self, Vec<Diagnostic>> {
        read::read(source)
    }

    /// Returns the expression.
    pub fn root(&self) -> Item<'_> {
        Item {
            tree: self,
            index: self.root,
        }
    }

    /// Returns the text that was read.
    pub fn source(&self) -> &'s [u8] {
        self.source
    }

    /// Returns the expression and the comments beside it, in order.
    pub fn elements(&self) -> impl Iterator<Item = Item<'_>> {
        Siblings {
            tree: self,
            next: 0,
            end: self.nodes.len(),
        }
    }

    fn len(&self) -> usize {
        self.nodes.len()
    }
}

impl fmt::Debug for Tree<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tree({} nodes)", self.nodes.len())
    }
}

/// A node of a [`Tree`].
#[derive(Clone, Copy)]
pub struct Item<'t> {
    tree: &'t Tree<'t>,
    index: usize,
}

impl<'t> Item<'t> {
    fn node(self) -> &'t Node {
        &self.tree.nodes[self.index]
    }

    /// Returns what the node is.
    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// Returns the byte range of the node in the source.
    pub fn span(self) -> Range<usize> {
        self.node().start..self.node().end
    }

    /// Returns the node's own text.
    pub fn text(self) -> &'t [u8] {
        &self.tree.source[self.span()]
    }

    /// Returns the value of an atom, escapes resolved.
    pub fn atom(self) -> Option<Cow<'t, [u8]>> {
        match self.kind() {
            Kind::Bare => Some(Cow::Borrowed(self.text())),
            Kind::Quoted => Some(atom::unescape(&self.text()[1..self.text().len() - 1])),
            _ => None,
        }
    }

    /// Tells whether the node is a list.
    pub fn is_list(self) -> bool {
        self.kind() == Kind::List
    }

    /// Returns what is directly inside a list or datum comment, comments included.
    pub fn elements(self) -> impl Iterator<Item = Item<'t>> {
        Siblings {
            tree: self.tree,
            next: self.index + 1,
            end: self.node().after,
        }
    }

    /// Returns the expressions directly inside a list.
    pub fn children(self) -> impl Iterator<Item = Item<'t>> {
        self.elements().filter(|item| !item.kind().is_comment())
    }
}

struct Siblings<'t> {
    tree: &'t Tree<'t>,
    next: usize,
    end: usize,
}

impl<'t> Iterator for Siblings<'t> {
    type Item = Item<'t>;

    fn next(&mut self) -> Option<Item<'t>> {
        (self.next < self.end).then(|| {
            let item = Item {
                tree: self.tree,
                index: self.next,
            };
            self.next = item.node().after;
            item
        })
    }
}
