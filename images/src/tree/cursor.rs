// SPDX-License-Identifier: Apache-2.0
//! Goes to directories of a tree by their paths, cheaply when they come in order, and never through a link.

use super::error::TreeError;
use super::ladder::DIRECTORY;
use bstr::{BStr, BString};
use rustix::fs::{Mode, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How many directories are held open at once; of a path that is longer, those at its top are opened again when they are needed.
const OPEN: usize = 64;

/// The open directories on the way from a root to the directory that was entered last.
pub(crate) struct Cursor<'a> {
    root: BorrowedFd<'a>,
    top: OwnedFd,
    rungs: Vec<(BString, Option<OwnedFd>)>,
}

impl<'a> Cursor<'a> {
    /// Starts at a root.
    pub(crate) fn new(root: BorrowedFd<'a>) -> Result<Self, TreeError> {
        let top = openat(root, c".", DIRECTORY, Mode::empty())
            .map_err(super::listing::read_failed("open", BStr::new("/")))?;
        Ok(Self {
            root,
            top,
            rungs: Vec::new(),
        })
    }

    /// Goes to the directory of this path.
    pub(crate) fn enter(&mut self, path: &BStr) -> Result<BorrowedFd<'_>, Errno> {
        let names = || {
            path.split(|byte| *byte == b'/')
                .filter(|name| !name.is_empty())
        };
        let same = self
            .rungs
            .iter()
            .zip(names())
            .take_while(|((rung, _), name)| rung == name)
            .count();
        self.rungs.truncate(same);
        if self.rungs.last().is_some_and(|(_, open)| open.is_none()) {
            self.rungs.clear();
        }
        for name in names().skip(self.rungs.len()) {
            let here = self.here();
            let next = openat(here, name, DIRECTORY, Mode::empty())?;
            self.rungs.push((name.into(), Some(next)));
            if let Some(old) = self.rungs.len().checked_sub(OPEN + 1) {
                self.rungs[old].1 = None;
            }
        }
        Ok(self.here())
    }

    /// Forgets the directories at and below a path, which may be replaced.
    pub(crate) fn forget(&mut self, path: &BStr) {
        let depth = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
            .count();
        self.rungs.truncate(depth.saturating_sub(1));
    }

    fn here(&self) -> BorrowedFd<'_> {
        match self.rungs.last() {
            Some((_, Some(directory))) => directory.as_fd(),
            _ => self.top.as_fd(),
        }
    }

    /// Returns the root that it started at.
    pub(crate) fn root(&self) -> BorrowedFd<'a> {
        self.root
    }
}
