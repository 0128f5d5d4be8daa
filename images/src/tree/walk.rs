// SPDX-License-Identifier: Apache-2.0
//! Visits everything below a directory: depth first, in bytewise order of names, following no link, to any depth.

use super::ladder::{DIRECTORY, Ladder, Names};
use bstr::{BStr, BString, ByteSlice};
use rustix::fs::{AtFlags, Mode, Stat, chmodat, fstat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Where a visit is.
pub(crate) struct Walk {
    ladder: Ladder<OwnedFd>,
    open: Vec<Listing>,
    /// The path of the current entry or, after [`Step::Left`], of the directory that was left.
    path: BString,
    buffer: Vec<u8>,
}

struct Listing {
    names: Names,
    next: usize,
    /// Length of the directory's own path.
    path: usize,
}

/// What comes next.
pub(crate) enum Step {
    /// Something in the current directory. A directory is visited only if [`Walk::enter`] is called.
    Entry(Stat),
    /// All of a directory has been visited; the current directory is the one that it is in.
    Left,
}

impl Walk {
    /// Starts at a directory, of which the walk gets an open file of its own.
    pub(crate) fn new(root: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut walk = Self {
            ladder: Ladder::new(Arc::new(openat(root, c".", DIRECTORY, Mode::empty())?)),
            open: Vec::new(),
            path: BString::default(),
            buffer: Vec::new(),
        };
        walk.list()?;
        Ok(walk)
    }

    fn list(&mut self) -> Result<(), Errno> {
        let mut names = Names::default();
        names.read(self.ladder.top().as_fd(), &mut self.buffer)?;
        self.open.push(Listing {
            names,
            next: 0,
            path: self.path.len(),
        });
        Ok(())
    }

    /// Goes on. `None` when everything has been visited. After an error, [`Walk::path`] says where it was.
    pub(crate) fn next(&mut self) -> Result<Option<Step>, Errno> {
        loop {
            let Some(listing) = self.open.last_mut() else {
                return Ok(None);
            };
            let Some(name) = listing.names.get(listing.next) else {
                let left = listing.path;
                self.open.pop();
                if self.open.is_empty() {
                    return Ok(None);
                }
                self.path.truncate(left);
                self.ladder.ascend(|directory, _| directory)?;
                return Ok(Some(Step::Left));
            };
            listing.next += 1;
            self.path.truncate(listing.path);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            match statat(self.ladder.top(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => return Ok(Some(Step::Entry(stat))),
                // Gone since it was listed.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes down into the directory that [`Walk::next`] has just returned.
    pub(crate) fn enter(&mut self) -> Result<(), Errno> {
        let directory = openat(self.ladder.top(), self.name(), DIRECTORY, Mode::empty())?;
        let stat = fstat(&directory)?;
        drop(self.ladder.descend(Arc::new(directory), &stat, false));
        self.list()
    }

    /// Returns the directory that the current entry is in; just after [`Walk::enter`], the one entered.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.ladder.top().as_fd()
    }

    /// Returns the base name of the current entry, or of the directory that was left.
    pub(crate) fn name(&self) -> &[u8] {
        let start = self.path.rfind_byte(b'/').map_or(0, |slash| slash + 1);
        &self.path[start..]
    }

    /// Returns the path of the current entry, or of the directory that was left, below the root.
    pub(crate) fn path(&self) -> &BStr {
        self.path.as_bstr()
    }
}

/// Removes everything below a directory. Stops at the first error.
pub(crate) fn clear(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut walk = Walk::new(directory)?;
    while let Some(step) = walk.next()? {
        match step {
            Step::Entry(stat)
                if super::stamp::file_type(&stat) == rustix::fs::FileType::Directory =>
            {
                if stat.st_mode & 0o700 != 0o700 {
                    // Whoever owns it can then look into it and empty it.
                    chmodat(walk.directory(), walk.name(), Mode::RWXU, AtFlags::empty())?;
                }
                walk.enter()?;
            }
            Step::Entry(_) => unlinkat(walk.directory(), walk.name(), AtFlags::empty())?,
            Step::Left => unlinkat(walk.directory(), walk.name(), AtFlags::REMOVEDIR)?,
        }
    }
    Ok(())
}
