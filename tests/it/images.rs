// SPDX-License-Identifier: Apache-2.0
//! Results as images: other programs take them, and they are the same wherever they were made.

use crate::harness::World;
use obuild_fixtures::{Registry, registry, skip};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const OPERATIONS: &str = "(env PATH /bin)
 (run (shell \"echo hello > /hello; ln /hello /again; mkdir -p /d/e; echo x > /d/e/x; chmod 4755 /d/e/x\"))
 (run (shell \"rm /again; rm -r /home; chown 5:6 /d; chmod 1700 /d\"))
 (run (shell true))
 (user (uid 1000) (gid 1000)) (workdir /d) (env A b)";

fn program(name: &str) -> bool {
    let there = Path::new("/usr/bin").join(name).exists();
    if !there {
        skip(&format!("needs {name}"));
    }
    there
}

fn run(world: &World, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(world.directory.path())
        .output()
        .expect("it is installed");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:#?}"
    );
    String::from_utf8(output.stdout).expect("it writes text")
}

#[test]
fn other_programs_take_the_images() {
    let Some(world) = World::new() else { return };
    if !program("skopeo") || !program("umoci") {
        return;
    }
    world.spec(OPERATIONS);
    let arguments = [
        "run",
        "spec.sexp",
        "-t",
        "app:1",
        "-o",
        "type=oci,dest=layout",
        "-o",
        "type=oci,dest=oci.tar",
        "-o",
        "type=docker,dest=docker.tar",
        "--change",
        "CMD [\"/bin/sh\"]",
        "--annotation",
        "a.b=c",
        "--metadata-file",
        "metadata.json",
        "--iidfile",
        "iid",
    ];
    let id = world.ok(&arguments);
    let metadata: Value =
        serde_json::from_slice(&fs_err::read(world.path("metadata.json")).unwrap()).unwrap();
    let digest = metadata["containerimage.digest"].as_str().unwrap();
    let iid = fs_err::read_to_string(world.path("iid")).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], *iid);
    for source in ["oci:layout:1", "oci-archive:oci.tar:1"] {
        let found: Value =
            serde_json::from_str(&run(&world, "skopeo", &["inspect", source])).unwrap();
        assert_eq!(found["Digest"], digest, "{source}");
        assert_eq!(
            found["Layers"].as_array().unwrap().len(),
            3,
            "the base and two steps that changed something"
        );
    }
    let config: Value = serde_json::from_str(&run(
        &world,
        "skopeo",
        &["inspect", "--config", "docker-archive:docker.tar"],
    ))
    .unwrap();
    assert_eq!(config["config"]["User"], "1000:1000");
    assert_eq!(config["config"]["WorkingDir"], "/d");
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["/bin/sh"]));
    assert_eq!(
        config["config"]["Env"],
        serde_json::json!(["A=b", "PATH=/bin"])
    );
    assert_eq!(config["created"], "1980-01-01T00:00:00Z");
    // umoci refuses a layer or a document that breaks the specification.
    run(
        &world,
        "umoci",
        &["unpack", "--image", "layout:1", "bundle"],
    );
    let root = world.path("bundle/rootfs");
    assert_eq!(
        fs_err::read_to_string(root.join("hello")).unwrap(),
        "hello\n"
    );
    assert!(!root.join("again").exists() && !root.join("home").exists());
    let stat = run(
        &world,
        "stat",
        &["-c", "%a %u:%g", "bundle/rootfs/d", "bundle/rootfs/d/e/x"],
    );
    assert_eq!(stat, "1700 5:6\n4755 0:0\n");
    // And obuild itself: a base made of it has the same layers, which an image upon it keeps.
    world.write(
        "upon.sexp",
        "((from oci:layout:1) (shell /bin/sh -c) (run (shell \"echo y > /d/e/y\")))",
    );
    world.ok(&["run", "upon.sexp", "-o", "type=oci,dest=upon"]);
    let layers = |layout: &str| {
        let found: Value = serde_json::from_str(&run(
            &world,
            "skopeo",
            &["inspect", &format!("oci:{layout}")],
        ))
        .unwrap();
        found["Layers"].as_array().unwrap().clone()
    };
    assert_eq!(layers("upon")[..3], layers("layout:1"));
    assert_eq!(layers("upon").len(), 4);
    // Once more, and as one layer.
    world.ok(&[
        "export",
        &id,
        "--layers",
        "build",
        "-t",
        "app:one",
        "-o",
        "type=oci,dest=layout",
        "--compression",
        "zstd",
    ]);
    assert_eq!(layers("layout:one").len(), 2);
    assert_eq!(layers("layout:1").len(), 3, "the other tag stays");
    world.assert_clean();
}

