// SPDX-License-Identifier: Apache-2.0
//! Specs as text: a whole one in canonical layout, and one operation as the heading of its log.
//!
//! Field order and what is left out (empty lists, the default source) are OBuilder's (614c8ac
//! `lib_spec/spec.ml`), and so is the layout of headings (`pp_op`); the layout of a whole spec is that of
//! [`crate::sexp::format`].

use super::{CopyOp, Mount, Op, RunOp, Spec};
use crate::plan::{Network, User};
use crate::sexp::{self, Tree, escape_into, needs_quotes, push_atom, push_quoted};
use bstr::{BStr, BString};
use std::fmt;

/// OBuilder lays a heading out for this many columns.
const HEADING_WIDTH: usize = 80;

impl fmt::Display for Spec {
    /// Writes the spec as a file: canonical, and read again as an equal spec.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut compact = String::new();
        push_spec(&mut compact, self);
        let tree = Tree::read(compact.as_bytes()).expect("printed text is one expression");
        let text = sexp::layout(&tree);
        formatter.write_str(std::str::from_utf8(&text).expect("printed text is UTF-8"))
    }
}

fn push_spec(text: &mut String, spec: &Spec) {
    text.push('(');
    for build in &spec.builds {
        text.push_str("(build ");
        push_atom(text, build.name.as_bytes());
        text.push(' ');
        push_spec(text, &build.spec);
        text.push(')');
    }
    text.push_str("(from ");
    push_atom(text, spec.from.as_bytes());
    text.push(')');
    for op in &spec.ops {
        push_op(text, op);
    }
    text.push(')');
}

fn push_op(text: &mut String, op: &Op) {
    let fields: Vec<String> = fields(op)
        .iter()
        .map(|field| field.text(&push_atom))
        .collect();
    text.push('(');
    text.push_str(name(op));
    for field in fields {
        text.push(' ');
        text.push_str(&field);
    }
    text.push(')');
}

/// The printed form of an expression, small enough to be built for one operation at a time.
enum Part<'a> {
    Atom(&'a [u8]),
    /// An atom that is always quoted: a command, so that all of them look alike.
    Command(&'a [u8]),
    Number(u32),
    List(Vec<Part<'a>>),
}

impl<'a> Part<'a> {
    fn field(name: &'static str, values: impl IntoIterator<Item = Part<'a>>) -> Self {
        Self::List(
            std::iter::once(Self::Atom(name.as_bytes()))
                .chain(values)
                .collect(),
        )
    }

    fn text(&self, atom: &dyn Fn(&mut String, &[u8])) -> String {
        let mut text = String::new();
        self.push(&mut text, atom);
        text
    }

    fn push(&self, text: &mut String, atom: &dyn Fn(&mut String, &[u8])) {
        match self {
            Self::Atom(value) => atom(text, value),
            Self::Command(value) if value.contains(&b'\n') => atom(text, value),
            Self::Command(value) => push_quoted(text, value),
            Self::Number(number) => text.push_str(&number.to_string()),
            Self::List(parts) => {
                text.push('(');
                for (number, part) in parts.iter().enumerate() {
                    if number > 0 {
                        text.push(' ');
                    }
                    part.push(text, atom);
                }
                text.push(')');
            }
        }
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Comment(_) => "comment",
        Op::Workdir(_) => "workdir",
        Op::Shell(_) => "shell",
        Op::Run(_) => "run",
        Op::Copy(_) => "copy",
        Op::User(_) => "user",
        Op::Env { .. } => "env",
    }
}

fn fields(op: &Op) -> Vec<Part<'_>> {
    match op {
        Op::Comment(value) | Op::Workdir(value) => vec![Part::Atom(value)],
        Op::Shell(words) => atoms(words),
        Op::Env { name, value } => vec![Part::Atom(name), Part::Atom(value)],
        Op::User(User::Ids { uid, gid }) => {
            vec![
                Part::field("uid", [Part::Number(*uid)]),
                Part::field("gid", [Part::Number(*gid)]),
            ]
        }
        Op::User(User::Name(name)) => vec![Part::field("name", [Part::Atom(name)])],
        Op::Run(run) => run_fields(run),
        Op::Copy(copy) => copy_fields(copy),
    }
}

fn atoms(values: &[BString]) -> Vec<Part<'_>> {
    values.iter().map(|value| Part::Atom(value)).collect()
}

fn run_fields(run: &RunOp) -> Vec<Part<'_>> {
    let mut fields = Vec::new();
    if !run.cache.is_empty() {
        fields.push(Part::field("cache", run.cache.iter().map(mount)));
    }
    if run.network == Network::Host {
        fields.push(Part::field("network", [Part::Atom(b"host")]));
    }
    if !run.secrets.is_empty() {
        fields.push(Part::field("secrets", run.secrets.iter().map(mount)));
    }
    fields.push(Part::field("shell", [Part::Command(&run.shell)]));
    fields
}

