// SPDX-License-Identifier: Apache-2.0
//! Builds by build users, on a btrfs store: at once, the same whoever ran, apart from each other, and gone when they should be.

use crate::harness::{PATIENCE, Ran, World, process_runs, wait_for};
use obuild_fixtures::{FileSystem, skip};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A world with a btrfs store, and the build users whose homes are on its file system. Nobody else has them as long as the last is held.
fn world() -> Option<(World, Vec<String>, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let Ok(users) = std::env::var("OBUILD_TEST_BUILD_USERS_BTRFS") else {
        skip("OBUILD_TEST_BUILD_USERS_BTRFS is not set (run `cargo xtask test`)");
        return None;
    };
    let world = World::on(FileSystem::Btrfs, "btrfs")?;
    fs_err::create_dir_all(world.path("base/src")).unwrap();
    world.write("base/src/main", "a program\n");
    let mut users: Vec<String> = users.split(',').map(ToOwned::to_owned).collect();
    // The matrix of stores and sandboxes has the last.
    users.pop();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Some((world, users, alone))
}

/// Writes a spec of these operations on a base that is a home directory.
fn spec(world: &World, name: &str, operations: &str) {
    let base = world.path("base");
    let text = format!(
        "((from dir:{}) (shell /bin/sh -c)\n{operations})\n",
        base.display()
    );
    world.write(name, text);
}

fn run<'a>(users: &'a str, spec: &'a str) -> Vec<&'a str> {
    vec![
        "run",
        "--sandbox",
        "user",
        "--build-users",
        users,
        "-f",
        spec,
        "base",
    ]
}

/// A build that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn finished(world: &World, arguments: &[&str]) -> String {
    let ran = world.run(arguments);
    assert_eq!(ran.status, 0, "{ran:#?}");
    ran.stdout.trim().to_owned()
}

/// The tree of a result as a tar, without what only says when it was made.
fn tree(world: &World, id: &str) -> Vec<String> {
    let place = world.path(&format!("out-{id}-{}", std::process::id()));
    world.ok(&["export", id, "--to", &format!("dir:{}", place.display())]);
    let find = Command::new("find")
        .arg(&place)
        .args(["-printf", "%P %y %m %U:%G %s %l\n"])
        .output()
        .unwrap();
    let mut lines: Vec<String> = String::from_utf8_lossy(&find.stdout)
        .lines()
        .map(ToOwned::to_owned)
        .collect();
    lines.sort();
    fs_err::remove_dir_all(place).unwrap();
    lines
}

