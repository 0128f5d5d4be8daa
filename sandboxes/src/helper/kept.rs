// SPDX-License-Identifier: Apache-2.0
//! Process 1 of a step, kept for the next one.
//!
//! To fork it, to make a pid namespace and the kernel's file systems of it, and to take all that down again is a fifth of what a short step costs.
//! When every other process of the namespace is dead, only process 1 itself can still tell of the step: the next one's mounts, host name
//! and IPC objects are made anew, its `/dev` and its network namespace are looked at as `dev` and `networks` do, and the numbers of processes begin again.
//! What a step's root may change of another process with its uid is compared with what it was. If any of that fails, process 1 ends, and
//! the next step gets another.

use super::networks;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

/// What of process 1 its children inherit and a process of the same uid may change: prlimit(2), and files of proc(5) that take a write from
/// whoever may open them. How it is scheduled only who has all its capabilities may change (linux v6.18 `security/commoncap.c`
/// `cap_safe_nice`), and no step has.
#[derive(PartialEq, Eq)]
struct Inherited {
    limits: Vec<Rlimit>,
    files: Vec<Vec<u8>>,
}

/// proc(5); those that a kernel does not have cannot be changed either.
const FILES: [&str; 3] = [
    "/proc/self/oom_score_adj",
    "/proc/self/coredump_filter",
    "/proc/self/autogroup",
];

const LIMITS: [Resource; 16] = [
    Resource::As,
    Resource::Core,
    Resource::Cpu,
    Resource::Data,
    Resource::Fsize,
    Resource::Locks,
    Resource::Memlock,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Nofile,
    Resource::Nproc,
    Resource::Rss,
    Resource::Rtprio,
    Resource::Rttime,
    Resource::Sigpending,
    Resource::Stack,
];

/// What tells whether process 1 is as it was.
pub(super) struct Pristine {
    inherited: Inherited,
    files: Vec<OwnedFd>,
    /// Of the network namespace, which is the step's own.
    sockets: networks::Sockets,
    last_process: OwnedFd,
}

impl Pristine {
    /// Looks at process 1 before its first step, with the host's procfs in sight. `None` if it cannot be kept.
    pub(super) fn now() -> Option<Self> {
        let open =
            |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
        let files: Vec<OwnedFd> = FILES
            .iter()
            .filter_map(|path| open(path, OFlags::RDONLY).ok())
            .collect();
        Some(Self {
            inherited: Inherited::now(&files)?,
            files,
            sockets: networks::Sockets::open().ok()?,
            // Without CONFIG_CHECKPOINT_RESTORE the kernel does not have this file.
            last_process: open("/proc/sys/kernel/ns_last_pid", OFlags::WRONLY).ok()?,
        })
    }

    /// Makes the process ready for another step, after all others of its namespace have ended. Returns whether it is.
    pub(super) fn restore(&self) -> bool {
        self.sockets.are_none()
            && Inherited::now(&self.files).as_ref() == Some(&self.inherited)
            && rustix::io::pwrite(&self.last_process, b"1", 0) == Ok(1)
    }
}

impl Inherited {
    fn now(files: &[OwnedFd]) -> Option<Self> {
        Some(Self {
            limits: LIMITS.map(rustix::process::getrlimit).to_vec(),
            files: files
                .iter()
                .map(|file| read_again(file.as_fd()))
                .collect::<Option<_>>()?,
        })
    }
}

/// Reads a small file of the kernel's anew.
pub(super) fn read_again(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let mut content = [0_u8; 1024];
    let length = rustix::io::pread(file, &mut content, 0).ok()?;
    // The end of one that does not fit is not known.
    (length < content.len()).then(|| content[..length].to_vec())
}
