// SPDX-License-Identifier: Apache-2.0
//! Secrets reach the step and nothing else.

use crate::harness::World;
use std::process::Command;

#[test]
fn a_secret_is_seen_by_its_step_only() {
    for world in World::all() {
        world.write("secret.txt", "correct-horse-battery\n");
        world.spec(
            "(run (secrets (token (target /run/secrets/token))) (shell \"cat /run/secrets/token; wc -c < /run/secrets/token\"))
             (run (shell \"test ! -e /run/secrets/token\"))",
        );
        for secret in ["id=token,src=secret.txt", "token:secret.txt"] {
            let ran = world.run(&["run", "spec.sexp", "--no-cache", "--secret", secret]);
            assert_eq!(ran.status, 0, "{ran:#?}");
            assert!(
                ran.stderr.contains("| ***"),
                "it is masked in the log: {ran:#?}"
            );
            assert!(
                ran.stderr.contains("| 22"),
                "the step has seen it: {ran:#?}"
            );
            assert!(!ran.stderr.contains("correct-horse"), "{ran:#?}");
        }
        let found = Command::new("grep")
            .args(["-r", "-l", "-a", "correct-horse-battery"])
            .arg(world.path("store"))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&found.stdout),
            "",
            "it is nowhere in the store"
        );
        // A new value is no new step.
        world.write("secret.txt", "something else\n");
        let ran = world.run(&["run", "spec.sexp", "--secret", "token:secret.txt"]);
        assert!(ran.stderr.contains("0 steps built"), "{ran:#?}");
    }
}

#[test]
fn a_missing_secret_is_told_before_anything_runs() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell \"echo ran\")) (run (secrets (token (target /t))) (shell true))");
    let ran = world.run(&["run", "spec.sexp"]);
    assert_eq!(ran.status, 2, "{ran:#?}");
    assert!(!ran.stderr.contains("| ran"), "{ran:#?}");
    assert!(
        ran.stderr.contains("--secret id=token,src=FILE"),
        "{ran:#?}"
    );
}
