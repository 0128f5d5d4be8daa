// SPDX-License-Identifier: Apache-2.0
//! The way of OBuilder's btrfs store and runc sandbox, without OBuilder's own work: the external commands that it runs for
//! every step, one after the other.
//!
//! OBuilder 614c8ac, `lib/btrfs_store.ml`: `btrfs subvolume snapshot` of the parent, the step, `btrfs subvolume
//! snapshot -r` into place, `btrfs subvolume delete` of the work copy. `lib/sandbox.runc.ml`: a bundle in a fresh temporary
//! directory and `runc --root … run N`. Copies and cache hits are not imitated: there OBuilder's own work counts.

use super::builder::{Builder, Job, Work};
use super::measure::{Meter, Sample};
use crate::cmd::Cmd;
use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The chain of commands on a directory that is on btrfs.
pub(crate) struct ByHand {
    root: PathBuf,
    base: PathBuf,
}

impl ByHand {
    /// `root` is an empty directory on btrfs, `base` the Debian tar.
    pub(crate) fn new(root: &Path, base: &Path) -> Self {
        Self {
            root: root.to_owned(),
            base: base.to_owned(),
        }
    }

    fn step(&self, parent: &str, id: &str) -> Result<()> {
        let from = self.root.join("result").join(parent);
        let work = self.root.join("result-tmp").join(id);
        let result = self.root.join("result").join(id);
        tool(
            "btrfs",
            &["subvolume", "snapshot", "--", &show(&from), &show(&work)],
            None,
        )?;
        let bundle = self.root.join("bundles").join(id);
        fs_err::create_dir(&bundle)?;
        fs_err::write(
            bundle.join("config.json"),
            config(&work.join("rootfs"), &bundle),
        )?;
        fs_err::write(bundle.join("hosts"), "127.0.0.1 localhost builder")?;
        let state = show(&self.root.join("sandbox"));
        tool("runc", &["--root", &state, "run", id], Some(&bundle))?;
        fs_err::remove_dir_all(&bundle)?;
        tool(
            "btrfs",
            &[
                "subvolume",
                "snapshot",
                "-r",
                "--",
                &show(&work),
                &show(&result),
            ],
            None,
        )?;
        tool("btrfs", &["subvolume", "delete", "--", &show(&work)], None)
    }
}

impl Builder for ByHand {
    fn label(&self) -> String {
        "OBuilder's way (btrfs and runc commands)".to_owned()
    }

    fn prepare(&mut self, _meter: &Meter) -> Result<()> {
        for name in ["result", "result-tmp", "bundles", "sandbox"] {
            fs_err::create_dir_all(self.root.join(name))?;
        }
        let base = self.root.join("result/base");
        Cmd::new("btrfs")
            .args(["subvolume", "create"])
            .arg(&base)
            .output()?;
        let rootfs = base.join("rootfs");
        fs_err::create_dir(&rootfs)?;
        Cmd::new("tar")
            .arg("-C")
            .arg(rootfs)
            .arg("-xf")
            .arg(&self.base)
            .output()
            .map(drop)
    }

    fn build(&mut self, _meter: &Meter, job: &Job) -> Result<Option<Sample>> {
        let Work::Steps(count) = job.work else {
            return Ok(None);
        };
        if !job.cold {
            return Ok(None);
        }
        let before = children_time()?;
        let start = Instant::now();
        let mut parent = "base".to_owned();
        for index in 0..count {
            let id = format!("{}-{index}", job.token);
            self.step(&parent, &id)?;
            parent = id;
        }
        let wall = start.elapsed();
        let cpu = children_time()?.saturating_sub(before);
        Ok(Some(Sample {
            wall,
            cpu,
            peak_kib: 0,
        }))
    }
}

/// Runs a command as plainly as can be: its cost is what is measured.
fn tool(program: &str, arguments: &[&str], directory: Option<&Path>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let output = command.output()?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn children_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

/// The bundle's configuration as OBuilder writes it (`lib/sandbox.runc.ml`), with `true` as the command.
fn config(rootfs: &Path, bundle: &Path) -> String {
    let capabilities = r#"["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_SYS_CHROOT","CAP_KILL","CAP_AUDIT_WRITE"]"#;
    let rootfs = show(rootfs);
    let hosts = show(&bundle.join("hosts"));
    format!(
        r#"{{
 "ociVersion": "1.0.1-dev",
 "process": {{
  "terminal": false,
  "user": {{ "uid": 0, "gid": 0 }},
  "args": ["/bin/sh", "-c", "true"],
  "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
  "cwd": "/",
  "capabilities": {{ "bounding": {capabilities}, "effective": {capabilities}, "inheritable": {capabilities}, "permitted": {capabilities} }},
  "rlimits": [{{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }}],
  "noNewPrivileges": false
 }},
 "root": {{ "path": "{rootfs}", "readonly": false }},
 "hostname": "builder",
 "mounts": [
  {{ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid","noexec","nodev"] }},
  {{ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid","strictatime","mode=755","size=65536k"] }},
  {{ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"] }},
  {{ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid","noexec","nodev","ro"] }},
  {{ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro","nosuid","noexec","nodev"] }},
  {{ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid","noexec","nodev","mode=1777","size=65536k"] }},
  {{ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid","noexec","nodev"] }},
  {{ "destination": "/etc/hosts", "type": "bind", "source": "{hosts}", "options": ["ro","rbind","rprivate"] }}
 ],
 "linux": {{
  "namespaces": [{{ "type": "network" }}, {{ "type": "pid" }}, {{ "type": "ipc" }}, {{ "type": "uts" }}, {{ "type": "mount" }}],
  "maskedPaths": ["/proc/acpi","/proc/asound","/proc/kcore","/proc/keys","/proc/latency_stats","/proc/timer_list","/proc/timer_stats","/proc/sched_debug","/sys/firmware","/proc/scsi"],
  "readonlyPaths": ["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"],
  "seccomp": {{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"] }}
 }}
}}
"#
    )
}