/// What buildah makes of images: from a layout, and from a registry.
#[test]
fn buildah_takes_the_images() {
    let (Some(world), Some(host)) = (World::new(), registry(Registry::Plain)) else {
        return;
    };
    if !program("buildah") {
        return;
    }
    world.spec(OPERATIONS);
    let name = format!("{host}/buildah-{}:1", std::process::id());
    let layout = ["-t", &name, "--push", "-o", "type=oci,dest=layout"];
    world.ok(&[&["run", "spec.sexp"], &layout[..]].concat());
    // A storage of its own, without a driver that would need more than directories.
    let storage = [
        "--root=storage",
        "--runroot=running",
        "--storage-driver=vfs",
        "--log-level=error",
    ];
    let buildah = |arguments: &[&str]| run(&world, "buildah", &[&storage[..], arguments].concat());
    for source in ["oci:layout:1", &format!("docker://{name}")] {
        let container = buildah(&["from", "--tls-verify=false", "--pull-always", source]);
        let root = buildah(&["mount", container.trim()]);
        let root = Path::new(root.trim());
        let hello = fs_err::read_to_string(root.join("hello")).unwrap();
        assert_eq!(hello, "hello\n", "{source}");
        assert!(!root.join("again").exists() && !root.join("home").exists());
        let inside = |path: &str| root.join(path).display().to_string();
        let arguments = ["-c", "%a %u:%g", &inside("d"), &inside("d/e/x")];
        let stat = run(&world, "stat", &arguments);
        assert_eq!(stat, "1700 5:6\n4755 0:0\n", "{source}");
        let format = "{{.OCIv1.Config.User}} {{.OCIv1.Config.WorkingDir}}";
        let said = buildah(&["inspect", "--format", format, container.trim()]);
        assert_eq!(said.trim(), "1000:1000 /d", "{source}");
        buildah(&["umount", container.trim()]);
    }
    buildah(&["rm", "--all"]);
    world.assert_clean();
}

#[test]
fn every_store_gives_the_same_image() {
    let mut digests = Vec::new();
    for world in World::all() {
        world.spec(OPERATIONS);
        world.ok(&[
            "run",
            "spec.sexp",
            "-o",
            "type=oci,dest=a.tar",
            "--metadata-file",
            "a.json",
        ]);
        // Not what was kept, and built at another time.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        world.ok(&[
            "run",
            "spec.sexp",
            "--no-cache",
            "-o",
            "type=oci,dest=b.tar",
        ]);
        let (one, other) = (world.path("a.tar"), world.path("b.tar"));
        assert!(
            fs_err::read(one).unwrap() == fs_err::read(other).unwrap(),
            "{}: two builds, two images",
            world.store
        );
        let metadata: Value =
            serde_json::from_slice(&fs_err::read(world.path("a.json")).unwrap()).unwrap();
        digests.push((
            metadata["containerimage.digest"].to_string(),
            world.store.clone(),
        ));
    }
    assert!(
        digests.iter().all(|(digest, _)| *digest == digests[0].0),
        "{digests:#?}"
    );
}

