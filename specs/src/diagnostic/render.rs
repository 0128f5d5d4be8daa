// SPDX-License-Identifier: Apache-2.0
//! Diagnostics as text with the source line marked, and as JSON.
//!
//! Only the lines that a diagnostic marks are handed to the renderer, so the cost does not depend on the size
//! of the file; bytes that are not UTF-8 are shown as U+FFFD and the marks moved accordingly.

use super::{Diagnostic, Severity};
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};
use bstr::ByteSlice;
use serde_json::{Value, json};
use std::ops::Range;

/// The longest part of a line that is shown on either side of a mark, in bytes.
const MARGIN_BYTES: usize = 200;

/// Draws diagnostics for people: message, `file:line:column`, the source line with the place marked, notes, help.
///
/// `color` adds ANSI escapes. The result ends with a newline unless it is empty.
pub fn render(diagnostics: &[Diagnostic], file_name: &str, source: &[u8], color: bool) -> String {
    let lines = Lines::new(source);
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut text = String::new();
    for diagnostic in diagnostics {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&renderer.render(&report(diagnostic, file_name, &lines)));
        text.push('\n');
    }
    text
}

fn report<'a>(diagnostic: &'a Diagnostic, file_name: &'a str, lines: &Lines<'_>) -> Vec<Group<'a>> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let label = diagnostic.label.as_deref();
    let mut main = level
        .primary_title(diagnostic.message.as_str())
        .element(lines.snippet(&diagnostic.span, AnnotationKind::Primary, label, file_name));
    let mut groups = Vec::new();
    for note in &diagnostic.notes {
        match &note.span {
            None => main = main.element(Level::NOTE.message(note.message.as_str())),
            Some(span) => groups.push(
                Level::NOTE
                    .secondary_title(note.message.as_str())
                    .element(lines.snippet(span, AnnotationKind::Primary, None, file_name)),
            ),
        }
    }
    if let Some(help) = &diagnostic.help {
        main = main.element(Level::HELP.message(help.as_str()));
    }
    groups.insert(0, main);
    groups
}

/// Returns diagnostics as a JSON array.
///
/// Every element has `file`, `severity`, `message`, `line`, `column`, `end_line`, `end_column` (from 1, columns in
/// characters, the end exclusive), `start`, `end` (bytes from 0), `label`, `help` (string or null) and
/// `notes` (objects with `message` and, where the note has a place, the same position fields).
pub fn to_json(diagnostics: &[Diagnostic], file_name: &str, source: &[u8]) -> Value {
    let lines = Lines::new(source);
    let place = |span: &Range<usize>| {
        let (line, column) = lines.position(span.start);
        let (end_line, end_column) = lines.position(span.end);
        json!({
            "line": line, "column": column, "end_line": end_line, "end_column": end_column,
            "start": span.start, "end": span.end,
        })
    };
    let all = diagnostics.iter().map(|diagnostic| {
        let notes: Vec<Value> = diagnostic
            .notes
            .iter()
            .map(|note| {
                let mut value = note.span.as_ref().map_or_else(|| json!({}), place);
                value["message"] = json!(note.message);
                value
            })
            .collect();
        let mut value = place(&diagnostic.span);
        value["file"] = json!(file_name);
        value["severity"] = json!(diagnostic.severity);
        value["message"] = json!(diagnostic.message);
        value["label"] = json!(diagnostic.label);
        value["help"] = json!(diagnostic.help);
        value["notes"] = json!(notes);
        value
    });
    Value::Array(all.collect())
}

/// The line starts of a source text.
struct Lines<'s> {
    source: &'s [u8],
    starts: Vec<usize>,
}

impl<'s> Lines<'s> {
    fn new(source: &'s [u8]) -> Self {
        let starts = std::iter::once(0)
            .chain(source.find_iter("\n").map(|at| at + 1))
            .collect();
        Self { source, starts }
    }

    /// Index of the line that holds `offset`.
    fn line_of(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset) - 1
    }

    /// Byte range of a line without its line end.
    fn range(&self, line: usize) -> Range<usize> {
        let start = self.starts[line];
        let end = self
            .starts
            .get(line + 1)
            .map_or(self.source.len(), |next| next - 1);
        let text = &self.source[start..end];
        start..start + text.strip_suffix(b"\r").unwrap_or(text).len()
    }

    /// Line and column, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let offset = offset.min(self.source.len());
        let line = self.line_of(offset);
        let before = &self.source[self.starts[line]..offset];
        (line + 1, before.chars().count() + 1)
    }

    /// The first line of `span` with the span marked; of a span over several lines only the part on the first.
    fn snippet<'a>(
        &self,
        span: &Range<usize>,
        kind: AnnotationKind,
        label: Option<&'a str>,
        file_name: &'a str,
    ) -> Snippet<'a, Annotation<'a>> {
        let start = span.start.min(self.source.len());
        let line = self.line_of(start);
        let whole = self.range(line);
        let start = start.min(whole.end);
        let end = span.end.clamp(start, whole.end);
        // The cut keeps the line's beginning, so that columns stay true, unless the line is absurdly long.
        let from = if start - whole.start > 10 * MARGIN_BYTES {
            start - MARGIN_BYTES
        } else {
            whole.start
        };
        let to = whole.end.min(end.min(start + MARGIN_BYTES) + MARGIN_BYTES);
        let end = end.min(to);
        let mut text = String::new();
        let before = self.source[from..start].to_str_lossy();
        text.push_str(&before);
        let mark = text.len();
        text.push_str(&self.source[start..end].to_str_lossy());
        let mark = mark..text.len();
        text.push_str(&self.source[end..to].to_str_lossy());
        Snippet::source(text)
            .line_start(line + 1)
            .path(file_name)
            .annotation(kind.span(mark).label(label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_place_label_note_and_help() {
        let source = b"((from x)\n (rnu y))\n";
        let diagnostic = Diagnostic::error(12..15, "unknown operation `rnu`")
            .with_label("not an operation")
            .with_note_at(1..9, "the base")
            .with_help("did you mean `run`?");
        assert_eq!(
            render(&[diagnostic], "a.sexp", source, false),
            "\
error: unknown operation `rnu`
 --> a.sexp:2:3
  |
2 |  (rnu y))
  |   ^^^ not an operation
  |
  = help: did you mean `run`?
note: the base
 --> a.sexp:1:2
  |
1 | ((from x)
  |  ^^^^^^^^
"
        );
    }

    #[test]
    fn bytes_that_are_not_text_do_not_shift_the_mark() {
        let source = b"(\xff\xfe(rnu))";
        let text = render(&[Diagnostic::error(4..7, "m")], "f", source, false);
        assert!(text.contains("f:1:5"), "{text}");
        assert!(text.contains("\n  |     ^^^"), "{text}");
    }

    #[test]
    fn ends_and_empty_sources_are_drawn() {
        for (source, span) in [
            (&b""[..], 0..0),
            (b"a\n", 2..2),
            (b"\xff", 1..1),
            (b"ab\r\n", 2..9),
        ] {
            assert!(render(&[Diagnostic::error(span, "m")], "f", source, true).contains('m'));
        }
    }

    #[test]
    fn json_has_positions() {
        let source = "(é\n x)".as_bytes();
        let value = to_json(
            &[Diagnostic::warning(5..6, "m").with_note("n")],
            "f",
            source,
        );
        assert_eq!(
            value,
            json!([{
                "file": "f", "severity": "warning", "message": "m", "line": 2, "column": 2, "end_line": 2,
                "end_column": 3, "start": 5, "end": 6, "label": null, "help": null,
                "notes": [{"message": "n"}],
            }])
        );
    }
}
