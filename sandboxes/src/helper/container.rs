// SPDX-License-Identifier: Apache-2.0
//! The helper as the first process of a docker container.
//!
//! The container gives it a process id namespace, a network and a cgroup with the limits. The trees are the caller's: the
//! helper enters the caller's mount namespace, and from there on makes each step's own as ever. So whatever a store has, a
//! directory or a recipe, needs no place in the container, and a step sees the same in every sandbox. See
//! `docs/decisions/0011-docker.md`.

use super::namespaces::Kind;
use crate::wire;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::FileType;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;

/// Where the container shows the caller's socket.
pub(crate) const SOCKET: &str = "/obuild/socket";

/// Returns whether this process is the helper of a container: the others have their socket as standard input.
pub(super) fn is_inside() -> io::Result<bool> {
    let stat = rustix::fs::fstat(rustix::stdio::stdin())?;
    Ok(FileType::from_raw_mode(stat.st_mode) != FileType::Socket)
}

/// Connects to the caller and enters its mount namespace.
pub(super) fn enter() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(SOCKET)?)?;
    let namespace = wire::receive_namespace(socket.as_fd())?;
    Kind::Mount.join(&namespace)?;
    Ok(socket)
}
