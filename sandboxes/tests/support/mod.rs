// SPDX-License-Identifier: Apache-2.0
//! What both suites share: the backends, root trees, ways to run a shell line, looks at the host.
#![expect(unreachable_pub, reason = "a module of test binaries")]
#![allow(dead_code, reason = "each suite uses its part")]

use obuild_fixtures::{FileSystem, busybox_root, scratch};
use obuild_sandboxes::{
    Cancel, Command, Error, Exit, HelperCommand, Native, NativeOptions, OverlayMount, Rootfs, Runc,
    RuncOptions, Sandbox, Stdio, Upper,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Defines one test a backend for each function.
#[macro_export]
macro_rules! on_every_backend {
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

/// A sandbox and a busybox tree on a real disk, as a directory and as the lowest layer of an overlay.
pub struct Tree {
    pub scratch: TempDir,
    pub sandbox: Box<dyn Sandbox>,
    backend: &'static str,
}

/// The helper of this crate's tests.
pub fn helper() -> HelperCommand {
    HelperCommand {
        program: PathBuf::from(env!("CARGO_BIN_EXE_obuild-sandbox-helper")),
        args: Vec::new(),
    }
}

/// Opens a backend.
pub fn open(backend: &str, scratch: &Path) -> Box<dyn Sandbox> {
    let helper = helper();
    match backend {
        "native" => Box::new(Native::open(NativeOptions { helper }).expect("native opens")),
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
        if !obuild_fixtures::root() || backend == "docker" && obuild_fixtures::docker().is_none() {
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

/// Waits until something holds, for at most ten seconds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
