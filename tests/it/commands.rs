// SPDX-License-Identifier: Apache-2.0
//! The commands beside `run`.

use crate::harness::{World, from};
use std::process::Command;

#[test]
fn check_reports_all_errors_with_their_places() {
    let Some(world) = World::new() else { return };
    world.write(
        "bad.sexp",
        "((from scratch)\n (rnu (shell true))\n (copy (src a b) (dst /x)))\n",
    );
    let ran = world.run(&["check", "bad.sexp"]);
    assert_eq!(ran.status, 2, "{ran:#?}");
    for wanted in ["bad.sexp:2:3", "rnu", "run", "bad.sexp:3"] {
        assert!(ran.stderr.contains(wanted), "{wanted}: {ran:#?}");
    }
    let ran = world.run(&["check", "--format", "json", "bad.sexp"]);
    assert_eq!(ran.status, 2, "{ran:#?}");
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found[0]["line"], 2, "{found}");
    world.spec("(run (shell true))");
    assert_eq!(world.ok(&["check", "spec.sexp"]), "");
    assert_eq!(world.ok(&["check", "--format", "json", "spec.sexp"]), "[]");
}

#[test]
fn fmt_prints_checks_and_rewrites() {
    let Some(world) = World::new() else { return };
    let spec = world.write(
        "loose.sexp",
        "; why\n((from   scratch)(run(shell \"true\")))",
    );
    let ran = world.run(&["fmt", "--check", "loose.sexp"]);
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (1, "loose.sexp\n"),
        "{ran:#?}"
    );
    let printed = world.run(&["fmt", "loose.sexp"]).stdout;
    assert!(printed.starts_with("; why\n((from scratch)"), "{printed}");
    world.ok(&["fmt", "--write", "loose.sexp"]);
    assert_eq!(fs_err::read_to_string(spec).unwrap(), printed);
    assert_eq!(world.ok(&["fmt", "--check", "loose.sexp"]), "");
}

#[test]
fn dockerfile_and_graph_convert() {
    let Some(world) = World::new() else { return };
    world.write("spec.sexp", "((build dev ((from debian) (run (shell make)))) (from alpine) (copy (from (build dev)) (src a) (dst /a)))");
    let dockerfile = world.ok(&["dockerfile", "spec.sexp"]);
    assert!(
        dockerfile.starts_with("FROM debian as dev\n")
            || dockerfile.starts_with("FROM debian AS dev\n"),
        "{dockerfile}"
    );
    assert!(dockerfile.contains("COPY --from=dev"), "{dockerfile}");
    assert_eq!(world.ok(&["dockerfile", "-f", "spec.sexp"]), dockerfile);
    let graph = world.ok(&["graph", "spec.sexp"]);
    assert!(graph.starts_with("digraph"), "{graph}");
}

#[test]
fn steps_are_listed_inspected_logged_exported_and_deleted() {
    for world in World::all() {
        let id = world
            .build("(run (shell \"echo one > /one; echo told\")) (run (shell \"ln /one /two\"))");
        let listed = world.ok(&["ls"]);
        assert_eq!(listed.lines().count(), 4, "{listed}");
        assert!(listed.contains("ln /one /two"), "{listed}");
        let inspected: serde_json::Value =
            serde_json::from_str(&world.ok(&["inspect", &id[..10]])).unwrap();
        assert_eq!(inspected["id"], id.as_str());
        assert_eq!(inspected["kind"], "run");
        assert!(inspected["size"].as_u64().is_some(), "{inspected}");
        let parent = inspected["parent"].as_str().unwrap().to_owned();
        assert_eq!(world.ok(&["log", &parent]), "told");

        world.ok(&["export", &id, "--to", "dir:out"]);
        assert_eq!(
            fs_err::read_to_string(world.path("out/two")).unwrap(),
            "one\n"
        );
        world.ok(&["export", &id, "--to", "tar:out.tar"]);
        let tar = Command::new("tar")
            .arg("-tvf")
            .arg(world.path("out.tar"))
            .output()
            .unwrap();
        let tar = String::from_utf8_lossy(&tar.stdout).into_owned();
        assert!(
            tar.contains("two link to") || tar.contains("one link to"),
            "{tar}"
        );

        let ran = world.run(&["delete", &parent]);
        assert_eq!(ran.status, 2, "others stand on it: {ran:#?}");
        assert_eq!(
            world
                .ok(&["delete", "--recursive", &parent])
                .lines()
                .count(),
            2
        );
        assert_eq!(world.ok(&["ls", "-q"]).lines().count(), 1);
        assert_eq!(world.run(&["log", &id]).status, 2);
        world.assert_clean();
    }
}

