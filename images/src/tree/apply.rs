// SPDX-License-Identifier: Apache-2.0
//! Makes a tree into another one by writing only what is different.

use super::Cancelled;
use super::cursor::Cursor;
use super::data::{self, Cloning, DataError, modified};
use super::destination::{link, open_in_root};
use super::diff::Change;
use super::error::TreeError;
use super::export_dir::is_portable;
use super::ladder::DIRECTORY;
use super::listing::{Content, Listing, Node, order, read_failed};
use super::scan::{BUFFER, FILE};
use super::walk::clear;
use super::xattr::{self, Owner};
use bstr::{BStr, BString, ByteSlice};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, fchown, fstat, futimens,
    makedev, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Names made or changed.
    pub written: u64,
    /// Names removed, each with everything below it.
    pub deleted: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Makes the tree at `to`, which differs from `source` by `changes`, equal to it. `from` is the tree that `source` lists.
///
/// Extended attributes, owners, modes, times, hard links and holes are kept; blocks are shared where the file systems can.
/// `progress` hears how many bytes were written since it was last called. After an error `to` is incomplete and must be thrown away.
pub fn apply(
    source: &Listing,
    changes: &[Change],
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    progress: &mut dyn FnMut(u64),
    cancelled: Cancelled<'_>,
) -> Result<Applied, TreeError> {
    let mut work = Work {
        from: Cursor::new(from)?,
        to: Cursor::new(to)?,
        buffer: vec![0; BUFFER],
        cloning: Cloning::new(),
        directories: BTreeSet::new(),
        applied: Applied::default(),
        progress,
        cancelled,
    };
    for change in changes {
        if cancelled() {
            return Err(TreeError::Cancelled);
        }
        work.change(change)?;
    }
    let directories = std::mem::take(&mut work.directories);
    // What is in a directory comes before it: its own time is the last that is set.
    let mut directories: Vec<BString> = directories.into_iter().collect();
    directories.sort_by(|left, right| order(right, left));
    for path in directories {
        if let Some(node) = source.find(&path) {
            work.finish(node)?;
        }
    }
    Ok(work.applied)
}

struct Work<'a> {
    from: Cursor<'a>,
    to: Cursor<'a>,
    buffer: Vec<u8>,
    cloning: Cloning,
    /// Directories that were made or changed, or in which something was.
    directories: BTreeSet<BString>,
    applied: Applied,
    progress: &'a mut dyn FnMut(u64),
    cancelled: Cancelled<'a>,
}

