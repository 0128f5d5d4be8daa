// SPDX-License-Identifier: Apache-2.0
//! A tree that is a dataset, and where it is mounted.
//!
//! Trees are mounted only while somebody works with them: the kernel copies its table of mounts for every step's mount
//! namespace, zfs-fuse serves a thousand mounts at most, and a boot would mount them all one after the other. A mount is
//! held by an open descriptor of its top directory, which keeps `umount(2)` of anybody out (`EBUSY`). So no process needs
//! to know what others use: whoever tidies tries to unmount everything, and whoever opens a tree mounts
//! it and looks whether what he opened is the mount.

use super::tool::{Pauses, Trouble, turn, zfs};
use crate::{Error, sys};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How many trees stay mounted for the next who opens them, in all processes together.
const IDLE_MOUNTS: usize = 16;

/// A tree that is a dataset of ZFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    pub(super) name: String,
    pub(super) mount_point: PathBuf,
}

impl Dataset {
    /// Returns the dataset's name, such as `tank/obuild/trees/18a-1-0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the directory where its tree is, while it is open.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Mounts it for reading, unless it is mounted. It stays mounted while the descriptor (`O_PATH`) is open.
    pub(crate) fn open(&self) -> Result<OwnedFd, Error> {
        self.mounted(&["mount", "-o", "ro", &self.name])
    }

    /// The same for writing.
    pub(super) fn open_writable(&self) -> Result<OwnedFd, Error> {
        self.mounted(&["mount", &self.name])
    }

    fn mounted(&self, mount: &[&str]) -> Result<OwnedFd, Error> {
        let mut pauses = Pauses::new();
        let mut did_mount = false;
        loop {
            if let Some(descriptor) = self.look()? {
                if did_mount {
                    self.tidy_neighbours();
                }
                return Ok(descriptor);
            }
            match zfs(mount) {
                Ok(_) => did_mount = true,
                Err(failure) => match failure.trouble {
                    // Another was faster, or is about to be; or it has just been unmounted.
                    Trouble::Mounted | Trouble::Busy if pauses.pause() => {}
                    _ => return Err(failure.into()),
                },
            }
        }
    }

    /// Opens the mount point; returns `None` if nothing is mounted there.
    fn look(&self) -> Result<Option<OwnedFd>, Error> {
        let fail = |errno| Error::io("open", &self.mount_point, errno);
        let above = self
            .mount_point
            .parent()
            .expect("it is below the store's directory");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
        let descriptor = match open(&self.mount_point) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(fail(errno)),
        };
        // A mount has a device number of its own.
        let device = |descriptor| sys::identity(descriptor).map(|(device, _)| device);
        let is_mounted = device(&descriptor).map_err(fail)?
            != device(&open(above).map_err(fail)?).map_err(fail)?;
        Ok(is_mounted.then_some(descriptor))
    }

    /// Unmounts other trees that nobody uses, if there are many.
    fn tidy_neighbours(&self) {
        if let Some(above) = self.mount_point.parent() {
            let mounts = mounts_below(above);
            if mounts.len() > IDLE_MOUNTS {
                unmount_all(&mounts);
            }
        }
    }

    /// Unmounts it. Returns `false` if somebody uses it.
    pub(super) fn unmount(&self) -> Result<bool, Error> {
        match unmount(&self.mount_point) {
            // Not mounted (EINVAL), or never mounted at all.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(errno) => Err(Error::io("unmount", &self.mount_point, errno)),
        }
    }
}

/// Unmounts a tree, with care for zfs-fuse.
///
/// The kernel tells a FUSE daemon in a message that nobody waits for that a file was closed, and an unmount throws away those that
/// were not read yet (linux fs/fuse/dev.c, `fuse_abort_conn`). zfs-fuse then waits for the rest for ever, with its one
/// lock held. Messages are read in order, so that one answer before is enough. One after, from the file system
/// above, comes when the daemon is done with the unmount.
fn unmount(mount_point: &Path) -> rustix::io::Result<()> {
    let _turn = turn(false).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    ask(mount_point);
    rustix::mount::unmount(mount_point, UnmountFlags::NOFOLLOW)?;
    if let Some(above) = mount_point.parent() {
        ask(above);
    }
    Ok(())
}

/// Has the file system answer a question, whatever the answer is. The flag keeps the kernel from answering itself.
fn ask(path: &Path) {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let _ = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::BASIC_STATS);
}

/// Unmounts what nobody uses of `mounts`.
pub(super) fn unmount_all(mounts: &[PathBuf]) {
    for mount in mounts {
        // What is in use stays; whoever tidies next tries again.
        let _ = unmount(mount);
    }
}

/// A line of the table of mounts.
struct Mount {
    source: String,
    kind: String,
    point: PathBuf,
}

/// Reads the table of mounts.
fn mounts() -> Vec<Mount> {
    let table = read_table().unwrap_or_default();
    table.lines().filter_map(parse_mount).collect()
}

fn read_table() -> Option<String> {
    use std::io::Read as _;
    let mut table = Vec::new();
    let mut file = fs::OpenOptions::new()
        .read(true)
        .open("/proc/self/mountinfo")
        .ok()?;
    file.read_to_end(&mut table).ok()?;
    Some(String::from_utf8_lossy(&table).into_owned())
}

/// Parses a line of `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).
fn parse_mount(line: &str) -> Option<Mount> {
    let (place, what) = line.split_once(" - ")?;
    let mut what = what.split(' ');
    Some(Mount {
        point: PathBuf::from(unescape(place.split(' ').nth(4)?)),
        kind: what.next()?.to_owned(),
        source: unescape(what.next()?),
    })
}

/// Replaces the octal escapes of the table (`\040` for a space).
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = code {
            bytes.push(byte);
            bytes.extend_from_slice(&part.as_bytes()[3..]);
        } else {
            bytes.push(b'\\');
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns where the dataset is mounted.
pub(super) fn mount_point_of(dataset: &str) -> Option<PathBuf> {
    // The type is `zfs` with OpenZFS and `fuse.zfs` with zfs-fuse.
    let found = mounts()
        .into_iter()
        .find(|mount| mount.source == dataset && mount.kind.ends_with("zfs"));
    found.map(|mount| mount.point)
}

/// Returns the mount points directly in a directory.
pub(super) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let points = mounts().into_iter().map(|mount| mount.point);
    points
        .filter(|point| point.parent() == Some(directory))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_from_the_kernels_table() {
        let fuse = "42 27 0:39 / /srv/a\\040b rw,relatime - fuse.zfs tank/x rw,user_id=0";
        let mount = parse_mount(fuse).unwrap();
        assert_eq!(mount.point, Path::new("/srv/a b"));
        assert_eq!(
            (mount.source.as_str(), mount.kind.as_str()),
            ("tank/x", "fuse.zfs")
        );
        let kernel = "61 29 0:45 / /tank/x rw,noatime shared:31 - zfs tank/x rw,xattr,posixacl";
        let mount = parse_mount(kernel).unwrap();
        assert_eq!(
            (mount.source.as_str(), mount.kind.as_str()),
            ("tank/x", "zfs")
        );
        assert!(parse_mount("nonsense").is_none());
        assert_eq!(unescape("a\\134b\\x"), "a\\b\\x");
        assert!(
            mounts()
                .iter()
                .any(|mount| mount.point == Path::new("/proc"))
        );
    }
}
