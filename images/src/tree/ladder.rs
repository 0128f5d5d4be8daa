// SPDX-License-Identifier: Apache-2.0
//! Descriptors of the directories from a root down to where a walk is.
//!
//! Everything in this module works relative to descriptors, so no path is ever too long and no renamed or replaced ancestor
//! leads out of the tree. A tree deeper than [`OPEN`] does not use up the process's descriptors: the oldest are closed,
//! and opened again as `..` on the way back, if that is still the same directory.

use rustix::fs::{Mode, OFlags, RawDir, Stat, fstat, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How many directories of one ladder are open at once. Two ladders and their work stay far below the usual limit of 1024.
const OPEN: usize = 64;

/// How directories are opened: never through a symbolic link.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The open directories from a root to the current one. `H` is what the walk keeps of an open directory.
pub(crate) struct Ladder<H> {
    rungs: Vec<Rung<H>>,
    /// Rungs below this index have been closed or may not be.
    oldest: usize,
}

struct Rung<H> {
    handle: Option<Arc<H>>,
    identity: (u64, u64),
    /// Reached through a symbolic link, so that its `..` is not the rung below.
    linked: bool,
}

impl<H: AsFd> Ladder<H> {
    /// Starts at a root, which is never closed.
    pub(crate) fn new(root: Arc<H>) -> Self {
        Self {
            rungs: vec![Rung {
                handle: Some(root),
                identity: (0, 0),
                linked: false,
            }],
            oldest: 1,
        }
    }

    /// Returns the current directory.
    pub(crate) fn top(&self) -> &Arc<H> {
        self.rungs
            .last()
            .and_then(|rung| rung.handle.as_ref())
            .expect("the top rung is always open")
    }

    /// Goes down into a directory. Returns a handle that was closed to make room, for its owner to finish with.
    ///
    /// `linked` says that it was reached through a symbolic link.
    pub(crate) fn descend(&mut self, handle: Arc<H>, stat: &Stat, linked: bool) -> Option<Arc<H>> {
        self.rungs.push(Rung {
            handle: Some(handle),
            identity: (stat.st_dev, stat.st_ino),
            linked,
        });
        if self.rungs.len() - self.oldest <= OPEN {
            return None;
        }
        let oldest = self.oldest;
        self.oldest += 1;
        // What `..` of the next rung does not lead back to stays open.
        if self.rungs[oldest + 1].linked {
            return None;
        }
        self.rungs[oldest].handle.take()
    }

    /// Goes up and returns the directory that was left. `wrap` makes a handle of one that had to be opened again;
    /// it gets its depth.
    ///
    /// # Errors
    ///
    /// When the directory above has gone or is another one now.
    pub(crate) fn ascend(
        &mut self,
        wrap: impl FnOnce(OwnedFd, usize) -> H,
    ) -> Result<Arc<H>, Errno> {
        let left = self
            .rungs
            .pop()
            .and_then(|rung| rung.handle)
            .expect("the top rung is always open");
        let depth = self.rungs.len().saturating_sub(1);
        self.oldest = self.oldest.min(self.rungs.len()).max(1);
        if let Some(rung) = self.rungs.last_mut()
            && rung.handle.is_none()
        {
            let above = openat(left.as_fd(), c"..", DIRECTORY, Mode::empty())?;
            let stat = fstat(&above)?;
            if (stat.st_dev, stat.st_ino) != rung.identity {
                return Err(Errno::STALE);
            }
            rung.handle = Some(Arc::new(wrap(above, depth)));
            self.oldest = self.oldest.min(depth);
        }
        Ok(left)
    }
}

/// Names in a directory, in one piece of memory.
#[derive(Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    ranges: Vec<(usize, u16)>,
}

impl Names {
    /// Returns the names in bytewise order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges
            .iter()
            .map(|&(start, length)| &self.bytes[start..start + usize::from(length)])
    }

    /// Returns how many there are.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Returns one by its place.
    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        let &(start, length) = self.ranges.get(index)?;
        Some(&self.bytes[start..start + usize::from(length)])
    }

    /// Replaces the content by the names in `directory`, whose offset must be at its start, without `.` and `..`.
    pub(crate) fn read(
        &mut self,
        directory: BorrowedFd<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        self.bytes.clear();
        self.ranges.clear();
        buffer.clear();
        // 32 KiB as in glibc's readdir; a large directory takes one call for about a thousand names.
        buffer.reserve(32 * 1024);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            // NAME_MAX is 255; no file system goes beyond the 16 bits that a directory record's length has.
            let length = u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
            self.ranges.push((self.bytes.len(), length));
            self.bytes.extend_from_slice(name);
        }
        let bytes = &self.bytes;
        let name = |&(start, length): &(usize, u16)| &bytes[start..start + usize::from(length)];
        self.ranges.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        Ok(())
    }
}