#[test]
fn diff_and_verify_say_what_differs() {
    let Some(world) = World::new() else { return };
    let one = world.build("(run (shell \"printf 'a\\nb\\n' > /f; echo z > /z; mkdir /d\"))");
    let other =
        world.build("(run (shell \"printf 'a\\nc\\n' > /f; chmod 600 /f; ln -s f /l; mkdir /d\"))");
    assert_eq!(world.ok(&["diff", &one, &one]), "");
    let ran = world.run(&["diff", "--ignore-times", &one, &other]);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert_eq!(
        ran.stdout,
        "C /f\n    mode: 0644 → 0600\n    line 2:\n      -b\n      +c\nA /l\nD /z\n"
    );
    let ran = world.run(&["diff", "--ignore-times", "--format", "json", &one, &other]);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found[0]["path"], "/f");
    assert_eq!(found[0]["content"]["was"], serde_json::json!(["b"]));

    world.spec("(run (shell \"echo same > /a\")) (run (shell \"date +%s > /b\"))");
    let ran = world.run(&["verify", "spec.sexp"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(
        ran.stdout.contains("date +%s") && ran.stdout.contains("C /b\n    line 1:"),
        "{ran:?}"
    );
    assert!(!ran.stdout.contains("/a\n"), "{ran:?}");
    // Each that tells of its surroundings, with what it told; and those that do not are not named, nor what the spec has set.
    world.spec(
        "(env TZ UTC) (run (shell \"date +%Y > /year; date > /date; uname -r > /kernel; hostname > /host; nproc > /cpus; \
         echo $USER > /user; echo $TZ > /zone; echo $$ > /process; id > /id; domainname > /domain; pwd > /pwd\")) \
         (run (shell \"echo upon > /upon; (cd /; tar cf /archive.tar year id)\"))",
    );
    let ran = world.run(&["verify", "spec.sexp"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    let mut files = vec![
        "archive.tar",
        "date",
        "host",
        "kernel",
        "process",
        "user",
        "year",
    ];
    if std::thread::available_parallelism().unwrap().get() > 1 {
        files.push("cpus");
    }
    if !cfg!(target_arch = "x86_64") {
        files.retain(|file| !matches!(*file, "kernel" | "year"));
    }
    files.sort_unstable();
    let mut named: Vec<&str> = ran
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("C /"))
        .collect();
    named.sort_unstable();
    assert_eq!(named, files, "{}", ran.stdout);
    let host = "C /host\n    line 1:\n      -builder\n      +elsewhere\n";
    let user = "C /user\n    line 1:\n      -\n      +somebody\n";
    assert!(ran.stdout.contains(host), "{}", ran.stdout);
    assert!(ran.stdout.contains(user), "{}", ran.stdout);
    assert!(ran.stdout.contains("year"), "{}", ran.stdout);
    world.spec("(run (shell \"echo same > /a\"))");
    world.ok(&["verify", "spec.sexp"]);
    // Each tree is the same; only the order of names is not, nor is what shows the file system.
    let order = "(run (shell \"mkdir /d; touch /d/a /d/b /d/c /d/d /d/e /d/f /d/g /d/h\")) \
                 (run (shell \"ls -1 /d > /sorted; find /d > /order\"))";
    world.spec(order);
    let ran = world.run(&["verify", "spec.sexp"]);
    // The second build is on tmpfs.
    let kind = Command::new("stat")
        .args(["-f", "-c", "%T"])
        .arg(world.path("."))
        .output()
        .unwrap();
    if !String::from_utf8_lossy(&kind.stdout).contains("tmpfs") {
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stdout.contains("C /order\n"), "{ran:?}");
    }
    assert!(!ran.stdout.contains("C /sorted"), "{ran:?}");
    let second = format!("rsync:{}", world.path("second").display());
    let ran = world.run(&["verify", "spec.sexp", "--second-store", &second]);
    assert!(ran.status <= 1, "{ran:?}");
    assert!(!ran.stdout.contains("C /sorted"), "{ran:?}");
    assert!(!world.ok(&["ls", "-q", "--store", &second]).is_empty());
    world.assert_clean();
}

#[test]
fn what_cannot_be_written_is_refused_before_the_build() {
    let Some(world) = World::new() else { return };
    world.spec("(run (shell \"touch /never\"))");
    for arguments in [
        ["-o", "type=oci"],
        ["-o", "type=nonsense,dest=x"],
        ["-t", "app"],
        ["--change", "RUN x"],
        ["--compression", "lzma"],
    ] {
        let ran = world.run(&[&["run", "spec.sexp"], &arguments[..]].concat());
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:?}");
    }
    assert_eq!(world.run(&["run", "spec.sexp", "--push"]).status, 2);
    assert_eq!(world.ok(&["ls", "-q"]), "");
}

#[test]
fn a_push_sends_what_is_new_and_the_registry_gives_it_back() {
    let (Some(world), Some(host)) = (World::new(), registry(Registry::Plain)) else {
        return;
    };
    // A repository of its own, so that nothing is there yet.
    let name = format!("{host}/it-{}:1", std::process::id());
    world.spec(OPERATIONS);
    let first = world.run(&[
        "run",
        "spec.sexp",
        "--push",
        "-t",
        &name,
        "--metadata-file",
        "m.json",
    ]);
    assert_eq!(first.status, 0, "{first:?}");
    assert!(first.stderr.contains("pushed"), "{first:?}");
    let id = first.stdout.trim();
    let again = world.run(&["push", id, &name]);
    assert_eq!(again.status, 0, "{again:?}");
    // The manifest only: a tag is always written.
    let sent = again.stderr.split(": ").nth(1).unwrap_or_default();
    assert!(
        sent.ends_with("spared\n") && !sent.contains("MB sent"),
        "{again:?}"
    );
    let metadata: Value =
        serde_json::from_slice(&fs_err::read(world.path("m.json")).unwrap()).unwrap();
    let upon = format!("((from {name}) (shell /bin/sh -c) (run (shell \"cat /hello; id -u\")))");
    world.write("upon.sexp", upon);
    world.ok(&[
        "run",
        "upon.sexp",
        "-o",
        "type=oci,dest=upon",
        "--layers",
        "build",
    ]);
    assert!(
        metadata["containerimage.digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    let nowhere = world.run(&["run", "spec.sexp", "--push", "-t", "127.0.0.1:1/a"]);
    assert_eq!(nowhere.status, 3, "{nowhere:?}");
}
