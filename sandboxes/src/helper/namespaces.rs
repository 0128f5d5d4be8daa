// SPDX-License-Identifier: Apache-2.0
//! Namespaces that a process leaves and enters again: setns(2).

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What is kept apart.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Mount,
    Network,
}

impl Kind {
    /// Opens the namespace that the process is in.
    pub(super) fn own(self) -> rustix::io::Result<OwnedFd> {
        let path = match self {
            Self::Mount => "/proc/self/ns/mnt",
            Self::Network => "/proc/self/ns/net",
        };
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Moves the process, which has one thread, into a namespace of this kind.
    pub(super) fn join(self, namespace: &OwnedFd) -> rustix::io::Result<()> {
        let kind = match self {
            Self::Mount => LinkNameSpaceType::Mount,
            Self::Network => LinkNameSpaceType::Network,
        };
        move_into_link_name_space(namespace.as_fd(), Some(kind))
    }
}
