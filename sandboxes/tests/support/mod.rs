// SPDX-License-Identifier: Apache-2.0
//! What both suites share: the backends, root trees, a way to run a shell line.

use obuild_fixtures::{FileSystem, busybox_root, scratch};
use obuild_sandboxes::{
    Cancel, Command, Error, Exit, HelperCommand, Native, NativeOptions, OverlayMount, Rootfs,
    Sandbox, Stdio, Upper,
};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The helper of this crate's tests.
pub fn helper() -> HelperCommand {
    HelperCommand {
        program: PathBuf::from(env!("CARGO_BIN_EXE_obuild-sandbox-helper")),
        args: Vec::new(),
    }
}

pub fn native() -> Native {
    Native::open(NativeOptions { helper: helper() }).expect("the native sandbox opens")
}

/// A busybox tree on a real disk, as a directory and as the lowest layer of an overlay.
pub struct Tree {
    pub scratch: TempDir,
}

impl Tree {
    pub fn new() -> Option<Self> {
        if !obuild_fixtures::root() {
            return None;
        }
        let scratch = scratch(FileSystem::Default)?;
        for name in ["lower", "upper", "work"] {
            fs_err::create_dir(scratch.path().join(name)).expect("a directory can be made");
        }
        busybox_root(&scratch.path().join("lower")).then_some(Self { scratch })
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

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.lower().join(name);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs_err::write(path, content).expect("a file can be written");
    }
}

/// A command that runs a shell line.
pub fn shell(line: &str) -> Command {
    let mut command = Command::new(["/bin/sh", "-c", line]);
    command.env = vec![("PATH".into(), "/bin:/usr/bin".into())];
    command
}

/// Runs a command and returns how it ended, with its output.
pub fn run(
    sandbox: &dyn Sandbox,
    command: &Command,
    rootfs: &Rootfs,
) -> Result<(Exit, String), Error> {
    let mut output = Vec::new();
    let mut sink = |bytes: &[u8]| output.extend_from_slice(bytes);
    let cancel = Cancel::new().expect("a cancellation");
    let exit = sandbox.run(command, rootfs, Stdio::Capture(&mut sink), &cancel)?;
    Ok((exit, String::from_utf8_lossy(&output).into_owned()))
}

/// Runs a shell line that must succeed, and returns its output.
pub fn output(sandbox: &dyn Sandbox, rootfs: &Rootfs, line: &str) -> String {
    let (exit, output) = run(sandbox, &shell(line), rootfs).expect("the command runs");
    assert_eq!(exit, Exit::Status(0), "{line}: {output}");
    output
}

/// Returns what is mounted on the host.
pub fn host_mounts() -> String {
    fs_err::read_to_string("/proc/self/mountinfo").expect("mountinfo")
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
