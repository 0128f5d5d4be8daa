// SPDX-License-Identifier: Apache-2.0
//! A docker daemon of our own: private socket and data, no bridge, no firewall rules.

use crate::cmd::{Background, Cmd};
use anyhow::{Result, bail};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Returns the socket of the daemon that has its things in `root`.
pub(crate) fn socket(root: &Path) -> PathBuf {
    root.join("docker.sock")
}

/// Starts a daemon with its things in `root`; `options` come last. It does not answer yet: see [`wait`].
pub(crate) fn start(root: &Path, options: &[String]) -> Result<Background> {
    let at = |name: &str| root.join(name).display().to_string();
    let daemon = Cmd::new("dockerd")
        .args(["--host", &format!("unix://{}", socket(root).display())])
        .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
        .args(["--pidfile", &at("docker.pid")])
        .args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"])
        .args(["--bridge=none", "--userland-proxy=false"])
        .args(options);
    Background::start(daemon, &root.join("dockerd.log"))
}

/// Waits until the daemon answers.
pub(crate) fn wait(root: &Path, daemon: &mut Background) -> Result<()> {
    for _ in 0..300 {
        // It listens when it is ready, and not before.
        if UnixStream::connect(socket(root)).is_ok() {
            return Ok(());
        }
        if !daemon.is_running() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = fs_err::read_to_string(root.join("dockerd.log"))?;
    let end: Vec<&str> = log.lines().rev().take(5).collect();
    bail!("dockerd does not come up: {}", end.join(" | "))
}
