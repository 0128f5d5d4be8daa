// SPDX-License-Identifier: Apache-2.0
//! Network namespaces with nothing but a loopback, kept for the next step.
//!
//! Making one costs the kernel about a millisecond of processor time, and taking it down as much again. A step has no
//! capability to change its namespace (no `CAP_NET_ADMIN`, `/proc/sys` read-only), so when all of its processes are dead
//! and no connection lingers, the namespace is as it was made. Steps that run at once never share one.

use super::kept;
use super::namespaces::Kind;
use crate::sys;
use bstr::ByteSlice;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
use std::io;

/// Namespaces kept idle; more steps at once make more, which go with their steps.
const KEPT: usize = 16;

/// The helper's own network namespace and the idle ones.
pub(super) struct Networks {
    host: OwnedFd,
    idle: Vec<OwnedFd>,
}

impl Networks {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            host: Kind::Network.own()?,
            idle: Vec::new(),
        })
    }

    /// Moves the calling process into an idle namespace, or into a new one, and returns it.
    pub(super) fn enter(&mut self) -> io::Result<OwnedFd> {
        if let Some(network) = self.idle.pop() {
            Kind::Network.join(&network)?;
            return Ok(network);
        }
        sys::unshare(UnshareFlags::NEWNET)?;
        let made = (Kind::Network.own().map_err(io::Error::from))
            .and_then(|network| loopback().map(|()| network));
        if made.is_err() {
            self.leave()?;
        }
        made
    }

    /// Moves the calling process back.
    pub(super) fn leave(&self) -> io::Result<()> {
        Ok(Kind::Network.join(&self.host)?)
    }

    /// Takes back the namespace of a step whose processes are all dead. It is kept if nothing is left in it.
    pub(super) fn give_back(&mut self, network: OwnedFd) {
        if self.idle.len() < KEPT && Kind::Network.join(&network).is_ok() {
            let empty = Sockets::open().is_ok_and(|sockets| sockets.are_none());
            // Should this fail, the next `enter` finds the process in some namespace of a step, which is no worse.
            let _ = self.leave();
            if empty {
                self.idle.push(network);
            }
        }
    }
}

/// What tells of the sockets of one network namespace, wherever the process is when it asks.
///
/// `/proc/net/sockstat` and `sockstat6` (linux net/ipv4/proc.c): `TCP: inuse 0 orphan 0 tw 0 …`. `orphan`, `alloc` and `mem` count the
/// whole system.
pub(super) struct Sockets(Vec<OwnedFd>);

impl Sockets {
    /// Opens it for the caller's namespace.
    pub(super) fn open() -> rustix::io::Result<Self> {
        let open = |path| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
        };
        let mut files = vec![open("/proc/self/net/sockstat")?];
        match open("/proc/self/net/sockstat6") {
            // There is no IPv6.
            Err(Errno::NOENT) => {}
            file => files.push(file?),
        }
        Ok(Self(files))
    }

    /// Returns whether there is no socket, closed ones that wait for late packets included.
    pub(super) fn are_none(&self) -> bool {
        self.0.iter().all(|file| {
            kept::read_again(file.as_fd())
                .is_some_and(|text| text.to_str().is_ok_and(counts_nothing))
        })
    }
}

fn counts_nothing(sockstat: &str) -> bool {
    sockstat
        .lines()
        .filter(|line| !line.starts_with("sockets:"))
        .all(|line| {
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                if matches!(word, "inuse" | "tw") && words.next() != Some("0") {
                    return false;
                }
            }
            true
        })
}

/// Sets the loopback interface of the caller's namespace up.
pub(super) fn loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sys::loopback_up(socket.as_fd())
}

#[cfg(test)]
mod tests {
    use super::counts_nothing;

    #[test]
    fn sockets_in_use_and_waiting_ones_count() {
        let idle = "sockets: used 12\nTCP: inuse 0 orphan 3 tw 0 alloc 9 mem 2\nUDP: inuse 0 mem 1\nFRAG: inuse 0 memory 0\n";
        assert!(counts_nothing(idle));
        assert!(!counts_nothing(&idle.replace("tw 0", "tw 1")));
        assert!(!counts_nothing(
            &idle.replace("UDP: inuse 0", "UDP: inuse 2")
        ));
        assert!(!counts_nothing("TCP6: inuse 10\n"));
    }
}
