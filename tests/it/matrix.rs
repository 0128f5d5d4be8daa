// SPDX-License-Identifier: Apache-2.0
//! Every store with every sandbox: the same builds, the same results, and which pairs are refused.
//!
//! What each promises alone is tested in its crate; here each pair has to do what all do. The table of what was found is written to
//! the file that `OBUILD_TEST_MATRIX` names, for `cargo xtask test` to print, and must be the one in the guide.

use crate::harness::{World, base, binary, process_runs, wait_for};
use obuild_fixtures::{FileSystem, root};
use std::env;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const SANDBOXES: [&str; 4] = ["native", "runc", "docker", "user"];

/// A row: the store, the file system below it, its mode, and the variable that names build users with homes there.
const STORES: [(&str, FileSystem, &str, &str); 7] = [
    ("overlay", FileSystem::Default, "", "BUILD_USERS"),
    ("btrfs", FileSystem::Btrfs, "", "BUILD_USERS_BTRFS"),
    ("zfs", FileSystem::Default, "", "BUILD_USERS"),
    ("xfs", FileSystem::Xfs, "", "BUILD_USERS_XFS"),
    ("rsync", FileSystem::Default, "hardlink", "BUILD_USERS"),
    ("rsync", FileSystem::Default, "copy", "BUILD_USERS"),
    ("docker", FileSystem::Default, "", "BUILD_USERS"),
];

/// What came of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Holds,
    Refused,
    /// The machine lacks something, or it is a part of the program that was not built.
    NotRun,
}

impl Found {
    fn told(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Refused => "refused",
            Self::NotRun => "not run",
        }
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(format!("OBUILD_TEST_{name}")).ok()
}

