// SPDX-License-Identifier: Apache-2.0
//! Tests as an ordinary user: makes two, one with subordinate ids and one without, and runs the suites of store and sandbox once more as
//! each of them, in the user namespace that `obuild unshare` makes.

use crate::cmd::Cmd;
use crate::filesystems::Scratch;
use crate::reaper::{Guard, Item};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Users made for the tests; they go with this.
pub(crate) struct Users {
    guards: Vec<Guard>,
    /// The variable that names each to the tests, and its name.
    pub(crate) names: Vec<(&'static str, String)>,
}

impl Users {
    /// Makes both, with homes in the scratch directory.
    pub(crate) fn create(scratch: &Scratch) -> Result<Self> {
        let mut users = Self {
            guards: Vec::new(),
            names: Vec::new(),
        };
        let process = std::process::id();
        for (variable, kind, count) in [
            ("OBUILD_TEST_USER_RANGES", "r", 65536),
            ("OBUILD_TEST_USER_SINGLE", "s", 0),
        ] {
            let name = format!("obuild-{kind}{process}");
            let home = scratch.directory(&format!("home-{kind}"))?;
            users.guards.push(Guard::new(Item::User(name.clone()))?);
            Cmd::new("useradd")
                .args(["--no-create-home", "--no-log-init", "--shell", "/bin/sh"])
                .args(["-K", &format!("SUB_UID_COUNT={count}")])
                .args(["-K", &format!("SUB_GID_COUNT={count}")])
                .arg("--home-dir")
                .arg(&home)
                .arg(&name)
                .deadline(Duration::from_mins(1))
                .output()?;
            Cmd::new("chown")
                .arg(format!("{name}:"))
                .arg(&home)
                .output()?;
            users.names.push((variable, name));
        }
        Ok(users)
    }

    /// Removes them.
    pub(crate) fn close(mut self) -> Result<()> {
        while let Some(guard) = self.guards.pop() {
            guard.close()?;
        }
        Ok(())
    }
}

/// The suites that apply: package, test, and the part of it. OCI runtimes are refused in a user namespace; what else does not apply the
/// tests ask `obuild_fixtures::may`.
const SUITES: [(&str, &str, &[&str]); 3] = [
    ("obuild-stores", "conformance", &["overlay::", "memory::"]),
    ("obuild-sandboxes", "conformance", &["native::"]),
    ("obuild-sandboxes", "escape", &["native::"]),
];

/// Runs the suites as every user.
pub(crate) fn run_suites(scratch: &Scratch, users: &Users) -> Result<()> {
    // The checkout may be where ordinary users cannot go.
    let programs = scratch.directory("programs")?;
    let obuild = built(&["build"], "obuild", &programs)?;
    let helper = ["build", "-p", "obuild-sandboxes", "--bins"];
    let helper = built(&helper, "obuild-sandbox-helper", &programs)?;
    for (package, test, parts) in SUITES {
        let suite = ["test", "--no-run", "-p", package, "--test", test];
        let suite = built(&suite, test, &programs)?;
        for (_, user) in &users.names {
            let home = home(user)?;
            let place = home.join("tests");
            Cmd::new("install")
                .args(["-d", "-o", user])
                .arg(&place)
                .output()?;
            let variable = |name: &str, value: &Path| format!("{name}={}", value.display());
            Cmd::new("setpriv")
                .args(["--reuid", user, "--regid", user, "--init-groups", "--"])
                .args(["env", "-C"])
                .arg(&home)
                .arg(variable("HOME", &home))
                .arg(variable("OBUILD_TEST_DIR", &place))
                .arg(variable("OBUILD_TEST_HELPER", &helper))
                .arg(&obuild)
                .args(["unshare", "--"])
                .arg(&suite)
                .args(parts)
                .deadline(Duration::from_mins(30))
                .run()
                .with_context(|| format!("{package}: {test}, as {user}"))?;
        }
    }
    Ok(())
}

fn home(user: &str) -> Result<PathBuf> {
    let entry = Cmd::new("getent").args(["passwd", user]).stdout()?;
    let home = entry
        .trim()
        .split(':')
        .nth(5)
        .context("a user has a home")?;
    Ok(home.into())
}

/// Builds a program with cargo and copies it to `programs`, under a name of its own.
fn built(arguments: &[&str], name: &str, programs: &Path) -> Result<PathBuf> {
    let messages = Cmd::cargo()
        .args(arguments)
        .args(["-q", "--message-format=json"])
        .stdout()?;
    let found = messages.lines().rev().find_map(|line| {
        let artifact = line.contains("\"reason\":\"compiler-artifact\"")
            && line.contains(&format!("\"name\":\"{name}\""));
        let (_, rest) = line.split_once("\"executable\":\"")?;
        let (path, _) = rest.split_once('"')?;
        artifact.then(|| PathBuf::from(path))
    });
    let found = found.with_context(|| format!("cargo has not said where {name} is"))?;
    let file = found.file_name().context("a program has a name")?;
    let copy = programs.join(file);
    fs_err::copy(&found, &copy)?;
    ensure!(copy.is_file(), "{} is not there", copy.display());
    Ok(copy)
}
