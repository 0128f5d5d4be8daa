// SPDX-License-Identifier: Apache-2.0
//! Brings a directory to the path where a step finds it, and back.
//!
//! By `rename`: the path is then a real one, the same for every step of that user, and leads past no directory of the store, which stays
//! closed. That needs one file system. Linux can show a directory of another one too, in the step's own mount namespace.

use super::{Account, owners};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The mode of a directory that its user alone gets into.
const CLOSED: u32 = 0o700;

/// A directory that is somewhere else while a step runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Brought {
    #[serde(with = "crate::sandbox::path_bytes")]
    from: PathBuf,
    #[serde(with = "crate::sandbox::path_bytes")]
    to: PathBuf,
    /// The directory's mode; while it is with the user it is closed.
    mode: u32,
}

impl Brought {
    /// Looks at a directory that is to be brought to `to`.
    pub(super) fn plan(from: &Path, to: &Path) -> io::Result<Self> {
        let stat = rustix::fs::lstat(from)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        Ok(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            mode: u32::from(stat.st_mode) & 0o7777,
        })
    }

    /// Brings it, and gives it with everything in it to the user.
    pub(super) fn bring(&self, account: &Account) -> Result<(), Failure> {
        let action = || format!("bring {} to {}", self.from.display(), self.to.display());
        match rustix::fs::rename(&self.from, &self.to) {
            Ok(()) => {}
            // POSIX rename: another file system, or a mount point.
            Err(error @ (Errno::XDEV | Errno::BUSY)) => {
                show(&self.from, &self.to).map_err(|shown| match shown {
                    None => Failure::NotByUser(format!(
                        "{} and the home directory {} are not on one file system ({error}); give the build users home directories \
                         on the store's file system",
                        self.from.display(),
                        self.to.display()
                    )),
                    Some(error) => failure(error, action),
                })?;
            }
            Err(error) => return Err(failure(error.into(), action)),
        }
        let directory = open(&self.to).trying(action)?;
        owners::give(directory.as_fd(), (account.uid, account.gid))
            .trying(|| format!("give {} to {}", self.from.display(), account.name))?;
        rustix::fs::fchmod(&directory, mode(CLOSED)).trying(|| "close the home directory")
    }

    /// Takes it from the user and puts it back where it was; removes it if there is no place for it any more.
    pub(super) fn take_back(&self, account: &Account) -> Result<(), Failure> {
        let action = || {
            format!(
                "bring {} back to {}",
                self.to.display(),
                self.from.display()
            )
        };
        hide(&self.from, &self.to);
        let moved = self.is_moved();
        let Ok(directory) = open(self.at()) else {
            // Whoever owned it has removed it.
            return Ok(());
        };
        let taken = owners::take(directory.as_fd(), account.uid)
            .trying(|| format!("take {} back from {}", self.to.display(), account.name));
        let now = rustix::fs::fstat(&directory).trying(action)?;
        if u32::from(now.st_mode) & 0o7777 == CLOSED {
            rustix::fs::fchmod(&directory, mode(self.mode)).trying(action)?;
        }
        drop(directory);
        if moved {
            match rustix::fs::rename(&self.to, &self.from) {
                Ok(()) => {}
                // The store that it belonged to has been told of its owner's end meanwhile.
                Err(Errno::NOENT) => fs_err::remove_dir_all(&self.to).trying(action)?,
                Err(error) => return Err(failure(error.into(), action)),
            }
        }
        taken
    }

    /// Returns where it is.
    pub(super) fn at(&self) -> &Path {
        if self.is_moved() {
            &self.to
        } else {
            &self.from
        }
    }

    fn is_moved(&self) -> bool {
        let is_there = |path: &Path| rustix::fs::lstat(path).is_ok();
        !is_there(&self.from) && is_there(&self.to)
    }
}

fn failure(error: io::Error, action: impl FnOnce() -> String) -> Failure {
    match Err::<(), _>(error).trying(action) {
        Err(failure) => failure,
        Ok(()) => unreachable!("it was an error"),
    }
}

pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Returns a mode in the system's own type.
pub(super) fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits.try_into().unwrap_or(0o700))
}

/// Shows a directory of another file system, in a mount namespace of this process's own. `None` where the system cannot.
#[cfg(target_os = "linux")]
fn show(from: &Path, to: &Path) -> Result<(), Option<io::Error>> {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    crate::sys::unshare(rustix::thread::UnshareFlags::NEWNS).map_err(Some)?;
    mount_change("/", private).map_err(|error| Some(error.into()))?;
    match rustix::fs::mkdir(to, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(Some(error.into())),
    }
    mount_bind(from, to).map_err(|error| Some(error.into()))
}

#[cfg(not(target_os = "linux"))]
fn show(_from: &Path, _to: &Path) -> Result<(), Option<io::Error>> {
    Err(None)
}

/// Takes away what [`show`] made; there may be nothing.
#[cfg(target_os = "linux")]
fn hide(from: &Path, to: &Path) {
    let same =
        |a: rustix::fs::Stat, b: rustix::fs::Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    let (Ok(one), Ok(other)) = (rustix::fs::lstat(from), rustix::fs::lstat(to)) else {
        return;
    };
    if same(one, other) {
        let _ = rustix::mount::unmount(to, rustix::mount::UnmountFlags::DETACH);
    }
    // Only an empty one goes. In another namespace it may still be covered: that does not matter.
    let _ = rustix::fs::rmdir(to);
}

#[cfg(not(target_os = "linux"))]
fn hide(_from: &Path, _to: &Path) {}
