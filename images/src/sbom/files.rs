// SPDX-License-Identifier: Apache-2.0
//! Files of a tree, found as its own processes would find them, and read within limits.

use super::{DATABASES, SbomError};
use crate::tree::{Cancelled, TreeError, open_in_root, read_failed};
use bstr::{BStr, BString};
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::{Errno, read};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How much is read at once.
const PIECE: usize = 256 << 10;

/// A tree whose files are read.
pub(super) struct Files<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) cancelled: Cancelled<'a>,
    /// What may still be read.
    left: Cell<u64>,
}

impl<'a> Files<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, cancelled: Cancelled<'a>) -> Self {
        Self {
            root,
            cancelled,
            left: Cell::new(DATABASES),
        }
    }

    /// Reads a database. `None` if there is no such file, or if it is none.
    pub(super) fn database(&self, path: &[u8]) -> Result<Option<Vec<u8>>, SbomError> {
        let Some(file) = self.open(path)? else {
            return Ok(None);
        };
        let too_large = || SbomError::TooLarge {
            path: path.into(),
            limit: DATABASES,
        };
        let content = self.content(&file, path, self.left.get())?;
        let content = content.ok_or_else(too_large)?;
        self.left.set(self.left.get() - content.len() as u64);
        Ok(Some(content))
    }

    /// Reads a file that is looked into and not kept. `None` also if it is longer than `limit`.
    pub(super) fn document(&self, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>, SbomError> {
        match self.open(path)? {
            Some(file) => self.content(&file, path, limit),
            None => Ok(None),
        }
    }

    /// Returns the names in a directory, sorted; none if there is no such directory.
    pub(super) fn names(&self, path: &[u8]) -> Result<Vec<BString>, SbomError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = match open_in_root(self.root, path, flags) {
            Ok(directory) => directory,
            Err(error) => return absent(path, error).map(|()| Vec::new()),
        };
        let mut names = crate::tree::Names::default();
        names
            .read(directory.as_fd(), &mut Vec::new())
            .map_err(read_failed("read", BStr::new(path)))?;
        Ok(names.iter().map(BString::from).collect())
    }

    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>, SbomError> {
        // Looked at before it is opened: opening a device can do something, and opening a pipe waits.
        let known = match open_in_root(self.root, path, OFlags::PATH) {
            Ok(known) => known,
            Err(error) => return absent(path, error).map(|()| None),
        };
        let stat = fstat(&known).map_err(read_failed("examine", BStr::new(path)))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        open_in_root(self.root, path, flags)
            .map(Some)
            .map_err(|error| read_failed("open", BStr::new(path))(error).into())
    }

    /// Reads a file to its end; `None` if that is beyond `limit`.
    fn content(
        &self,
        file: &OwnedFd,
        path: &[u8],
        limit: u64,
    ) -> Result<Option<Vec<u8>>, SbomError> {
        let mut content = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            if (self.cancelled)() {
                return Err(TreeError::Cancelled.into());
            }
            match read(file, &mut *piece) {
                Ok(0) => return Ok(Some(content)),
                Ok(count) => {
                    if (content.len() + count) as u64 > limit {
                        return Ok(None);
                    }
                    content.extend_from_slice(&piece[..count]);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(read_failed("read", BStr::new(path))(error).into()),
            }
        }
    }
}

/// Tells what is not there, or leads nowhere, from what cannot be read.
fn absent(path: &[u8], error: Errno) -> Result<(), SbomError> {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => Ok(()),
        error => Err(read_failed("open", BStr::new(path))(error).into()),
    }
}
