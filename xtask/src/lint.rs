// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask lint`: everything that can be said of the sources without running them.

use crate::cmd::{Cmd, again};
use crate::report::Report;
use crate::workspace;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The spelling checker's release; its word lists differ between releases.
const TYPOS: &str = "typos==1.52.0";

/// A source file may not be longer.
const MOST_LINES: usize = 800;

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    anyhow::ensure!(arguments.is_empty(), "lint takes no arguments");
    let mut report = Report::default();
    quick(&mut report);
    compiled(&mut report);
    report.finish()
}

/// The checks that need no compiler.
pub(crate) fn quick(report: &mut Report) {
    report.check("format", || {
        Cmd::cargo().args(["fmt", "--all", "--check"]).run()
    });
    report.check("file headers", file_headers);
    report.check("dependencies", banned_crates);
    if workspace::find_program("cargo-deny").is_some() {
        report.check("cargo-deny", || {
            // Advisories need the network; they are looked at when a person runs `cargo deny check`.
            Cmd::cargo()
                .args([
                    "deny",
                    "--all-features",
                    "check",
                    "bans",
                    "licenses",
                    "sources",
                ])
                .run()
        });
    } else {
        report.skip(
            "cargo-deny",
            "not installed (cargo install --locked cargo-deny)",
        );
    }
    if workspace::find_program("cargo-shear").is_some() {
        report.check("cargo-shear", || Cmd::cargo().arg("shear").run());
    } else {
        report.skip(
            "cargo-shear",
            "not installed (cargo install --locked cargo-shear)",
        );
    }
    match typos() {
        Ok(program) => report.check("typos", || Cmd::new(program).run()),
        Err(error) => report.skip("typos", &format!("not installed, nor to be had: {error:#}")),
    }
}

/// The checks that compile.
pub(crate) fn compiled(report: &mut Report) {
    report.check("clippy", || {
        Cmd::cargo()
            .args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
            .run()
    });
}

/// Returns the spelling checker, after fetching its prebuilt package if only that is missing.
fn typos() -> Result<PathBuf> {
    if let Some(program) = workspace::find_program("typos") {
        return Ok(program);
    }
    let directory = workspace::target().join("tools/typos");
    let program = directory.join("bin/typos");
    if !program.exists() {
        let options = ["--quiet", "--only-binary=:all:", "--target"];
        again(|| {
            Cmd::new("python3")
                .args(["-m", "pip", "install"])
                .args(options)
                .arg(&directory)
                .arg(TYPOS)
                .deadline(Duration::from_mins(10))
                .output()
        })?;
    }
    Ok(program)
}

/// Every Rust file says its licence and what it is for, and none grows past the house limit.
fn file_headers() -> Result<()> {
    let mut problems = Vec::new();
    for path in rust_files(workspace::root())? {
        let text = fs_err::read_to_string(&path)?;
        let shown = path
            .strip_prefix(workspace::root())
            .unwrap_or(&path)
            .display();
        problems.extend(
            header_problems(&text)
                .into_iter()
                .map(|why| format!("{shown}: {why}")),
        );
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

fn header_problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut lines = text.lines().skip_while(|line| line.starts_with("#!/"));
    if lines.next() != Some("// SPDX-License-Identifier: Apache-2.0") {
        problems.push("the first line is not the licence's SPDX line".to_owned());
    }
    if !lines.any(|line| line.starts_with("//!")) {
        problems.push("no `//!` paragraph says what the file is for".to_owned());
    }
    let count = text.lines().count();
    if count > MOST_LINES {
        problems.push(format!(
            "{count} lines: split it by noun ({MOST_LINES} is the end)"
        ));
    }
    problems
}

/// Returns all Rust sources of the checkout.
fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs_err::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let hidden = name.to_string_lossy().starts_with('.');
            let kind = entry.file_type()?;
            if kind.is_dir() && !hidden && name != "target" {
                waiting.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What must never be in our tree, also where cargo-deny is not installed: the ban list of `deny.toml`.
fn banned_crates() -> Result<()> {
    let deny = fs_err::read_to_string(workspace::root().join("deny.toml"))?;
    let banned: Vec<&str> = deny
        .lines()
        .filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next())
        .collect();
    anyhow::ensure!(
        !banned.is_empty(),
        "deny.toml bans nothing; has its layout changed?"
    );
    let lock = fs_err::read_to_string(workspace::root().join("Cargo.lock"))?;
    let present: Vec<&str> = banned
        .into_iter()
        .filter(|name| lock.contains(&format!("\nname = \"{name}\"\n")))
        .collect();
    anyhow::ensure!(
        present.is_empty(),
        "Cargo.lock has what deny.toml bans: {}; `cargo tree -i NAME` says why",
        present.join(" ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_checked() {
        let good = "// SPDX-License-Identifier: Apache-2.0\n//! What it is.\nfn main() {}\n";
        assert!(header_problems(good).is_empty());
        assert_eq!(header_problems("fn main() {}\n").len(), 2);
        let long = format!("{good}{}", "\n".repeat(MOST_LINES));
        assert_eq!(header_problems(&long).len(), 1);
    }
}
