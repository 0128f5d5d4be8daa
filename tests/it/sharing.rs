// SPDX-License-Identifier: Apache-2.0
//! Several processes build on one store at once.

use crate::harness::{Ran, World, wait_for};

#[test]
fn two_processes_run_a_step_once() {
    for world in World::all() {
        world.spec(
            "(run (shell \"echo begin; cat /proc/sys/kernel/random/uuid; sleep 1; echo end\"))",
        );
        let children: Vec<_> = (0..4).map(|_| world.start(&["run", "spec.sexp"])).collect();
        let ran: Vec<Ran> = children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap().into())
            .collect();
        for one in &ran {
            assert_eq!(one.status, 0, "{one:#?}");
            assert_eq!(one.stdout, ran[0].stdout);
            assert!(
                one.stderr.contains("| begin") && one.stderr.contains("| end"),
                "all see the log: {one:#?}"
            );
        }
        let uuid = |one: &Ran| {
            one.stderr
                .lines()
                .find(|line| line.contains('-') && line.len() > 36)
                .map(str::to_owned)
        };
        assert!(uuid(&ran[0]).is_some());
        assert!(
            ran.iter().all(|one| uuid(one) == uuid(&ran[0])),
            "it ran once: {ran:#?}"
        );
        world.assert_clean();
    }
}

#[test]
fn overlapping_builds_of_eight_processes_agree() {
    let Some(world) = World::new() else { return };
    for n in 0..8 {
        let steps: String = (0..6)
            .map(|step| {
                format!(
                    "(run (shell \"echo {} >> /steps\"))\n",
                    if step < 3 { step } else { step * 10 + n % 2 }
                )
            })
            .collect();
        world.write(&format!("spec{n}.sexp"), crate::harness::spec_text(&steps));
    }
    let children: Vec<_> = (0..8)
        .map(|n| world.start(&["run", &format!("spec{n}.sexp")]))
        .collect();
    let ids: Vec<String> = children
        .into_iter()
        .map(|child| {
            let ran = Ran::from(child.wait_with_output().unwrap());
            assert_eq!(ran.status, 0, "{ran:#?}");
            ran.stdout.trim().to_owned()
        })
        .collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(id, &ids[n % 2]);
        let n = n % 2;
        assert_eq!(
            world.inside(id, "echo $(cat /steps)"),
            format!("0 1 2 3{n} 4{n} 5{n}")
        );
    }
    world.assert_clean();
}

#[test]
fn who_takes_over_when_the_builder_is_killed_starts_afresh() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell \"test ! -e /dirt; touch /dirt; echo begun; sleep 2; echo done\"))");
    let mut first = world.start(&["run", "spec.sexp"]);
    wait_for("the step to begin", || {
        fs_err::read_dir(world.path("store/state/logs")).is_ok_and(|logs| {
            logs.flatten().any(|log| {
                fs_err::read_to_string(log.path()).is_ok_and(|text| text.contains("begun"))
            })
        })
    });
    let second = world.start(&["run", "spec.sexp"]);
    std::thread::sleep(std::time::Duration::from_millis(200));
    first.kill().unwrap();
    first.wait().unwrap();
    let ran = Ran::from(second.wait_with_output().unwrap());
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert!(ran.stderr.contains("| done"), "{ran:#?}");
    // What the killed one left goes with the next start.
    world.ok(&["ls"]);
    world.assert_clean();
}

#[test]
fn pruning_leaves_what_a_running_build_counts_on() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell \"echo kept > /kept\")) (run (shell \"sleep 6; cat /kept\"))");
    let building = world.start(&["run", "spec.sexp"]);
    wait_for("the second step to run", || {
        world.ok(&["ls", "-q"]).lines().count() >= 2
    });
    world.ok(&["prune", "--all"]);
    let ran = Ran::from(building.wait_with_output().unwrap());
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert_eq!(world.inside(ran.stdout.trim(), "cat /kept"), "kept");
    let pruned = world.ok(&["prune", "--all"]);
    assert!(pruned.contains("removed 3 steps"), "{pruned}");
    assert_eq!(world.ok(&["ls", "-q"]), "");
}
