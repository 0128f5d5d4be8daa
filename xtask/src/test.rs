// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask test`: installs and makes what the tests need, runs every check, takes it all down again.

use crate::cmd::Cmd;
use crate::dockerd::Daemon;
use crate::filesystems::Scratch;
use crate::reaper::Guard;
use crate::registries::{Access, Registry};
use crate::report::Report;
use crate::rootless::{self, Users};
use crate::zfs::{self, Pool};
use crate::{
    accounts, debian, docs, examples, faults, lint, opam, packages, registries, workspace,
};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Size of the images of the test file systems; they are sparse.
const IMAGE_BYTES: u64 = 8 << 30;

/// Parts of the names of all tests that use the pool. They run apart, one at a time: zfs-fuse does not bear more, and hangs now and then all
/// the same.
const ON_ZFS: [&str; 3] = ["zfs", "every_store_with_every_sandbox", "layer::tests"];

/// Many times what the tests take. Nothing may go on for ever.
const DEADLINE: Duration = Duration::from_mins(75);

/// The argument that asks for the suites as ordinary users only.
const AS_USERS: &str = "--as-users";

/// Runs the task. With arguments it runs only `cargo test` with them, in the same surroundings; with `--as-users` alone, only the suites as
/// ordinary users.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut report = Report::default();
    if arguments.is_empty() {
        lint::quick(&mut report);
    }
    let mut surroundings = Surroundings::create(&mut report)?;
    if arguments.is_empty() {
        lint::compiled(&mut report);
    }
    let as_users = arguments == [AS_USERS];
    let mut matrix = None;
    if !as_users {
        if arguments.is_empty() {
            report.check("tests", || surroundings.tests(false));
            report.check("tests on zfs", || {
                surroundings.with_pool(|this| this.tests(true))
            });
        } else {
            report.check("tests", || {
                surroundings.with_pool(|this| this.cargo_test(arguments))
            });
        }
        matrix = fs_err::read_to_string(surroundings.matrix()).ok();
    }
    if (arguments.is_empty() || as_users)
        && let (Some(scratch), Some(users)) = (&surroundings.scratch, &surroundings.users)
    {
        report.check("suites as ordinary users", || {
            rootless::run_suites(scratch, users)
        });
    }
    if arguments.is_empty() {
        docs::checks(&mut report);
        surroundings.run_examples(&mut report);
        surroundings.run_faults(&mut report);
    }
    if let Some(users) = surroundings.users.take() {
        report.check("users removed", || users.close());
    }
    // Before the directories that their homes and files are in.
    surroundings.accounts.clear();
    surroundings.registries.clear();
    if let Some(docker) = surroundings.docker.take() {
        report.check("docker daemon ended", || docker.close());
    }
    if let Some(scratch) = surroundings.scratch.take() {
        report.check("nothing left behind", || scratch.close());
    }
    if let Some(matrix) = matrix {
        println!("\nStores with sandboxes:\n{matrix}");
    }
    report.finish()
}

