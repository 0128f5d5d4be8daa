// SPDX-License-Identifier: Apache-2.0
//! What both suites share: the backends, root trees, ways to run a shell line, looks at the host.
#![expect(unreachable_pub, reason = "a module of test binaries")]
#![allow(dead_code, reason = "each suite uses its part")]

use obuild_fixtures::{FileSystem, busybox_root, scratch};
use obuild_sandboxes::{
    Cancel, Command, Error, Exit, HelperCommand, Native, NativeOptions, OverlayMount, Rootfs, Runc,
    RuncOptions, Sandbox, Stdio, Upper, UserOptions, UserSandbox,
};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// Defines one test a backend for each function.
#[macro_export]
macro_rules! on_every_backend {
    ($($name:ident),* $(,)?) => {
        mod user {
            $(#[test] fn $name() { $crate::support::by_user(stringify!($name), super::$name); })*
        }
        $crate::on_namespaces!($($name),*);
    };
}

/// As [`on_every_backend`], for what only a root, mounts and processes of a step's own can promise.
#[macro_export]
macro_rules! on_namespaces {
    ($($name:ident),* $(,)?) => {
        mod native {
            $(#[test] fn $name() { $crate::support::Tree::with("native", super::$name); })*
        }
        mod runc {
            $(#[test] fn $name() { $crate::support::Tree::with("runc", super::$name); })*
        }
        #[cfg(feature = "docker")]
        mod docker {
            $(#[test] fn $name() { $crate::support::Tree::with("docker", super::$name); })*
        }
    };
}

/// What isolation by uid alone cannot do, by the tests that check it. `docs/src/sandboxes.md` has the same for people.
pub const NOT_BY_USER: &[(&str, &str)] = &[
    (
        "identity_of_the_host",
        "a host name, processes and mounts of its own take namespaces",
    ),
    (
        "orphans_are_reaped",
        "it sees the host's processes, zombies and all",
    ),
    ("devices", "it sees the host's /dev"),
    (
        "capabilities",
        "it runs as no root; `users::privileges` checks that there are none",
    ),
    ("hosts_and_resolvers", "it sees the host's /etc"),
    ("networks", "a network of its own takes a namespace"),
    ("fast_sync", "it takes a seccomp filter"),
    (
        "no_new_privileges",
        "set-uid programs never work; `users::privileges` checks that",
    ),
    (
        "users",
        "every step runs as a build user; see `users::who_runs`",
    ),
    (
        "unknown_users",
        "the spec's user is not looked at; see `users::who_runs`",
    ),
    (
        "working_directories",
        "they are below the home; see `users::where_it_runs`",
    ),
    (
        "missing_programs",
        "programs are the host's; see `users::missing_programs`",
    ),
    (
        "secrets",
        "they are links below the home; see `users::secrets`",
    ),
    (
        "caches",
        "they are links below the home; see `users::caches`",
    ),
    ("file_and_overlay_mounts", "there are no mounts"),
    ("tmpfs", "there are no mounts; see `users::scratch`"),
    ("readonly_roots", "there are no mounts"),
    ("many_layers_and_long_paths", "there are no overlays"),
    (
        "nothing_stays_in_a_directory",
        "owners change; see `users::results_do_not_tell_who`",
    ),
    ("nothing_stays_in_an_overlay", "there are no overlays"),
    (
        "what_the_step_puts_into_a_mount_point_stays",
        "see `users::secrets`",
    ),
    (
        "features_are_told",
        "there are no cgroups; see `users::features`",
    ),
    ("memory_limits", "there are no cgroups"),
    (
        "process_limits",
        "there are no cgroups; see `users::process_limits`",
    ),
    ("processor_limits", "there are no cgroups"),
    ("dead_callers_groups_are_removed", "there are no cgroups"),
];

/// Runs a test on the user sandbox, unless the table above says why not.
#[expect(clippy::print_stderr, reason = "what does not apply must be seen")]
pub fn by_user(name: &str, test: fn(&Tree)) {
    match NOT_BY_USER.iter().find(|(other, _)| *other == name) {
        Some((_, reason)) => eprintln!("{name} does not apply to the user sandbox: {reason}"),
        None => Tree::with("user", test),
    }
}

/// Returns the build users that any test's steps may get, or nothing after a loud skip. Their homes are on the file system of the trees.
pub fn build_users() -> Vec<String> {
    let mut users = all_build_users();
    users.pop();
    users
}

fn all_build_users() -> Vec<String> {
    let Ok(users) = std::env::var("OBUILD_TEST_BUILD_USERS") else {
        obuild_fixtures::skip("OBUILD_TEST_BUILD_USERS is not set (run `cargo xtask test`)");
        return Vec::new();
    };
    users.split(',').map(ToOwned::to_owned).collect()
}

/// A build user that one test has for itself until this is dropped: nobody else's step takes it or tidies up after it.
pub struct LoneUser {
    pub name: String,
    _alone: MutexGuard<'static, ()>,
}

impl LoneUser {
    pub fn take() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        Self {
            // A test that failed leaves nothing of its own in there.
            _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner),
            name: all_build_users().pop().expect("the caller has looked"),
        }
    }
}

/// A sandbox and a busybox tree on a real disk, as a directory and as the lowest layer of an overlay.
pub struct Tree {
    pub scratch: TempDir,
    pub sandbox: Box<dyn Sandbox>,
    backend: &'static str,
}

/// The helper of this crate's tests.
pub fn helper() -> HelperCommand {
    HelperCommand {
        // Where the tests run as an ordinary user, what cargo has built may be out of reach.
        program: std::env::var_os("OBUILD_TEST_HELPER")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_obuild-sandbox-helper").into())
            .into(),
        args: Vec::new(),
    }
}

/// Opens a backend.
pub fn open(backend: &str, scratch: &Path) -> Box<dyn Sandbox> {
    let helper = helper();
    match backend {
        "native" => Box::new(Native::open(NativeOptions { helper }).expect("native opens")),
        "user" => Box::new(
            UserSandbox::open(UserOptions {
                helper,
                users: build_users(),
                state_dir: PathBuf::from("/var/lib/obuild-users"),
            })
            .expect("user opens"),
        ),
        #[cfg(feature = "docker")]
        "docker" => {
            let options = obuild_sandboxes::DockerOptions {
                helper,
                socket: obuild_fixtures::docker().expect("the caller has looked"),
                state_dir: scratch.join("state"),
            };
            Box::new(obuild_sandboxes::Docker::open(options).expect("docker opens"))
        }
        _ => Box::new(
            Runc::open(RuncOptions {
                helper,
                runtime: std::env::var_os("OBUILD_TEST_RUNTIME")
                    .unwrap_or_else(|| "runc".into())
                    .into(),
                state_dir: scratch.join("state"),
            })
            .expect("runc opens"),
        ),
    }
}

impl Tree {
    pub fn with(backend: &'static str, test: fn(&Self)) {
        let runtime = ["/usr/sbin/runc", "/usr/bin/runc"]
            .iter()
            .any(|path| Path::new(path).exists());
        if backend == "runc" && !runtime && std::env::var_os("OBUILD_TEST_RUNTIME").is_none() {
            return obuild_fixtures::skip("needs runc");
        }
        if !obuild_fixtures::root()
            || (backend == "runc" && !obuild_fixtures::may(obuild_fixtures::Privilege::Runtimes))
        {
            return;
        }
        if backend == "user" && build_users().is_empty() {
            return;
        }
        if backend == "docker" && obuild_fixtures::docker().is_none() {
            return;
        }
        let Some(scratch) = scratch(FileSystem::Default) else {
            return;
        };
        for name in ["lower", "upper", "work"] {
            fs_err::create_dir(scratch.path().join(name)).expect("a directory can be made");
        }
        if !busybox_root(&scratch.path().join("lower")) {
            return;
        }
        let sandbox = open(backend, scratch.path());
        let tree = Self {
            scratch,
            sandbox,
            backend,
        };
        test(&tree);
        assert_eq!(
            tree.host_mounts(),
            Vec::<String>::new(),
            "something is mounted on the host"
        );
    }

    pub fn is_native(&self) -> bool {
        self.backend == "native"
    }

    /// Returns a number that tells the backends' processes apart.
    pub fn number(&self) -> u8 {
        match self.backend {
            "native" => 1,
            "docker" => 2,
            "user" => 3,
            _ => 0,
        }
    }

    pub fn backend(&self) -> &'static str {
        self.backend
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    pub fn directory(&self) -> Rootfs {
        Rootfs::Directory(self.lower())
    }

    /// Returns the tree in each of the forms that the backend takes.
    pub fn roots(&self) -> Vec<Rootfs> {
        match self.backend {
            "user" => vec![self.directory()],
            _ => vec![self.directory(), self.overlay()],
        }
    }

    pub fn overlay(&self) -> Rootfs {
        Rootfs::Overlay(OverlayMount {
            lower: vec![self.lower()],
            upper: Some(Upper {
                upper: self.path("upper"),
                work: self.path("work"),
            }),
        })
    }

    pub fn readonly(&self) -> Rootfs {
        Rootfs::Overlay(OverlayMount {
            lower: vec![self.lower()],
            upper: None,
        })
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.lower().join(name);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs_err::write(path, content).expect("a file can be written");
    }

    /// Compiles a C program into the tree; `false` after a loud skip.
    pub fn compile(&self, name: &str, source: &str) -> bool {
        let file = self.path("source.c");
        fs_err::write(&file, source).expect("a file can be written");
        let compiled = std::process::Command::new("gcc")
            .args(["-static", "-O1", "-w", "-o"])
            .arg(self.lower().join(name))
            .arg(&file)
            .output();
        let Ok(compiled) = compiled else {
            obuild_fixtures::skip("needs gcc");
            return false;
        };
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        true
    }

    /// Runs a command and returns how it ended, with its output.
    pub fn run(&self, command: &Command, rootfs: &Rootfs) -> Result<(Exit, String), Error> {
        let mut output = Vec::new();
        let mut sink = |bytes: &[u8]| output.extend_from_slice(bytes);
        let cancel = Cancel::new().expect("a cancellation");
        let exit = self
            .sandbox
            .run(command, rootfs, Stdio::Capture(&mut sink), &cancel)?;
        Ok((exit, String::from_utf8_lossy(&output).into_owned()))
    }

    /// Runs a command that must succeed, and returns its output.
    pub fn output_of(&self, command: &Command, rootfs: &Rootfs) -> String {
        let (exit, output) = self.run(command, rootfs).expect("the command runs");
        assert_eq!(exit, Exit::Status(0), "{command:?}: {output}");
        output
    }

    /// Runs a shell line that must succeed, and returns its output.
    pub fn output(&self, line: &str) -> String {
        self.output_of(&shell(line), &self.directory())
    }

    /// Returns what of ours is mounted on the host. Others may mount and unmount at the same time.
    /// Runs a program that cannot be run; the error says these words.
    pub fn refuses(&self, program: &str, words: &str) {
        let mut command = Command::new([program]);
        command.env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        let error = self.run(&command, &self.directory()).unwrap_err();
        assert!(
            matches!(error, Error::NoProgram { .. }),
            "{program}: {error:?}"
        );
        assert!(error.to_string().contains(words), "{program}: {error}");
    }

    pub fn host_mounts(&self) -> Vec<String> {
        let all = fs_err::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let ours = self.scratch.path().to_str().expect("a path of ours");
        all.lines()
            .filter(|line| line.contains(ours))
            .map(ToOwned::to_owned)
            .collect()
    }
}

/// A command that runs a shell line.
pub fn shell(line: &str) -> Command {
    let mut command = Command::new(["/bin/sh", "-c", line]);
    command.env = vec![("PATH".into(), "/bin:/usr/bin".into())];
    command
}

/// Returns every path below a directory with its kind, mode, owner, size and modification time.
pub fn listing(directory: &Path) -> Vec<String> {
    let output = std::process::Command::new("find")
        .arg(directory)
        .args(["-printf", "%P %y %m %U:%G %s %T@ %l\n"])
        .output()
        .expect("find runs");
    assert!(output.status.success());
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(ToOwned::to_owned)
        .collect();
    lines.sort();
    lines
}

/// Checks that a directory is what it was.
#[track_caller]
pub fn unchanged(directory: &Path, before: &[String]) {
    let now = listing(directory);
    let gone: Vec<&String> = before.iter().filter(|line| !now.contains(line)).collect();
    let new: Vec<&String> = now.iter().filter(|line| !before.contains(line)).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "gone: {gone:#?}\nnew: {new:#?}"
    );
}

/// Returns the host's process ids of all processes with this text in their arguments.
pub fn processes(marker: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let arguments = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(marker) {
            found.push(pid);
        }
    }
    found
}

/// Returns the parent of a process.
pub fn parent(process: u32) -> u32 {
    let stat = fs_err::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

/// Returns a line of shell that waits until another one succeeds, for a minute at most.
pub fn until(line: &str) -> String {
    format!("i=0; until {line}; do i=$((i+1)); test $i -lt 600 || exit 99; sleep 0.1; done")
}
