// SPDX-License-Identifier: Apache-2.0
//! What is wrong with a source text, where, and what to do about it.
//!
//! A [`Diagnostic`] carries byte ranges only; file name and source text are joined to it when it is drawn
//! ([`render`]) or written as JSON ([`to_json`]). Front ends collect them in a [`Collector`], which bounds how
//! many one text can produce.

mod render;

pub use render::{render, to_json};

use std::ops::Range;

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The text cannot be used.
    Error,
    /// The text can be used, but probably says something that was not meant.
    Warning,
}

/// A remark beside a [`Diagnostic`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The remark.
    pub message: String,
    /// The other place in the source that it speaks of.
    pub span: Option<Range<usize>>,
}

/// One thing that is wrong, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// Byte range in the source text.
    pub span: Range<usize>,
    /// Few words to stand under the mark.
    pub label: Option<String>,
    /// Remarks, some with a place of their own.
    pub notes: Vec<Note>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Makes an error.
    pub fn error(span: Range<usize>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, span, message.into())
    }

    /// Makes a warning.
    pub fn warning(span: Range<usize>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, span, message.into())
    }

    fn new(severity: Severity, span: Range<usize>, message: String) -> Self {
        Self {
            severity,
            message,
            span,
            label: None,
            notes: Vec::new(),
            help: None,
        }
    }

    /// Sets the words under the mark.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds a remark.
    #[must_use]
    pub fn with_note(mut self, message: impl Into<String>) -> Self {
        self.notes.push(Note {
            message: message.into(),
            span: None,
        });
        self
    }

    /// Adds a remark on another place.
    #[must_use]
    pub fn with_note_at(mut self, span: Range<usize>, message: impl Into<String>) -> Self {
        self.notes.push(Note {
            message: message.into(),
            span: Some(span),
        });
        self
    }

    /// Sets the advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Sets the advice if there is one.
    #[must_use]
    pub fn with_help_if(mut self, help: Option<String>) -> Self {
        if help.is_some() {
            self.help = help;
        }
        self
    }
}

/// The most errors that are kept for one text: more help nobody, and rendering them would not be linear.
pub const MAX_DIAGNOSTICS: usize = 50;

/// Gathers diagnostics up to [`MAX_DIAGNOSTICS`].
#[derive(Debug, Default)]
pub struct Collector {
    kept: Vec<Diagnostic>,
}

impl Collector {
    /// Makes an empty collector.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells whether further diagnostics would be dropped; costly searches for hints can then be spared.
    pub fn is_full(&self) -> bool {
        self.kept.len() >= MAX_DIAGNOSTICS
    }

    /// Keeps `diagnostic` unless the collector is full.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if !self.is_full() {
            self.kept.push(diagnostic);
        }
    }

    /// Tells whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Returns what was reported, in source order.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.kept.sort_by_key(|diagnostic| diagnostic.span.start);
        self.kept
    }
}
