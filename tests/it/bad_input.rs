// SPDX-License-Identifier: Apache-2.0
//! Everything that a person can get wrong gives one clear error with a remedy, the right exit status, and loses
//! nothing that was cached.

use crate::harness::{Ran, World};
use obuild_fixtures::{FileSystem, scratch};
use std::os::unix::fs::PermissionsExt;

/// One error, saying these things, with this exit status.
fn assert_refused(ran: &Ran, status: i32, says: &[&str]) {
    assert_eq!(ran.status, status, "{ran:#?}");
    assert_eq!(ran.stdout, "", "{ran:#?}");
    assert!(!ran.stderr.contains("panicked"), "{ran:#?}");
    for wanted in says {
        assert!(ran.stderr.contains(wanted), "{wanted:?} is not in {ran:#?}");
    }
}

#[test]
fn a_missing_spec() {
    let Some(world) = World::new() else { return };
    assert_refused(
        &world.run(&["run", "nothing.sexp"]),
        2,
        &["there is no spec nothing.sexp", "hint"],
    );
    assert_refused(&world.run(&["run", "."]), 2, &["is a directory", "hint"]);
    assert_refused(&world.run(&["run"]), 2, &["which spec?", "hint"]);
}

#[test]
fn a_missing_context() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell true))");
    assert_refused(
        &world.run(&["run", "spec.sexp", "nowhere"]),
        2,
        &["nowhere"],
    );
    assert_refused(
        &world.run(&["run", "spec.sexp", "spec.sexp"]),
        2,
        &["not a directory"],
    );
}

#[test]
fn a_wrong_spec() {
    let Some(world) = World::new() else { return };
    world.write("spec.sexp", "((from scratch)\n (run (shel true)))");
    assert_refused(
        &world.run(&["run", "spec.sexp"]),
        2,
        &["spec.sexp:2", "shel", "shell"],
    );
    world.write(
        "spec.sexp",
        b"((from scratch) (run (shell \"\xff\x00".as_slice(),
    );
    assert_refused(&world.run(&["run", "spec.sexp"]), 2, &["spec.sexp:1"]);
    world.write("spec.sexp", "");
    assert_refused(&world.run(&["run", "spec.sexp"]), 2, &["spec.sexp"]);
}

#[test]
fn an_unknown_store() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell true))");
    for store in ["floppy:/a", "/just/a/path", "overlay:"] {
        assert_refused(
            &world.run(&["run", "spec.sexp", "--store", store]),
            2,
            &["store", "overlay"],
        );
    }
}

#[test]
fn a_store_on_the_wrong_file_system() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell true))");
    let Some(plain) = scratch(FileSystem::Default) else {
        return;
    };
    let store = format!("btrfs:{}", plain.path().join("store").display());
    assert_refused(
        &world.run(&["run", "spec.sexp", "--store", &store]),
        3,
        &["btrfs", "overlay:"],
    );
}

#[test]
fn a_directory_that_is_no_store() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell true))");
    world.write("mine/file", "precious");
    let store = format!("overlay:{}", world.path("mine").display());
    assert_refused(
        &world.run(&["run", "spec.sexp", "--store", &store]),
        3,
        &["mine"],
    );
    assert_eq!(
        fs_err::read_dir(world.path("mine")).unwrap().count(),
        1,
        "nothing was put there"
    );
}

#[test]
fn a_store_from_a_newer_version() {
    let Some(world) = World::new() else { return };
    world.build("(run (shell true))");
    fs_err::write(world.path("store/obuild-store"), "overlay 99\n").unwrap();
    assert_refused(&world.run(&["run", "spec.sexp"]), 3, &["99", "newer"]);
}

#[test]
fn a_damaged_or_missing_database_loses_nothing() {
    let Some(world) = World::new() else { return };
    let id = world.build("(run (shell \"echo told\"))");
    let database = world.path("store/state/obuild.db");
    for suffix in ["-wal", "-shm"] {
        let _ = fs_err::remove_file(format!("{}{suffix}", database.display()));
    }
    fs_err::write(
        &database,
        "not a database at all, but long enough to be looked at as if it were one".repeat(100),
    )
    .unwrap();
    let ran = world.run(&["run", "spec.sexp"]);
    assert_eq!(ran.stdout.trim(), id, "{ran:#?}");
    assert!(ran.stderr.contains("0 steps built"), "{ran:#?}");
    fs_err::remove_file(&database).unwrap();
    let ran = world.run(&["run", "spec.sexp"]);
    assert!(ran.stderr.contains("0 steps built"), "{ran:#?}");
}

