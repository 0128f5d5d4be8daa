// SPDX-License-Identifier: Apache-2.0
//! The docker store and the docker sandbox, with each other and with others.

use crate::harness::{World, wait_for};
use obuild_fixtures::FileSystem;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Asks the daemon, with docker's own command, what it has of ours.
fn docker(socket: &Path, arguments: &[&str]) -> String {
    let output = Command::new("docker")
        .args(arguments)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A world whose commands talk to the daemon of the tests.
struct Docked {
    world: World,
    socket: PathBuf,
    sandbox: &'static str,
}

impl Docked {
    fn new(store: &str, sandbox: &'static str) -> Option<Self> {
        let socket = obuild_fixtures::docker()?;
        let world = World::on(FileSystem::Default, store)?;
        world.write(
            "config.toml",
            format!(
                "docker-host = \"unix://{}\"\nsandbox = \"{sandbox}\"\n",
                socket.display()
            ),
        );
        Some(Self {
            world,
            socket,
            sandbox,
        })
    }

    /// Returns the names of the containers that this world's store has, drafts that is.
    fn containers(&self) -> String {
        let label = format!("label=obuild.store={}", self.world.path("store").display());
        docker(&self.socket, &["ps", "-aq", "--filter", &label])
    }

    fn images(&self) -> String {
        let label = format!("label=obuild.store={}", self.world.path("store").display());
        docker(&self.socket, &["images", "-aq", "--filter", &label])
    }

    /// Returns the name of a step's image. Another store may have the same step.
    fn image(&self, id: &str) -> String {
        let label = format!("label=obuild.store={}", self.world.path("store").display());
        let format = "{{.Repository}}:{{.Tag}}";
        let images = docker(
            &self.socket,
            &["images", "--filter", &label, "--format", format],
        );
        let image = images.lines().find(|line| line.ends_with(id));
        image.expect("the step has an image").to_owned()
    }

    /// Removes everything through obuild and checks that docker has nothing more of it.
    fn finish(self) {
        self.world.ok(&["prune", "--all"]);
        self.world.assert_clean();
        assert_eq!(self.containers(), "");
        assert_eq!(self.images(), "");
    }
}

#[test]
fn docker_builds_with_any_store_and_any_sandbox() {
    for (store, sandbox) in [
        ("docker", "docker"),
        ("docker", "native"),
        ("docker", "runc"),
        ("overlay", "docker"),
    ] {
        let Some(docked) = Docked::new(store, sandbox) else {
            return;
        };
        let world = &docked.world;
        world.write("secret", "hidden-value");
        world.write("context/sub/file", "copied\n");
        world.spec(
            "(run (secrets (token (target /run/token))) (shell \"wc -c < /run/token; hostname; \
               ls /sys/class/net; echo made > /made\"))
             (copy (src sub) (dst /sub/))
             (run (cache (c (target /c))) (shell \"cat /made /sub/sub/file; echo x >> /c/f; wc -l < /c/f\"))",
        );
        let arguments = [
            "run",
            "--progress",
            "plain",
            "--secret",
            "id=token,src=secret",
            "spec.sexp",
            "context",
        ];
        let ran = world.run(&arguments);
        assert_eq!(ran.status, 0, "{store} {}: {ran:#?}", docked.sandbox);
        for line in [
            "| 12\n",
            "| builder\n",
            "| lo\n",
            "| made\n",
            "| copied\n",
            "| 1\n",
        ] {
            assert!(
                ran.stderr.contains(line),
                "{store} {sandbox} {line:?}: {ran:#?}"
            );
        }
        assert!(!ran.stderr.contains("eth0"), "no network: {ran:#?}");
        let id = ran.stdout.trim().to_owned();
        let again = world.run(&arguments);
        assert!(again.stderr.contains("0 steps built"), "{again:#?}");
        assert_eq!(again.stdout.trim(), id);
        assert_eq!(
            world.inside(&id, "ls /run/token /c 2>&1 | grep -c 'No such'"),
            "2"
        );
        if store == "docker" {
            // Anyone can run a step, and nothing of ours is in the image.
            let image = docked.image(&id);
            let image = image.as_str();
            let run = [
                "run",
                "--rm",
                "--network",
                "none",
                image,
                "/bin/cat",
                "/made",
                "/sub/sub/file",
            ];
            assert_eq!(docker(&docked.socket, &run), "made\ncopied\n");
            let inspect = [
                "inspect",
                "--format",
                "{{json .Config.Entrypoint}} {{json .Config.Env}} {{json .Config.Cmd}}",
                image,
            ];
            assert_eq!(
                docker(&docked.socket, &inspect),
                "null null [\"/bin/sh\"]\n"
            );
        }
        docked.finish();
    }
}

#[test]
fn a_killed_build_leaves_nothing_with_docker() {
    let Some(docked) = Docked::new("docker", "docker") else {
        return;
    };
    let world = &docked.world;
    let time = format!("986{}", std::process::id());
    let sleep = format!("sleep\0{time}");
    world.spec(&format!("(run (shell \"echo begun; sleep {time}\"))"));
    let mut build = world.start(&["run", "spec.sexp"]);
    wait_for("the step", || crate::harness::process_runs(&sleep));
    let name = format!("obuild-{}-", build.id());
    let ours = || {
        let all = docker(&docked.socket, &["ps", "-a", "--format", "{{.Names}}"]);
        all.lines().filter(|line| line.starts_with(&name)).count()
    };
    assert_eq!(ours(), 1);
    assert_eq!(docked.containers().lines().count(), 1);
    build.kill().unwrap();
    build.wait().unwrap();
    wait_for("the step's end", || !crate::harness::process_runs(&sleep));
    wait_for("the container's end", || ours() == 0);
    // The next one takes the draft away.
    world.ok(&["ls"]);
    assert_eq!(docked.containers(), "");
    docked.finish();
}

#[test]
fn what_docker_lost_is_built_again() {
    let Some(docked) = Docked::new("docker", "native") else {
        return;
    };
    let world = &docked.world;
    // Docker keeps a layer as long as any store has the same.
    let place = world.path("").display().to_string();
    let id = world.build(&format!("(run (shell \"echo {place} > /made\"))"));
    let image = docked.image(&id);
    docker(&docked.socket, &["rmi", &image]);
    let ran = world.run(&["run", "--progress", "plain", "spec.sexp"]);
    assert!(ran.stderr.contains("1 step built"), "{ran:#?}");
    assert_eq!(world.inside(&id, "cat /made"), place);
    docked.finish();
}

#[test]
fn a_daemon_that_is_not_there_is_said_so() {
    let Some(world) = World::new() else {
        return;
    };
    world.spec("(run (shell true))");
    let store = format!("docker:{}", world.path("other").display());
    let cases: [(&[&str], i32, &str); 3] = [
        (
            &[
                "--docker-host",
                "unix:///nonexistent/docker.sock",
                "--store",
                &store,
                "run",
                "spec.sexp",
            ],
            3,
            "is the docker daemon running?",
        ),
        (
            &[
                "--docker-host",
                "unix:///nonexistent/docker.sock",
                "run",
                "--sandbox",
                "docker",
                "spec.sexp",
            ],
            3,
            "is the docker daemon running?",
        ),
        (
            &[
                "--docker-host",
                "tcp://example.org:2375",
                "run",
                "--sandbox",
                "docker",
                "spec.sexp",
            ],
            2,
            "must be of this host",
        ),
    ];
    for (arguments, status, words) in cases {
        let ran = world.run(arguments);
        assert_eq!(ran.status, status, "{ran:#?}");
        assert!(ran.stderr.contains(words), "{ran:#?}");
    }
    world.assert_clean();
}

impl Docked {
    /// Runs `store check`; returns its report and the exit status.
    fn check(&self, options: &[&str]) -> (serde_json::Value, i32) {
        let ran = self
            .world
            .run(&[&["store", "check", "--format", "json"], options].concat());
        let report = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
        (report, ran.status)
    }

    /// Returns a path in the layer that docker has of a step.
    fn inner(&self, id: &str, path: &str) -> PathBuf {
        let facts = self.world.path("store/snapshots").join(id).join("docker");
        let facts = fs_err::read_to_string(facts).unwrap();
        let layer = facts.lines().find_map(|line| line.strip_prefix("layer "));
        Path::new(layer.unwrap()).join(path)
    }
}

/// A base and two steps, which no other store has.
fn two_steps(world: &World) -> String {
    let place = world.path("").display().to_string();
    world.build(&format!(
        "(run (shell \"mkdir /data; echo {place} > /data/file\")) (run (cache (c (target /c))) (shell \"echo kept > /c/f; ln -s file /data/name\"))"
    ))
}

#[test]
fn a_docker_store_is_told_checked_and_mended() {
    let Some(docked) = Docked::new("docker", "native") else {
        return;
    };
    let world = &docked.world;
    let target = two_steps(world);
    let (report, status) = docked.check(&[]);
    assert_eq!((status, &report["recorded"]), (0, &3.into()), "{report:#}");
    let info = world.ok(&["store", "info", "--sizes", "--format", "json"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["kind"], "docker", "{info:#}");
    assert_eq!(info["snapshots"]["count"], 3, "{info:#}");
    assert_eq!(info["snapshots"]["digests"], 3, "{info:#}");
    assert_eq!(info["caches"][0]["name"], "c", "{info:#}");
    assert_eq!(info["health"]["ok"], true, "{info:#}");
    let (report, status) = docked.check(&[]);
    let sound = (0, &serde_json::json!([]), &serde_json::json!(3));
    assert_eq!((status, &report["findings"], &report["verified"]), sound);

    // Somebody writes into docker's files.
    let steps = world.ok(&["ls", "-q"]);
    let middle = steps
        .lines()
        .find(|id| docked.inner(id, "data/file").exists());
    let middle = middle.expect("a step wrote it").to_owned();
    // The recorded time has milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(5));
    fs_err::write(docked.inner(&middle, "data/file"), "other\n").unwrap();
    let (report, status) = docked.check(&["--repair"]);
    assert_eq!(status, 1, "{report:#}");
    assert!(report.to_string().contains("/data/file"), "{report:#}");
    assert_eq!(report["removed"].as_array().unwrap().len(), 2, "{report:#}");
    assert_eq!(docked.images().lines().count(), 1, "only the base's");
    let again = world.run(&["run", "spec.sexp"]);
    assert!(
        again.stderr.contains("2 steps built, 1 cached"),
        "{again:#?}"
    );
    docked.check(&[]);

    // Somebody removes an image.
    docker(&docked.socket, &["rmi", &docked.image(&target)]);
    let (report, status) = docked.check(&["--quick"]);
    assert_eq!(
        (status, &report["unusable"]),
        (1, &serde_json::json!([target]))
    );
    let (report, status) = docked.check(&["--quick", "--repair"]);
    assert_eq!(
        (status, &report["removed"]),
        (1, &serde_json::json!([target]))
    );
    let (report, status) = docked.check(&[]);
    assert_eq!((status, &report["findings"]), (0, &serde_json::json!([])));
    world.ok(&["delete", "--cache", "c"]);
    docked.finish();
}

#[test]
fn results_are_copied_to_docker_and_from_it() {
    let Some(docked) = Docked::new("docker", "native") else {
        return;
    };
    let world = &docked.world;
    let target = two_steps(world);
    let place = world.path("").display().to_string();
    let mut from = world.store.clone();
    for kind in ["overlay", "docker"] {
        let url = format!("{kind}:{}", world.path(&format!("{kind}-copy")).display());
        let said = world.ok(&["store", "copy", &from, &url, "--all", "--caches"]);
        assert!(said.starts_with("copied 3 snapshots"), "{said}");
        assert!(said.trim_end().ends_with("; 1 cache"), "{said}");
        let built = world.run(&["run", "--store", &url, "spec.sexp"]);
        assert!(
            built.stderr.contains("0 steps built, 3 cached"),
            "{built:#?}"
        );
        let checked = world.run(&["store", "check", "--store", &url]);
        assert_eq!(checked.status, 0, "{checked:#?}");
        from = url;
    }
    // The second copy's image is one like any other.
    let label = format!("label=obuild.store={}", world.path("docker-copy").display());
    let format = "{{.Repository}}:{{.Tag}}";
    let images = ["images", "--filter", &label, "--format", format];
    let images = docker(&docked.socket, &images);
    let image = images.lines().find(|line| line.ends_with(&target)).unwrap();
    let run = ["run", "--rm", "--network", "none", image, "/bin/cat"];
    let cat = |path| docker(&docked.socket, &[&run[..], &[path]].concat());
    assert_eq!(cat("/data/name"), format!("{place}\n"));
    world.ok(&["prune", "--all", "--store", &from]);
    let left = ["images", "-aq", "--filter", &label];
    assert_eq!(docker(&docked.socket, &left), "");
    world.ok(&["delete", "--cache", "c"]);
    docked.finish();
}

#[test]
fn docker_loads_and_runs_what_is_exported() {
    for store in ["overlay", "docker"] {
        let Some(docked) = Docked::new(store, "native") else {
            return;
        };
        let world = &docked.world;
        let target = world.build(
            "(env GREETING hello) (workdir /data) (run (shell \"echo $GREETING > said; mkdir gone deep; echo x > deep/x; chown 1000:2000 deep/x\")) (run (shell \"rmdir gone\"))",
        );
        let name = format!("obuild-test-{}-{store}:1", std::process::id());
        let file = world.path("image.tar").display().to_string();
        let to = format!("type=docker,dest={file}");
        world.ok(&["export", &target, "-t", &name, "-o", &to]);
        let said = docker(&docked.socket, &["load", "-q", "-i", &file]);
        assert!(said.contains(&name), "{said}");
        let script = "pwd; cat said; ls; stat -c %u:%g deep/x";
        let run = [
            "run",
            "--rm",
            "--network",
            "none",
            &name,
            "/bin/sh",
            "-c",
            script,
        ];
        let said = docker(&docked.socket, &run);
        docker(&docked.socket, &["rmi", &name]);
        assert_eq!(said, "/data\nhello\ndeep\nsaid\n1000:2000\n");
        docked.finish();
    }
}
