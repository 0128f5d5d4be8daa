// SPDX-License-Identifier: Apache-2.0
//! Specs as Dockerfiles.
//!
//! The outline is OBuilder's (614c8ac `lib_spec/docker.ml`): a stage a build, an instruction an operation. Unlike
//! there, what is written means what the spec means:
//!
//! - Every stage sets the user, directory and shell that a spec starts with before the first step that depends on
//!   them, because a spec takes none of them from its base.
//! - A command of one line stands behind `RUN` as it is. One that a Dockerfile would change (several lines, blanks
//!   at an end, a look of flags, JSON or a here-document) becomes a here-document for BuildKit, where that is the
//!   same, and else the exec form with the shell spelled out.
//! - A variable that no `ENV` can hold is given to each command by `env`.
//! - `(copy (src DIR) (dst INTO/))` makes `INTO/DIR`, `COPY DIR INTO/` does not; hence a `COPY` for each source.
//! - Source names are no patterns, and nothing is expanded.
//!
//! What has no counterpart is left out with a comment in the file and a warning.

mod run;
mod words;

use crate::diagnostic::Diagnostic;
use crate::plan::User;
use crate::sexp::quoted;
use crate::spec::{Build, CopyOp, Op, Spanned, Spec};
use bstr::{BString, ByteSlice};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The escape character of a Dockerfile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escape {
    /// The backslash.
    #[default]
    Unix,
    /// The backtick, as Windows' paths want it.
    Windows,
}

impl Escape {
    fn character(self) -> char {
        match self {
            Self::Unix => '\\',
            Self::Windows => '`',
        }
    }
}

/// A converted spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The file's text.
    pub text: String,
    /// What could not be said in a Dockerfile, with its place in the spec.
    pub warnings: Vec<Diagnostic>,
}

/// Converts a spec; `buildkit` allows what only BuildKit understands (mounts, here-documents, `--exclude`).
pub fn to_dockerfile(spec: &Spec, buildkit: bool, escape: Escape) -> Dockerfile {
    let mut taken: HashSet<String> = spec.bases().into_iter().map(|base| base.value).collect();
    taken.extend(["scratch", "context"].map(str::to_owned));
    let mut converter = Converter {
        buildkit,
        escape: escape.character(),
        text: String::new(),
        warnings: Vec::new(),
        needs_syntax: false,
        taken,
        scope: HashMap::new(),
    };
    converter.spec(spec, None);
    let mut text = String::new();
    if converter.needs_syntax {
        text.push_str("# syntax=docker/dockerfile:1\n");
    }
    if escape == Escape::Windows {
        text.push_str("# escape=`\n");
    }
    text.push_str(&converter.text);
    Dockerfile {
        text,
        warnings: converter.warnings,
    }
}

struct Converter<'s> {
    buildkit: bool,
    escape: char,
    text: String,
    warnings: Vec<Diagnostic>,
    /// Something recent is used, which an older built-in frontend may not know.
    needs_syntax: bool,
    /// Names that no stage may get: `FROM` would take the stage for the image.
    taken: HashSet<String>,
    /// The stages of the builds that can be seen.
    scope: HashMap<&'s str, Vec<String>>,
}

/// What a stage has set so far, and which of it is written.
struct Stage {
    user: User,
    has_user: bool,
    workdir: BString,
    has_workdir: bool,
    shell: Vec<BString>,
    has_shell: bool,
    /// Variables that no `ENV` can hold.
    env: Vec<(BString, BString)>,
}

