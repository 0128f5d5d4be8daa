// SPDX-License-Identifier: Apache-2.0
//! A docker daemon of our own: private socket and data, no bridge, no firewall rules.
//!
//! A daemon that is killed leaves more than its process group: containers with a shim each, which outlive it on purpose, and
//! mounts. All of it is known by the daemon's directory.

use crate::cmd::{Background, Cmd};
use crate::reaper::{Guard, Item, mounts_below, unmount};
use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A daemon with its things in a directory. Dropped, it ends with all its containers.
pub(crate) struct Daemon {
    root: PathBuf,
    options: Vec<String>,
    process: Option<Background>,
    /// After the process.
    guard: Option<Guard>,
}

impl Daemon {
    /// Starts a daemon with its things in `root`, which is there; `options` come last. It does not answer yet: see
    /// [`Daemon::wait`].
    pub(crate) fn start(root: &Path, options: &[String]) -> Result<Self> {
        let guard = Some(Guard::new(Item::Docker(root.to_owned()))?);
        let mut daemon = Self {
            root: root.to_owned(),
            options: options.to_vec(),
            process: None,
            guard,
        };
        daemon.launch()?;
        Ok(daemon)
    }

    fn launch(&mut self) -> Result<()> {
        let at = |name: &str| self.root.join(name).display().to_string();
        // One that was killed leaves it, and by now its number may be another's.
        fs_err::remove_file(at("docker.pid")).ok();
        let command = Cmd::new("dockerd")
            .args(["--host", &format!("unix://{}", self.socket().display())])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
            .args(["--pidfile", &at("docker.pid")])
            .args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(["--bridge=none", "--userland-proxy=false"])
            .args(&self.options);
        self.process = Some(Background::start(command, &self.root.join("dockerd.log"))?);
        Ok(())
    }

    /// Waits until it answers.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_mins(1);
        while Instant::now() < end {
            if self.answers() {
                return Ok(());
            }
            if !self.process.as_mut().is_some_and(Background::is_running) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let log = fs_err::read_to_string(self.root.join("dockerd.log"))?;
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        bail!("dockerd does not come up: {}", last.join(" | "))
    }

    /// Returns whether it takes requests: it listens before it does.
    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else {
            return false;
        };
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
        let mut answer = String::new();
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.contains(" 200 OK")
    }

    /// Returns its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("docker.sock")
    }

    /// Returns its process id.
    pub(crate) fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Background::id)
    }

    /// Kills it, as the kernel does when memory is short, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(pid) = self.id() {
            // It may have ended by itself.
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).ok();
        }
        drop(self.process.take());
        // Its containerd dies with it. If that is an orphan of ours by now it has to be reaped: a zombie passes for one that runs.
        let pid = fs_err::read_to_string(self.root.join("exec/containerd/containerd.pid"));
        let pid = pid.ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.map(Pid::from_raw) {
            for _ in 0..200 {
                match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(10)),
                    // ECHILD: another's.
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Starts it again, as whoever looks after it does, and waits until it answers.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.launch()?;
        self.wait()
    }

    /// Ends it and reports what could not be taken down.
    pub(crate) fn close(mut self) -> Result<()> {
        drop(self.process.take());
        self.guard.take().map_or(Ok(()), Guard::close)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.process.take());
        drop(self.guard.take());
    }
}

/// Ends what a daemon that had its things in `root` has left. The daemon itself is gone.
pub(crate) fn clear(root: &Path) -> Result<()> {
    // A shim's command line names the socket of its containerd; a container's processes are below it.
    let exec = root.join("exec").display().to_string();
    for entry in fs_err::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let line = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&exec) {
            let below = children(pid);
            for pid in std::iter::once(pid).chain(below) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
    if mounts_below(root).is_empty() {
        return Ok(());
    }
    unmount(root)
}

/// Returns the direct children of a process: a container's first process, with which the rest goes.
fn children(parent: i32) -> Vec<i32> {
    let list = fs_err::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let list = list.unwrap_or_default();
    list.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
