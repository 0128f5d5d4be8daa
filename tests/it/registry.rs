// SPDX-License-Identifier: Apache-2.0
//! Bases from a real registry, through the binary.

use crate::harness::{World, base};
use obuild_fixtures::{Registry, registry, registry_authority};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes an image of the busybox base and puts it into a registry; returns its name.
fn put(world: &World, host: &str, extra: &[&str], marker: &str) -> String {
    let layout = world.path("layout");
    if !layout.exists() {
        run(Command::new("umoci")
            .arg("init")
            .arg("--layout")
            .arg(&layout));
        let image = format!("{}:x", layout.display());
        run(Command::new("umoci").args(["new", "--image", &image]));
        run(Command::new("umoci")
            .args(["raw", "add-layer", "--image", &image])
            .arg(base().expect("the world has a base")));
        run(Command::new("umoci").args([
            "config",
            "--config.env",
            "FROM_IMAGE=yes",
            "--image",
            &image,
        ]));
    }
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    let name = format!("{host}/it/{marker}-{since}:1");
    copy(&layout, &name, extra);
    name
}

fn copy(layout: &Path, name: &str, extra: &[&str]) {
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .args(extra)
        .arg(format!("oci:{}:x", layout.display()))
        .arg(format!("docker://{name}")));
}

fn run(command: &mut Command) {
    let output = command.output().expect("it is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
}

#[test]
fn a_base_from_a_registry_is_built_on_and_needs_it_once() {
    let Some(world) = World::new() else { return };
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let name = put(&world, &host, &[], "base");
    let spec = format!(
        "((from {name}) (shell /bin/sh -c) (run (shell \"echo $FROM_IMAGE > /out; cat /out\")))"
    );
    world.write("spec.sexp", &spec);
    let ran = world.run(&["run", "--progress", "json", "spec.sexp"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(
        ran.stderr.contains("\"event\":\"step_progress\""),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("\"data\":\"yes\\n\""), "{ran:?}");
    let id = ran.stdout.trim().to_owned();
    // The same image as a layout is the same base, so that the step is not run again.
    world.write("local.sexp", spec.replace(&name, "oci:layout:x"));
    assert_eq!(world.ok(&["run", "local.sexp"]), id);
    // Its own registry is gone: what is here does.
    for when in ["--pull=missing", "--pull=never"] {
        assert_eq!(world.ok(&["run", when, "spec.sexp"]), id);
    }
    let base = world.ok(&["pull", "-q", "--pull", "never", &name]);
    world.ok(&["inspect", &base]);
    // What was fetched is kept, and goes when room is made; the build does not need it any more.
    let large = |world: &World| {
        let blobs = fs_err::read_dir(world.path("store/state/images/blobs/sha256")).unwrap();
        blobs
            .flatten()
            .filter(|blob| blob.metadata().unwrap().len() > 64 << 10)
            .count()
    };
    assert_eq!(large(&world), 1);
    assert!(world.ok(&["df"]).contains("fetched"));
    let pruned = world.ok(&["prune", "--older-than", "0s"]);
    assert!(
        pruned.contains("removed 1 fetched file of images"),
        "{pruned}"
    );
    assert_eq!(large(&world), 0);
    assert_eq!(world.ok(&["run", "--pull=missing", "spec.sexp"]), id);
    // A tag that was moved is noticed when it is asked for.
    run(Command::new("umoci")
        .args(["config", "--config.env", "FROM_IMAGE=other", "--image"])
        .arg(format!("{}:x", world.path("layout").display())));
    copy(&world.path("layout"), &name, &[]);
    assert_eq!(world.ok(&["run", "spec.sexp"]), id);
    assert_ne!(world.ok(&["run", "--pull", "spec.sexp"]), id);
    world.assert_clean();
}

#[test]
fn what_a_registry_does_not_give_is_told() {
    let Some(world) = World::new() else { return };
    let (Some(host), Some(closed), Some(tls)) = (
        registry(Registry::Plain),
        registry(Registry::Password),
        registry(Registry::Tls),
    ) else {
        return;
    };
    let name = put(&world, &host, &[], "tags");
    for (image, status, words) in [
        (name.replace(":1", ":nosuch"), 2, "has no it/tags-"),
        (format!("{host}/it/nosuch"), 2, "has no it/nosuch:latest"),
        (
            "127.0.0.1:1/x".to_owned(),
            3,
            "cannot connect to 127.0.0.1:1",
        ),
        (format!("{closed}/x"), 3, "refuses access to x:latest"),
        ("registry.example/Upper".to_owned(), 2, "lower case"),
        (format!("{name}@sha256:12"), 2, "is not a digest"),
    ] {
        let ran = world.run(&["pull", "-q", &image]);
        assert_eq!(ran.status, status, "{image}: {ran:?}");
        assert!(
            ran.stderr.contains(words) && ran.stderr.contains("hint: "),
            "{image}: {ran:?}"
        );
        assert!(ran.stdout.is_empty());
    }
    let id = world.ok(&["pull", "-q", &name]);
    let ran = world.run(&["push", id.trim(), &format!("{closed}/x:1")]);
    assert_eq!(ran.status, 3, "{ran:?}");
    let hint = format!("hint: `docker login {closed}` first");
    assert!(
        ran.stderr.contains("refuses access to push to x") && ran.stderr.contains(&hint),
        "{ran:?}"
    );
    let ran = world.run(&["pull", "--platform", "linux", &name]);
    assert_eq!(ran.status, 2, "{ran:?}");
    let ran = world.run(&["pull", "-q", "--platform", "plan9/s390x", &name]);
    assert!(
        ran.status == 2 && ran.stderr.contains("no image for plan9/s390x"),
        "{ran:?}"
    );

    // With a password, and with TLS by an authority of its own.
    let secret = put(&world, &closed, &["--dest-creds=obuild:secret"], "secret");
    let authority = registry_authority();
    let trusted = format!("--dest-cert-dir={}", authority.parent().unwrap().display());
    let certified = put(&world, &tls, &[&trusted], "tls");
    world.write(
        "docker/config.json",
        // `obuild:secret`
        format!("{{\"auths\":{{\"{closed}\":{{\"auth\":\"b2J1aWxkOnNlY3JldA==\"}}}}}}"),
    );
    world.write(
        "config.toml",
        format!("[registry.\"{tls}\"]\nca = \"{}\"\n", authority.display()),
    );
    for image in [&secret, &certified] {
        let output = world
            .command(&["pull", "-q", image])
            .env("DOCKER_CONFIG", world.path("docker"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{image}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    world.assert_clean();
}
