// SPDX-License-Identifier: Apache-2.0
//! Directories in a copy's destination: found inside its root whatever its links say, made when missing, and finished with
//! the owner, mode and time that they shall have.

use super::data::modified;
use super::error::CopyError;
use super::ladder::DIRECTORY;
use super::stamp::{Stamp, Time, permissions};
use super::xattr;
use bstr::{BStr, BString};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, fstat, futimens, linkat,
    mkdirat, openat, openat2,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The longest path given to the kernel at once, which takes 4,095 bytes (`PATH_MAX`, Linux `include/uapi/linux/limits.h`).
const LONGEST: usize = 4000;

/// Tries of a path with `..` while something is renamed or mounted on the machine: openat2(2), EAGAIN.
const TRIES: u32 = 1000;

/// Mode of directories that no source describes; OBuilder's.
const PARENT_MODE: u16 = 0o755;

/// A directory in the destination that receives something.
pub(crate) struct Target {
    directory: OwnedFd,
    pub(crate) finish: Finish,
    /// Whether it is open in the upper layer of an overlay, so that everything below it is too.
    pub(crate) in_upper: bool,
    changed: AtomicBool,
}

/// What remains to be done to a directory when everything is in it.
#[derive(Clone)]
pub(crate) enum Finish {
    /// It was there: it gets its time back if something was put into it.
    Restore(Time),
    /// The copy made it.
    Set {
        mode: u16,
        modified: i64,
        attributes: Vec<(BString, BString)>,
    },
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Target {
    pub(crate) fn new(directory: OwnedFd, finish: Finish) -> Self {
        Self {
            directory,
            finish,
            in_upper: false,
            changed: AtomicBool::new(false),
        }
    }

    /// Wraps a directory that was there before.
    pub(crate) fn existing(directory: OwnedFd) -> Result<Self, Errno> {
        let time = Stamp::of(&fstat(&directory)?).modified;
        Ok(Self::new(directory, Finish::Restore(time)))
    }

    /// If the copy has made it in an overlay, and it is found in the overlay's upper layer by the same path, it is from now on the one there.
    ///
    /// Such a directory has nothing of any other layer, nor will the overlay look into it before the copy is done, so that it can be filled as if there
    /// were no overlay: that saves a second inode for each file, and lets files share their blocks with the source, which the kernel refuses
    /// between an overlay and anything else (linux v6.18 `fs/remap_range.c`, one superblock). A path may lead elsewhere in one layer than in all of them, by
    /// a link or for want of one: hence the comparison.
    pub(crate) fn enter_upper(&mut self, upper: BorrowedFd<'_>, path: &[u8]) -> bool {
        if matches!(self.finish, Finish::Restore(_)) {
            return false;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let Ok(directory) = open_in_root(upper, path, flags) else {
            return false;
        };
        // An overlay tells the inode number and times of a directory that is in its upper layer only (linux v6.18 Documentation/filesystems/overlayfs.rst
        // "Inode properties"; all layers of a store are on one file system).
        let (Ok(here), Ok(there)) = (fstat(&self.directory), fstat(&directory)) else {
            return false;
        };
        let (here, there) = (Stamp::of(&here), Stamp::of(&there));
        let device = there.device;
        self.in_upper = Stamp { device, ..here } == there;
        if self.in_upper {
            self.directory = directory;
        }
        self.in_upper
    }

    /// Notes that its list of names changes.
    pub(crate) fn touch(&self) {
        self.changed.store(true, Ordering::Relaxed);
    }

    /// Does what remains to be done to it.
    pub(crate) fn finish(self, owner: (u32, u32)) -> Result<(), Errno> {
        match &self.finish {
            Finish::Restore(time) => {
                if self.changed.load(Ordering::Relaxed) {
                    futimens(&self.directory, &modified(time.seconds, time.nanoseconds))?;
                }
                Ok(())
            }
            Finish::Set {
                mode,
                modified,
                attributes,
            } => settle(self.as_fd(), *mode, owner, attributes, *modified),
        }
    }
}

/// Gives a new file or directory its owner, mode, attributes and time.
///
/// What the process's umask, the directory's set-group-id bit or its default access list have made of the mode and the owner is looked at
/// rather than foretold; most often nothing needs to be changed. The order matters: changing the owner clears the set-id
/// bits and the capabilities (chown(2)).
pub(crate) fn settle(
    file: BorrowedFd<'_>,
    mode: u16,
    owner: (u32, u32),
    attributes: &[(BString, BString)],
    seconds: i64,
) -> Result<(), Errno> {
    let stat = fstat(file)?;
    let chown = (stat.st_uid, stat.st_gid) != owner;
    if chown {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        fchown(file, Some(uid), Some(gid))?;
    }
    if permissions(&stat) != mode || (chown && mode & 0o7000 != 0) {
        fchmod(file, Mode::from_raw_mode(mode.into()))?;
    }
    xattr::write(xattr::Owner::Open(file), attributes)?;
    futimens(file, &modified(seconds, 0))
}

/// Opens a path as the destination's own processes would see it: links are followed, and neither they nor `..` lead out of `root`.
pub(crate) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut rest = path;
    let mut above: Option<OwnedFd> = None;
    loop {
        let base = above.as_ref().map_or(root, AsFd::as_fd);
        let split = if rest.len() > LONGEST {
            rest[..LONGEST]
                .iter()
                .rposition(|&byte| byte == b'/')
                .filter(|&split| split > 0)
        } else {
            None
        };
        let Some(split) = split else {
            let path = if rest.is_empty() { b"." } else { rest };
            return open_again(base, path, flags | OFlags::CLOEXEC, resolve);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let next = open_again(base, &rest[..split], flags, resolve)?;
        rest = &rest[split + 1..];
        above = Some(next);
        // So deep down, the kernel no longer knows where the root is.
        resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    }
}

fn open_again(
    base: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        match openat2(base, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < TRIES => tries += 1,
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Opens the directory `components`, after making what is missing of it, owned by `owner`.
///
/// `modified` becomes the last directory's time if it is made here; those above get time zero, as OBuilder's do.
pub(crate) fn make_directories(
    root: BorrowedFd<'_>,
    components: &[&[u8]],
    owner: (u32, u32),
    modified: i64,
) -> Result<Target, CopyError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let path = BString::from(components.join(&b"/"[..]));
    match open_in_root(root, &path, flags) {
        Ok(directory) => {
            return Target::existing(directory)
                .map_err(|error| failed("examine", path.as_ref(), error));
        }
        // The step-wise walk below finds out where.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(failed("open", path.as_ref(), error)),
    }
    let top = openat(root, c".", DIRECTORY, Mode::empty())
        .and_then(Target::existing)
        .map_err(|error| failed("open", BStr::new("/"), error))?;
    let mut current = top;
    for (place, component) in components.iter().enumerate() {
        let path = BString::from(components[..=place].join(&b"/"[..]));
        let next = match open_in_root(root, &path, flags) {
            Ok(directory) => Target::existing(directory)
                .map_err(|error| failed("examine", path.as_ref(), error))?,
            Err(Errno::NOENT) => {
                match mkdirat(
                    current.as_fd(),
                    *component,
                    Mode::from_raw_mode(PARENT_MODE.into()),
                ) {
                    Ok(()) => current.touch(),
                    // The name is there, yet what it leads to is not.
                    Err(Errno::EXIST) => return Err(CopyError::DanglingLink { path }),
                    Err(error) => return Err(failed("make the directory", path.as_ref(), error)),
                }
                let directory = openat(current.as_fd(), *component, DIRECTORY, Mode::empty())
                    .map_err(|error| failed("open", path.as_ref(), error))?;
                let last = place + 1 == components.len();
                Target::new(
                    directory,
                    Finish::Set {
                        mode: PARENT_MODE,
                        modified: if last { modified } else { 0 },
                        attributes: Vec::new(),
                    },
                )
            }
            Err(Errno::NOTDIR) => return Err(CopyError::NotADirectory { path }),
            Err(Errno::LOOP) => return Err(CopyError::LinkLoop { path }),
            Err(error) => return Err(failed("open", path.as_ref(), error)),
        };
        current
            .finish(owner)
            .map_err(|error| failed("set the owner, mode or time of", path.as_ref(), error))?;
        current = next;
    }
    Ok(current)
}

/// Gives an open file, which may be open by its path only, a further name.
pub(crate) fn link(
    file: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &[u8],
) -> Result<(), Errno> {
    // An empty path needs CAP_DAC_READ_SEARCH on many kernels, the other way needs /proc: open(2).
    match linkat(file, c"", directory, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM) => {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, &*path, directory, name, AtFlags::SYMLINK_FOLLOW)
        }
        linked => linked,
    }
}

/// Makes the error of a system call on the destination; people see its paths absolute.
pub(crate) fn failed(action: &'static str, path: &BStr, error: Errno) -> CopyError {
    CopyError::Destination {
        action,
        path: absolute(path),
        source: error.into(),
    }
}

/// Returns the path with a `/` before it.
pub(crate) fn absolute(path: &BStr) -> BString {
    let mut absolute = BString::from("/");
    absolute.extend_from_slice(path.strip_prefix(b"/").unwrap_or(path));
    absolute
}
