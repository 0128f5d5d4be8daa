// SPDX-License-Identifier: Apache-2.0
//! Work on whole directory trees, as deep and as odd as builds make them: nothing here recurses, joins paths, or
//! follows a link.

mod copy;
mod merge;
mod remove;
mod size;
mod void;
mod whiteouts;

pub(crate) use copy::{copy_attributes, copy_node};
pub(crate) use merge::{Whiteouts, merge};
pub(crate) use remove::{Subvolumes, remove};
pub(crate) use size::{count, size};
pub(crate) use void::is_void;
pub(crate) use whiteouts::prune_whiteouts;

use rustix::fs::{Dir, FileType, Mode, OFlags, StatFs};
use rustix::io::Result;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Returns whether the file system is btrfs. `BTRFS_SUPER_MAGIC`: linux include/uapi/linux/magic.h.
pub(crate) fn is_btrfs(statfs: &StatFs) -> bool {
    statfs.f_type == 0x9123_683e
}

/// Opens a directory for reading, without following a link.
pub(crate) fn open(directory: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Calls `each` with every name in the directory and its kind, which may be unknown.
pub(crate) fn entries(
    directory: BorrowedFd<'_>,
    mut each: impl FnMut(CString, FileType) -> Result<()>,
) -> Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            each(entry.file_name().to_owned(), entry.file_type())?;
        }
    }
    Ok(())
}
