// SPDX-License-Identifier: Apache-2.0
//! A directory that is held open, with the few file operations a store needs in it.
//!
//! Names are relative to the directory, so each call resolves two or three components and not a long path. Errors
//! carry the absolute path.

use crate::Error;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A directory that is held open.
#[derive(Debug)]
pub(crate) struct Place {
    descriptor: OwnedFd,
    path: PathBuf,
}

/// A lock on a directory, given back when dropped and when the process ends.
///
/// It is a `flock(2)` of a descriptor with `O_CLOEXEC`: a child that neither executes a program nor closes its
/// descriptors would keep it alive.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

impl Lock {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

impl Place {
    /// Opens `path`, following links.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let descriptor = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| Error::io("open", path, errno))?;
        Ok(Self {
            descriptor,
            path: path.to_owned(),
        })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Returns the absolute path of `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names `name` as what a call failed on.
    pub(crate) fn error(
        &self,
        action: &'static str,
        name: &str,
        source: impl Into<io::Error>,
    ) -> Error {
        Error::io(
            action,
            if name == "." {
                self.path.clone()
            } else {
                self.path(name)
            },
            source,
        )
    }

    /// Makes a directory. Returns `false` when something of that name is there.
    pub(crate) fn make_directory(&self, name: &str, mode: u32) -> Result<bool, Error> {
        match rustix::fs::mkdirat(&self.descriptor, name, Mode::from_raw_mode(mode)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.error("create", name, errno)),
        }
    }

    /// Makes an empty file, if there is none.
    pub(crate) fn mark(&self, name: &str) -> Result<(), Error> {
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(&self.descriptor, name, FileType::RegularFile, mode, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(self.error("create", name, errno)),
        }
    }

    /// Gives a file one more name, if nothing has that. For a mark it is cheaper than a file of its own: no inode
    /// is made or deleted.
    pub(crate) fn link(&self, file: &str, name: &str) -> Result<(), Error> {
        let here = &self.descriptor;
        match rustix::fs::linkat(here, file, here, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(self.error("link", name, errno)),
        }
    }

    pub(crate) fn exists(&self, name: &str) -> Result<bool, Error> {
        match rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.error("look at", name, errno)),
        }
    }

    /// Reads a whole file; `None` when there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<String>, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(self.error("read", name, errno)),
        };
        // One read takes any file a store writes but the longest lists; a short read is the end of the file.
        let mut content = vec![0; 8192];
        let mut length = 0;
        loop {
            let count = rustix::io::read(&file, &mut content[length..])
                .map_err(|errno| self.error("read", name, errno))?;
            length += count;
            if length < content.len() {
                break;
            }
            content.resize(content.len() * 2, 0);
        }
        content.truncate(length);
        String::from_utf8(content).map(Some).map_err(|_| {
            self.error(
                "read",
                name,
                io::Error::new(io::ErrorKind::InvalidData, "it is damaged"),
            )
        })
    }

    /// Writes a new file.
    pub(crate) fn write(&self, name: &str, content: &str) -> Result<(), Error> {
        self.write_through(name, content, OFlags::TRUNC, false)
    }

    /// Writes over a file in the blocks that it has.
    pub(crate) fn overwrite(&self, name: &str, content: &str) -> Result<(), Error> {
        self.write_through(name, content, OFlags::empty(), false)
    }

    /// Writes at the end of a file that is there.
    pub(crate) fn append(&self, name: &str, content: &str) -> Result<(), Error> {
        self.write_through(name, content, OFlags::APPEND, false)
    }

    /// Replaces a file at once: it has the old content or the new, whatever happens.
    pub(crate) fn replace(&self, name: &str, content: &str, durable: bool) -> Result<(), Error> {
        let temporary = format!("{name}.new");
        self.write_through(&temporary, content, OFlags::TRUNC, durable)?;
        self.rename(&temporary, name)
    }

    fn write_through(
        &self,
        name: &str,
        content: &str,
        how: OFlags,
        durable: bool,
    ) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | how;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = rustix::fs::openat(&self.descriptor, name, flags, mode)
            .map_err(|errno| self.error("create", name, errno))?;
        let mut rest = content.as_bytes();
        while !rest.is_empty() {
            let count =
                rustix::io::write(&file, rest).map_err(|errno| self.error("write", name, errno))?;
            rest = &rest[count..];
        }
        if how.is_empty() {
            rustix::fs::ftruncate(&file, content.len() as u64)
                .map_err(|errno| self.error("write", name, errno))?;
        }
        if durable {
            rustix::fs::fsync(&file).map_err(|errno| self.error("write", name, errno))?;
        }
        Ok(())
    }

    /// Renames, replacing a file that is in the way.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        rustix::fs::renameat(&self.descriptor, from, &self.descriptor, to)
            .map_err(|errno| self.error("rename", from, errno))
    }

    /// Renames to a name that nothing has. Returns `false` when something has it.
    pub(crate) fn rename_new(&self, from: &str, to: &str) -> Result<bool, Error> {
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.descriptor, from, &self.descriptor, to, flags) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
            Err(errno) => Err(self.error("rename", from, errno)),
        }
    }

    /// Removes a file; one that is not there is no error.
    pub(crate) fn unlink(&self, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", name, errno)),
        }
    }

    /// Removes an empty directory. Returns whether it is gone.
    pub(crate) fn remove_directory(&self, name: &str) -> Result<bool, Error> {
        match rustix::fs::unlinkat(&self.descriptor, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.error("remove", name, errno)),
        }
    }

    /// Returns the names in a directory; none when it is not there. Names that no store makes are left out.
    pub(crate) fn names(&self, directory: &str) -> Result<Vec<String>, Error> {
        let fail = |errno| self.error("list", directory, errno);
        let descriptor = match self.open_directory(directory) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(errno) => return Err(fail(errno)),
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(descriptor).map_err(fail)? {
            match entry.map_err(fail)?.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        Ok(names)
    }

    /// Opens a directory in it.
    pub(crate) fn open_directory(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat(&self.descriptor, name, DIRECTORY, Mode::empty())
    }

    /// Locks a directory in it, waiting up to `wait`. `None` when it is not there.
    pub(crate) fn lock(
        &self,
        name: &str,
        exclusive: bool,
        wait: Duration,
    ) -> Result<Option<Lock>, Error> {
        let descriptor = match self.open_directory(name) {
            Ok(descriptor) => descriptor,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("open", name, errno)),
        };
        let operation = if exclusive {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        // Locks are held for a millisecond or less, except while a store is repaired after a boot.
        let mut deadline = None;
        let mut pause = Duration::from_micros(50);
        loop {
            match rustix::fs::flock(&descriptor, operation) {
                Ok(()) => return Ok(Some(Lock(descriptor))),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(self.error("lock", name, errno)),
            }
            let now = Instant::now();
            if now >= *deadline.get_or_insert(now + wait) {
                let reason = format!("another process has held it for {wait:?}");
                let source = io::Error::new(io::ErrorKind::TimedOut, reason);
                return Err(self.error("lock", name, source));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}
