// SPDX-License-Identifier: Apache-2.0
//! Deleting a tree for good.

use super::{entries, open};
use crate::sys;
use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How a btrfs store destroys a subvolume (directory, name) that is met on the way.
pub(crate) type Subvolumes<'a> = Option<&'a dyn Fn(BorrowedFd<'_>, &CStr) -> Result<()>>;

/// Deeper than this, a directory is moved up beside the tree, so that descriptors do not run out.
const DEPTH: usize = 100;

/// How often a directory is emptied again when something appears in it meanwhile.
const ATTEMPTS: usize = 4;

struct Frame {
    directory: OwnedFd,
    name: CString,
    pending: Vec<CString>,
    attempts: usize,
}

/// Deletes `name` in `parent` with everything in it; one that is not there is no error.
///
/// Neither modes nor immutable flags hold it up, nor any depth, nor another process that deletes the same tree.
/// `parent` belongs to the store: deep directories are moved into it, under names that begin with `name`.
pub(crate) fn remove(
    parent: BorrowedFd<'_>,
    name: &CStr,
    subvolumes: Subvolumes<'_>,
) -> Result<()> {
    let mut heads = vec![name.to_owned()];
    let mut moved = 0;
    while let Some(head) = heads.pop() {
        let mut stack = Vec::new();
        if !unlink(parent, &head)? {
            stack.extend(descend(parent, head, subvolumes)?);
        }
        loop {
            let depth = stack.len();
            let Some(frame) = stack.last_mut() else { break };
            if let Some(child) = frame.pending.pop() {
                let directory = frame.directory.as_fd();
                if depth < DEPTH {
                    let below = descend(directory, child, subvolumes)?;
                    stack.extend(below);
                } else {
                    heads.extend(move_up(directory, &child, parent, name, &mut moved)?);
                }
                continue;
            }
            let frame = stack.pop().expect("the loop looked at it");
            let above = stack.last().map_or(parent, |above| above.directory.as_fd());
            match rmdir(above, &frame.name) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if frame.attempts < ATTEMPTS => {
                    let attempts = frame.attempts + 1;
                    let mut pending = Vec::new();
                    empty(frame.directory.as_fd(), &mut pending)?;
                    stack.push(Frame {
                        pending,
                        attempts,
                        ..frame
                    });
                }
                result => result?,
            }
        }
    }
    Ok(())
}

/// Empties the directory `name` of files. Returns `None` when it is gone, or was a subvolume and is now.
fn descend(
    parent: BorrowedFd<'_>,
    name: CString,
    subvolumes: Subvolumes<'_>,
) -> Result<Option<Frame>> {
    let directory = match open(parent, &name) {
        Err(Errno::ACCESS) => {
            // Only root is let in without permission.
            rustix::fs::chmodat(parent, &name, Mode::RWXU, AtFlags::empty())?;
            open(parent, &name)
        }
        result => result,
    };
    let directory = match directory {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if let Some(destroy) = subvolumes {
        // On btrfs no ordinary directory has this number.
        if sys::identity(&directory)?.1 == sys::SUBVOLUME_TOP {
            drop(directory);
            return destroy(parent, &name).map(|()| None);
        }
    }
    let mut pending = Vec::new();
    empty(directory.as_fd(), &mut pending)?;
    Ok(Some(Frame {
        directory,
        name,
        pending,
        attempts: 0,
    }))
}

/// Unlinks everything in the directory but its directories, which it collects.
fn empty(directory: BorrowedFd<'_>, pending: &mut Vec<CString>) -> Result<()> {
    entries(directory, |name, kind| {
        if kind == FileType::Directory || !unlink(directory, &name)? {
            pending.push(name);
        }
        Ok(())
    })
}

/// Unlinks what is not a directory. Returns `false` when it is one.
fn unlink(directory: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
    match insist(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn rmdir(directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match insist(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// Unlinks; when that is not permitted, takes away what forbids it and tries again.
fn insist(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<()> {
    match rustix::fs::unlinkat(directory, name, flags) {
        Err(Errno::PERM) => {
            // Also said of directories on some file systems (unlink(2), EPERM).
            let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory && flags.is_empty() {
                return Err(Errno::ISDIR);
            }
            if matches!(kind, FileType::Directory | FileType::RegularFile) {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                allow(rustix::fs::openat(directory, name, flags, Mode::empty())?);
            }
            allow(directory);
            rustix::fs::unlinkat(directory, name, flags)
        }
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(directory, Mode::RWXU)?;
            rustix::fs::unlinkat(directory, name, flags)
        }
        result => result,
    }
}

/// Takes the immutable and append-only flags away (`FS_IOC_SETFLAGS(2const)`), where there are any.
fn allow(file: impl AsFd) {
    let file = file.as_fd();
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        // Without success the next unlink says why.
        let _ = rustix::fs::ioctl_setflags(file, flags - (IFlags::IMMUTABLE | IFlags::APPEND));
    }
}

/// Moves a deep directory up to `top`. Returns its new name, or `None` if it is gone.
fn move_up(
    directory: BorrowedFd<'_>,
    child: &CStr,
    top: BorrowedFd<'_>,
    name: &CStr,
    moved: &mut u32,
) -> Result<Option<CString>> {
    loop {
        *moved += 1;
        let new = format!("{}.{moved}", name.to_string_lossy());
        let new = CString::new(new).map_err(|_| Errno::INVAL)?;
        match rustix::fs::renameat_with(directory, child, top, &new, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(Some(new)),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno),
        }
    }
}
