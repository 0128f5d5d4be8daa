// SPDX-License-Identifier: Apache-2.0
//! The target of an unpacking: directories entered one component at a time.
//!
//! Archives come mostly in depth-first order, so the descriptors of the current path are kept and an entry
//! costs no walk from the root. A directory's modification time is noted when it is entered and put back when it is left:
//! whatever the order of entries, it ends as its own entry said, or as it was.

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    fstat, futimens, mkdirat, openat, readlinkat, statat, unlinkat, utimensat,
};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The deepest path, in components; each costs an open descriptor while it is entered.
pub(crate) const MAX_DEPTH: usize = 256;
/// As the kernel: `MAXSYMLINKS`, linux v6.1 include/linux/namei.h.
const MAX_LINKS: usize = 40;

/// The tree with the descriptors of the path that was entered last.
pub(crate) struct Tree {
    levels: Vec<Level>,
}

struct Level {
    name: Vec<u8>,
    directory: OwnedFd,
    times: Timestamps,
    changed: bool,
}

impl Tree {
    /// Starts at the directory `root`.
    pub(crate) fn new(root: OwnedFd) -> Result<Self> {
        let times = times_of(&fstat(&root)?);
        let root = Level {
            name: Vec::new(),
            directory: root,
            times,
            changed: false,
        };
        Ok(Self { levels: vec![root] })
    }

    /// Returns the descriptor of the root.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.levels[0].directory.as_fd()
    }

    /// Returns the descriptor of the directory that was entered last.
    pub(crate) fn here(&self) -> BorrowedFd<'_> {
        self.levels[self.levels.len() - 1].directory.as_fd()
    }

    /// Says that the names in the directory entered last have changed, so its time must be put back.
    pub(crate) fn touched(&mut self) {
        let last = self.levels.len() - 1;
        self.levels[last].changed = true;
    }

    /// Says which time the root shall have.
    pub(crate) fn set_root_times(&mut self, times: Timestamps) {
        self.levels[0].times = times;
        self.levels[0].changed = true;
    }

    /// Enters the directory of this path, making what is missing (root's, 0755). Symbolic links on the way are followed inside
    /// the root, as if it were `/`.
    pub(crate) fn enter(&mut self, path: &[&[u8]]) -> Result<()> {
        let same = self.levels[1..]
            .iter()
            .zip(path)
            .take_while(|(level, name)| level.name == **name)
            .count();
        self.leave(same)?;
        for (index, name) in path.iter().enumerate().skip(same) {
            let here = self.here();
            let directory = match open_directory(here, name) {
                Err(Errno::NOENT) => make_directory(here, name)?,
                Err(Errno::NOTDIR | Errno::LOOP) if is_link(here, name)? => {
                    self.follow(&path[..=index])?
                }
                Err(Errno::NOTDIR) => {
                    // The later entry wins: what stands in the way was a file.
                    unlinkat(here, *name, AtFlags::empty())?;
                    self.touched();
                    make_directory(self.here(), name)?
                }
                other => other?,
            };
            let times = times_of(&fstat(&directory)?);
            self.levels.push(Level {
                name: name.to_vec(),
                directory,
                times,
                changed: false,
            });
        }
        Ok(())
    }

    /// Leaves everything, so that all times are as they shall be.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.leave(0)?;
        let root = &self.levels[0];
        if root.changed {
            futimens(&root.directory, &root.times)
        } else {
            Ok(())
        }
    }

    /// Opens the directory of a path, following links inside the root, without making anything.
    pub(crate) fn find(&self, path: &[&[u8]]) -> Result<OwnedFd> {
        self.resolve(path, false)
    }

    fn leave(&mut self, depth: usize) -> Result<()> {
        while self.levels.len() > depth + 1 {
            if let Some(level) = self.levels.pop()
                && level.changed
            {
                futimens(&level.directory, &level.times)?;
            }
        }
        Ok(())
    }

    /// Opens the directory of a path, following links inside the root, and making what is missing.
    pub(crate) fn follow(&self, path: &[&[u8]]) -> Result<OwnedFd> {
        self.resolve(path, true)
    }

    /// Resolves a path from the root, component by component, each opened without following links.
    fn resolve(&self, path: &[&[u8]], make: bool) -> Result<OwnedFd> {
        let mut chain = vec![self.root().try_clone_to_owned().map_err(|_| Errno::MFILE)?];
        let mut pending: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let here = chain[chain.len() - 1].as_fd();
            match name.as_slice() {
                b"" | b"." => {}
                b".." => chain.truncate((chain.len() - 1).max(1)),
                name => match open_directory(here, name) {
                    Ok(_) if chain.len() > MAX_DEPTH => return Err(Errno::NAMETOOLONG),
                    Ok(directory) => chain.push(directory),
                    Err(Errno::NOENT) if make && chain.len() <= MAX_DEPTH => {
                        let directory = make_directory(here, name)?;
                        chain.push(directory);
                    }
                    Err(Errno::NOTDIR | Errno::LOOP) if is_link(here, name)? => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP);
                        }
                        let target = readlinkat(here, name, Vec::new())?.into_bytes();
                        if target.first() == Some(&b'/') {
                            chain.truncate(1);
                        }
                        pending
                            .extend(target.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
                    }
                    Err(error) => return Err(error),
                },
            }
        }
        chain.pop().ok_or(Errno::NOENT)
    }
}

/// Opens a directory by one component that is no link.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Removes a name and everything below it. One that is not there is no error.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    let directory = open_directory(parent, name)?;
    for child in children(directory.as_fd())? {
        remove(directory.as_fd(), &child)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Returns the names in a directory, without `.` and `..`.
pub(crate) fn children(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Makes a directory that no entry describes: root's, 0755, as old as the epoch; its parent's time stays.
fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let times = times_of(&fstat(parent)?);
    mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    // mkdirat obeys the umask, and a set-group-id parent hands its group on.
    chownat(
        parent,
        name,
        Some(Uid::ROOT),
        Some(Gid::ROOT),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
    utimensat(parent, name, &timestamps((0, 0)), AtFlags::SYMLINK_NOFOLLOW)?;
    futimens(parent, &times)?;
    open_directory(parent, name)
}

fn is_link(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Returns both times of a file.
pub(crate) fn times_of(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec.cast_signed(),
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.cast_signed(),
        },
    }
}

/// Sets both times to one instant.
pub(crate) fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Opens a path of the host as the root of a tree.
#[cfg(test)]
pub(crate) fn open_root(path: &std::path::Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty()).expect("the test's directory can be opened")
}
