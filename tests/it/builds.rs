// SPDX-License-Identifier: Apache-2.0
//! Specs build, step by step, and are cached.

use crate::harness::{PATIENCE, World, from};
use std::time::Instant;

#[test]
fn a_spec_builds_and_the_second_time_is_cached() {
    for world in World::all() {
        world.spec("(run (shell \"echo hello > /greeting; echo said\"))");
        let first = world.run(&["run", "spec.sexp"]);
        assert_eq!(first.status, 0, "{first:#?}");
        assert!(first.stderr.contains("| said"), "{first:#?}");
        assert!(
            first.stderr.contains("2 steps built, 0 cached"),
            "{first:#?}"
        );
        let id = first.stdout.trim();
        assert_eq!(id.len(), 64);
        let second = world.run(&["run", "spec.sexp"]);
        assert_eq!(second.stdout.trim(), id);
        assert!(
            second.stderr.contains("| said"),
            "the log is told again: {second:#?}"
        );
        assert!(
            second.stderr.contains("0 steps built, 2 cached"),
            "{second:#?}"
        );
        assert_eq!(world.inside(id, "cat /greeting"), "hello");
        world.assert_clean();
    }
}

#[test]
fn an_obuilder_command_line_works() {
    let Some(world) = World::new() else { return };
    world.spec("(copy (src data) (dst /data)) (run (shell \"cat /data\"))");
    world.write("context/data", "from the context\n");
    let ran = world.run(&[
        "build",
        "-f",
        "spec.sexp",
        "context",
        "--fast-sync",
        "-v",
        "--color=never",
    ]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert!(ran.stderr.contains("| from the context"), "{ran:#?}");
}

#[test]
fn environment_user_directory_and_shell_apply() {
    let Some(world) = World::new() else { return };
    let id = world.build(
        "(env A one) (workdir /work) (workdir sub) (user (uid 1000) (gid 1000)) (env A two)
         (run (shell \"true\"))
         (user (uid 0) (gid 0))
         (run (shell \"echo $A $(pwd) > /out\"))
         (user (uid 1000) (gid 1000))
         (run (shell \"echo $(id -u):$(id -g) > /tmp/who\"))
         (shell /bin/echo)
         (run (shell \"to the log\"))",
    );
    assert_eq!(
        world.inside(&id, "cat /out /tmp/who"),
        "two /work/sub\n1000:1000"
    );
    assert_eq!(world.ok(&["log", &id]), "to the log");
}

#[test]
fn nested_builds_run_at_once_and_feed_the_last() {
    let Some(world) = World::new() else { return };
    world.build("(run (shell true))");
    let builds: String = (0..8)
        .map(|n| {
            format!(
                "(build b{n} ({} (shell /bin/sh -c) (run (shell \"echo on; sleep 6; echo off; echo {n} > /out{n}\"))))\n",
                from()
            )
        })
        .collect();
    let copies: String = (0..8)
        .map(|n| format!("(copy (from (build b{n})) (src /out{n}) (dst /all/))\n"))
        .collect();
    world.write(
        "spec.sexp",
        format!(
            "({builds} {} (shell /bin/sh -c) {copies} (run (shell \"cat /all/*\")))",
            from()
        ),
    );
    let ran = world.run(&["run", "spec.sexp", "--jobs", "8", "--progress", "json"]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    // All have said that they are on before any says that it is off.
    let said: Vec<serde_json::Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|event: &serde_json::Value| event["event"] == "step_output")
        .map(|event| event["data"].clone())
        .take(8)
        .collect();
    assert_eq!(said, ["on\n"; 8], "{ran:#?}");
    let id = ran.stdout.trim();
    assert_eq!(world.ok(&["log", id]), "0\n1\n2\n3\n4\n5\n6\n7");
    world.assert_clean();
}

#[test]
fn what_the_target_does_not_need_does_not_run() {
    let Some(world) = World::new() else { return };
    world.write(
        "spec.sexp",
        format!(
            "((build unused ({0} (run (shell false)))) (build used ({0} (shell /bin/sh -c) (run (shell \"echo x > /x\"))))
              {0} (copy (from (build used)) (src /x) (dst /y)))",
            from()
        ),
    );
    let id = world.ok(&["run", "spec.sexp"]);
    assert_eq!(world.inside(&id, "cat /y"), "x");
    let target = world.ok(&["run", "spec.sexp", "--target", "used"]);
    assert_eq!(world.inside(&target, "cat /x"), "x");
    let wrong = world.run(&["run", "spec.sexp", "--target", "usde"]);
    assert_eq!(wrong.status, 2, "{wrong:#?}");
    assert!(wrong.stderr.contains("used"), "{wrong:#?}");
}

#[test]
fn a_failed_step_is_told_logged_and_run_again() {
    let Some(world) = World::new() else { return };
    world.spec(
        "(run (shell \"echo ok > /before\")) (run (shell \"echo why; touch /after; exit 7\"))",
    );
    let ran = world.run(&["run", "spec.sexp", "--keep-failed"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("exit status 7"), "{ran:#?}");
    let hint = ran
        .stderr
        .split("obuild log ")
        .nth(1)
        .expect("a hint names the log");
    let id: String = hint.chars().take_while(char::is_ascii_hexdigit).collect();
    assert_eq!(world.ok(&["log", &id]), "why");
    assert_eq!(world.inside(&id, "ls /before /after"), "/after\n/before");
    let again = world.run(&["run", "spec.sexp"]);
    assert!(again.stderr.contains("| why"), "it runs again: {again:#?}");
    assert_eq!(again.status, 1);
    world.assert_clean();
}

#[test]
fn no_cache_runs_again_and_counts_from_then_on() {
    let Some(world) = World::new() else { return };
    let random = "(run (shell \"cat /proc/sys/kernel/random/uuid > /first\")) (run (shell \"cat /proc/sys/kernel/random/uuid > /second\"))";
    let one = world.build(random);
    let was = world.inside(&one, "cat /first /second");
    let two = world.ok(&["run", "spec.sexp", "--no-cache"]);
    let new = world.inside(&two, "cat /first /second");
    assert_ne!(was.lines().next(), new.lines().next());
    let three = world.ok(&["run", "spec.sexp"]);
    assert_eq!(two, three, "the new result is the cached one now");
    let four = world.ok(&["run", "spec.sexp", "--no-cache-from", "/second"]);
    let newer = world.inside(&four, "cat /first /second");
    assert_eq!(new.lines().next(), newer.lines().next());
    assert_ne!(new.lines().last(), newer.lines().last());
}

#[test]
fn the_network_is_off_unless_asked_for() {
    let Some(world) = World::new() else { return };
    let id = world.build("(run (shell \"ls /sys/class/net; cat /etc/hosts\"))");
    assert_eq!(world.ok(&["log", &id]).lines().next(), Some("lo"));
    let id = world.build(
        "(run (network host) (shell \"ls /sys/class/net | wc -l; readlink /proc/self/ns/net\"))",
    );
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(world.ok(&["log", &id]).lines().last(), host.to_str());
}

/// The base has no `/etc/hosts`, over which the sandbox mounts its own.
#[test]
fn a_step_leaves_only_what_it_wrote_in_its_layer() {
    for world in World::all() {
        let nothing = world.build("(run (shell \"test -s /etc/hosts\"))");
        let changed = world.build(
            "(run (shell \"test -s /etc/hosts\")) (run (shell \"touch -d @1000000000 /etc/new\"))",
        );
        let from = world.build("");
        assert_eq!(world.ok(&["diff", &from, &nothing]), "");
        let told = world.run(&["diff", &nothing, &changed]);
        assert_eq!((told.status, told.stdout.as_str()), (1, "A /etc/new\n"));
        let layers = |id: &str| -> Vec<String> {
            let inspected: serde_json::Value =
                serde_json::from_str(&world.ok(&["inspect", id])).unwrap();
            let lower = inspected["rootfs"]["overlay"]["lower"].as_array();
            lower.map_or_else(Vec::new, |lower| {
                lower
                    .iter()
                    .map(|path| path.as_str().unwrap().to_owned())
                    .collect()
            })
        };
        if let [own, ..] = layers(&nothing).as_slice() {
            assert_eq!(fs_err::read_dir(own).unwrap().count(), 0, "{own}");
        }
        if let [own, ..] = layers(&changed).as_slice() {
            let etc = fs_err::read_dir(format!("{own}/etc")).unwrap();
            let names: Vec<_> = etc.map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["new"]);
        }
    }
}

#[test]
fn five_hundred_steps_build() {
    for world in World::all() {
        let steps: String = (0..500)
            .map(|n| format!("(run (shell \"echo {n} >> /steps\"))\n"))
            .collect();
        let id = world.build(&steps);
        assert_eq!(
            world.inside(&id, "wc -l < /steps; tail -n 1 /steps"),
            "500\n499"
        );
        let again = world.run(&["run", "spec.sexp"]);
        assert!(
            again.stderr.contains("0 steps built, 501 cached"),
            "{}",
            again.stderr
        );
    }
}

#[test]
fn limits_and_timeouts_end_a_step() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell \"sleep 1000\"))");
    let began = Instant::now();
    let ran = world.run(&["run", "spec.sexp", "--timeout", "300ms"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert!(ran.stderr.contains("timed out"), "{ran:#?}");
    assert!(began.elapsed() < PATIENCE);
    world.spec("(run (shell \"x=a; while true; do x=$x$x; done\"))");
    let ran = world.run(&["run", "spec.sexp", "--memory", "32m"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert!(ran.stderr.contains("--memory"), "{ran:#?}");
    world.assert_clean();
}

#[test]
fn both_sandboxes_give_the_same_result() {
    let Some(world) = World::new() else { return };
    let steps = "(run (shell \"id; pwd; hostname; echo $HOME > /home/x\"))";
    let native = world.build(steps);
    let native_log = world.ok(&["log", &native]);
    let runc = world.ok(&["run", "spec.sexp", "--sandbox", "runc", "--no-cache"]);
    assert_eq!(world.ok(&["log", &runc]), native_log);
    let ls = "find / -xdev | sort | grep -v -e ^/proc -e ^/sys -e ^/dev";
    assert_eq!(world.inside(&runc, ls), world.inside(&native, ls));
    world.assert_clean();
}
