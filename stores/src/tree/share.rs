// SPDX-License-Identifier: Apache-2.0
//! Putting hard links in place of the files of a tree that are the same in the tree it was copied from.
//!
//! A file is the same only if nothing could tell the difference: besides content, its mode, owner, times and extended attributes
//! are equal. Which names of the tree are one file does not change either: no file of the parent takes the place of two
//! that the tree keeps apart, and a file with several names is replaced under all of them or none.

use super::attributes::{Subject, copy_all, set_times, xattrs};
use super::content::{Ways, copy_content};
use super::crew;
use super::node::{Budget, Held, Node, Waiting, locate, open_quietly};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How contents are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    /// Byte by byte.
    Content,
    /// Not at all: size and time of modification say enough.
    Times,
}

/// Links the files of the tree `own` that are the same in `parent`.
pub(crate) fn link_same(
    own: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    compare: Compare,
) -> Result<()> {
    let budget = Budget::default();
    let linker = Linker {
        own,
        parent,
        compare,
        claims: Default::default(),
        groups: Mutex::default(),
        budget: &budget,
    };
    let top = Waiting {
        above: None,
        node: None,
    };
    crew::run(top, &|directory, found| linker.directory(&directory, found))?;
    let groups = std::mem::take(&mut *lock(&linker.groups));
    for group in groups.into_values() {
        linker.group(&group)?;
    }
    Ok(())
}

/// Device and inode number.
type Inode = (u64, u64);

/// A directory, and the one of that name in the parent.
struct Pair {
    own: OwnedFd,
    parent: OwnedFd,
}

struct Linker<'a> {
    own: BorrowedFd<'a>,
    parent: BorrowedFd<'a>,
    compare: Compare,
    /// Which file of the parent takes the place of which one. In pieces, so that threads seldom wait for each other.
    claims: [Mutex<HashMap<Inode, Inode>>; 16],
    groups: Mutex<HashMap<Inode, Group>>,
    budget: &'a Budget,
}

/// A file with several names.
struct Group {
    links: u64,
    /// Those that have been met: directory, name.
    names: Vec<(Option<Arc<Node>>, CString)>,
    /// The one of them under which the parent has the same file.
    same: Option<usize>,
}

