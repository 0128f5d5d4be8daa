// SPDX-License-Identifier: Apache-2.0
//! Runs every spec of `examples/` as its own comment says.
//!
//! The comment at the head of an example shows the commands that run it, indented after the semicolon. They are run as
//! they stand, by a shell in the top directory, but for `/tmp`, which is a scratch directory.

use crate::cmd::{Cmd, again};
use crate::filesystems::Scratch;
use crate::{packages, workspace};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    anyhow::ensure!(arguments.is_empty(), "examples takes no arguments");
    anyhow::ensure!(workspace::is_root(), "the examples need root");
    packages::ensure(packages::DEMO)?;
    let scratch = Scratch::create(Path::new("/var/tmp"))?;
    run_all(&scratch.path().join("examples"))?;
    scratch.close()
}

/// Runs them all on a store in `scratch`.
pub(crate) fn run_all(scratch: &Path) -> Result<()> {
    Cmd::cargo().args(["build", "--package", "obuild"]).run()?;
    let mut programs = vec![workspace::target().join("debug")];
    let path = workspace::search_path();
    programs.extend(std::env::split_paths(&path));
    let path = std::env::join_paths(programs)?;
    fs_err::create_dir_all(scratch)?;
    let store = format!("overlay:{}", scratch.join("store").display());
    let examples = specs(&workspace::root().join("examples"))?;
    anyhow::ensure!(!examples.is_empty(), "there are no examples");
    for example in examples {
        let text = fs_err::read_to_string(&example)?;
        let name = example
            .strip_prefix(workspace::root())
            .unwrap_or(&example)
            .display();
        let script = script(&text, scratch);
        anyhow::ensure!(
            script.contains("obuild run "),
            "{name}: its comment does not show how to run it"
        );
        for line in script.lines() {
            eprintln!("$ {line}");
        }
        // Some fetch packages. What is done is cached.
        again(|| {
            Cmd::new("sh")
                .quiet()
                .args(["-ec", &script])
                .env("OBUILD_STORE", &store)
                .env("OBUILD_PROGRESS", "plain")
                .env("PATH", &path)
                .deadline(Duration::from_mins(20))
                .output()
        })
        .with_context(|| format!("{name} does not run"))?;
    }
    Ok(())
}

/// Returns the specs below a directory.
fn specs(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(specs(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "sexp")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the commands in the comment that begins a spec.
fn script(text: &str, scratch: &Path) -> String {
    text.lines()
        .map_while(|line| line.strip_prefix(';'))
        .filter_map(|line| line.strip_prefix("   "))
        .map(|line| line.replace("/tmp/", &format!("{}/", scratch.display())) + "\n")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_the_indented_lines_of_the_first_comment() {
        let text =
            "; About it.\n;\n;   echo x > /tmp/y\n;   obuild run a b\n((from scratch))\n;   no\n";
        assert_eq!(
            script(text, Path::new("/s")),
            "echo x > /s/y\nobuild run a b\n"
        );
    }
}
