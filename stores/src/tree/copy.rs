// SPDX-License-Identifier: Apache-2.0
//! Copying one file, link or node with all its attributes.

use super::content::{Ways, copy_content};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};

/// Attributes of the overlay itself, such as `trusted.overlay.opaque`, which say nothing about the merged tree.
const OVERLAY: &[u8] = b"overlay.";
/// Those of an overlay mounted inside an overlay, which belong to the merged tree (overlayfs.rst, "Nesting").
const NESTED: &[u8] = b"overlay.overlay.";

/// Returns whether an attribute is the overlay's own; in a user namespace those are not trusted ones but the user's.
fn is_overlays(name: &[u8]) -> bool {
    let class: &[u8] = if obuild_rootless::current().is_some() {
        b"user."
    } else {
        b"trusted."
    };
    name.strip_prefix(class)
        .is_some_and(|name| name.starts_with(OVERLAY) && !name.starts_with(NESTED))
}

/// Copies what is not a directory: `name` in `source` to a new `name` in `target`. Shares extents where that works.
pub(crate) fn copy_node(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::RUSR | Mode::WUSR;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = rustix::fs::openat(source, name, flags | OFlags::RDONLY, Mode::empty())?;
            let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let to = rustix::fs::openat(target, name, create, mode)?;
            copy_content(from.as_fd(), to.as_fd(), &stat, &Ways::new())?;
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(source, name, Vec::new())?;
            rustix::fs::symlinkat(link, target, name)?;
        }
        kind => rustix::fs::mknodat(target, name, kind, mode, stat.st_rdev)?,
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
    let to = rustix::fs::openat(target, name, flags, Mode::empty())?;
    copy_attributes(&from, &to, &stat)
}

/// Gives `to` the owner, extended attributes, mode and times of `from`, whose `stat` is given. Attributes of the overlay
/// itself stay as they are.
pub(crate) fn copy_attributes(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> Result<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // Owner first: a change of owner clears the set-id bits and capabilities.
    let now = rustix::fs::fstat(to)?;
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        rustix::fs::chownat(to, c"", Some(owner.0), Some(owner.1), AtFlags::EMPTY_PATH)?;
    }
    copy_xattrs(from, to)?;
    let target = magic_link(to);
    // Spared where it would change nothing, which is a change of the disk all the same. The two calls above may have changed it.
    let now = rustix::fs::fstat(to)?;
    if now.st_mode != stat.st_mode && FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmod(
            &target,
            Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777),
        )?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: nanoseconds(stat.st_atime_nsec),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: nanoseconds(stat.st_mtime_nsec),
        },
    };
    rustix::fs::utimensat(rustix::fs::CWD, &target, &times, AtFlags::empty())
}

#[expect(clippy::cast_possible_wrap, reason = "below a thousand million")]
fn nanoseconds(value: u64) -> i64 {
    value as i64
}

/// Makes the extended attributes of `to` those of `from`.
fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let wanted = xattrs(from)?;
    for name in xattrs(to)? {
        if !wanted.contains(&name) {
            rustix::fs::removexattr(magic_link(to), &name)?;
        }
    }
    for name in wanted {
        let value = xattr(from, &name)?;
        rustix::fs::setxattr(magic_link(to), &name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Returns a path that works for every kind of file and every descriptor, `O_PATH` and links too (`proc_pid_fd(5)`).
fn magic_link(file: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("digits and slashes")
}

/// Returns the value of a file's extended attribute.
pub(super) fn xattr(file: &OwnedFd, name: &CStr) -> Result<Vec<u8>> {
    let path = magic_link(file);
    let size = rustix::fs::getxattr_query(&path, name)?;
    let mut value = vec![0; size];
    let length = rustix::fs::getxattr(&path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Returns the names of a file's extended attributes, without those of the overlay itself.
pub(super) fn xattrs(file: &OwnedFd) -> Result<Vec<CString>> {
    // Mostly there are none, and a look at the descriptor costs less than one at its path.
    match rustix::fs::flistxattr_query(file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        // open(2): O_PATH descriptors are good for no such call.
        Ok(_) | Err(Errno::BADF) => {}
        Err(errno) => return Err(errno),
    }
    let path = magic_link(file);
    let size = match rustix::fs::listxattr_query(&path) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        result => result?,
    };
    let mut list = vec![0; size];
    let length = rustix::fs::listxattr(&path, &mut list[..])?;
    let mut names = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || is_overlays(name) {
            continue;
        }
        names.push(CString::new(name).map_err(|_| Errno::INVAL)?);
    }
    Ok(names)
}
