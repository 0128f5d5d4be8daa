// SPDX-License-Identifier: Apache-2.0
//! The syntax tree of an opam file.

use bstr::{BStr, ByteSlice};
use std::borrow::Cow;
use std::ops::Range;

/// Where something stands in the text, in bytes from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The first byte behind it.
    pub end: usize,
}

impl Span {
    /// Returns the bytes from `start` to before `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// Returns it as a range.
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

/// A name and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The name.
    pub text: &'a BStr,
    /// Where.
    pub span: Span,
}

/// One thing in a file or in a section.
#[derive(Clone, Debug, PartialEq)]
pub enum Item<'a> {
    /// `name: value`
    Field(Field<'a>),
    /// `kind { … }` or `kind "name" { … }`
    Block(Block<'a>),
}

/// `name: value`
#[derive(Clone, Debug, PartialEq)]
pub struct Field<'a> {
    /// What stands before the colon.
    pub name: Name<'a>,
    /// What stands behind it.
    pub value: Value<'a>,
}

/// A section: `url { … }`, `extra-source "name" { … }`.
#[derive(Clone, Debug, PartialEq)]
pub struct Block<'a> {
    /// Its kind.
    pub kind: Name<'a>,
    /// Its name, where it has one, and where that stands.
    pub name: Option<(Cow<'a, [u8]>, Span)>,
    /// What it holds.
    pub items: Vec<Item<'a>>,
    /// From the kind to the closing brace.
    pub span: Span,
}

impl<'a> Block<'a> {
    /// Returns the fields of that name.
    pub fn fields(&self, name: &str) -> impl Iterator<Item = &Field<'a>> {
        self.items.iter().filter_map(move |item| match item {
            Item::Field(field) if field.name.text == name.as_bytes().as_bstr() => Some(field),
            _ => None,
        })
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Value<'a> {
    /// What it is.
    pub kind: Kind<'a>,
    /// Where, with the brackets or quotes around it.
    pub span: Span,
}

/// What a value can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind<'a> {
    /// `"text"` or `"""text"""`, without the quotes and with escapes resolved.
    String(Cow<'a, [u8]>),
    /// `name`, `package:variable`, `_:variable`, `a+b:variable`
    Ident(&'a BStr),
    /// `42`
    Int(i64),
    /// `true` or `false`
    Bool(bool),
    /// `[ … ]`
    List(Vec<Value<'a>>),
    /// `( … )`
    Group(Vec<Value<'a>>),
    /// `value { … }`
    Option(Box<Value<'a>>, Vec<Value<'a>>),
    /// `a & b & c`; at least two. The operator associates to the left, and groups are nodes of their own, so that this says all.
    And(Vec<Value<'a>>),
    /// `a | b | c`; at least two.
    Or(Vec<Value<'a>>),
    /// `! value` or `? value`
    Prefix(PrefixOp, Box<Value<'a>>),
    /// `atom >= atom`
    Relation(RelationOp, Box<[Value<'a>; 2]>),
    /// `>= atom`
    Compare(RelationOp, Box<Value<'a>>),
    /// `NAME += "value"`
    Env(EnvOp, Box<[Value<'a>; 2]>),
}

/// `!` and `?`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixOp {
    /// `!`
    Not,
    /// `?`: is it defined
    Defined,
}

/// The comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`, and `~`, which opam-file-format reads as the same.
    GreaterEqual,
}

/// The changes of environment variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvOp {
    /// `+=`
    PlusEqual,
    /// `=+`
    EqualPlus,
    /// `=+=`
    EqualPlusEqual,
    /// `:=`
    ColonEqual,
    /// `=:`
    EqualColon,
}

impl Value<'_> {
    /// Returns the text of a string.
    pub fn as_string(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the elements of a list, or the value itself as the only one: opam takes one for the other.
    pub fn elements(&self) -> &[Self] {
        match &self.kind {
            Kind::List(elements) => elements,
            _ => std::slice::from_ref(self),
        }
    }
}
