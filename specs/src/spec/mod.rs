// SPDX-License-Identifier: Apache-2.0
//! OBuilder's specification language as a tree with source places.
//!
//! [`Spec::parse`] reads and checks a text; [`Spec::check`] alone serves specs made by a program. What is
//! accepted is what OBuilder 614c8ac (`lib_spec/spec.ml`) accepts, less what fails there only when the build
//! has begun; the few differences are noted where they are made.

mod check;
mod fields;
mod parse;
mod print;
pub(crate) mod suggest;

pub use check::warnings;
pub(crate) use print::from_heading;
pub use print::heading;

use crate::diagnostic::Diagnostic;
use crate::plan::{Network, User};
use bstr::BString;
use std::ops::{Deref, Range};

/// How deep builds may be nested: far beyond use, and shallow enough for recursion.
pub const MAX_NESTING: usize = 100;

/// A value with its place in the source. Two are equal if their values are, wherever they stand.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its byte range in the source; empty at 0 for what no source holds.
    pub span: Range<usize>,
}

impl<T> Spanned<T> {
    /// Joins a value to its place.
    pub fn new(value: T, span: Range<usize>) -> Self {
        Self { value, span }
    }
}

impl<T> From<T> for Spanned<T> {
    fn from(value: T) -> Self {
        Self::new(value, 0..0)
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for Spanned<T> {}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// A build: nested builds, a base, and operations on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Builds that copies may take files from.
    pub builds: Vec<Build>,
    /// The image that the build starts from.
    pub from: Spanned<String>,
    /// What is done, in order.
    pub ops: Vec<Spanned<Op>>,
}

/// A named build inside another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// The name that copies know it by.
    pub name: Spanned<String>,
    /// The build.
    pub spec: Spec,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Shows a text in the log.
    Comment(BString),
    /// Sets the working directory of what follows.
    Workdir(BString),
    /// Sets the command that `run` gives its text to.
    Shell(Vec<BString>),
    /// Runs a command.
    Run(RunOp),
    /// Copies files.
    Copy(CopyOp),
    /// Sets the user of what follows.
    User(User),
    /// Sets an environment variable for what follows.
    Env {
        /// Its name.
        name: BString,
        /// Its value.
        value: BString,
    },
}

/// The fields of `run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOp {
    /// Persistent caches.
    pub cache: Vec<Mount>,
    /// Which network the command sees.
    pub network: Network,
    /// Secrets.
    pub secrets: Vec<Mount>,
    /// The command's text.
    pub shell: Spanned<BString>,
}

/// A cache or secret mounted into a `run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its name.
    pub id: Spanned<BString>,
    /// Where the command sees it.
    pub target: Spanned<BString>,
    /// Options for `RUN --mount` of a converted Dockerfile; they mean nothing here.
    pub buildkit_options: Vec<(BString, BString)>,
}

/// The fields of `copy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyOp {
    /// The build to copy from; the build context if there is none.
    pub from: Option<Spanned<String>>,
    /// Paths below the source's root.
    pub src: Vec<Spanned<BString>>,
    /// Where they go.
    pub dst: Spanned<BString>,
    /// Base names to leave out.
    pub exclude: Vec<BString>,
}

impl Spec {
    /// Reads a spec and checks it.
    ///
    /// # Errors
    ///
    /// All mistakes that were found (at most [`crate::diagnostic::MAX_DIAGNOSTICS`]), in order of place. Of a
    /// text that is not one well-formed S-expression only that is reported.
    pub fn parse(source: &[u8]) -> Result<Self, Vec<Diagnostic>> {
        parse::parse(source)
    }

    /// Checks what [`Spec::parse`] checks beyond the grammar, for a spec made by a program.
    ///
    /// # Errors
    ///
    /// All mistakes that were found.
    pub fn check(&self) -> Result<(), Vec<Diagnostic>> {
        check::check(self)
    }

    /// Returns every base that this build and those inside it start from, once each, with its first place.
    pub fn bases(&self) -> Vec<Spanned<String>> {
        let mut seen = std::collections::HashSet::new();
        let mut bases = Vec::new();
        self.for_each(&mut |spec| {
            if seen.insert(spec.from.value.clone()) {
                bases.push(spec.from.clone());
            }
        });
        bases
    }

    /// Calls `visit` for every nested build in order, innermost first, and at last for this one.
    fn for_each(&self, visit: &mut impl FnMut(&Self)) {
        for build in &self.builds {
            build.spec.for_each(visit);
        }
        visit(self);
    }
}
