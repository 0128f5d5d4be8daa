// SPDX-License-Identifier: Apache-2.0
//! Interrupted and killed builds, and full disks, leave a store that the next build uses as it is.

use crate::harness::{PATIENCE, Ran, SmallDisk, World, process_runs, wait_for, works_in};
use std::process::Command;
use std::time::{Duration, Instant};

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn signals_end_a_build_and_leave_nothing() {
    for world in World::all() {
        for (name, status) in [("INT", 130), ("TERM", 130)] {
            // Something that ignores the signal and has detached itself is no trouble either.
            let mark = format!("31{}", std::process::id());
            world.spec(&format!(
                "(run (shell \"trap '' INT TERM; (setsid sleep {mark} &) ; echo begun {name}; sleep {mark}\"))"
            ));
            let child = world.start(&["run", "spec.sexp"]);
            wait_for("the step to run", || process_runs(&mark));
            let began = Instant::now();
            signal(child.id(), name);
            let ran = Ran::from(child.wait_with_output().unwrap());
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            assert_eq!(ran.status, status, "{ran:#?}");
            assert!(!process_runs(&mark), "the step's processes are gone");
            world.assert_clean();
        }
    }
}

#[test]
fn kill_nine_at_any_moment_leaves_a_store_that_works() {
    for world in World::all() {
        let steps: String = (0..30)
            .map(|n| format!("(run (shell \"echo {n} >> /steps\"))\n"))
            .collect();
        world.spec(&steps);
        let mut finished = false;
        for round in 0_u64..40 {
            let mut child = world.start(&["run", "spec.sexp"]);
            // Spread over the time that a build takes, base import included.
            std::thread::sleep(Duration::from_millis(5 + round * 13 % 90));
            let ended = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            finished |= ended;
        }
        let id = world.ok(&["run", "spec.sexp"]);
        let seen = world.inside(&id, "echo $(cat /steps)");
        let wanted: Vec<String> = (0..30).map(|n: u32| n.to_string()).collect();
        assert_eq!(
            seen,
            wanted.join(" "),
            "no step ran twice or was lost on {} (finished before: {finished})",
            world.store
        );
        wait_for("helpers to end", || !works_in(world.directory.path()));
        world.assert_clean();
    }
}

#[test]
fn what_a_build_finds_is_as_durable_as_what_it_makes() {
    for world in World::all() {
        let provisional = || {
            let marks = fs_err::read_dir(world.path("store/provisional"));
            marks.map_or(0, Iterator::count)
        };
        // Neither end waits for the disk.
        for (turn, end) in ["KILL", "INT"].into_iter().enumerate() {
            let first = format!("(run (shell \"echo {turn} > /kept\"))");
            let mark = format!("33{turn}{}", std::process::id());
            world.spec(&format!("{first} (run (shell \"sleep {mark}\"))"));
            let mut child = world.start(&["run", "spec.sexp"]);
            // Not the mark of the first step, which is there before the step is done.
            wait_for("the second step to run", || process_runs(&mark));
            // The second turn has the base from the first.
            let finished = 2 - turn;
            assert!(provisional() >= finished, "the base and the first step");
            signal(child.id(), end);
            child.wait().unwrap();
            assert!(
                provisional() >= finished,
                "after SIG{end} on {}",
                world.store
            );
            world.spec(&first);
            let ran = world.run(&["run", "spec.sexp"]);
            assert!(ran.stderr.contains("0 steps built"), "{ran:#?}");
            assert_eq!(provisional(), 0, "after SIG{end} on {}", world.store);
            wait_for("helpers to end", || !works_in(world.directory.path()));
        }
    }
}

#[test]
fn a_database_damaged_past_its_head_fails_one_build_at_most() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell \"echo kept > /kept\"))");
    let id = world.ok(&["run", "spec.sexp"]);
    let file = world.path("store/state/obuild.db");
    let mut content = fs_err::read(&file).unwrap();
    content[100..].fill(0xa5);
    fs_err::write(&file, content).unwrap();
    let ran = world.run(&["run", "spec.sexp"]);
    assert!(
        ran.status == 0 || ran.status == 3 && ran.stderr.contains("hint: "),
        "{ran:#?}"
    );
    let again = world.run(&["run", "spec.sexp"]);
    assert_eq!(again.stdout.trim(), id, "{again:#?}");
    assert!(again.stderr.contains("0 steps built"), "{again:#?}");
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    let Some(world) = World::new() else { return };
    let Some(disk) = SmallDisk::mount(world.directory.path()) else {
        return;
    };
    let small = format!("overlay:{}", disk.path().join("store").display());
    world.spec("(run (shell \"echo kept > /kept\"))");
    let id = world.ok(&["run", "spec.sexp", "--store", &small]);
    world.spec("(run (shell \"echo kept > /kept\")) (run (shell \"dd if=/dev/zero of=/big bs=1M count=200\"))");
    let ran = world.run(&["run", "spec.sexp", "--store", &small]);
    assert_eq!(ran.status, 1, "the step itself fails: {ran:#?}");
    world.write("context/big", vec![7; 100 << 20]);
    world.spec("(run (shell \"echo kept > /kept\")) (copy (src big) (dst /big))");
    let ran = world.run(&["run", "spec.sexp", "context", "--store", &small]);
    assert_ne!(ran.status, 0, "{ran:#?}");
    assert!(
        ran.stderr.contains("No space left") && ran.stderr.contains("hint"),
        "{ran:#?}"
    );
    world.spec("(run (shell \"echo kept > /kept\"))");
    let again = world.run(&["run", "spec.sexp", "--store", &small]);
    assert_eq!(again.stdout.trim(), id);
    assert!(again.stderr.contains("0 steps built"), "{again:#?}");
    assert_eq!(
        world.ok(&["shell", &id, "--store", &small, "--", "/bin/cat", "/kept"]),
        "kept"
    );
}
