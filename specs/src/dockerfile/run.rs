// SPDX-License-Identifier: Apache-2.0
//! `RUN`: the form in which a command arrives unchanged, and its mounts.

use super::{Converter, Stage, words};
use crate::plan::{Network, User};
use crate::sexp::quoted;
use crate::spec::{Mount, RunOp};
use bstr::{BString, ByteSlice};
use std::ops::Range;

impl Converter<'_> {
    pub(super) fn run(&mut self, stage: &mut Stage, run: &RunOp, span: &Range<usize>) {
        if !stage.has_workdir {
            let workdir = stage.workdir.clone();
            self.workdir(stage, &workdir, span);
        }
        if !stage.has_user {
            self.user(stage, span);
        }
        let flags = self.flags(stage, run, span);
        let command = &run.shell.value;
        let in_shell = stage.env.is_empty()
            && !stage.shell.is_empty()
            && stage.shell.iter().all(|word| word.to_str().is_ok());
        if in_shell && is_one_line(command, self.escape) {
            self.shell(stage);
            let command = self.text(command, &run.shell.span);
            self.instruction("RUN", flags.iter(), &command);
        } else if in_shell && self.buildkit && is_script(command, &stage.shell) {
            self.shell(stage);
            let script = self.text(command, &run.shell.span);
            let script = script.strip_suffix('\n').unwrap_or(&script);
            let mut end = "EOF".to_owned();
            while script.lines().any(|line| line == end) {
                end.push('_');
            }
            self.instruction("RUN", flags.iter(), &format!("<<'{end}'\n{script}\n{end}"));
        } else {
            let argv = self.argv(stage, run);
            self.instruction("RUN", flags.iter(), &words::json(&argv));
        }
    }

    /// The whole command line, with `env` before it for the variables that no `ENV` holds.
    fn argv(&mut self, stage: &Stage, run: &RunOp) -> Vec<String> {
        let mut argv: Vec<BString> = Vec::new();
        if !stage.env.is_empty() {
            argv.push("/usr/bin/env".into());
            argv.extend(
                stage
                    .env
                    .iter()
                    .map(|(name, value)| [&name[..], b"=", &value[..]].concat().into()),
            );
        }
        argv.extend(stage.shell.iter().cloned());
        argv.push(run.shell.value.clone());
        argv.iter()
            .map(|word| self.text(word, &run.shell.span))
            .collect()
    }

    fn flags(&mut self, stage: &Stage, run: &RunOp, span: &Range<usize>) -> Vec<String> {
        if !self.buildkit {
            for secret in &run.secrets {
                self.cannot(
                    span,
                    format!(
                        "RUN has no secrets such as {} without BuildKit",
                        quoted(&secret.id)
                    ),
                );
            }
            return Vec::new();
        }
        let mut flags = Vec::new();
        for (kind, mounts) in [("secret", &run.secrets), ("cache", &run.cache)] {
            for mount in mounts {
                let value = self.mount(stage, kind, mount, span);
                flags.push(format!("--mount={value}"));
            }
        }
        // The builder's default network is what `(network host)` is for; its own host network is a privilege that
        // the caller would have to grant.
        if run.network == Network::None {
            flags.push("--network=none".to_owned());
        }
        flags
    }

    fn mount(&mut self, stage: &Stage, kind: &str, mount: &Mount, span: &Range<usize>) -> String {
        let id = self.text(&mount.id, span);
        let target = self.text(&crate::lower::join(b"/", &mount.target), span);
        let mut options: Vec<(String, String)> = vec![
            ("type".into(), kind.into()),
            ("id".into(), id),
            ("target".into(), target),
        ];
        match &stage.user {
            User::Ids { uid, gid } => {
                options.push(("uid".into(), uid.to_string()));
                options.push(("gid".into(), gid.to_string()));
            }
            User::Name(name) => {
                let message = format!(
                    "a {kind} cannot be owned by {}, only by a number",
                    quoted(name)
                );
                self.cannot(span, message);
            }
        }
        for (name, value) in &mount.buildkit_options {
            let name = self.text(name, span);
            let value = self.text(value, span);
            options.retain(|(other, _)| {
                *other != name || matches!(&**other, "type" | "id" | "target")
            });
            options.push((name, value));
        }
        words::mount(&options, self.escape)
    }
}

/// Tells whether a command can stand behind `RUN` and arrive as it is.
fn is_one_line(command: &[u8], escape: char) -> bool {
    let Ok(text) = command.to_str() else {
        return false;
    };
    !text.is_empty()
        && text.trim() == text
        && !text.contains(['\n', '\r'])
        && !text.starts_with(['[', '-', '#'])
        && !text.ends_with(escape)
        // Older builders have no here-documents, newer ones look for them in every command.
        && !text.contains("<<")
}

/// Tells whether a here-document gives `command` to the shell with no change but a line end after it, and that
/// makes no difference.
fn is_script(command: &[u8], shell: &[BString]) -> bool {
    let Ok(text) = command.to_str() else {
        return false;
    };
    let is_shell = shell.iter().any(|word| {
        let name = word.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        matches!(name, b"sh" | b"bash" | b"dash" | b"ash" | b"zsh" | b"ksh")
    });
    let reads_a_command = shell
        .last()
        .is_some_and(|word| word.starts_with(b"-") && word.ends_with(b"c"));
    is_shell
        && reads_a_command
        && text.contains('\n')
        && !text.contains('\r')
        // The builder would run it as a program of its own.
        && !text.starts_with("#!")
        // The line end would be escaped.
        && !text.ends_with('\\')
}