/// What the tests find through `OBUILD_TEST_*`.
struct Surroundings {
    /// Deleted before the file systems go: fields are dropped in their order.
    accounts: Vec<Guard>,
    registries: Vec<Registry>,
    /// Before the directory that it has its things in.
    docker: Option<Daemon>,
    scratch: Option<Scratch>,
    users: Option<Users>,
    variables: Vec<(&'static str, PathBuf)>,
}

impl Surroundings {
    fn create(report: &mut Report) -> Result<Self> {
        // /var/tmp: on a real disk on every system, and reachable for other users than root.
        let mut scratch = Scratch::create(Path::new("/var/tmp"))?;
        let mut variables = vec![("OBUILD_TEST_DIR", scratch.directory("plain")?)];
        match workspace::opam_data() {
            Some(data) => variables.push(("OBUILD_TEST_OPAM_DATA", data)),
            // No skip, nor one in CI: they are extra proof where the files are, and what they prove is tested without them.
            None => eprintln!("NOT APPLICABLE tests over all of opam-repository: no data"),
        }
        if !workspace::is_root() {
            let reason = "not root: no file systems are made; tests that need them or root skip";
            report.lack("test file systems", reason);
            return Ok(Self {
                accounts: Vec::new(),
                registries: Vec::new(),
                docker: None,
                scratch: Some(scratch),
                users: None,
                variables,
            });
        }
        report.check("packages", || packages::ensure(packages::TEST));
        report.check("btrfs", || {
            variables.push(("OBUILD_TEST_BTRFS", scratch.btrfs(IMAGE_BYTES)?));
            Ok(())
        });
        report.check("xfs", || {
            variables.push(("OBUILD_TEST_XFS", scratch.xfs(IMAGE_BYTES)?));
            Ok(())
        });
        let mut docker = None;
        report.check("docker daemon", || {
            let root = scratch.directory("docker")?;
            let mut daemon = Daemon::start(&root, &[])?;
            daemon.wait()?;
            variables.push(("OBUILD_TEST_DOCKER", daemon.socket()));
            docker = Some(daemon);
            Ok(())
        });
        report.check("Debian root", || {
            variables.push(("OBUILD_TEST_DEBIAN", debian::tar()?));
            Ok(())
        });
        let mut started = Vec::new();
        for (variable, access, name) in [
            ("OBUILD_TEST_REGISTRY", Access::Open, "open"),
            (
                "OBUILD_TEST_REGISTRY_PASSWORD",
                Access::Password,
                "password",
            ),
            ("OBUILD_TEST_REGISTRY_TLS", Access::Tls, "tls"),
        ] {
            report.check("registry", || {
                let directory = scratch.path().join("registries").join(name);
                let registry = Registry::start(&directory, access)?;
                variables.push((variable, registry.host().into()));
                if access == Access::Tls {
                    let authority = registries::authority(&directory);
                    variables.push(("OBUILD_TEST_REGISTRY_CA", authority));
                }
                started.push(registry);
                Ok(())
            });
        }
        report.check("opam", || {
            let mut clients = vec![opam::own()?];
            let (newer, lacking) = opam::newer();
            clients.extend(newer);
            for reason in lacking {
                eprintln!("SKIPPED {reason}");
                anyhow::ensure!(
                    !workspace::in_ci(),
                    "nothing may be skipped in CI: {reason}"
                );
            }
            variables.push(("OBUILD_TEST_OPAM", std::env::join_paths(clients)?.into()));
            Ok(())
        });
        let mut users = None;
        report.check("users", || {
            let made = Users::create(&scratch)?;
            for (variable, name) in &made.names {
                variables.push((variable, name.into()));
            }
            users = Some(made);
            Ok(())
        });
        // For the trees of the sandboxes' tests, and for stores on btrfs: a home is moved to where its tree is.
        let mut accounts = Vec::new();
        for (variable, count, file_system) in [
            ("OBUILD_TEST_BUILD_USERS", 4, "plain"),
            ("OBUILD_TEST_BUILD_USERS_BTRFS", 5, "btrfs"),
            ("OBUILD_TEST_BUILD_USERS_XFS", 1, "xfs"),
        ] {
            report.check("build users", || {
                let homes = scratch.path().join(file_system).join("homes");
                let prefix = format!("ob{}", &file_system[..1]);
                let (names, guards) = accounts::create(&prefix, count, &homes)?;
                accounts.extend(guards);
                variables.push((variable, names.into()));
                Ok(())
            });
        }
        Ok(Self {
            accounts,
            registries: started,
            docker,
            scratch: Some(scratch),
            users,
            variables,
        })
    }
}

impl Surroundings {
    /// Returns the file that the tests write the table of stores and sandboxes to.
    fn matrix(&self) -> PathBuf {
        let scratch = self.scratch.as_ref();
        scratch.map_or_else(PathBuf::new, |scratch| scratch.path().join("matrix.md"))
    }

    /// Runs the examples, where root allows.
    fn run_examples(&self, report: &mut Report) {
        match &self.scratch {
            Some(scratch) if workspace::is_root() => {
                report.check("examples", || {
                    examples::run_all(&scratch.path().join("examples"))
                });
            }
            _ => report.lack("examples", "not root"),
        }
    }
}

impl Surroundings {
    /// Breaks things a few times, where root allows.
    fn run_faults(&self, report: &mut Report) {
        match &self.scratch {
            Some(scratch) if workspace::is_root() => {
                report.check("faults", || faults::run_few(scratch));
            }
            _ => report.lack("faults", "not root"),
        }
    }
}

impl Surroundings {
    /// Does something while there is a pool to test on, where root allows; once more if zfs-fuse was lost.
    fn with_pool(&mut self, action: impl Fn(&Self) -> Result<()>) -> Result<()> {
        if !workspace::is_root() {
            return action(self);
        }
        zfs::patiently(|| {
            let scratch = self.scratch.as_ref().context("it is removed last")?;
            let pool = Pool::create(scratch.path(), IMAGE_BYTES)?;
            self.variables.push(("OBUILD_TEST_ZFS", pool.name().into()));
            let result = action(self);
            self.variables.pop();
            let closed = pool.close().context("a pool is left behind");
            result.and(closed)
        })
    }

    /// Runs all tests that use the pool, or all others.
    fn tests(&self, on_zfs: bool) -> Result<()> {
        let names = ON_ZFS.map(str::to_owned);
        let usual = ["--workspace", "--no-fail-fast"].map(str::to_owned);
        let chosen: Vec<String> = if on_zfs {
            // No examples in the documentation use it.
            let alone = ["--tests", "--", "--test-threads=1"].map(str::to_owned);
            alone.into_iter().chain(names).collect()
        } else {
            let others = names
                .into_iter()
                .flat_map(|name| ["--skip".to_owned(), name]);
            std::iter::once("--".to_owned()).chain(others).collect()
        };
        self.cargo_test(&usual.into_iter().chain(chosen).collect::<Vec<_>>())
    }

    fn cargo_test(&self, arguments: &[String]) -> Result<()> {
        let mut command = Cmd::cargo().arg("test");
        let picks_package = |argument: &String| {
            ["-p", "--package", "--workspace", "--all"].contains(&argument.as_str())
        };
        if !arguments.iter().any(picks_package) {
            command = command.arg("--workspace");
        }
        command = command
            .args(arguments)
            .env("OBUILD_TEST_MATRIX", self.matrix())
            .deadline(DEADLINE);
        for (name, path) in &self.variables {
            command = command.env(name, path);
        }
        command
            .run()
            .context("some tests failed; the runner's lines above say which")
    }
}
