// SPDX-License-Identifier: Apache-2.0
//! Limits by cgroups.

use crate::on_every_backend;
use crate::support::{Tree, shell};
use obuild_fixtures::PATIENCE;
use obuild_sandboxes::Exit;
use std::time::Instant;

on_every_backend!(
    memory_limits,
    process_limits,
    processor_limits,
    dead_callers_groups_are_removed,
);

fn has_limits(tree: &Tree) -> bool {
    let notes = tree.sandbox.features().notes;
    let usable = notes
        .iter()
        .any(|(name, value)| name == "cgroup" && !value.contains("no limits"));
    // An ordinary user has no cgroups to limit with, and is told so.
    if !usable && !obuild_fixtures::in_user_namespace() {
        obuild_fixtures::skip("needs cgroups with memory, cpu and pids");
    }
    usable
}

fn memory_limits(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    let mut command = shell("head -c 100000000 /dev/zero | tail | wc -c");
    assert_eq!(tree.output_of(&command, &tree.directory()), "100000000\n");
    command.argv[2] = "exec tail -c 100000000 /dev/zero".into();
    command.limits.memory_bytes = Some(32 << 20);
    let started = Instant::now();
    assert_eq!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::OutOfMemory
    );
    assert!(started.elapsed() < PATIENCE);
    // A limit that is not reached changes nothing.
    command.argv[2] = "exit 3".into();
    assert_eq!(
        tree.run(&command, &tree.directory()).unwrap().0,
        Exit::Status(3)
    );
    no_groups_left();
}

fn process_limits(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    let mut command = shell("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait");
    command.limits.pids = Some(6);
    let (_, output) = tree.run(&command, &tree.directory()).unwrap();
    assert!(output.contains("can't fork"), "{output}");
    command.limits.pids = Some(100);
    assert_eq!(tree.output_of(&command, &tree.directory()), "");
    no_groups_left();
}

fn processor_limits(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    // Two busy loops that may use a fifth of a processor for a second of wall time.
    let line = "(while :; do :; done) & (while :; do :; done) & sleep 1.5; kill %1 %2; wait; cat /proc/self/stat > /dev/null; times";
    let mut command = shell(line);
    command.limits.cpus = Some(0.2);
    let output = tree.output_of(&command, &tree.directory());
    let used: f64 = output
        .split_whitespace()
        .filter_map(|time| {
            let (minutes, seconds) = time.trim_end_matches('s').split_once('m')?;
            Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
        })
        .sum();
    assert!(used < 1.0, "{output}");
    command.limits.cpus = Some(f64::NAN);
    assert!(tree.run(&command, &tree.directory()).is_err());
    no_groups_left();
}

fn no_groups_left() {
    let own = format!("obuild-{}-", std::process::id());
    let output = std::process::Command::new("find")
        .args([
            "/sys/fs/cgroup",
            "-maxdepth",
            "6",
            "-name",
            &format!("{own}*"),
            "-empty",
        ])
        .output()
        .unwrap();
    // Groups of tests that run at the same time have their files; an empty directory cannot be a group.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

fn dead_callers_groups_are_removed(tree: &Tree) {
    if !has_limits(tree) {
        return;
    }
    // No process has this id with this start time.
    let name = format!("obuild-1-1-{}", tree.number());
    let abandoned = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .map(|place| std::path::Path::new(place).join(&name))
        .into_iter()
        .find(|path| fs_err::create_dir(path).is_ok())
        .unwrap();
    // They are looked for when cgroups are needed first.
    crate::support::open(tree.backend(), tree.scratch.path()).features();
    assert!(!abandoned.exists());
}
