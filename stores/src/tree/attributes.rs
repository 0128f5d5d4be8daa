// SPDX-License-Identifier: Apache-2.0
//! Owner, mode, times and extended attributes of whole trees' files: all of them, whatever they mean.

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What has attributes.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// Something that is not opened (a link, a device), by its directory and name.
    Named(BorrowedFd<'a>, &'a CStr),
}

impl Subject<'_> {
    /// Returns a path for the calls on extended attributes, which know no directories (before Linux 6.13).
    fn path(self) -> Option<CString> {
        match self {
            Self::Open(_) => None,
            Self::Named(directory, name) => {
                let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
                path.extend_from_slice(name.to_bytes());
                Some(CString::new(path).expect("a name holds no NUL"))
            }
        }
    }
}

/// Names and values of extended attributes, sorted by name.
pub(super) type Xattrs = Vec<(CString, Vec<u8>)>;

/// Returns all extended attributes; none where the file system has none.
pub(super) fn xattrs(subject: Subject<'_>) -> Result<Xattrs> {
    let path = subject.path();
    let mut list = [0; 1024];
    let listed = match (subject, &path) {
        (Subject::Open(file), _) => rustix::fs::flistxattr(file, &mut list[..]),
        (_, Some(path)) => rustix::fs::llistxattr(path, &mut list[..]),
        (_, None) => Ok(0),
    };
    let mut longer = Vec::new();
    let names = match listed {
        Ok(length) => &list[..length],
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {
            // XATTR_LIST_MAX: linux include/uapi/linux/limits.h.
            longer.resize(65536, 0);
            let length = match (subject, &path) {
                (Subject::Open(file), _) => rustix::fs::flistxattr(file, &mut longer[..])?,
                (_, Some(path)) => rustix::fs::llistxattr(path, &mut longer[..])?,
                (_, None) => 0,
            };
            &longer[..length]
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in names.split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let get = |value: &mut [u8]| match (subject, &path) {
            (Subject::Open(file), _) => rustix::fs::fgetxattr(file, name, value),
            (_, Some(path)) => rustix::fs::lgetxattr(path, name, value),
            (_, None) => Ok(0),
        };
        let mut value = vec![0; 256];
        let length = match get(&mut value) {
            Err(Errno::RANGE) => {
                // XATTR_SIZE_MAX: linux include/uapi/linux/limits.h.
                value.resize(65536, 0);
                get(&mut value)
            }
            result => result,
        };
        match length {
            Ok(length) => value.truncate(length),
            // What a security module shows and does not have.
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(errno) => return Err(errno),
        }
        found.push((name.to_owned(), value));
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes the extended attributes of `to` those of `from`. `bare` says that a new file has none by itself.
fn copy_xattrs(from: Subject<'_>, to: Subject<'_>, bare: bool) -> Result<()> {
    let wanted = xattrs(from)?;
    let there = if bare { Vec::new() } else { xattrs(to)? };
    if wanted.is_empty() && there.is_empty() {
        return Ok(());
    }
    let path = to.path();
    for (name, _) in &there {
        if wanted.iter().all(|(wanted, _)| wanted != name) {
            match (to, &path) {
                (Subject::Open(file), _) => rustix::fs::fremovexattr(file, name)?,
                (_, Some(path)) => rustix::fs::lremovexattr(path, name)?,
                (_, None) => {}
            }
        }
    }
    for (name, value) in &wanted {
        let flags = XattrFlags::empty();
        match (to, &path) {
            (Subject::Open(file), _) => rustix::fs::fsetxattr(file, name, value, flags)?,
            (_, Some(path)) => rustix::fs::lsetxattr(path, name, value, flags)?,
            (_, None) => {}
        }
    }
    Ok(())
}

/// Gives the new file `to` all attributes of `from`, whose `stat` is given. `bare` as for a file in a directory without
/// attributes that it would inherit. Spares the calls that would change nothing: each is a change of the disk.
pub(super) fn copy_all(from: Subject<'_>, to: Subject<'_>, stat: &Stat, bare: bool) -> Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let now = match to {
        Subject::Open(file) => rustix::fs::fstat(file)?,
        Subject::Named(directory, name) => rustix::fs::statat(directory, name, nofollow)?,
    };
    // Owner first: a change of owner clears the set-id bits and capabilities (chown(2)).
    if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
        let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        match to {
            Subject::Open(file) => rustix::fs::fchown(file, Some(user), Some(group))?,
            Subject::Named(directory, name) => {
                rustix::fs::chownat(directory, name, Some(user), Some(group), nofollow)?;
            }
        }
    }
    copy_xattrs(from, to, bare)?;
    let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if now.st_mode != stat.st_mode && !link {
        let mode = Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777);
        match to {
            Subject::Open(file) => rustix::fs::fchmod(file, mode)?,
            Subject::Named(directory, name) => {
                rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
            }
        }
    }
    set_times(to, stat)
}

/// Sets the times of access and modification to those in `stat`.
pub(super) fn set_times(to: Subject<'_>, stat: &Stat) -> Result<()> {
    #[expect(clippy::cast_possible_wrap, reason = "below a thousand million")]
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    match to {
        Subject::Open(file) => rustix::fs::futimens(file, &times),
        Subject::Named(directory, name) => {
            rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}