impl<'a> Linker<'a> {
    fn directory(
        &self,
        waiting: &Waiting<'a, Pair>,
        found: &mut Vec<Waiting<'a, Pair>>,
    ) -> Result<()> {
        let parent = match waiting.open(self.parent, |above| above.parent.as_fd()) {
            Ok(parent) => parent,
            // It is new, and so is everything in it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let own = waiting.open(self.own, |above| above.own.as_fd())?;
        let pair = Held::new(Pair { own, parent }, self.budget);
        let own = pair.open.own.as_fd();
        let before = rustix::fs::fstat(own)?;
        let mut names = Vec::new();
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(own, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            match entry.file_type() {
                _ if matches!(name.to_bytes(), b"." | b"..") => {}
                FileType::Directory => {
                    found.push(Waiting::below(
                        &pair,
                        waiting.node.as_ref(),
                        name.to_owned(),
                    ));
                }
                // Names are changed when all have been read, or some might be read twice.
                FileType::RegularFile => names.push(name.to_owned()),
                FileType::Unknown => {
                    let stat = rustix::fs::statat(own, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Directory => {
                            let node = waiting.node.as_ref();
                            found.push(Waiting::below(&pair, node, name.to_owned()));
                        }
                        FileType::RegularFile => names.push(name.to_owned()),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        let mut changed = false;
        let mut buffers = Buffers::default();
        for name in names {
            changed |= self.file(&pair.open, name, waiting.node.as_ref(), &mut buffers)?;
        }
        if changed {
            set_times(Subject::Open(own), &before)?;
        }
        Ok(())
    }

    /// Links a file if it is the same in the parent, or notes it if it has several names. Returns whether the directory
    /// was changed.
    fn file(
        &self,
        pair: &Pair,
        name: CString,
        node: Option<&Arc<Node>>,
        buffers: &mut Buffers,
    ) -> Result<bool> {
        let stat = rustix::fs::statat(&pair.own, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        let other = self.same(pair, &name, &stat, buffers)?;
        if stat.st_nlink == 1 {
            return match other {
                Some(other) if self.claim(&other, &stat) => {
                    replace((pair.parent.as_fd(), &name), (pair.own.as_fd(), &name))
                }
                _ => Ok(false),
            };
        }
        let mut groups = lock(&self.groups);
        let group = groups.entry(inode(&stat)).or_insert_with(|| Group {
            links: stat.st_nlink,
            names: Vec::new(),
            same: None,
        });
        if group.same.is_none() && other.is_some_and(|other| self.claim(&other, &stat)) {
            group.same = Some(group.names.len());
        }
        group.names.push((node.cloned(), name));
        Ok(false)
    }

    /// Links all names of a file, if all are known.
    fn group(&self, group: &Group) -> Result<()> {
        let Some((node, source)) = group.same.map(|same| &group.names[same]) else {
            return Ok(());
        };
        if group.names.len() as u64 != group.links {
            return Ok(());
        }
        let parent = locate(self.parent, node.as_deref())?;
        for (node, name) in &group.names {
            let own = locate(self.own, node.as_deref())?;
            let before = rustix::fs::fstat(&own)?;
            if !replace((parent.as_fd(), source), (own.as_fd(), name))? {
                // A flag forbids it, which is the file's and so concerned its first name; or the directory's.
                return Ok(());
            }
            set_times(Subject::Open(own.as_fd()), &before)?;
        }
        Ok(())
    }

    /// Returns whether the parent's file `other` may take the place of the one that `stat` is of.
    fn claim(&self, other: &Stat, stat: &Stat) -> bool {
        if other.st_nlink == 1 {
            return true;
        }
        let piece = &self.claims[usize::try_from(other.st_ino % 16).unwrap_or(0)];
        *lock(piece).entry(inode(other)).or_insert(inode(stat)) == inode(stat)
    }

    /// Returns what the parent has under a name, if it is the same.
    fn same(
        &self,
        pair: &Pair,
        name: &CStr,
        stat: &Stat,
        buffers: &mut Buffers,
    ) -> Result<Option<Stat>> {
        let other = match rustix::fs::statat(&pair.parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(other) => other,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let facts = |stat: &Stat| {
            (
                (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size),
                (stat.st_mtime, stat.st_mtime_nsec),
            )
        };
        if facts(stat) != facts(&other) {
            return Ok(None);
        }
        let own = open_quietly(&pair.own, name, OFlags::empty())?;
        let theirs = open_quietly(&pair.parent, name, OFlags::empty())?;
        if xattrs(Subject::Open(own.as_fd()))? != xattrs(Subject::Open(theirs.as_fd()))? {
            return Ok(None);
        }
        let same = self.compare == Compare::Times || buffers.equal(&own, &theirs)?;
        Ok(same.then_some(other))
    }
}

/// Puts a link to `from` in the place of `to`, the same file. Returns `false` if a flag of `to` or its directory forbids it.
fn replace(
    (from, source): (BorrowedFd<'_>, &CStr),
    (to, name): (BorrowedFd<'_>, &CStr),
) -> Result<bool> {
    match rustix::fs::unlinkat(to, name, AtFlags::empty()) {
        Ok(()) => {}
        // FS_IOC_SETFLAGS(2const): immutable, append-only.
        Err(Errno::PERM) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    match rustix::fs::linkat(from, source, to, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        // Too many links, or a flag of the file that is linked. What was unlinked was the same, so a copy will do.
        Err(Errno::MLINK | Errno::PERM | Errno::XDEV) => {
            let source = open_quietly(from, source, OFlags::empty())?;
            let stat = rustix::fs::fstat(&source)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
            copy_content(source.as_fd(), target.as_fd(), &stat, &Ways::new())?;
            let (source, target) = (source.as_fd(), target.as_fd());
            copy_all(Subject::Open(source), Subject::Open(target), &stat, false)?;
            Ok(true)
        }
        Err(errno) => Err(errno),
    }
}

/// Space to read two files into.
#[derive(Default)]
struct Buffers(Vec<u8>, Vec<u8>);

impl Buffers {
    /// Returns whether two files have the same bytes.
    fn equal(&mut self, left: &OwnedFd, right: &OwnedFd) -> Result<bool> {
        self.0.resize(64 * 1024, 0);
        self.1.resize(64 * 1024, 0);
        loop {
            let count = fill(left, &mut self.0)?;
            if count != fill(right, &mut self.1)? || self.0[..count] != self.1[..count] {
                return Ok(false);
            }
            if count < self.0.len() {
                return Ok(true);
            }
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(file, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(length)
}

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
