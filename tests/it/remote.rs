// SPDX-License-Identifier: Apache-2.0
//! Two machines that share results: each has a store of its own, and one cache between them.

use crate::harness::{Ran, World, from};
use obuild_fixtures::{Registry, registry};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Every step says or draws something that it would not say or draw twice. The main build copies from a nested one, which nothing else needs.
const OPERATIONS: &str = "(copy (from (build tools)) (src /tool) (dst /tool))
 (run (shell \"head -c 200000 /dev/urandom > /large; echo one\"))
 (run (shell \"cat /proc/sys/kernel/random/uuid > /stamp; rm -r /home; ln /large /again; chown 5:6 /stamp; echo two\"))
 (run (shell true))
 (run (shell \"cat /stamp /tool > /both\"))";

fn spec(world: &World, operations: &str) {
    world.write("tool", "a tool\n");
    let nested = "(build tools ((from scratch) (copy (src tool) (dst /tool))))";
    let text = format!("({nested} {} (shell /bin/sh -c)\n{operations})\n", from());
    world.write("spec.sexp", text);
}

/// The events of a build, with its result.
fn build(world: &World, arguments: &[&str]) -> (Vec<Value>, Ran) {
    let ran = world.run(&[&["run", "spec.sexp", "--progress", "json"], arguments].concat());
    let events = ran
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    (events, ran)
}

fn outcomes(events: &[Value], outcome: &str) -> usize {
    let is = |event: &&Value| event["event"] == "step_finished" && event["outcome"] == outcome;
    events.iter().filter(is).count()
}

fn output(events: &[Value]) -> String {
    events
        .iter()
        .filter_map(|event| event["data"].as_str())
        .collect()
}

/// The two trees of a result are the same, with times.
fn assert_same(one: &World, other: &World, id: &str) {
    let tree = |world: &World| {
        world.ok(&["store", "check"]);
        let file = world.path("tree.tar");
        world.ok(&["export", id, "--to", &format!("tar:{}", file.display())]);
        fs_err::read(file).unwrap()
    };
    assert!(tree(one) == tree(other), "the trees differ");
}

fn blobs(layout: &Path) -> Vec<(PathBuf, u64)> {
    let mut blobs: Vec<_> = fs_err::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path(), entry.metadata().unwrap().len()))
        .collect();
    blobs.sort_by_key(|(_, size)| *size);
    blobs
}

fn share(to: &str, source: &str, other_kind: &str) {
    let Some(one) = World::new() else { return };
    let Some(other) = World::on(obuild_fixtures::FileSystem::Default, other_kind) else {
        return;
    };
    spec(&one, OPERATIONS);
    spec(&other, OPERATIONS);
    let (_, made) = build(&one, &["--cache-to", to]);
    assert_eq!(made.status, 0, "{made:#?}");
    let (events, fetched) = build(&other, &["--cache-from", source]);
    assert_eq!(fetched.status, 0, "{fetched:#?}");
    assert_eq!(fetched.stdout, made.stdout);
    let end = events.last().unwrap();
    assert_eq!(end["fetched"], 5, "{events:#?}");
    assert_eq!(outcomes(&events, "fetched"), 5);
    assert_eq!(outcomes(&events, "built"), 1, "the base alone");
    assert!(output(&events).contains("one\n"), "{events:#?}");
    let id = made.stdout.trim();
    assert_same(&one, &other, id);
    // And from then on it is there, with its logs, also without the cache: which files were copied from the nested build is remembered.
    for arguments in [&["--cache-from", source][..], &[]] {
        let (events, again) = build(&other, arguments);
        assert_eq!(again.status, 0, "{again:#?}");
        assert_eq!(outcomes(&events, "built") + outcomes(&events, "fetched"), 0);
        assert!(output(&events).contains("one\ntwo\n"), "{events:#?}");
    }
    one.assert_clean();
    other.assert_clean();
}

#[test]
fn a_directory_is_shared() {
    let place = obuild_fixtures::scratch(obuild_fixtures::FileSystem::Default);
    let Some(place) = place else { return };
    let place = place.path().join("cache").display().to_string();
    share(
        &format!("type=local,dest={place},mode=max"),
        &format!("type=local,src={place}"),
        "rsync",
    );
}

#[test]
fn a_registry_is_shared() {
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let name = format!("{host}/cache/{}:main", std::process::id());
    share(
        &format!("type=registry,ref={name},mode=min"),
        &format!("type=registry,ref={name}"),
        "overlay",
    );
}

#[test]
fn a_cache_must_be_signed_where_that_is_asked_for() {
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let Some(one) = World::new() else { return };
    spec(&one, OPERATIONS);
    let name = format!("{host}/cache/signed-{}:main", std::process::id());
    let to = format!("type=registry,ref={name}");
    let (_, made) = build(&one, &["--cache-to", &to]);
    assert_eq!(made.status, 0, "{made:#?}");
    for key in ["ours", "theirs"] {
        let ran = one.run(&["key", "generate", "-o", key]);
        assert_eq!(ran.status, 0, "{ran:#?}");
    }
    let public = |key: &str| one.path(&format!("{key}.pub")).display().to_string();
    let fetched = |key: &str| {
        let Some(world) = World::new() else { return 0 };
        spec(&world, OPERATIONS);
        let (events, ran) = build(&world, &["--cache-from", &to, "--cache-verify", key]);
        assert_eq!(ran.status, 0, "{ran:#?}");
        outcomes(&events, "fetched")
    };
    assert_eq!(fetched(&public("ours")), 0, "nobody has signed it");
    let ran = one.run(&["sign", &name, "--key", "ours.key"]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert!(fetched(&public("ours")) > 0);
    assert_eq!(fetched(&public("theirs")), 0, "another has signed it");
    let local = ["--cache-from", "type=local,src=x", "--cache-verify"];
    let ran = one.run(&[&["run", "spec.sexp"], &local[..], &[&public("ours")]].concat());
    assert_eq!(ran.status, 2, "{ran:#?}");
}

/// Two stores, one of which has shared a build by a layout.
struct Shared {
    one: World,
    other: World,
    layout: PathBuf,
    /// How the other takes from it.
    from: String,
    /// What the first printed.
    made: Ran,
}

impl Shared {
    fn new() -> Option<Self> {
        let (one, other) = (World::new()?, World::new()?);
        for world in [&one, &other] {
            spec(world, OPERATIONS);
        }
        let layout = one.path("cache");
        let to = format!("type=local,dest={},mode=max", layout.display());
        let from = format!("type=local,src={}", layout.display());
        let (_, made) = build(&one, &["--cache-to", &to]);
        assert_eq!(made.status, 0, "{made:#?}");
        Some(Self {
            one,
            other,
            layout,
            from,
            made,
        })
    }
}

#[test]
fn what_is_damaged_or_lost_is_run() {
    let Some(shared) = Shared::new() else { return };
    let (one, other, made) = (shared.one, shared.other, shared.made);
    let (layout, from) = (shared.layout, shared.from);
    // The largest blob is the layer with the random bytes; what is below it is of no use to the steps above any more.
    let (largest, size) = blobs(&layout).pop().unwrap();
    let mut bytes = fs_err::read(&largest).unwrap();
    bytes[usize::try_from(size / 2).unwrap()] ^= 1;
    fs_err::write(&largest, bytes).unwrap();
    let (events, ran) = build(&other, &["--cache-from", &from]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert_eq!(ran.stdout, made.stdout);
    let warned = |event: &&Value| event["event"] == "warning";
    assert!(events.iter().any(|event| warned(&event)), "{events:#?}");
    assert!(outcomes(&events, "built") >= 2, "{events:#?}");
    assert_ne!(
        other.inside(ran.stdout.trim(), "cat /stamp"),
        one.inside(made.stdout.trim(), "cat /stamp"),
        "a layer was put upon another tree than its own"
    );
    // A cache that is not there, and something that is none.
    let gone = format!("type=local,src={}", one.path("gone").display());
    world_without(&one, &gone);
    world_without(&one, &from.replace("cache", "store"));
    other.assert_clean();
}

fn world_without(like: &World, from: &str) {
    let Some(world) = World::new() else { return };
    spec(&world, OPERATIONS);
    let (events, ran) = build(&world, &["--cache-from", from]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert!(ran.stderr.contains("is not used"), "{ran:#?}");
    assert_eq!(outcomes(&events, "fetched"), 0);
    drop(world);
    like.assert_clean();
}

#[test]
fn only_what_the_target_needs_is_fetched() {
    let (Some(one), Some(other)) = (World::new(), World::new()) else {
        return;
    };
    let operations = "(copy (from (build tools)) (src /tool) (dst /tool))
 (run (shell \"echo below > /below\"))
 (run (shell \"head -c 300000 /dev/urandom > /above\"))";
    spec(&one, operations);
    let layout = one.path("cache");
    let to = format!("type=local,dest={},mode=max", layout.display());
    let (_, made) = build(&one, &["--cache-to", &to]);
    assert_eq!(made.status, 0, "{made:#?}");
    // The side build's layer is not needed by whoever fetches what was copied from it; nor is the top's, by a shorter spec.
    let (above, _) = blobs(&layout).pop().unwrap();
    fs_err::remove_file(above).unwrap();
    let shorter = &operations[..operations.rfind("\n (run").unwrap()];
    spec(&other, shorter);
    let from = format!("type=local,src={}", layout.display());
    let (events, ran) = build(&other, &["--cache-from", &from]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert_eq!(outcomes(&events, "fetched"), 2, "{events:#?}");
    assert!(
        !events.iter().any(|event| event["event"] == "warning"),
        "{events:#?}"
    );
    assert_eq!(outcomes(&events, "built"), 1, "the base alone");
}

/// Reads a blob that is JSON, and puts another in its place under its own digest; returns that and the size.
fn forge(layout: &Path, digest: &str, change: impl FnOnce(&mut Value)) -> (String, usize) {
    let place = |digest: &str| layout.join("blobs").join(digest.replace(':', "/"));
    let mut document: Value =
        serde_json::from_slice(&fs_err::read(place(digest)).unwrap()).unwrap();
    change(&mut document);
    let text = document.to_string();
    let file = layout.join("forged");
    fs_err::write(&file, &text).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&file).output();
    let sum = String::from_utf8(sum.unwrap().stdout).unwrap();
    let digest = format!("sha256:{}", sum.split(' ').next().unwrap());
    fs_err::rename(file, place(&digest)).unwrap();
    (digest, text.len())
}

#[test]
fn a_copy_that_a_cache_lied_about_is_looked_at_anew() {
    let Some(shared) = Shared::new() else { return };
    let (one, other, made) = (shared.one, shared.other, shared.made);
    let (layout, from) = (shared.layout, shared.from);
    // The list says that other files were copied from the nested build.
    let index = layout.join("index.json");
    let mut entries: Value = serde_json::from_slice(&fs_err::read(&index).unwrap()).unwrap();
    let entry = &mut entries["manifests"][0];
    let (digest, size) = forge(&layout, entry["digest"].as_str().unwrap(), |manifest| {
        let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
        let (digest, size) = forge(&layout, &config, |document| {
            let files = &mut document["copies"][0]["files"];
            assert!(files.is_string(), "{files}");
            *files = format!("sha256:{}", "0".repeat(64)).into();
        });
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
    });
    entry["digest"] = digest.into();
    entry["size"] = size.into();
    fs_err::write(&index, entries.to_string()).unwrap();
    let (events, ran) = build(&other, &["--cache-from", &from]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert_eq!(ran.stdout, made.stdout, "nothing has a false id");
    let warned = |event: &Value| {
        event["event"] == "warning" && event.to_string().contains("looking at it anew")
    };
    assert!(events.iter().any(warned), "{events:#?}");
    assert!(outcomes(&events, "fetched") >= 4, "{events:#?}");
    assert_same(&one, &other, made.stdout.trim());
    other.assert_clean();
}

#[test]
fn processes_that_fetch_the_same_at_once_get_the_same() {
    let Some(one) = World::new() else { return };
    spec(&one, OPERATIONS);
    let layout = one.path("cache");
    let to = format!("type=local,dest={},mode=max", layout.display());
    let (_, made) = build(&one, &["--cache-to", &to]);
    assert_eq!(made.status, 0, "{made:#?}");
    let from = format!("type=local,src={}", layout.display());
    // Named by the configuration, as it is for a pool of machines.
    for kind in ["overlay", "rsync"] {
        let other = World::on(obuild_fixtures::FileSystem::Default, kind);
        let Some(other) = other else { return };
        spec(&other, OPERATIONS);
        let text = format!("rsync-mode = \"hardlink\"\ncache-from = [{from:?}]\n");
        other.write("config.toml", text);
        let arguments = ["run", "spec.sexp", "--progress", "json"];
        let children: Vec<_> = (0..3).map(|_| other.start(&arguments)).collect();
        for child in children {
            let ran = Ran::from(child.wait_with_output().unwrap());
            assert_eq!(ran.status, 0, "{ran:#?}");
            assert_eq!(ran.stdout, made.stdout);
            assert!(!ran.stderr.contains("\"warning\""), "{ran:#?}");
            assert!(ran.stderr.contains("\"fetched\""), "{ran:#?}");
        }
        // Each draws random bytes if it is run.
        assert_same(&one, &other, made.stdout.trim());
        other.assert_clean();
    }
}

#[test]
fn who_fetched_shares_all_that_the_cache_had() {
    let (Some(one), Some(other), Some(third)) = (World::new(), World::new(), World::new()) else {
        return;
    };
    for world in [&one, &other, &third] {
        spec(world, OPERATIONS);
    }
    let share = |world: &World, from: Option<&str>, to: &str| {
        let to = format!("type=local,dest={},mode=max", one.path(to).display());
        let mut arguments = vec!["--cache-to", &to];
        let from = from.map(|from| format!("type=local,src={}", one.path(from).display()));
        if let Some(from) = &from {
            arguments.extend(["--cache-from", from]);
        }
        let (events, ran) = build(world, &arguments);
        assert_eq!(ran.status, 0, "{ran:#?}");
        (outcomes(&events, "fetched"), ran.stdout)
    };
    let (_, made) = share(&one, None, "first");
    // The nested build is not fetched: what was copied from it is known.
    assert_eq!(share(&other, Some("first"), "second"), (5, made.clone()));
    assert_eq!(
        blobs(&one.path("first")).len(),
        blobs(&one.path("second")).len()
    );
    // So it is still known two caches on.
    assert_eq!(share(&third, Some("second"), "third"), (5, made));
    assert_eq!(blobs(&one.path("second")), {
        let mut same = blobs(&one.path("third"));
        for (path, _) in &mut same {
            *path = one
                .path("second/blobs/sha256")
                .join(path.file_name().unwrap());
        }
        same
    });
}

#[test]
fn what_was_built_here_stays_as_it_is() {
    let (Some(one), Some(other)) = (World::new(), World::new()) else {
        return;
    };
    let below = "(run (shell \"cat /proc/sys/kernel/random/uuid > /stamp\"))";
    let both = format!("{below} (run (shell \"cp /stamp /copy\"))");
    spec(&one, &both);
    let layout = one.path("cache");
    let to = format!("type=local,dest={},mode=max", layout.display());
    let (_, made) = build(&one, &["--cache-to", &to]);
    // The other machine has run the first step itself, to another end.
    spec(&other, below);
    let (_, own) = build(&other, &[]);
    let stamp = other.inside(own.stdout.trim(), "cat /stamp");
    spec(&other, &both);
    let from = format!("type=local,src={}", layout.display());
    let (events, ran) = build(&other, &["--cache-from", &from]);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert_eq!(outcomes(&events, "fetched"), 1, "{events:#?}");
    assert_same(&one, &other, made.stdout.trim());
    assert_ne!(one.inside(made.stdout.trim(), "cat /stamp"), stamp);
    assert_eq!(other.inside(own.stdout.trim(), "cat /stamp"), stamp);
}
