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
        let end = Instant::now() + Duration::from_mins(2);
        let mut again = 0..2;
        while Instant::now() < end {
            if self.answers() {
                return Ok(());
            }
            if !self.process.as_mut().is_some_and(Background::is_running) {
                // It gives up when containerd is not there within 15 seconds.
                if again.next().is_none() {
                    break;
                }
                self.launch()?;
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
    pub(crate) fn kill(&mut self) {
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
    }

    /// Kills it with all its containers, as when the machine stops.
    pub(crate) fn kill_all(&mut self) -> Result<()> {
        self.kill();
        clear(&self.root)
    }

    /// Ends the shims that have no container and go on all the same. Returns how many there were.
    ///
    /// A containerd that is killed between starting a shim and writing down where it listens never finds it again.
    pub(crate) fn end_lost_shims(&self) -> Result<usize> {
        let lost = || -> Result<Vec<i32>> {
            let mut found = shims(&self.root)?;
            // The daemon and its containerd name the directory as well.
            found.retain(|pid| is_shim(*pid) && children(*pid).is_empty());
            Ok(found)
        };
        let mut found = lost()?;
        let end = Instant::now() + Duration::from_secs(5);
        while !found.is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            found = lost()?;
        }
        for pid in &found {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        Ok(found.len())
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
    for pid in shims(root)? {
        let below = children(pid);
        for pid in std::iter::once(pid).chain(below) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
    if mounts_below(root).is_empty() {
        return Ok(());
    }
    unmount(root)
}

/// Returns the processes that look after the containers of the daemon that has, or had, its things in `root`.
fn shims(root: &Path) -> Result<Vec<i32>> {
    // A shim's command line names the socket of its containerd; a container's processes are below it.
    let exec = root.join("exec").display().to_string();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc")?.flatten() {
        let line = fs_err::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let pid: Option<i32> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if line.contains(&exec) {
            found.extend(pid);
        }
    }
    Ok(found)
}

/// Returns the direct children of a process, of all its threads: a container's first process, with which the rest goes.
fn children(parent: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let threads = fs_err::read_dir(format!("/proc/{parent}/task"));
    for thread in threads.into_iter().flatten().flatten() {
        let list = fs_err::read_to_string(thread.path().join("children"));
        let list = list.unwrap_or_default();
        found.extend(
            list.split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    found
}

fn is_shim(pid: i32) -> bool {
    let name = fs_err::read_to_string(format!("/proc/{pid}/comm"));
    // proc_pid_comm(5): cut off after fifteen characters.
    name.is_ok_and(|name| name.starts_with("containerd-shim"))
}
