// SPDX-License-Identifier: Apache-2.0
//! `obuild archive check`: report what is wrong in opam files.

use crate::cli::{ArchiveCheck, Format, Global};
use crate::commands::{print, print_json};
use crate::failure::{Failure, Negative};
use crate::values::counted;
use anyhow::Result;
use obuild_archive::check::{Checker, Finding, opam_files, read_file};
use obuild_archive::opam::Severity;
use obuild_specs::Diagnostic;
use obuild_specs::diagnostic::{render, to_json};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(crate) fn run(global: &Global, options: &ArchiveCheck) -> Result<()> {
    let colour = crate::progress::colour(global.color);
    let mut checker = Checker::new();
    let mut files = 0_u64;
    let (mut errors, mut warnings) = (0_u64, 0_u64);
    let mut found = Vec::new();
    for path in &options.paths {
        for path in named(path)? {
            // One file that cannot be read does not hide what is wrong with the others.
            let (text, findings) = match read_file(&path) {
                Ok(text) => {
                    let findings = checker.check(&path, &text);
                    (text, findings)
                }
                Err(error) => (Vec::new(), vec![Finding::unreadable(&error)]),
            };
            files += 1;
            for finding in &findings {
                match finding.severity {
                    Severity::Error => errors += 1,
                    Severity::Warning => warnings += 1,
                }
            }
            if findings.is_empty() {
                continue;
            }
            let name = path.to_string_lossy();
            let diagnostics: Vec<Diagnostic> = findings.iter().map(diagnostic).collect();
            match options.format {
                Format::Text => {
                    let text = render(&diagnostics, &name, &text, colour);
                    // Nobody reads standard error: the exit status still tells.
                    let _ = writeln!(io::stderr(), "{text}");
                }
                Format::Json => {
                    let Value::Array(values) = to_json(&diagnostics, &name, &text) else {
                        continue;
                    };
                    found.extend(
                        values
                            .into_iter()
                            .zip(&findings)
                            .map(|(mut value, finding)| {
                                value["code"] = json!(finding.code);
                                value
                            }),
                    );
                }
            }
        }
    }
    match options.format {
        Format::Text => print(format!(
            "{}, {}, {}\n",
            counted(files, "file"),
            counted(errors, "error"),
            counted(warnings, "warning")
        ))?,
        Format::Json => print_json(&json!({
            "files": files,
            "errors": errors,
            "warnings": warnings,
            "findings": found,
        }))?,
    }
    if errors > 0 {
        return Err(Negative.into());
    }
    Ok(())
}

/// Returns the files that an argument names: itself, or those in it.
fn named(path: &Path) -> Result<Vec<PathBuf>> {
    let metadata = fs_err::metadata(path).map_err(|error| cannot_read(path, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let files = opam_files(path).map_err(|error| cannot_read(path, &error))?;
    if files.is_empty() {
        return Err(
            Failure::usage(format!("there are no opam files in {}", path.display())).into(),
        );
    }
    Ok(files)
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::usage(format!("there is no {}", path.display())),
        _ => Failure::host(format!("cannot read opam files: {error}")),
    }
}

fn diagnostic(finding: &Finding) -> Diagnostic {
    let (span, message) = (finding.span.range(), finding.message.as_str());
    let mut diagnostic = match finding.severity {
        Severity::Error => Diagnostic::error(span, message),
        Severity::Warning => Diagnostic::warning(span, message),
    };
    if let Some((span, message)) = finding.related {
        diagnostic = diagnostic.with_note_at(span.range(), message);
    }
    for note in &finding.notes {
        diagnostic = diagnostic.with_note(note);
    }
    diagnostic.with_help_if(finding.help.map(str::to_owned))
}