impl<'s> Converter<'s> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn instruction<'f>(&mut self, name: &str, flags: impl Iterator<Item = &'f String>, rest: &str) {
        self.text.push_str(name);
        for flag in flags {
            self.text.push(' ');
            self.text.push_str(flag);
        }
        self.line(&format!(" {rest}"));
    }

    /// Notes what cannot be said, in the file and as a warning.
    fn cannot(&mut self, span: &Range<usize>, message: String) {
        self.line(&format!("# obuild: {message}"));
        self.warnings
            .push(Diagnostic::warning(span.clone(), message));
    }

    fn text(&mut self, bytes: &[u8], span: &Range<usize>) -> String {
        let (text, lossy) = words::text(bytes);
        if lossy {
            self.cannot(
                span,
                format!("{} is not UTF-8, as a Dockerfile must be", quoted(bytes)),
            );
        }
        text
    }

    fn spec(&mut self, spec: &'s Spec, name: Option<&str>) {
        for Build { name, spec } in &spec.builds {
            let stage = self.stage_name(name);
            self.spec(spec, Some(&stage));
            self.text.push('\n');
            self.scope.entry(name).or_default().push(stage);
        }
        self.from(&spec.from, name);
        let mut stage = Stage {
            user: User::Ids { uid: 0, gid: 0 },
            has_user: false,
            workdir: "/".into(),
            has_workdir: false,
            shell: crate::LowerOptions::default().shell,
            has_shell: false,
            env: Vec::new(),
        };
        for op in &spec.ops {
            self.op(&mut stage, op);
        }
        for build in &spec.builds {
            self.scope.entry(&build.name).or_default().pop();
        }
    }

    /// Returns a name for a stage: lower case, of the letters that are allowed, used by nothing else.
    fn stage_name(&mut self, name: &str) -> String {
        let allowed = |c: char| {
            if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                c
            } else {
                '-'
            }
        };
        let mut stage: String = name.to_ascii_lowercase().chars().map(allowed).collect();
        if !stage.starts_with(|c: char| c.is_ascii_lowercase()) {
            stage.insert_str(0, "build-");
        }
        let plain = stage.clone();
        let mut number = 1;
        while !self.taken.insert(stage.clone()) {
            number += 1;
            stage = format!("{plain}-{number}");
        }
        stage
    }

    fn from(&mut self, from: &Spanned<String>, stage: Option<&str>) {
        let reference = from.strip_prefix("docker://").unwrap_or(from);
        // docker-archive:, oci:, debootstrap: and the like; a host's port or a tag is followed by digits or `/`.
        let transports = [
            "oci",
            "oci-archive",
            "docker-archive",
            "docker-daemon",
            "dir",
            "tar",
            "debootstrap",
        ];
        if reference
            .split_once(':')
            .is_some_and(|(transport, _)| transports.contains(&transport))
        {
            self.cannot(
                &from.span,
                format!("FROM knows no base like {}", quoted(reference.as_bytes())),
            );
        }
        let reference = words::word(reference, self.escape);
        let name = stage.map_or_else(String::new, |stage| format!(" AS {stage}"));
        self.line(&format!("FROM {reference}{name}"));
    }

    fn op(&mut self, stage: &mut Stage, op: &Spanned<Op>) {
        let span = &op.span;
        match &op.value {
            Op::Comment(text) => {
                let text = text.to_str_lossy();
                for line in text.split(['\n', '\r']) {
                    self.line(format!("# {line}").trim_end());
                }
            }
            Op::Workdir(dir) => {
                stage.workdir = crate::lower::join(&stage.workdir, dir);
                let workdir = stage.workdir.clone();
                self.workdir(stage, &workdir, span);
            }
            Op::Shell(words) => {
                stage.shell.clone_from(words);
                stage.has_shell = false;
                if words.iter().all(|word| word.to_str().is_ok()) {
                    self.shell(stage);
                }
            }
            Op::User(user) => {
                stage.user = user.clone();
                self.user(stage, span);
            }
            Op::Env { name, value } => self.env(stage, name, value, span),
            Op::Run(run) => self.run(stage, run, span),
            Op::Copy(copy) => self.copy(stage, copy, span),
        }
    }

    fn workdir(&mut self, stage: &mut Stage, dir: &[u8], span: &Range<usize>) {
        stage.has_workdir = true;
        if dir.contains(&b'\n') {
            self.cannot(span, format!("WORKDIR cannot be {}", quoted(dir)));
            return;
        }
        let dir = self.text(dir, span);
        let dir = words::word(&dir, self.escape);
        self.line(&format!("WORKDIR {dir}"));
    }

    fn user(&mut self, stage: &mut Stage, span: &Range<usize>) {
        stage.has_user = true;
        let user = match &stage.user {
            User::Ids { uid, gid } => format!("{uid}:{gid}"),
            User::Name(name) if name.contains(&b'\n') => {
                self.cannot(span, format!("USER cannot be {}", quoted(name)));
                return;
            }
            User::Name(name) => words::word(&self.text(name, span), self.escape),
        };
        self.line(&format!("USER {user}"));
    }

    /// Writes the shell unless it is written or cannot be (an empty one).
    fn shell(&mut self, stage: &mut Stage) {
        if !stage.has_shell && !stage.shell.is_empty() {
            stage.has_shell = true;
            let words: Vec<String> = stage.shell.iter().map(ToString::to_string).collect();
            let shell = words::json(&words);
            self.line(&format!("SHELL {shell}"));
        }
    }

    fn env(&mut self, stage: &mut Stage, name: &BString, value: &BString, span: &Range<usize>) {
        stage.env.retain(|(other, _)| other != name);
        let is_name = name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(byte));
        if !is_name || value.contains(&b'\n') || value.contains(&b'\r') {
            stage.env.push((name.clone(), value.clone()));
            self.cannot(
                span,
                format!(
                    "ENV cannot hold {}: its value is given to each RUN",
                    quoted(name)
                ),
            );
            return;
        }
        let value = self.text(value, span);
        let value = words::quoted(&value, self.escape);
        self.line(&format!("ENV {name}={value}"));
    }

    fn copy(&mut self, stage: &mut Stage, copy: &CopyOp, span: &Range<usize>) {
        let mut flags = Vec::new();
        match &stage.user {
            User::Ids { uid: 0, gid: 0 } => {}
            User::Ids { uid, gid } => flags.push(format!("--chown={uid}:{gid}")),
            // Windows has no owners that COPY could set.
            User::Name(_) if self.escape == '`' => {}
            User::Name(name) => {
                let name = self.text(name, span).replace('$', "\\$");
                flags.push(format!("--chown={}", words::flag(&name)));
            }
        }
        if let Some(from) = &copy.from {
            let stage = self
                .scope
                .get(&*from.value)
                .and_then(|stages| stages.last());
            flags.push(format!(
                "--from={}",
                stage.map_or("unknown", String::as_str)
            ));
        }
        if !copy.dst.starts_with(b"/") && !stage.has_workdir {
            let workdir = stage.workdir.clone();
            self.workdir(stage, &workdir, span);
        }
        for src in &copy.src {
            let parts: Vec<&[u8]> = src
                .split(|byte| *byte == b'/')
                .filter(|part| !matches!(*part, b"" | b"."))
                .collect();
            let excludes = self.excludes(copy, parts.last().copied().unwrap_or_default(), span);
            let into = if copy.dst.is_empty() {
                b"./"
            } else {
                copy.dst.as_slice()
            };
            let (src, dst) = match parts.last() {
                None => (b".".to_vec(), into.to_vec()),
                Some(name) if into.ends_with(b"/") => (parts.join(&b'/'), [into, name].concat()),
                Some(_) => (parts.join(&b'/'), into.to_vec()),
            };
            let (src, dst) = (
                self.text(&src, &copy.src[0].span),
                self.text(&dst, &copy.dst.span),
            );
            let mut src = words::literal_pattern(&src);
            // Not to be taken for a flag or a here-document.
            if src.starts_with(['-', '<'])
                || src.starts_with(|c: char| c.is_ascii_digit()) && src.contains("<<")
            {
                src.insert_str(0, "./");
            }
            // JSON carries line ends too.
            let paths = words::paths(&[src, dst], self.escape);
            self.instruction("COPY", flags.iter().chain(&excludes), &paths);
        }
    }

    /// Returns the `--exclude` flags for a source whose last part is `name`.
    fn excludes(&mut self, copy: &CopyOp, name: &[u8], span: &Range<usize>) -> Vec<String> {
        if copy.exclude.is_empty() {
            return Vec::new();
        }
        if !self.buildkit {
            let names: Vec<String> = copy.exclude.iter().map(|name| quoted(name)).collect();
            self.cannot(
                span,
                format!("COPY cannot exclude {} without BuildKit", names.join(" ")),
            );
            return Vec::new();
        }
        self.needs_syntax = true;
        let mut flags = Vec::new();
        for exclude in copy
            .exclude
            .iter()
            .filter(|exclude| !exclude.contains(&b'/'))
        {
            if *exclude == name {
                self.cannot(
                    span,
                    format!(
                        "COPY cannot exclude {} inside what it copies of that name",
                        quoted(name)
                    ),
                );
                continue;
            }
            let pattern = words::literal_pattern(&self.text(exclude, span)).replace('$', "\\$");
            flags.push(format!(
                "--exclude={}",
                words::flag(&format!("**/{pattern}"))
            ));
        }
        flags
    }
}

#[cfg(test)]
mod tests;