#[test]
fn a_base_that_does_not_exist() {
    let Some(world) = World::new() else { return };
    let run = |from: &str| {
        world.write("spec.sexp", format!("((from {from}) (run (shell true)))"));
        world.run(&["run", "spec.sexp"])
    };
    assert_refused(&run("tar:none.tar"), 2, &["none.tar"]);
    assert_refused(&run("dir:none"), 2, &["none"]);
    assert_refused(&run("oci:none"), 2, &["none"]);
    // Nobody listens there.
    let name = "127.0.0.1:1/debian:12";
    assert_refused(&run(name), 3, &[name, "cannot connect", "network"]);
    world.write("junk.tar", vec![b'x'; 4096]);
    assert_refused(&run("tar:junk.tar"), 3, &["junk.tar"]);
    world.assert_clean();
}

#[test]
fn a_missing_program_user_or_runtime() {
    let Some(world) = World::new() else { return };
    world.write("spec.sexp", "((from scratch) (run (shell \"true\")))");
    assert_refused(&world.run(&["run", "spec.sexp"]), 1, &["/usr/bin/env"]);
    world.spec("(user (name nobody-here)) (run (shell true))");
    assert_refused(
        &world.run(&["run", "spec.sexp"]),
        1,
        &["nobody-here", "/etc/passwd"],
    );
    world.spec("(run (shell true))");
    assert_refused(
        &world.run(&["run", "spec.sexp", "--runtime", "/no/such/runtime"]),
        3,
        &["/no/such/runtime"],
    );
    world.assert_clean();
}

#[test]
fn copies_of_what_is_not_there() {
    let Some(world) = World::new() else { return };
    world.spec("(copy (src nothing) (dst /x))");
    assert_refused(
        &world.run(&["run", "spec.sexp"]),
        1,
        &["nothing", "not found"],
    );
    world.write("file", "x");
    world.spec("(copy (src file/below) (dst /x))");
    assert_refused(&world.run(&["run", "spec.sexp"]), 1, &["file"]);
}

#[test]
fn wrong_values() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell true))");
    for (flag, value) in [
        ("--memory", "lots"),
        ("--timeout", "soon"),
        ("--cpus", "-1"),
        ("--secret", "x"),
        ("--sandbox", "box"),
        ("--jobs", "many"),
    ] {
        assert_refused(&world.run(&["run", "spec.sexp", flag, value]), 2, &[value]);
    }
    for command in ["log", "inspect", "export", "delete", "shell"] {
        let mut arguments = vec![command, "0123456789ab"];
        if command == "export" {
            arguments.extend(["--to", "dir:out"]);
        }
        assert_refused(&world.run(&arguments), 2, &["0123456789ab", "obuild ls"]);
    }
    world.write("config.toml", "sotre = \"overlay:/x\"\n");
    assert_refused(
        &world.run(&["run", "spec.sexp"]),
        2,
        &["config.toml", "sotre"],
    );
}

#[test]
fn no_permission() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell true))");
    for path in [
        world.directory.path().to_owned(),
        world.path("spec.sexp"),
        world.path("config.toml"),
    ] {
        if path.exists() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    // As somebody else, with a copy of the binary that they may run.
    let copy = world.path("obuild");
    obuild_fixtures::copy_program(crate::harness::binary().as_ref(), &copy);
    let mut other = std::process::Command::new("setpriv");
    other
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["run", "spec.sexp"])
        .current_dir(world.directory.path())
        .env("OBUILD_STORE", &world.store)
        .env("OBUILD_CONFIG", "/dev/null");
    let ran = Ran::from(other.output().unwrap());
    assert_refused(&ran, 3, &["Permission denied", "hint", "--store"]);
}

#[test]
fn the_mode_of_an_rsync_store_is_a_matter_of_usage() {
    let Some(world) = World::new() else { return };
    let store = format!("rsync:{}", world.path("other").display());
    let ls = |store: &str, mode: &str| world.run(&["ls", "--store", store, "--rsync-mode", mode]);
    let ran = ls(&world.store, "copy");
    assert_eq!(ran.status, 2, "{ran:#?}");
    assert!(
        ran.stderr.contains("only rsync stores have one"),
        "{ran:#?}"
    );
    assert_eq!(ls(&store, "hardlink_unsafe").status, 0);
    assert_eq!(ls(&store, "hardlink-unsafe").status, 0);
    let ran = ls(&store, "copy");
    assert_eq!(ran.status, 2, "{ran:#?}");
    assert!(
        ran.stderr
            .contains("made with mode hardlink-unsafe, not copy"),
        "{ran:#?}"
    );
}