#[test]
fn four_builds_run_at_once() {
    let Some((world, users, _alone)) = world() else {
        return;
    };
    assert!(users.len() >= 4, "{users:?}");
    let all = users.join(",");
    let meet = format!("/tmp/obuild-meet-{}", std::process::id());
    fs_err::create_dir(&meet).unwrap();
    fs_err::set_permissions(&meet, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let children: Vec<_> = (0..4)
        .map(|n| {
            // None ends before all four are there.
            let line = format!(
                "(run (shell \"echo > {meet}/{n}; i=0; until test -e {meet}/go; do i=$((i+1)); test $i -lt 1200 || exit 1; sleep 0.05; done; id -un\"))"
            );
            let name = format!("spec-{n}.sexp");
            spec(&world, &name, &line);
            world.start(&run(&all, &name))
        })
        .collect();
    wait_for("all four to run", || {
        fs_err::read_dir(&meet).unwrap().count() == 4
    });
    fs_err::write(format!("{meet}/go"), "").unwrap();
    let ids: Vec<String> = children
        .into_iter()
        .map(|child| {
            let ran = Ran::from(child.wait_with_output().unwrap());
            assert_eq!(ran.status, 0, "{ran:#?}");
            ran.stdout.trim().to_owned()
        })
        .collect();
    let mut who: Vec<String> = ids.iter().map(|id| world.ok(&["log", id])).collect();
    who.sort();
    who.dedup();
    assert_eq!(who.len(), 4, "each by a user of its own: {who:?}");
    fs_err::remove_dir_all(meet).unwrap();
    world.assert_clean();
}

#[test]
fn results_are_the_same_whoever_ran() {
    let Some((world, users, _alone)) = world() else {
        return;
    };
    let operations = "(workdir /work) (copy (src src) (dst /work/src)) (run (shell \"mkdir -p out/deep; cp src/main out/deep/; ln out/deep/main out/hard; ln -s deep/main out/soft; chmod 751 out; echo ~ > /dev/null\"))
         (run (cache (dl (target /cache))) (secrets (token (target /token))) (shell \"cat $HOME/token > /dev/null; echo x >> $HOME/cache/log; wc -l < $HOME/cache/log\"))";
    spec(&world, "spec.sexp", operations);
    world.write("secret.txt", "hidden-in-memory");
    let mut trees = Vec::new();
    let mut ids = Vec::new();
    for user in &users {
        let mut arguments = run(user, "spec.sexp");
        arguments.extend(["--no-cache", "--secret", "token:secret.txt"]);
        let id = finished(&world, &arguments);
        trees.push(tree(&world, &id));
        ids.push(id);
    }
    assert!(
        trees.windows(2).all(|pair| pair[0] == pair[1]),
        "{trees:#?}"
    );
    assert!(
        trees[0]
            .iter()
            .any(|line| line.starts_with("work/out d 751 0:0")),
        "{trees:#?}"
    );
    assert!(
        !trees[0]
            .iter()
            .any(|line| line.contains("token") || line.contains("cache"))
    );
    // The users shared one cache, each in its turn.
    assert_eq!(
        world.ok(&["log", ids.last().unwrap()]),
        users.len().to_string()
    );
    let grep = Command::new("grep")
        .args(["-raFl", "hidden-in-memory"])
        .arg(world.path("store"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
    world.assert_clean();
}

#[test]
fn a_step_reaches_neither_the_store_nor_another_step() {
    let Some((world, users, _alone)) = world() else {
        return;
    };
    let mark = format!("45{}", std::process::id());
    spec(
        &world,
        "victim.sexp",
        &format!("(run (shell \"echo private > file; sleep {mark}\"))"),
    );
    let mut victim = Killed(world.start(&run(&users[0], "victim.sexp")));
    wait_for("the victim to run", || process_runs(&mark));
    let store = world.path("store");
    let store = store.display();
    spec(
        &world,
        "attacker.sexp",
        &format!(
            "(run (shell \"for d in drafts snapshots trash caches; do ls {store}/$d && echo REACHED; echo x > {store}/$d/x && echo REACHED; done; \
             find / -xdev -name file -path '*/{user}/*' 2>/dev/null | grep . && echo REACHED; \
             pkill -9 -U {user} && echo REACHED; for p in $(ps -o pid= -U {user}); do kill -9 $p && echo REACHED; cat /proc/$p/environ && echo REACHED; ls /proc/$p/root && echo REACHED; done; true\"))",
            user = users[0]
        ),
    );
    let id = finished(&world, &run(&users[1], "attacker.sexp"));
    let log = world.ok(&["log", &id]);
    assert!(!log.contains("REACHED"), "{log}");
    assert!(victim.0.try_wait().unwrap().is_none(), "the victim lives");
    assert!(process_runs(&mark));
    // SIGKILL: nothing of obuild's own can clean up, and yet everything ends.
    victim.0.kill().unwrap();
    victim.0.wait().unwrap();
    wait_for("the step to end", || !process_runs(&mark));
    let home = home(&users[0]);
    wait_for("the home to be empty again", || !Path::new(&home).exists());
    // The next finds all it needs.
    spec(&world, "next.sexp", "(run (shell \"ls -A\"))");
    let id = finished(&world, &run(&users[0], "next.sexp"));
    assert_eq!(world.ok(&["log", &id]), "src");
    world.assert_clean();
}

fn home(user: &str) -> String {
    let output = Command::new("getent")
        .args(["passwd", user])
        .output()
        .unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    line.split(':').nth(5).unwrap().to_owned()
}

#[test]
fn ctrl_c_ends_a_build_user_s_step() {
    let Some((world, users, _alone)) = world() else {
        return;
    };
    let mark = format!("46{}", std::process::id());
    let line =
        format!("(run (shell \"trap '' INT TERM; (setsid sleep {mark} &) ; sleep {mark}\"))");
    spec(&world, "spec.sexp", &line);
    let child = world.start(&run(&users[2], "spec.sexp"));
    wait_for("the step to run", || process_runs(&mark));
    let began = Instant::now();
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(ran.status, 130, "{ran:#?}");
    assert!(!process_runs(&mark));
    assert!(!Path::new(&home(&users[2])).exists());
    world.assert_clean();
}

#[test]
fn what_build_users_cannot_do_is_told_at_once() {
    let Some((world, users, _alone)) = world() else {
        return;
    };
    spec(&world, "spec.sexp", "(run (shell \"echo ran\"))");
    for (more, status, words) in [
        (vec!["--memory", "1g"], 2, "--memory"),
        (vec!["--cpus", "1"], 2, "--cpus"),
        (vec!["--build-users", "root"], 3, "root"),
        (
            vec!["--store", "overlay:/var/tmp/obuild-never"],
            2,
            "btrfs:",
        ),
    ] {
        let mut arguments = run(&users[0], "spec.sexp");
        if more[0] == "--build-users" {
            arguments.drain(3..5);
        }
        arguments.extend(&more);
        let ran = world.run(&arguments);
        assert_eq!(ran.status, status, "{more:?}: {ran:#?}");
        assert!(ran.stderr.contains(words), "{more:?}: {ran:#?}");
        assert!(!ran.stderr.contains("| ran"), "{more:?}: {ran:#?}");
    }
    let _ = fs_err::remove_dir_all("/var/tmp/obuild-never");
    let ran = world.run(&run(&users[0], "spec.sexp"));
    assert!(
        ran.stderr.contains("(network none) is not kept"),
        "{ran:#?}"
    );
    let health = world.ok(&[
        "healthcheck",
        "--sandbox",
        "user",
        "--build-users",
        &users[0],
    ]);
    assert!(
        health.contains("healthy") && health.contains(&users[0]),
        "{health}"
    );
}
