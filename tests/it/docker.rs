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
    assert!(
        ran.stderr.contains("1 steps built") || ran.stderr.contains("1 step built"),
        "{ran:#?}"
    );
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
