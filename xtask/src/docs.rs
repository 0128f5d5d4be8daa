// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask docs`: the API documentation and the guide, both without a warning.

use crate::cmd::Cmd;
use crate::report::Report;
use crate::workspace;
use anyhow::{Result, bail};
use std::path::Path;

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    anyhow::ensure!(arguments.is_empty(), "docs takes no arguments");
    let mut report = Report::default();
    checks(&mut report);
    report.finish()
}

/// The checks of all documentation.
pub(crate) fn checks(report: &mut Report) {
    report.check("API documentation", || {
        Cmd::cargo()
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings")
            .run()
    });
    report.check("links in the guide", links);
    if workspace::find_program("mdbook").is_some() {
        report.check("guide", || {
            let docs = workspace::root().join("docs");
            Cmd::new("mdbook").arg("build").arg(docs).run()
        });
    } else {
        report.skip(
            "guide",
            "mdbook is not installed; links and chapters were checked all the same",
        );
    }
}

/// Every relative link in our Markdown leads to a file, and every chapter is in the summary.
fn links() -> Result<()> {
    let root = workspace::root();
    let mut problems = Vec::new();
    let mut files = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    for directory in ["docs", "docs/src", "docs/decisions"] {
        for entry in fs_err::read_dir(root.join(directory))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    for file in &files {
        let text = fs_err::read_to_string(file)?;
        let directory = file.parent().unwrap_or(root);
        for link in relative_links(&text) {
            if !directory.join(link).exists() {
                problems.push(format!("{}: broken link to {link}", shown(file)));
            }
        }
    }
    let summary = root.join("docs/src/SUMMARY.md");
    let listed: Vec<String> = relative_links(&fs_err::read_to_string(&summary)?)
        .into_iter()
        .map(str::to_owned)
        .collect();
    for file in files
        .iter()
        .filter(|file| file.parent() == summary.parent() && **file != summary)
    {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if !listed.iter().any(|link| *link == name) {
            problems.push(format!("{} is not in SUMMARY.md", shown(file)));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace::root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Returns the targets of `[text](target)` outside code blocks that are neither URLs nor anchors.
fn relative_links(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for piece in line.split("](").skip(1) {
            let target = piece.split(')').next().unwrap_or_default();
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                links.push(target);
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_links_count() {
        let text = "[a](x.md#y) [b](https://e/z) [c](#here)\n```\n[d](no.md)\n```\n[e](../f.md)";
        assert_eq!(relative_links(text), ["x.md", "../f.md"]);
    }
}
