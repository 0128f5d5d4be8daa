// SPDX-License-Identifier: Apache-2.0
//! Runtimes that are none: one clear error each, and nothing is left.

use crate::support::{Tree, helper, listing, shell, unchanged};
use obuild_fixtures::write_program;
use obuild_sandboxes::{Cancel, Error, Exit, Runc, RuncOptions, Sandbox, Stdio};
use std::path::Path;

fn open(tree: &Tree, runtime: &Path) -> Result<Runc, Error> {
    Runc::open(RuncOptions {
        helper: helper(),
        runtime: runtime.to_owned(),
        state_dir: tree.path("other-state"),
    })
}

fn run(tree: &Tree, sandbox: &Runc) -> Result<Exit, Error> {
    let cancel = Cancel::new().unwrap();
    let mut sink = |_: &[u8]| {};
    sandbox.run(
        &shell("true"),
        &tree.directory(),
        Stdio::Capture(&mut sink),
        &cancel,
    )
}

fn script(tree: &Tree, text: &str) -> std::path::PathBuf {
    let path = tree.path("runtime");
    write_program(&path, format!("#!/bin/sh\n{text}\n"));
    path
}

#[test]
fn missing_runtimes() {
    Tree::with("native", |tree| {
        for name in ["no-such-runtime", "/no/such/runtime", "/etc/passwd"] {
            let error = open(tree, Path::new(name)).unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            assert!(error.to_string().contains(name), "{error}");
        }
    });
}

#[test]
fn broken_runtimes() {
    Tree::with("native", |tree| {
        let before = listing(&tree.lower());
        for (text, words) in [
            ("exit 0", "did not start a container"),
            ("exit 3", "exit status: 3"),
            (
                "echo '{\"level\":\"error\",\"msg\":\"no cgroups today\"}' > $4; exit 1",
                "no cgroups today",
            ),
        ] {
            let sandbox = open(tree, &script(tree, text)).unwrap();
            let error = run(tree, &sandbox).unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            assert!(error.to_string().contains(words), "{error}");
            unchanged(&tree.lower(), &before);
        }
        // Whoever killed it, it says nothing of the runtime.
        let sandbox = open(tree, &script(tree, "kill -9 $$")).unwrap();
        let error = run(tree, &sandbox).unwrap_err();
        assert!(matches!(error, Error::Helper(_)), "{error:?}");
        assert!(error.to_string().contains("signal: 9"), "{error}");
        unchanged(&tree.lower(), &before);
        let sandbox = open(tree, &script(tree, "exit 1")).unwrap();
        let notes = sandbox.features().notes;
        assert!(
            notes.iter().any(|(_, value)| value.contains("broken")),
            "{notes:?}"
        );
    });
}

#[test]
fn runtimes_that_hang_are_cancelled() {
    Tree::with("native", |tree| {
        let sandbox = open(tree, &script(tree, "trap '' TERM; sleep 1000")).unwrap();
        let mut command = shell("true");
        command.limits.timeout = Some(std::time::Duration::from_millis(300));
        let cancel = Cancel::new().unwrap();
        let mut sink = |_: &[u8]| {};
        let exit = sandbox.run(
            &command,
            &tree.directory(),
            Stdio::Capture(&mut sink),
            &cancel,
        );
        assert_eq!(exit.unwrap(), Exit::TimedOut);
    });
}