#[test]
fn pruning_takes_the_least_recently_used_leaves_first() {
    let Some(world) = World::new() else { return };
    let old = world.build("(run (shell \"echo old > /x\"))");
    std::thread::sleep(std::time::Duration::from_millis(20));
    let new = world.build("(run (shell \"echo new > /x\"))");
    let dry = world.ok(&["prune", "--all", "--dry-run"]);
    assert!(dry.contains("would remove 3 steps"), "{dry}");
    let order: Vec<_> = dry
        .lines()
        .map(|line| line.split_whitespace().next().unwrap_or(""))
        .collect();
    assert_eq!(&order[..2], [&old[..12], &new[..12]]);
    assert_eq!(
        world.ok(&["prune", "--older-than", "1h"]),
        "removed 0 steps, 0 B"
    );
    let held = world.ok(&["df", "--format", "json"]);
    let held: serde_json::Value = serde_json::from_str(&held).unwrap();
    let bytes = held["steps"]["size"].as_u64().unwrap();
    world.ok(&["prune", "--keep-storage", &(bytes - 1).to_string()]);
    assert_eq!(world.run(&["inspect", &old]).status, 2);
    assert_eq!(world.run(&["inspect", &new]).status, 0);
    let ran = world.run(&["prune"]);
    assert_eq!(ran.status, 2, "it must be told what to remove: {ran:#?}");
}

#[test]
fn a_shell_changes_nothing() {
    let Some(world) = World::new() else { return };
    let id = world.build("(run (shell \"echo kept > /file\"))");
    assert_eq!(
        world.inside(&id, "echo changed > /file; cat /file"),
        "changed"
    );
    assert_eq!(world.inside(&id, "cat /file"), "kept");
    let ran = world.run(&["shell", &id, "--", "/bin/sh", "-c", "exit 3"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    let user = world.ok(&[
        "shell",
        &id,
        "-u",
        "user",
        "-e",
        "A=b",
        "--",
        "/bin/sh",
        "-c",
        "id -u; echo $A",
    ]);
    assert_eq!(user, "1000\nb");
    world.assert_clean();
}

#[test]
fn a_shell_sees_what_the_step_saw() {
    let Some(world) = World::new() else { return };
    let middle = "(env A b) (user (uid 1000) (gid 1000)) (workdir /tmp) (run (shell true))";
    let ask = ["/bin/sh", "-c", "echo $A; id -u; pwd"];
    let shell = |id: &str, more: &[&str]| {
        let mut arguments = vec!["shell", id];
        arguments.extend(more);
        arguments.push("--");
        arguments.extend(ask);
        world.ok(&arguments)
    };
    let id = world.build(middle);
    world.build(&format!(
        "{middle} (env A c) (user (uid 0) (gid 0)) (run (shell true))"
    ));
    assert_eq!(shell(&id, &[]), "b\n1000\n/tmp");
    assert_eq!(
        shell(&id, &["-e", "A=d", "-u", "0:0", "-w", "/"]),
        "d\n0\n/"
    );
    // A step that is not the last of any build, and one that failed.
    world.spec(&format!("{middle} (env A e) (run (shell \"exit 3\"))"));
    let ran = world.run(&["run", "spec.sexp", "--keep-failed", "--progress", "json"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    let failed = ran
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|event| event["event"] == "step_failed")
        .and_then(|event| event["id"].as_str().map(str::to_owned))
        .expect("the step's failure is told");
    assert_eq!(shell(&failed, &[]), "e\n1000\n/tmp");
    world.assert_clean();
}

#[test]
fn healthcheck_says_what_it_found() {
    for world in World::all() {
        for sandbox in ["native", "runc"] {
            let told = world.ok(&["healthcheck", "--sandbox", sandbox]);
            assert!(told.ends_with("healthy"), "{told}");
        }
        let base = from();
        let base = base.trim_start_matches("(from ").trim_end_matches(')');
        assert!(
            world
                .ok(&["healthcheck", "--base", base])
                .ends_with("healthy")
        );
        world.assert_clean();
    }
}

#[test]
fn events_are_json_lines() {
    let Some(world) = World::new() else { return };
    world.spec("(env A b) (run (shell \"echo hello\"))");
    let ran = world.run(&["run", "spec.sexp", "--progress", "json"]);
    let events: Vec<serde_json::Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("every line is an object"))
        .collect();
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(kinds.first(), Some(&"build_started"));
    assert_eq!(kinds.last(), Some(&"build_finished"));
    let output = events
        .iter()
        .find(|event| event["event"] == "step_output")
        .expect("the step says hello");
    assert_eq!(output["data"], "hello\n");
    let started = events
        .iter()
        .find(|event| event["step"] == output["step"])
        .unwrap();
    assert_eq!(started["preamble"][1], "/: (env A b)");
    assert_eq!(
        events.last().unwrap()["id"].as_str(),
        Some(ran.stdout.trim())
    );
    let ran = world.run(&["run", "spec.sexp", "--quiet"]);
    assert_eq!(ran.stderr, "");
}

#[test]
fn completions_and_manual_pages_are_made() {
    let Some(world) = World::new() else { return };
    assert!(world.ok(&["completions", "bash"]).contains("_obuild"));
    world.ok(&["man", "man"]);
    assert!(world.path("man/obuild-run.1").exists());
}
