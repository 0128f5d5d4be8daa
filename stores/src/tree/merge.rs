// SPDX-License-Identifier: Apache-2.0
//! Squashing overlay layers into one.
//!
//! A layer is laid over what the target holds already, by the rules by which the kernel shows a merged tree (Linux
//! `Documentation/filesystems/overlayfs.rst`, "Upper and Lower", "whiteouts and opaque directories"). Files are hard links
//! to the layer's: layers never change, and an overlay copies a file of a lower layer before it writes to it. So a file
//! that several snapshots share has the link count of all its places, and where that count is exhausted it is copied.

use super::{copy_attributes, copy_node, entries, open, remove};
use rustix::fs::{AtFlags, FileType, Mode, Stat, XattrFlags};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What becomes of the marks of deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// The target will stand on further layers: marks are kept.
    Keep,
    /// Nothing is below the target: marks have done their work.
    Drop,
}

/// Returns the attribute by which a directory of a layer hides those below it: in a user namespace nobody may set trusted ones, and
/// overlays are mounted `userxattr` (overlayfs.rst, "User xattr").
pub(crate) fn opaque_mark() -> &'static CStr {
    if obuild_rootless::current().is_some() {
        c"user.overlay.opaque"
    } else {
        c"trusted.overlay.opaque"
    }
}

struct Frame {
    pending: Vec<CString>,
}

/// Lays the layer `source` over the tree `target`, whose top directory is there.
pub(crate) fn merge(source: OwnedFd, target: OwnedFd, whiteouts: Whiteouts) -> Result<()> {
    // Only the current pair of directories is open: one comes back up through "..", which is sound because nobody
    // moves directories in either tree.
    let (mut source, mut target) = (source, target);
    let mut stack = vec![enter(source.as_fd(), target.as_fd(), whiteouts)?];
    while let Some(frame) = stack.last_mut() {
        if let Some(name) = frame.pending.pop() {
            let below = open(&source, &name)?;
            directory(below.as_fd(), target.as_fd(), &name, whiteouts)?;
            target = open(&target, &name)?;
            source = below;
            stack.push(enter(source.as_fd(), target.as_fd(), whiteouts)?);
        } else {
            // Last of all, because every change inside changes the time.
            copy_attributes(&source, &target, &rustix::fs::fstat(&source)?)?;
            stack.pop();
            if !stack.is_empty() {
                source = open(&source, c"..")?;
                target = open(&target, c"..")?;
            }
        }
    }
    Ok(())
}

/// Merges everything in a directory but its directories, which it collects.
fn enter(source: BorrowedFd<'_>, target: BorrowedFd<'_>, whiteouts: Whiteouts) -> Result<Frame> {
    let mut pending = Vec::new();
    entries(source, |name, mut kind| {
        let mut whiteout = false;
        if matches!(kind, FileType::Unknown | FileType::CharacterDevice) {
            let stat = rustix::fs::statat(source, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            kind = FileType::from_raw_mode(stat.st_mode);
            whiteout = is_whiteout(&stat);
        }
        match kind {
            FileType::Directory => pending.push(name),
            _ if whiteout && whiteouts == Whiteouts::Drop => remove(target, &name, None)?,
            _ => link(source, target, &name)?,
        }
        Ok(())
    })?;
    Ok(Frame { pending })
}

/// Puts a file (or whiteout) of the layer in place of whatever is there.
fn link(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let link = || rustix::fs::linkat(source, name, target, name, AtFlags::empty());
    let mut result = link();
    if result == Err(Errno::EXIST) {
        remove(target, name, None)?;
        result = link();
    }
    match result {
        // MLINK: too many links. XDEV: a file system that links only within a part of itself. PERM: one without links.
        Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => copy_node(source, target, name),
        result => result,
    }
}

/// Makes the directory `name` in `target`, or keeps the one that is there, as the layer's `source` asks.
fn directory(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    whiteouts: Whiteouts,
) -> Result<()> {
    let opaque = is_opaque(source)?;
    let make = || rustix::fs::mkdirat(target, name, Mode::RWXU);
    let mut hides = opaque;
    match make() {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(target, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && !opaque {
                return Ok(());
            }
            // Where a file or a whiteout was, nothing further down shines through.
            hides = true;
            remove(target, name, None)?;
            make()?;
        }
        Err(errno) => return Err(errno),
    }
    if hides && whiteouts == Whiteouts::Keep {
        let directory = open(target, name)?;
        rustix::fs::fsetxattr(&directory, opaque_mark(), b"y", XattrFlags::empty())?;
    }
    Ok(())
}

/// Returns whether it is a mark of deletion: a character device 0:0.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Returns whether a directory hides those of the same name in layers below.
pub(super) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(directory, opaque_mark(), &mut value[..]) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}
