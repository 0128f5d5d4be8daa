// SPDX-License-Identifier: Apache-2.0
//! What is known of the file system that a directory is on.

use rustix::fs::{CWD, Mode, OFlags};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// The file system that a directory is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its type: `ext4`, `btrfs`, …
    pub kind: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The options of the mount and of the file system, without repetitions.
    pub options: Vec<String>,
    /// Whether files in the directory can share blocks (`ioctl_ficlone(2)`); `None` if that could not be tried.
    pub reflinks: Option<bool>,
}

impl FileSystem {
    /// Finds out about the file system of a directory; `None` if the kernel does not tell.
    pub fn of(directory: &Path) -> Option<Self> {
        let path = fs_err::canonicalize(directory).ok()?;
        let table = fs_err::read("/proc/self/mountinfo").ok()?;
        let mut found = find(&table, &path)?;
        found.reflinks = reflinks(&path);
        Some(found)
    }
}

/// Finds the mount that a path is on: the innermost, and of several at one place the last (`proc_pid_mountinfo(5)`).
fn find(table: &[u8], path: &Path) -> Option<FileSystem> {
    let mut best: Option<FileSystem> = None;
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else {
            continue;
        };
        let (Some(place), Some(options)) = (fields.get(4), fields.get(5)) else {
            continue;
        };
        let (Some(kind), Some(more)) = (fields.get(dash + 1), fields.get(dash + 3)) else {
            continue;
        };
        let place = PathBuf::from(std::ffi::OsString::from_vec(unescape(place)));
        let deeper = best.as_ref().is_none_or(|best| {
            place.as_os_str().as_bytes().len() >= best.mount_point.as_os_str().as_bytes().len()
        });
        if !path.starts_with(&place) || !deeper {
            continue;
        }
        let mut all: Vec<String> = Vec::new();
        for option in [options, more]
            .into_iter()
            .flat_map(|list| list.split(|byte| *byte == b','))
        {
            let option = String::from_utf8_lossy(option).into_owned();
            if !all.contains(&option) {
                all.push(option);
            }
        }
        best = Some(FileSystem {
            kind: String::from_utf8_lossy(kind).into_owned(),
            mount_point: place,
            options: all,
            reflinks: None,
        });
    }
    best
}

/// Undoes the kernel's `\040` and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| std::str::from_utf8(tail.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = code {
            plain.push(byte);
            rest = &tail[3..];
        } else {
            plain.push(*first);
            rest = tail;
        }
    }
    plain
}

/// Tries it with two files that have no name.
fn reflinks(directory: &Path) -> Option<bool> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR).ok();
    let (from, to) = (open()?, open()?);
    rustix::io::write(&from, &[1; 4096]).ok()?;
    Some(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_and_last_mount_is_found() {
        let table = b"1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
            2 1 0:9 / /srv rw - tmpfs none rw\n\
            3 1 0:7 / /srv/my\\040store rw,noatime - btrfs /dev/sdb rw,ssd,subvolid=5\n\
            4 1 0:8 / /srv/my\\040store rw,noatime - xfs /dev/sdc rw\n";
        let found = |path: &str| find(table, Path::new(path)).unwrap();
        assert_eq!(found("/srv/my store/x").kind, "xfs");
        assert_eq!(found("/srv/my store/x").options, ["rw", "noatime"]);
        assert_eq!(found("/srv/my").kind, "tmpfs");
        assert_eq!(
            found("/etc").options,
            ["rw", "relatime", "errors=remount-ro"]
        );
    }

    #[test]
    fn this_machine_is_known() {
        let found = FileSystem::of(Path::new("/")).unwrap();
        assert_eq!(found.mount_point, Path::new("/"));
        assert!(FileSystem::of(Path::new("/no/such/directory")).is_none());
    }
}
