// SPDX-License-Identifier: Apache-2.0
//! `obuild store`: damage done for real is found and taken away, the books are put right, results move between kinds.

use crate::harness::{Ran, World};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Three steps: a file, nothing, another file; with links, modes and a cache.
const STEPS: &str = "(run (shell \"mkdir -p /data/sub; echo precious > /data/file; ln /data/file /data/sub/link; chmod 4711 /data/file; ln -s file /data/name; echo told\"))
    (run (shell true))
    (run (cache (stuff (target /cache))) (shell \"rm /data/sub/link; echo more > /data/more; echo kept > /cache/kept\"))";

impl World {
    /// Checks the store; returns the report and the exit status.
    fn check(&self, options: &[&str]) -> (serde_json::Value, i32) {
        let ran = self.run(&[&["store", "check", "--format", "json"], options].concat());
        let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
        (report, ran.status)
    }

    fn check_is_healthy(&self) {
        let (report, status) = self.check(&[]);
        assert_eq!(status, 0, "{report:#}");
        assert_eq!(report["findings"], serde_json::json!([]), "{report:#}");
    }

    /// Returns the ids of all steps, the target's chain from the base on.
    fn chain(&self, target: &str) -> Vec<String> {
        let mut chain = vec![target.to_owned()];
        loop {
            let text = self.ok(&["inspect", &chain[chain.len() - 1]]);
            let step: serde_json::Value = serde_json::from_str(&text).unwrap();
            match step["parent"].as_str() {
                Some(parent) => chain.push(parent.to_owned()),
                None => break,
            }
        }
        chain.reverse();
        chain
    }

    /// Returns a path in the directory where the store keeps what a step wrote: its layer or its whole tree.
    fn inner(&self, id: &str, path: &str) -> PathBuf {
        self.path("store/snapshots").join(id).join("fs").join(path)
    }

    fn state(&self, path: &str) -> PathBuf {
        self.path("store/state").join(path)
    }
}

fn messages(report: &serde_json::Value) -> Vec<String> {
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["message"].as_str().unwrap().to_owned())
        .collect()
}

/// Changes one byte of a file in place.
fn flip(path: &std::path::Path) {
    let mut file = fs_err::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

#[test]
fn a_flipped_byte_is_found_named_and_built_again() {
    for world in World::all() {
        let target = world.build(STEPS);
        let chain = world.chain(&target);
        let (first, status) = world.check(&[]);
        assert_eq!((status, &first["recorded"]), (0, &serde_json::json!(4)));
        world.check_is_healthy();
        // The recorded time has milliseconds.
        std::thread::sleep(Duration::from_millis(5));
        flip(&world.inner(&chain[1], "data/file"));
        let (dry, status) = world.check(&["--dry-run"]);
        assert_eq!(status, 1, "{dry:#}");
        assert!(messages(&dry)[0].contains("/data/file"), "{dry:#}");
        assert_eq!(dry["unusable"].as_array().unwrap().len(), 3);
        let told = world.run(&["store", "info"]);
        assert!(
            told.stdout.contains("health       ok"),
            "a dry run remembers nothing: {told:#?}"
        );
        let (report, status) = world.check(&[]);
        assert_eq!((status, &report["removed"]), (1, &serde_json::json!([])));
        let told = world.run(&["store", "info"]);
        assert!(told.stdout.contains("damaged snapshots"), "{told:#?}");
        let (report, status) = world.check(&["--repair"]);
        assert_eq!(status, 1, "{report:#}");
        assert_eq!(report["removed"].as_array().unwrap().len(), 3, "{report:#}");
        world.check_is_healthy();
        let again = world.run(&["run", "spec.sexp"]);
        assert!(
            again.stderr.contains("3 steps built, 1 cached"),
            "{again:#?}"
        );
        assert_eq!(world.inside(&target, "cat /data/file"), "precious");
        world.check_is_healthy_after_a_build();
        world.assert_clean();
    }
}

impl World {
    fn check_is_healthy_after_a_build(&self) {
        let (report, status) = self.check(&[]);
        assert_eq!((status, messages(&report)), (0, vec![]), "{report:#}");
        self.check_is_healthy();
    }
}

#[test]
fn a_snapshot_that_was_deleted_takes_along_what_stands_on_it() {
    for world in World::all() {
        let target = world.build(STEPS);
        let chain = world.chain(&target);
        world.check(&[]);
        let victim = world.path("store/snapshots").join(&chain[1]);
        // A subvolume cannot be deleted as a directory, but moved.
        fs_err::rename(&victim, world.path("store/trash/by-hand")).unwrap();
        let (report, status) = world.check(&["--quick"]);
        assert_eq!(status, 1, "{report:#}");
        assert_eq!(
            report["unusable"].as_array().unwrap().len(),
            2,
            "{report:#}"
        );
        let (report, status) = world.check(&["--quick", "--repair"]);
        assert_eq!(status, 1);
        assert_eq!(report["removed"].as_array().unwrap().len(), 2, "{report:#}");
        world.check_is_healthy();
        let again = world.run(&["run", "spec.sexp"]);
        assert!(
            again.stderr.contains("3 steps built, 1 cached"),
            "{again:#?}"
        );
        world.check_is_healthy_after_a_build();
    }
}

#[test]
fn the_database_is_made_again_from_the_store() {
    let Some(world) = World::new() else { return };
    let target = world.build(STEPS);
    let chain = world.chain(&target);
    for damage in ["gone", "not a database", "holes"] {
        world.check(&[]);
        let file = world.state("obuild.db");
        // The log of what was written last has all of so small a database.
        for suffix in ["-wal", "-shm"] {
            let _ = fs_err::remove_file(world.state(&format!("obuild.db{suffix}")));
        }
        match damage {
            "gone" => fs_err::remove_file(&file).unwrap(),
            "not a database" => fs_err::write(&file, [7; 8192]).unwrap(),
            _ => {
                // All but the first page, which holds the schema.
                let mut bytes = fs_err::read(&file).unwrap();
                bytes[4096..].fill(0x55);
                fs_err::write(&file, bytes).unwrap();
            }
        }
        let (report, status) = world.check(&[]);
        assert_eq!(
            status, 0,
            "{damage}: nothing that was built is lost: {report:#}"
        );
        let found = messages(&report).join("\n");
        assert!(found.contains("database"), "{damage}: {report:#}");
        assert_eq!(report["recorded"], 4, "{damage}: {report:#}");
        world.check_is_healthy();
        assert_eq!(world.ok(&["ls", "-q"]).lines().count(), chain.len());
        let again = world.run(&["run", "spec.sexp"]);
        assert!(
            again.stderr.contains("0 steps built, 4 cached"),
            "{again:#?}"
        );
    }
}

#[test]
fn wrong_books_are_put_right_and_told() {
    for world in World::all() {
        let target = world.build(STEPS);
        let chain = world.chain(&target);
        world.check(&[]);
        world.ok(&["df"]);
        // Something of everything that a crash or a stranger's hand can leave.
        let nothing = "ab".repeat(32);
        fs_err::create_dir(world.path("store/snapshots").join(&nothing)).unwrap();
        let parent = world.path("store/snapshots").join(&chain[0]);
        fs_err::remove_file(parent.join(format!("child.{}", chain[1]))).unwrap();
        fs_err::write(parent.join(format!("child.{nothing}")), "").unwrap();
        fs_err::write(world.state("logs").join(&chain[1]), "to").unwrap();
        fs_err::remove_file(world.state("logs").join(&chain[2])).unwrap();
        let wanted = [
            "the rest of a snapshot",
            "does not know of it",
            "it counts a child that is not there",
            "its log is not what was recorded",
            "its log is gone",
        ];
        let (dry, status) = world.check(&["--dry-run"]);
        assert_eq!(status, 0);
        let (report, status) = world.check(&[]);
        assert_eq!(status, 0, "{report:#}");
        for text in wanted {
            for report in [&dry, &report] {
                let found = messages(report);
                assert_eq!(
                    found.iter().filter(|line| line.contains(text)).count(),
                    1,
                    "{text}: {found:#?}"
                );
            }
        }
        assert_eq!(messages(&report).len(), wanted.len(), "{report:#}");
        world.check_is_healthy();
        assert_eq!(world.inside(&target, "cat /data/more"), "more");
    }
}

#[test]
fn results_move_between_kinds_and_back() {
    let worlds = World::all();
    for from in &worlds {
        let target = from.build(STEPS);
        for to in &worlds {
            let place = to.path(&format!("copy-{}", from.store.len()));
            let _ = fs_err::remove_dir_all(&place);
            let kind = to.store.split(':').next().unwrap();
            let url = format!("{kind}:{}", place.display());
            let said = from.ok(&[
                "store",
                "copy",
                &from.store,
                &url,
                &target[..12],
                "--caches",
            ]);
            assert!(said.starts_with("copied 4 snapshots"), "{said}");
            assert!(said.trim_end().ends_with("; 1 cache"), "{said}");
            let said = from.ok(&["store", "copy", &from.store, &url, "--all"]);
            assert!(
                said.starts_with("copied 0 snapshots, 0 B; 4 there before"),
                "{said}"
            );
            let other = |arguments: &[&str]| -> Ran {
                let mut command = from.command(arguments);
                Ran::from(command.env("OBUILD_STORE", &url).output().unwrap())
            };
            let checked = other(&["store", "check"]);
            assert_eq!(checked.status, 0, "{checked:#?}");
            assert!(checked.stdout.contains("4 verified"), "{checked:#?}");
            assert!(checked.stdout.ends_with("\nhealthy\n"), "{checked:#?}");
            let built = other(&["run", "spec.sexp"]);
            assert!(
                built.stderr.contains("0 steps built, 4 cached"),
                "{built:#?}"
            );
            assert!(
                built.stderr.contains("| told"),
                "its log is there: {built:#?}"
            );
            let seen =
                "stat -c '%n %a %u %g %Y %F %N' /data/* /data/sub; cat /data/file /data/more";
            let there = other(&["shell", &target, "--", "/bin/sh", "-c", seen]);
            assert_eq!(there.stdout.trim_end(), from.inside(&target, seen));
            from.write(
                "cache.sexp",
                crate::harness::spec_text(
                    "(run (cache (stuff (target /cache))) (shell \"cat /cache/kept\"))",
                ),
            );
            let cached = other(&["run", "cache.sexp"]);
            assert!(cached.stderr.contains("| kept"), "{cached:#?}");
            let listed = |ran: &Ran| -> Vec<serde_json::Value> {
                let steps: Vec<serde_json::Value> = serde_json::from_str(&ran.stdout).unwrap();
                let about = |step: &serde_json::Value| {
                    serde_json::json!([step["id"], step["heading"], step["created"]])
                };
                let mut steps: Vec<_> = steps.iter().map(about).collect();
                steps.sort_by_key(ToString::to_string);
                steps
            };
            let ours = listed(&from.run(&["ls", "--format", "json"]));
            let theirs = listed(&other(&["ls", "--format", "json"]));
            assert!(
                ours.iter().all(|step| theirs.contains(step)),
                "{ours:?} {theirs:?}"
            );
        }
        from.assert_clean();
    }
}

#[test]
fn what_stands_on_another_result_of_the_same_step_is_copied_as_it_is() {
    let Some(world) = World::new() else { return };
    // The first step gives another tree each time it runs.
    let random = "(run (shell \"cat /proc/sys/kernel/random/uuid > /first; echo a > /same\"))";
    let second = format!("{random} (run (shell \"cat /first > /second; rm /same\"))");
    let url = format!("overlay:{}", world.path("other").display());
    world.spec(random);
    world.ok(&["run", "spec.sexp", "--store", &url]);
    let target = world.build(&second);
    let said = world.ok(&["store", "copy", &world.store, &url, &target]);
    assert!(said.starts_with("copied 1 snapshot,"), "{said}");
    let script = "cat /first /second; ls / | grep same";
    let there = world.ok(&[
        "shell",
        "--store",
        &url,
        &target,
        "--",
        "/bin/sh",
        "-c",
        &format!("{script}; true"),
    ]);
    assert_eq!(there, world.inside(&target, &format!("{script}; true")));
    let checked = world.run(&["store", "check", "--store", &url]);
    assert_eq!(checked.status, 0, "{checked:#?}");
}

#[test]
fn a_damaged_snapshot_is_not_copied() {
    let Some(world) = World::new() else { return };
    let target = world.build(STEPS);
    let chain = world.chain(&target);
    world.check(&[]);
    flip(&world.inner(&chain[1], "data/file"));
    let url = format!("overlay:{}", world.path("other").display());
    let ran = world.run(&["store", "copy", &world.store, &url, "--all"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert!(ran.stdout.contains(&chain[1][..12]), "{ran:#?}");
    assert!(ran.stdout.contains("copied 1 snapshot,"), "{ran:#?}");
}

#[test]
fn a_copy_that_is_killed_is_taken_up_again() {
    for world in World::all() {
        let steps: String = (0..40)
            .map(|n| format!("(run (shell \"echo {n} >> /steps\"))\n"))
            .collect();
        let target = world.build(&steps);
        let url = world.store.clone() + "-copy";
        for round in 0_u64..12 {
            let mut child = world.start(&["store", "copy", &world.store, &url, "--all"]);
            std::thread::sleep(Duration::from_millis(15 + round * 12));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        world.ok(&["store", "copy", &world.store, &url, "--all"]);
        let checked = world.run(&["store", "check", "--store", &url, "--format", "json"]);
        let report: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
        assert_eq!(checked.status, 0, "{report:#}");
        assert_eq!(report["snapshots"], 41, "{report:#}");
        assert!(messages(&report).is_empty(), "{report:#}");
        let built = world.run(&["run", "spec.sexp", "--store", &url]);
        assert!(
            built.stderr.contains("0 steps built, 41 cached"),
            "{built:#?}"
        );
        let last = world.ok(&[
            "shell",
            "--store",
            &url,
            &target,
            "--",
            "/bin/sh",
            "-c",
            "tail -n 1 /steps",
        ]);
        assert_eq!(last, "39");
        world.assert_clean();
    }
}

#[test]
fn a_store_is_checked_and_copied_while_it_is_built_on() {
    for world in World::all() {
        let steps: String = (0..60)
            .map(|n| format!("(run (shell \"echo {n} >> /steps\"))\n"))
            .collect();
        world.spec(&steps);
        let url = world.store.clone() + "-copy";
        let mut running = world.start(&["run", "-q", "spec.sexp"]);
        let mut rounds = 0;
        while running.try_wait().unwrap().is_none() || rounds == 0 {
            let (report, status) = world.check(&["--repair"]);
            assert_eq!((status, messages(&report)), (0, vec![]), "{report:#}");
            world.ok(&["store", "copy", &world.store, &url, "--all"]);
            rounds += 1;
        }
        assert!(running.wait().unwrap().success());
        world.ok(&["store", "copy", &world.store, &url, "--all"]);
        let built = world.run(&["run", "spec.sexp", "--store", &url]);
        assert!(
            built.stderr.contains("0 steps built, 61 cached"),
            "{built:#?}"
        );
    }
}

#[test]
fn digests_are_recorded_by_a_build_that_is_asked_to() {
    let Some(world) = World::new() else { return };
    world.spec(STEPS);
    world.ok(&["run", "spec.sexp", "--record-digests"]);
    let (report, status) = world.check(&[]);
    assert_eq!(
        (status, &report["verified"]),
        (0, &serde_json::json!(4)),
        "{report:#}"
    );
    let info: serde_json::Value =
        serde_json::from_str(&world.ok(&["store", "info", "--sizes", "--format", "json"])).unwrap();
    assert_eq!(info["snapshots"]["digests"], 4, "{info:#}");
    assert_eq!(info["snapshots"]["depth"], 4, "{info:#}");
    assert_eq!(info["caches"][0]["name"], "stuff", "{info:#}");
    assert_eq!(info["health"]["ok"], true, "{info:#}");
    assert!(info["file_system"]["type"].is_string(), "{info:#}");
}

#[test]
fn stores_that_cannot_be_copied_are_told() {
    let Some(world) = World::new() else { return };
    for (arguments, wanted) in [
        (
            vec!["overlay:/no/such", "overlay:/tmp/x", "--all"],
            "there is no store",
        ),
        (
            vec!["overlay:/tmp/x", "overlay:/tmp/x", "--all"],
            "the same",
        ),
        (vec!["overlay:/tmp/x", "overlay:/tmp/y"], "--all"),
    ] {
        let ran = world.run(&[vec!["store", "copy"], arguments].concat());
        assert_eq!(ran.status, 2, "{ran:#?}");
        assert!(ran.stderr.contains(wanted), "{ran:#?}");
    }
}
