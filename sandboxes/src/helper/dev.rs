// SPDX-License-Identifier: Apache-2.0
//! `/dev` of the steps of one process 1.
//!
//! Its two file systems, eight mounts and five links cost 0.1 ms of processor time, so process 1 keeps it. A step may write to it, which nearly none does;
//! after one that did the next gets a new one.

use super::mounts::Host;
use super::template::{DEV, Entered, NODES};
use crate::tree::{Attributes, attach_at, file_system};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};

/// What has it: mounted on [`DEV`] in a template.
pub(super) struct Dev {
    directory: OwnedFd,
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
        let as_made = look(dev.as_fd());
        Ok(Self {
            directory: dev,
            as_made,
        })
    }

    /// Returns whether no step has changed it. All processes of the step must have ended.
    pub(super) fn is_as_made(&self) -> bool {
        self.as_made.is_some() && look(self.directory.as_fd()) == self.as_made
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

/// What of a file a step may change and the next one see. When it was read does not count, nor does what is in a file: there is none.
///
/// The names in a directory need not be read: a tmpfs has a directory grow by as much for each (linux v6.18 `mm/shmem.c` `BOGO_DIRENT_SIZE`), those that are
/// ours are all looked at, and the names in a devpts are those of open terminals.
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
    /// Bytes of names of extended attributes.
    extended: usize,
}

/// Looks at all that a step may change. `None` if something cannot be looked at, or is gone.
fn look(dev: BorrowedFd<'_>) -> Option<Vec<Seen>> {
    let links = LINKS.iter().map(|(name, _)| *name);
    let others = links.chain([PTMX]).map(|name| seen(dev, name, false));
    DIRECTORIES
        .into_iter()
        .map(|name| seen(dev, name, true))
        .chain(others)
        .collect()
}

fn seen(dev: BorrowedFd<'_>, name: &str, directory: bool) -> Option<Seen> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
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
    } = rustix::fs::statx(dev, name, flags, StatxFlags::BASIC_STATS).ok()?;
    let extended = if directory {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(dev, name, flags, Mode::empty()).ok()?;
        // xattr(7): without room it tells how much it would take.
        rustix::fs::flistxattr(opened, &mut [] as &mut [u8]).ok()?
    } else {
        0
    };
    Some(Seen {
        inode: stx_ino,
        mode: stx_mode,
        owner: (stx_uid, stx_gid),
        links: stx_nlink,
        size: stx_size,
        attributes: stx_attributes.bits(),
        modified: (stx_mtime.tv_sec, stx_mtime.tv_nsec),
        changed: (stx_ctime.tv_sec, stx_ctime.tv_nsec),
        extended,
    })
}