fn mount(mount: &Mount) -> Part<'_> {
    let mut parts = vec![
        Part::Atom(&mount.id),
        Part::field("target", [Part::Atom(&mount.target)]),
    ];
    if !mount.buildkit_options.is_empty() {
        let pairs = mount
            .buildkit_options
            .iter()
            .map(|(name, value)| Part::List(vec![Part::Atom(name), Part::Atom(value)]));
        parts.push(Part::field(
            "buildkit_options",
            [Part::List(pairs.collect())],
        ));
    }
    Part::List(parts)
}

fn copy_fields(copy: &CopyOp) -> Vec<Part<'_>> {
    let mut fields = Vec::new();
    if let Some(name) = &copy.from {
        let build = Part::field("build", [Part::Atom(name.as_bytes())]);
        fields.push(Part::field("from", [build]));
    }
    fields.push(Part::field(
        "src",
        copy.src.iter().map(|src| Part::Atom(src)),
    ));
    fields.push(Part::field("dst", [Part::Atom(&copy.dst)]));
    if !copy.exclude.is_empty() {
        fields.push(Part::field("exclude", atoms(&copy.exclude)));
    }
    fields
}

/// Returns an operation as its log is headed: the working directory, then the operation.
///
/// `run` has a line for each field, `copy` one line if it fits 80 columns, the others one line; an atom with
/// line ends is continued under itself.
pub fn heading(workdir: &BStr, op: &Op) -> String {
    let mut text = String::new();
    escape_into(&mut text, workdir);
    text.push_str(": (");
    text.push_str(name(op));
    let fields = fields(op);
    if fields.is_empty() {
        text.push(')');
        return text;
    }
    text.push(' ');
    let indent = text.chars().count();
    let flat: usize = fields
        .iter()
        .map(|field| field.text(&push_atom).chars().count() + 1)
        .sum();
    let one_a_line = match op {
        Op::Run(_) => true,
        Op::Copy(_) => indent + flat > HEADING_WIDTH,
        _ => false,
    };
    for (number, field) in fields.iter().enumerate() {
        if number > 0 && one_a_line {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
        } else if number > 0 {
            text.push(' ');
        }
        field.push(&mut text, &push_human);
    }
    text.push(')');
    text
}

/// Returns the heading of a base.
pub(crate) fn from_heading(base: &str) -> String {
    let mut text = "(from ".to_owned();
    push_atom(&mut text, base.as_bytes());
    text.push(')');
    text
}

/// Appends an atom in sexplib's form for people (v0.15 `Sexp.pp_hum`): line ends stand at the beginning of
/// continued lines, and a blank before the quote lines the text up.
fn push_human(text: &mut String, value: &[u8]) {
    if !value.contains(&b'\n') {
        return push_atom(text, value);
    }
    debug_assert!(needs_quotes(value), "a line end needs quotes");
    let line_start = text.rfind('\n').map_or(0, |at| at + 1);
    let indent = text[line_start..].chars().count();
    text.push_str(" \"");
    for (number, line) in value.split(|byte| *byte == b'\n').enumerate() {
        if number > 0 {
            text.push_str("\\\n");
            text.push_str(&" ".repeat(indent));
            text.push_str("\\n");
        }
        escape_into(text, line);
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headings(source: &str) -> Vec<String> {
        let spec = Spec::parse(source.as_bytes()).expect("a sound spec");
        spec.ops.iter().map(|op| heading("/".into(), op)).collect()
    }

    #[test]
    fn headings_are_laid_out_as_obuilder_does() {
        let texts = headings(
            r#"((from x)
                (comment "hello world") (workdir /src) (shell /bin/sh -c) (shell) (env A "b c")
                (user (uid 0x10) (gid 1)) (user (name opam))
                (run (shell true))
                (run (shell "echo one\necho two && echo three"))
                (run (shell "make") (secrets (s (target /s))) (network host)
                     (cache (a (target /a) (buildkit_options ((mode 0755)))) (b (target "/b b"))))
                (copy (dst /y) (src x) (from context))
                (copy (exclude .git) (dst /a/long/destination/directory/) (src one two three four five six seven)))"#,
        );
        assert_eq!(
            texts.join("\n"),
            r#"/: (comment "hello world")
/: (workdir /src)
/: (shell /bin/sh -c)
/: (shell)
/: (env A "b c")
/: (user (uid 16) (gid 1))
/: (user (name opam))
/: (run (shell "true"))
/: (run (shell  "echo one\
               \necho two && echo three"))
/: (run (cache (a (target /a) (buildkit_options ((mode 0755)))) (b (target "/b b")))
        (network host)
        (secrets (s (target /s)))
        (shell "make"))
/: (copy (src x) (dst /y))
/: (copy (src one two three four five six seven)
         (dst /a/long/destination/directory/)
         (exclude .git))"#
        );
    }
}
