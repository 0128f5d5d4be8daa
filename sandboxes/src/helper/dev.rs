// SPDX-License-Identifier: Apache-2.0
//! `/dev` of the steps of one process 1.
//!
//! Its two file systems, eight mounts and five links cost 0.1 of 2 ms of processor time a step (2-core Intel Xeon VM, 15 runs of 50 steps, 2026-11), so process 1
//! keeps it. A step may write to it, which nearly none does; after one that did the next gets a new one.

use super::mounts::Host;
use super::template::{DEV, Entered, NODES, PROC};
use crate::tree::{Attributes, attach_at, file_system};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use std::mem::MaybeUninit;

/// What has it: mounted on [`DEV`] in a template.
pub(super) struct Dev {
    directory: OwnedFd,
    proc: OwnedFd,
    as_made: Option<Vec<Seen>>,
}

/// Its own links: name, target.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Its own directories, and what else in it a step may change. What is shown there read-only, and what it is shown on, no step can.
const DIRECTORIES: [&str; 3] = [".", "pts", "shm"];
const PTMX: &str = "pts/ptmx";

const MQUEUE: &str = "mqueue";

impl Dev {
    /// Makes it and mounts it in a template.
    ///
    /// The directory itself is nodev, since steps may make nodes; ours are mounted into it one by one, read-only, which keeps their modes but not the
    /// devices behind them from being changed.
    pub(super) fn make(template: &Entered) -> Result<Self, Failure> {
        let action = || "make /dev";
        // The size is that of the OCI runtimes' /dev.
        let options = [("mode", "755"), ("size", "65536k")];
        let dev = file_system("tmpfs", &options, Attributes::NO_EXEC).trying(action)?;
        attach_at(&dev, template.root(), DEV).trying(action)?;
        for &(name, _, _) in NODES {
            let node = template.show(name)?;
            attach_file(dev.as_fd(), name, &node).trying(|| format!("mount /dev/{name}"))?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(*target, &dev, *name).trying(|| format!("make /dev/{name}"))?;
        }
        let options = [("gid", "5"), ("mode", "0620"), ("ptmxmode", "0666")];
        // A user namespace may lack the group, which is Debian's `tty`.
        let known = obuild_rootless::owner(0, 5) == Ok((0, 5));
        let options = &options[usize::from(!known)..];
        let pts = file_system("devpts", options, Attributes::DEVICES).trying(|| "make /dev/pts")?;
        // A directory is as good as a mount for `shm`: this is a tmpfs already.
        let old = rustix::process::umask(Mode::empty());
        let made = [("pts", 0o755), (MQUEUE, 0o755), ("shm", 0o1777)]
            .into_iter()
            .try_for_each(|(name, mode)| {
                rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(mode))
            });
        rustix::process::umask(old);
        made.trying(action)?;
        attach_at(&pts, dev.as_fd(), "pts").trying(|| "mount /dev/pts")?;
        let proc = template.open(PROC).trying(|| "open /proc")?;
        let as_made = look(dev.as_fd(), proc.as_fd());
        Ok(Self {
            directory: dev,
            proc,
            as_made,
        })
    }

    /// Returns whether no step has changed it, or the top of `/proc`, of which nothing else that is kept can be changed. All processes of the step must have
    /// ended.
    pub(super) fn is_as_made(&self) -> bool {
        self.as_made.is_some() && look(self.directory.as_fd(), self.proc.as_fd()) == self.as_made
    }
}

/// Mounts in `/dev` what is each step's own: message queues, which are those of its IPC namespace, and its terminal.
pub(super) fn complete(dev: BorrowedFd<'_>, host: &Host) -> Result<(), Failure> {
    let action = || "mount /dev/mqueue";
    let mqueue = file_system("mqueue", &[], Attributes::NO_EXEC).trying(|| "make /dev/mqueue")?;
    attach_at(&mqueue, dev, MQUEUE).trying(action)?;
    match &host.console {
        Some(console) => attach_file(dev, "console", console).trying(|| "mount /dev/console"),
        None => Ok(()),
    }
}

fn attach_file(directory: BorrowedFd<'_>, name: &str, mount: &OwnedFd) -> std::io::Result<()> {
    let mode = Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(directory, name, FileType::RegularFile, mode, 0)?;
    attach_at(mount, directory, name)
}

/// What of a file a step may change and the next one see. When it was read does not count, nor does what is in a file: there is none. Of names in a directory it
/// is enough to count them, as those that are ours are all looked at.
#[derive(PartialEq, Eq)]
struct Seen {
    inode: u64,
    mode: u16,
    owner: (u32, u32),
    links: u32,
    size: u64,
    attributes: u64,
    modified: (i64, u32),
    changed: (i64, u32),
    /// In a directory: how many names it has, and how many bytes those of its extended attributes.
    names: usize,
    extended: usize,
}

/// Looks at all that a step may change. `None` if something cannot be looked at, or is gone.
fn look(dev: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Option<Vec<Seen>> {
    let links = LINKS.iter().map(|(name, _)| *name);
    let others = links.chain([PTMX]).map(|name| seen(dev, name));
    // Its names, links and size are those of processes.
    let processes = seen(proc, "").map(|seen| Seen {
        links: 0,
        size: 0,
        ..seen
    });
    DIRECTORIES
        .into_iter()
        .map(|name| seen_in(dev, name))
        .chain(others)
        .chain([processes])
        .collect()
}

/// As [`seen`], of a directory.
fn seen_in(dev: BorrowedFd<'_>, name: &str) -> Option<Seen> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dev, name, flags, Mode::empty()).ok()?;
    // xattr(7): without room it tells how much it would take.
    let extended = rustix::fs::flistxattr(&opened, &mut [] as &mut [u8]).ok()?;
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&opened, &mut buffer);
    let mut names = 0;
    while let Some(entry) = entries.next() {
        entry.ok()?;
        names += 1;
    }
    Some(Seen {
        names,
        extended,
        ..seen(dev, name)?
    })
}

fn seen(directory: BorrowedFd<'_>, name: &str) -> Option<Seen> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let Statx {
        stx_ino,
        stx_mode,
        stx_uid,
        stx_gid,
        stx_nlink,
        stx_size,
        stx_attributes,
        stx_mtime,
        stx_ctime,
        ..
    } = rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS).ok()?;
    Some(Seen {
        inode: stx_ino,
        mode: stx_mode,
        owner: (stx_uid, stx_gid),
        links: stx_nlink,
        size: stx_size,
        attributes: stx_attributes.bits(),
        modified: (stx_mtime.tv_sec, stx_mtime.tv_nsec),
        changed: (stx_ctime.tv_sec, stx_ctime.tv_nsec),
        names: 0,
        extended: 0,
    })
}