/// One pair. Removes what it has made outside of its directory.
struct Pair {
    world: World,
    arguments: Vec<String>,
    /// Where the tree's root is, for a command.
    root: &'static str,
    dataset: Option<String>,
    marker: String,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Some(dataset) = &self.dataset {
            for _ in 0..40 {
                let mut zfs = Command::new("flock");
                zfs.args(["/usr/sbin/zfs", "zfs", "destroy", "-R", "-f", dataset]);
                if zfs.output().is_ok_and(|output| output.status.success()) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

impl Pair {
    /// Returns `None` where the machine lacks something.
    fn new(number: usize, sandbox: &str) -> Option<Self> {
        let (kind, file_system, mode, users) = STORES[number];
        let mut world = World::on(file_system, kind)?;
        let mut config = format!("sandbox = \"{sandbox}\"\n");
        if !mode.is_empty() {
            writeln!(config, "rsync-mode = \"{mode}\"").unwrap();
        }
        if kind == "docker" || sandbox == "docker" {
            if cfg!(not(feature = "docker")) {
                return None;
            }
            let socket = obuild_fixtures::docker()?;
            writeln!(config, "docker-host = \"unix://{}\"", socket.display()).unwrap();
        }
        let mut dataset = None;
        if kind == "zfs" {
            let pool = obuild_fixtures::zfs_pool()?;
            let name = format!("{pool}/matrix-{}-{sandbox}", std::process::id());
            world.store = format!("zfs:{name}");
            dataset = Some(name);
        }
        if sandbox == "user" {
            let users = variable(users)?;
            // The last: others have tests of their own.
            let user = users.rsplit(',').next().unwrap();
            writeln!(config, "build-users = [{user:?}]").unwrap();
        }
        world.write("config.toml", config);
        world.write("word", "hidden-value");
        world.write("context/sub/file", "copied\n");
        let arguments = [
            "run",
            "--progress",
            "plain",
            "--secret",
            "id=token,src=word",
        ];
        Some(Self {
            world,
            arguments: arguments.map(str::to_owned).into(),
            root: if sandbox == "user" { "$HOME" } else { "" },
            dataset,
            marker: format!("77{number}{}{}", sandbox.len(), std::process::id()),
        })
    }

    fn spec(&self, operations: &str) {
        self.world.spec(&operations.replace('@', self.root));
    }

    fn run(&self) -> crate::harness::Ran {
        let mut arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        arguments.extend(["spec.sexp", "context"]);
        self.world.run(&arguments)
    }

    /// Runs everything that each pair has to do.
    fn holds(&self, name: &str) -> Found {
        let steps = "(workdir /w)
             (run (secrets (token (target /run/token))) (shell \"wc -c < @/run/token; echo made > made; echo gone > gone; ln -s made link; mkdir deep\"))
             (copy (src sub) (dst /w/sub/))
             (run (cache (c (target /c))) (shell \"rm gone; rmdir deep; cat made sub/sub/file; echo x >> @/c/f; wc -l < @/c/f; chmod 750 made\"))";
        self.spec(steps);
        let ran = self.run();
        if ran.status == 2 && ran.stderr.contains("user sandbox") {
            assert!(ran.stderr.contains("hint: "), "{name}: {ran:#?}");
            return Found::Refused;
        }
        assert_eq!(ran.status, 0, "{name}: {ran:#?}");
        for line in ["| 12\n", "| made\n", "| copied\n", "| 1\n"] {
            assert!(ran.stderr.contains(line), "{name} {line:?}: {ran:#?}");
        }
        let id = ran.stdout.trim().to_owned();
        let again = self.run();
        assert!(again.stderr.contains("0 steps built"), "{name}: {again:#?}");
        assert_eq!(again.stdout.trim(), id, "{name}");
        assert_eq!(
            self.tree(&id),
            [
                "link l 777 0:0 -> made",
                "made f 750 0:0 made",
                "sub d 755 0:0",
                "sub/sub d 755 0:0",
                "sub/sub/file f 644 0:0 copied",
            ],
            "{name}"
        );
        self.fails_as_it_should(name);
        self.is_killed(name);
        self.world.ok(&["prune", "--all"]);
        self.world.ok(&["delete", "--cache", "c"]);
        assert_eq!(self.world.ok(&["ls", "-q"]), "", "{name}");
        if self.dataset.is_none() {
            self.world.assert_clean();
        }
        Found::Holds
    }

    /// Returns what is in `/w` of a result.
    fn tree(&self, id: &str) -> Vec<String> {
        let place = self.world.path("out");
        let target = format!("dir:{}", place.display());
        self.world.ok(&["export", id, "--to", &target]);
        let script = "find . -mindepth 1 -printf '%P %y %m %U:%G' \\( -type l -printf ' -> %l\\n' -o \
                      -type f -printf ' ' -exec cat {} \\; -o -printf '\\n' \\)";
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(place.join("w"))
            .output()
            .unwrap();
        fs_err::remove_dir_all(place).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    fn fails_as_it_should(&self, name: &str) {
        let marker = &self.marker;
        self.spec(&format!(
            "(run (shell \"(sleep {marker} > /dev/null 2>&1 &); echo said; exit 7\"))"
        ));
        let ran = self.run();
        assert_eq!(ran.status, 1, "{name}: {ran:#?}");
        assert!(
            ran.stderr.contains("| said\n") && ran.stderr.contains("exit status 7"),
            "{name}: {ran:#?}"
        );
        assert!(!process_runs(&format!("sleep\0{marker}")), "{name}");
    }

    fn is_killed(&self, name: &str) {
        let marker = format!("{}1", self.marker);
        self.spec(&format!("(run (shell \"echo begun; sleep {marker}\"))"));
        let mut command = self
            .world
            .command(&["run", "--progress", "plain", "spec.sexp"]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let line = format!("sleep\0{marker}");
        wait_for("the step", || process_runs(&line));
        child.kill().unwrap();
        child.wait().unwrap();
        wait_for("the step's end", || !process_runs(&line));
        self.spec("(run (shell \"echo better\"))");
        let ran = self.run();
        assert_eq!(ran.status, 0, "{name}: {ran:#?}");
    }
}

#[test]
fn every_store_with_every_sandbox() {
    if !root() || base().is_none() || !PathBuf::from(binary()).exists() {
        return;
    }
    let mut table = String::from("| |");
    for sandbox in SANDBOXES {
        write!(table, " `{sandbox}` |").unwrap();
    }
    table.push_str("\n|---|---|---|---|---|\n");
    let mut complete = true;
    for (number, (kind, _, mode, _)) in STORES.into_iter().enumerate() {
        let row = match mode {
            "" => format!("`{kind}`"),
            mode => format!("`{kind}`, `{mode}`"),
        };
        write!(table, "| {row} |").unwrap();
        for sandbox in SANDBOXES {
            let found = match Pair::new(number, sandbox) {
                Some(pair) => pair.holds(&format!("{row} with {sandbox}")),
                None => Found::NotRun,
            };
            complete &= found != Found::NotRun;
            write!(table, " {} |", found.told()).unwrap();
        }
        table.push('\n');
    }
    if let Some(file) = variable("MATRIX") {
        fs_err::write(file, &table).unwrap();
    }
    if complete {
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src/sandboxes.md");
        let guide = fs_err::read_to_string(guide).unwrap();
        assert!(
            guide.contains(&table),
            "the table in docs/src/sandboxes.md is another than was found:\n{table}"
        );
    }
}