impl Work<'_> {
    fn change(&mut self, change: &Change) -> Result<(), TreeError> {
        let path = change.path.as_bstr();
        let failed = |action| write_failed(action, path);
        let is_directory = |node: &Node| node.is_directory();
        let stays = change.was.as_deref().is_some_and(is_directory)
            && change.now.as_deref().is_some_and(is_directory);
        if change.path.is_empty() || stays {
            self.directories.insert(change.path.clone());
            self.applied.written += 1;
            return Ok(());
        }
        let (directory, name) = split(path);
        self.directories.insert(directory.to_owned());
        if let Some(was) = &change.was {
            if was.is_directory() {
                self.to.forget(path);
            }
            let here = self.to.enter(directory).map_err(failed("open"))?;
            remove(here, name, was.is_directory()).map_err(failed("remove"))?;
        }
        let Some(node) = &change.now else {
            self.applied.deleted += 1;
            return Ok(());
        };
        self.applied.written += 1;
        if let Some(first) = &change.link {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let made = open_in_root(self.to.root(), first, flags).and_then(|file| {
                let here = self.to.enter(directory)?;
                link(file.as_fd(), here, name)
            });
            return made.map_err(failed("make the hard link"));
        }
        match &node.content {
            Content::Directory => {
                let here = self.to.enter(directory).map_err(failed("open"))?;
                mkdirat(here, name, Mode::RWXU).map_err(failed("make the directory"))?;
                self.directories.insert(change.path.clone());
                Ok(())
            }
            Content::File { .. } => self.file(node),
            _ => self.special(node).map_err(failed("make")),
        }
    }

    fn file(&mut self, node: &Node) -> Result<(), TreeError> {
        let path = node.path.as_bstr();
        let (directory, name) = split(path);
        let from = self
            .from
            .enter(directory)
            .and_then(|here| openat(here, name, FILE, Mode::empty()))
            .map_err(read_failed("open", path))?;
        let stat = fstat(&from).map_err(read_failed("examine", path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = self
            .to
            .enter(directory)
            .and_then(|here| openat(here, name, flags, Mode::RUSR | Mode::WUSR))
            .map_err(write_failed("create", path))?;
        let copied = data::copy(
            from.as_fd(),
            to.as_fd(),
            &stat,
            &mut self.buffer,
            &self.cloning,
            self.cancelled,
        );
        copied.map_err(|error| match error {
            DataError::Read(error) => read_failed("read", path)(error),
            DataError::Write(error) => write_failed("write", path)(error),
            DataError::Changed => read_failed("read all of", path)(Errno::STALE),
            DataError::Cancelled => TreeError::Cancelled,
        })?;
        settle(to.as_fd(), node).map_err(write_failed("set the owner, mode or time of", path))?;
        if let Content::File { size_bytes, .. } = node.content {
            self.applied.bytes += size_bytes;
            (self.progress)(size_bytes);
        }
        Ok(())
    }

    /// Makes what is neither a file nor a directory.
    fn special(&mut self, node: &Node) -> Result<(), Errno> {
        let (directory, name) = split(node.path.as_bstr());
        let here = self.to.enter(directory)?;
        let mode = Mode::RUSR | Mode::WUSR;
        match &node.content {
            Content::Symlink { target } => symlinkat(target.as_slice(), here, name)?,
            Content::Device {
                block,
                major,
                minor,
            } => {
                let kind = if *block {
                    FileType::BlockDevice
                } else {
                    FileType::CharacterDevice
                };
                mknodat(here, name, kind, mode, makedev(*major, *minor))?;
            }
            _ => mknodat(here, name, FileType::Fifo, mode, 0)?,
        }
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(here, name, Some(uid), Some(gid), nofollow)?;
        if !matches!(node.content, Content::Symlink { .. }) {
            let mode = Mode::from_raw_mode(node.mode.into());
            chmodat(here, name, mode, AtFlags::empty())?;
        }
        replace_attributes(Owner::Named(here, name), node)?;
        let (seconds, nanoseconds) = node.modified;
        utimensat(here, name, &modified(seconds, nanoseconds), nofollow)
    }

    /// Gives a directory what the source has, when everything is in it.
    fn finish(&mut self, node: &Node) -> Result<(), TreeError> {
        let path = node.path.as_bstr();
        let directory = self
            .to
            .enter(path)
            // A descriptor that is only a path, as of a mount's root may be, cannot be written through.
            .and_then(|here| openat(here, c".", DIRECTORY, Mode::empty()))
            .map_err(write_failed("open", path))?;
        settle(directory.as_fd(), node)
            .map_err(write_failed("set the owner, mode or time of", path))
    }
}

/// Gives an open file or directory owner, mode, attributes and time. The owner comes first: changing it clears the set-id bits
/// and capabilities (chown(2)).
fn settle(file: BorrowedFd<'_>, node: &Node) -> Result<(), Errno> {
    let now = fstat(file)?;
    if (now.st_uid, now.st_gid) != (node.uid, node.gid) {
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        fchown(file, Some(uid), Some(gid))?;
    }
    fchmod(file, Mode::from_raw_mode(node.mode.into()))?;
    replace_attributes(Owner::Open(file), node)?;
    let (seconds, nanoseconds) = node.modified;
    futimens(file, &modified(seconds, nanoseconds))
}

/// Sets a node's attributes and removes others, such as an access list that came from the directory's default.
fn replace_attributes(owner: Owner<'_>, node: &Node) -> Result<(), Errno> {
    let there = xattr::read(owner, is_portable)?;
    if there == node.attributes {
        return Ok(());
    }
    for (name, _) in &there {
        if !node.attributes.iter().any(|(wanted, _)| wanted == name) {
            xattr::remove(owner, name)?;
        }
    }
    xattr::write(owner, &node.attributes)
}

/// Splits a path into the directory and the name in it.
fn split(path: &BStr) -> (&BStr, &[u8]) {
    match path.rfind_byte(b'/') {
        Some(slash) => (path[..slash].as_bstr(), &path[slash + 1..]),
        None => (BStr::new(""), path),
    }
}

fn remove(directory: BorrowedFd<'_>, name: &[u8], is_directory: bool) -> Result<(), Errno> {
    if !is_directory {
        return unlinkat(directory, name, AtFlags::empty());
    }
    let below = openat(directory, name, DIRECTORY, Mode::empty())?;
    clear(below.as_fd())?;
    drop(below);
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}

fn write_failed(action: &'static str, path: &BStr) -> impl Fn(Errno) -> TreeError + use<> {
    let path = path.to_owned();
    move |error| TreeError::Write {
        action,
        path: path.clone(),
        source: error.into(),
    }
}
