// SPDX-License-Identifier: Apache-2.0
//! Copying a whole tree, with everything that a file system keeps of it.
//!
//! Kept are kinds, contents, holes, modes, owners, times to the nanosecond, extended attributes (access control lists,
//! capabilities, labels), hard links inside the tree, and names of any bytes. A thread works on one directory at a time and
//! finishes it: what is in its subdirectories does not touch its times.

use super::attributes::{Subject, copy_all, xattrs};
use super::content::{Ways, copy_content};
use super::crew;
use super::node::{Budget, Held, Node, Waiting, locate, open_quietly};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RawMode, Stat};
use rustix::io::Result;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// Copies everything in `source`, and its own attributes, to the new, empty directory `target`.
pub(crate) fn replicate(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let budget = Budget::default();
    let copier = Copier {
        source,
        target,
        // What a new directory has by itself (a label, a default access control list), everything in it has too.
        bare: xattrs(Subject::Open(target))?.is_empty(),
        ways: Ways::new(),
        links: Links::default(),
        budget: &budget,
    };
    let top = Waiting {
        above: None,
        node: None,
    };
    crew::run(top, &|directory, found| copier.directory(&directory, found))
}

/// A directory of the source and its copy.
struct Pair {
    from: OwnedFd,
    to: OwnedFd,
}

struct Copier<'a> {
    source: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
    bare: bool,
    ways: Ways,
    links: Links,
    budget: &'a Budget,
}

/// Where the first name of each file with several is, by device and inode. In pieces, so that threads seldom wait for each
/// other: in a tree of hard links every file is in it.
#[derive(Default)]
struct Links([Mutex<HashMap<(u64, u64), Name>>; 16]);

/// A name in the copy.
struct Name {
    node: Option<Arc<Node>>,
    name: CString,
}

impl<'a> Copier<'a> {
    fn directory(
        &self,
        waiting: &Waiting<'a, Pair>,
        found: &mut Vec<Waiting<'a, Pair>>,
    ) -> Result<()> {
        let pair = Pair {
            from: waiting.open(self.source, |above| above.from.as_fd())?,
            to: waiting.open(self.target, |above| above.to.as_fd())?,
        };
        let pair = Held::new(pair, self.budget);
        let (from, to) = (pair.open.from.as_fd(), pair.open.to.as_fd());
        let node = waiting.node.as_ref();
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(from, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            match kind {
                FileType::Directory => {
                    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                    found.push(Waiting::below(&pair, node, name.to_owned()));
                }
                FileType::RegularFile => self.file(from, to, name, node)?,
                _ => self.special(from, to, name, node)?,
            }
        }
        let stat = rustix::fs::fstat(from)?;
        copy_all(Subject::Open(from), Subject::Open(to), &stat, self.bare)
    }

    fn file(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        node: Option<&Arc<Node>>,
    ) -> Result<()> {
        let source = open_quietly(from, name, OFlags::empty())?;
        let stat = rustix::fs::fstat(&source)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        // The set-id bits come last, after the owner.
        let mode = Mode::from_raw_mode(stat.st_mode as RawMode & 0o777);
        let create = || rustix::fs::openat(to, name, flags | OFlags::CLOEXEC, mode);
        let Some(target) = self
            .links
            .first(&stat, self.target, to, name, node, create)?
        else {
            return Ok(());
        };
        copy_content(source.as_fd(), target.as_fd(), &stat, &self.ways)?;
        let (source, target) = (Subject::Open(source.as_fd()), Subject::Open(target.as_fd()));
        copy_all(source, target, &stat, self.bare)
    }

    /// Copies a link, device, pipe or socket.
    fn special(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        node: Option<&Arc<Node>>,
    ) -> Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let create = || match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(text, to, name)
            }
            kind => {
                let mode = Mode::from_raw_mode(stat.st_mode as RawMode & 0o777);
                rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)
            }
        };
        if self
            .links
            .first(&stat, self.target, to, name, node, create)?
            .is_none()
        {
            return Ok(());
        }
        copy_all(
            Subject::Named(from, name),
            Subject::Named(to, name),
            &stat,
            self.bare,
        )
    }
}

impl Links {
    /// Makes the file by `create` if this is its first name, else a link to the first one, and returns `None`.
    fn first<T>(
        &self,
        stat: &Stat,
        top: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        node: Option<&Arc<Node>>,
        create: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        if stat.st_nlink < 2 {
            return create().map(Some);
        }
        let key = (stat.st_dev, stat.st_ino);
        let piece = &self.0[usize::try_from(stat.st_ino % 16).unwrap_or(0)];
        let mut links = piece.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = links.get(&key) {
            let directory = locate(top, first.node.as_deref())?;
            rustix::fs::linkat(&directory, &*first.name, to, name, AtFlags::empty())?;
            return Ok(None);
        }
        let made = create()?;
        let first = Name {
            node: node.cloned(),
            name: name.to_owned(),
        };
        links.insert(key, first);
        Ok(Some(made))
    }
}
