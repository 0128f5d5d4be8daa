// SPDX-License-Identifier: Apache-2.0
//! What tells whether a file is still the one that was looked at before.

use rustix::fs::{FileType, Stat};

/// A file's identity and the facts that change when its content does.
///
/// The change time cannot be set by a program, so a file with an equal stamp has an equal content, but for writes
/// within one tick of the file system's clock (see `DigestMemo`) and through memory maps not yet written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
}

/// A point in time as a file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Stamp {
    // The types of `Stat` differ between architectures; on 64-bit Linux nothing is lost.
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "sizes are never negative, nanoseconds are below 10^9"
    )]
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified: Time {
                seconds: stat.st_mtime,
                nanoseconds: stat.st_mtime_nsec as u32,
            },
            changed: Time {
                seconds: stat.st_ctime,
                nanoseconds: stat.st_ctime_nsec as u32,
            },
        }
    }
}

/// Returns the permission bits, set-id and sticky bits included.
pub(crate) fn permissions(stat: &Stat) -> u16 {
    // 12 bits always fit.
    (stat.st_mode & 0o7777) as u16
}

/// Returns the kind of file.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Returns how a message calls a kind of file.
pub(crate) fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown kind",
    }
}
