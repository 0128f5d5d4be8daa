// SPDX-License-Identifier: Apache-2.0
//! The walk over the manifest: makes the directories, hands out the files, and makes the hard links.

use super::{ATTEMPTS, Copier, Hand, Inode, UNIT_ENTRIES, Unit};
use crate::tree::crew::Foreman;
use crate::tree::data;
use crate::tree::destination::{Finish, Target, failed, link, open_in_root};
use crate::tree::error::CopyError;
use crate::tree::ladder::{DIRECTORY, Ladder};
use crate::tree::manifest::{Index, Item, Manifest, NONE, Node};
use crate::tree::stamp::{Stamp, file_type};
use bstr::{BStr, BString, ByteSlice};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The walk over the manifest, which makes the directories.
pub(super) struct Walk<'w, 'a, 'scope, 'env> {
    copier: &'w Copier<'a>,
    foreman: &'w mut Foreman<'scope, 'env, Unit, Hand, CopyError>,
    /// Nothing is done by other threads any more: see [`Walk::follow`].
    alone: bool,
    /// The directory of the last item.
    source: Option<(&'w BString, Arc<OwnedFd>)>,
}

impl<'w, 'a, 'scope, 'env> Walk<'w, 'a, 'scope, 'env> {
    pub(super) fn new(
        copier: &'w Copier<'a>,
        foreman: &'w mut Foreman<'scope, 'env, Unit, Hand, CopyError>,
    ) -> Self {
        Self {
            copier,
            foreman,
            alone: false,
            source: None,
        }
    }

    /// Copies all items into the directory `base`.
    pub(super) fn items(&mut self, base: &Arc<Target>) -> Result<(), CopyError> {
        let manifest = self.copier.manifest;
        let overlapping = overlapping(manifest);
        for item in &manifest.items {
            let directory = self.source(item)?;
            let entry = manifest.entry(item.entry);
            match &entry.node {
                Node::Directory { children } if entry.name.is_empty() => {
                    self.tree(children.clone(), directory, Arc::clone(base), item.entry)?;
                }
                Node::Directory { children } => {
                    let source = self.enter_source(&directory, item.entry)?;
                    let (target, _, _) = self.enter_target(base, item.entry)?;
                    self.tree(
                        children.clone(),
                        Arc::new(source),
                        Arc::new(target),
                        item.entry,
                    )?;
                }
                Node::File { .. } | Node::Symlink { .. } => {
                    self.files(item.entry..item.entry + 1, &directory, base)?;
                }
            }
            // A later source wins over an earlier one, so it must come later.
            if overlapping {
                self.foreman.drain()?;
            }
        }
        self.foreman.drain()
    }

    /// Opens the directory that a source is in.
    fn source(&mut self, item: &'w Item) -> Result<Arc<OwnedFd>, CopyError> {
        if let Some((path, directory)) = &self.source
            && **path == item.directory
        {
            return Ok(Arc::clone(directory));
        }
        let names = item
            .directory
            .split_str("/")
            .filter(|name| !name.is_empty());
        let mut directory = openat(self.copier.from_root, c".", DIRECTORY, Mode::empty());
        for name in names {
            directory = directory.and_then(|above| openat(above, name, DIRECTORY, Mode::empty()));
        }
        let directory = Arc::new(directory.map_err(|error| self.source_failed(item.entry, error))?);
        self.source = Some((&item.directory, Arc::clone(&directory)));
        Ok(directory)
    }

    /// Copies what is below a directory, depth first, without recursion.
    fn tree(
        &mut self,
        children: Range<Index>,
        source: Arc<OwnedFd>,
        target: Arc<Target>,
        entry: Index,
    ) -> Result<(), CopyError> {
        let mut sources = Ladder::new(source);
        let place = (target.finish.clone(), target.in_upper);
        let mut targets = Ladder::new(target);
        self.files(children.clone(), sources.top(), targets.top())?;
        let mut open = vec![(children, place, entry)];
        while let Some((children, _, entry)) = open.last_mut() {
            let manifest = self.copier.manifest;
            let next = children
                .find(|&child| matches!(manifest.entry(child).node, Node::Directory { .. }));
            if let Some(child) = next {
                let Node::Directory { children } = &manifest.entry(child).node else {
                    continue;
                };
                let source = self.enter_source(sources.top(), child)?;
                let stat = fstat(&source).map_err(|error| self.source_failed(child, error))?;
                sources.descend(Arc::new(source), &stat, false);
                let (target, stat, linked) = self.enter_target(targets.top(), child)?;
                let place = (target.finish.clone(), target.in_upper);
                // One that is closed to make room is finished when it has come back.
                drop(targets.descend(Arc::new(target), &stat, linked));
                self.files(children.clone(), sources.top(), targets.top())?;
                open.push((children.clone(), place, child));
            } else {
                let entry = *entry;
                open.pop();
                if open.is_empty() {
                    break;
                }
                sources
                    .ascend(|directory, _| directory)
                    .map_err(|error| self.source_failed(entry, error))?;
                let left = targets
                    .ascend(|directory, depth| {
                        let (finish, in_upper) = open[depth].1.clone();
                        let mut target = Target::new(directory, finish);
                        target.in_upper = in_upper;
                        // Whether something was put into it is not known any more.
                        target.touch();
                        target
                    })
                    .map_err(|error| {
                        failed("go back up from", self.copier.path(entry).as_bstr(), error)
                    })?;
                self.copier.release(left, entry)?;
            }
        }
        let top = Arc::clone(targets.top());
        drop(targets);
        self.copier.release(top, entry)
    }

    /// Hands out the files and links among `children`.
    fn files(
        &mut self,
        children: Range<Index>,
        source: &Arc<OwnedFd>,
        target: &Arc<Target>,
    ) -> Result<(), CopyError> {
        if (self.copier.cancelled)() {
            return Err(CopyError::Cancelled);
        }
        let mut start = children.start;
        while start < children.end {
            let end = children.end.min(start + UNIT_ENTRIES);
            let entries = start..end;
            start = end;
            let manifest = self.copier.manifest;
            let is_work = |index| match manifest.entry(index).node {
                Node::File { .. } => manifest.entry(index).leader == NONE,
                Node::Symlink { .. } => true,
                Node::Directory { .. } => false,
            };
            if entries.clone().any(is_work) {
                let unit = Unit {
                    source: Arc::clone(source),
                    target: Arc::clone(target),
                    entries: entries.clone(),
                };
                let large = |index| manifest.entry(index).stamp.size >= data::WORTH_A_CLONE;
                let cloned = || self.copier.cloning(target).works() && entries.clone().any(large);
                if self.alone || cloned() {
                    self.foreman.work_here(unit)?;
                } else {
                    self.foreman.submit(unit)?;
                }
            }
            for index in entries {
                if manifest.entry(index).leader != NONE {
                    self.hard_link(index, source, target)?;
                }
            }
        }
        Ok(())
    }

    /// Copies the first name of an inode and links the others to it.
    fn hard_link(
        &mut self,
        index: Index,
        source: &Arc<OwnedFd>,
        target: &Arc<Target>,
    ) -> Result<(), CopyError> {
        let leader = self.copier.manifest.entry(index).leader;
        let written = self.copier.linked().written.get(&leader).copied();
        if let Some((first, inode)) = written
            && self.link_to(first, inode, index, target)?
        {
            self.foreman.hand.stats.hard_links += 1;
            return Ok(());
        }
        let file = self
            .copier
            .file(&mut self.foreman.hand, source, target, index)?;
        let stat = fstat(&file)
            .map_err(|error| failed("examine", self.copier.path(index).as_bstr(), error))?;
        let inode = (stat.st_dev, stat.st_ino);
        let mut linked = self.copier.linked();
        linked.written.insert(leader, (index, inode));
        linked.leaders.insert(inode, leader);
        Ok(())
    }

    /// Makes `index` a further name of the file written for `first`. `false` if that one is no longer there (a later source
    /// has replaced it) or can have no more names.
    fn link_to(
        &self,
        first: Index,
        inode: Inode,
        index: Index,
        target: &Target,
    ) -> Result<bool, CopyError> {
        let copier = self.copier;
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let Ok(file) = open_in_root(copier.to_root, &copier.path(first), flags) else {
            return Ok(false);
        };
        let same =
            |stat: Result<Stat, Errno>| stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == inode);
        if !same(fstat(&file)) {
            return Ok(false);
        }
        let name = copier.name(index);
        // Through a link between directories both names may be one.
        if same(statat(target, name, AtFlags::SYMLINK_NOFOLLOW)) {
            return Ok(true);
        }
        let linked = copier.replacing(target, index, "make the hard link", |name| {
            match link(file.as_fd(), target.as_fd(), name) {
                Ok(()) => Ok(true),
                Err(Errno::MLINK | Errno::XDEV) => Ok(false),
                Err(error) => Err(error),
            }
        })?;
        Ok(linked)
    }

    fn enter_source(&self, above: &OwnedFd, index: Index) -> Result<OwnedFd, CopyError> {
        let name = self
            .copier
            .manifest
            .text(self.copier.manifest.entry(index).name);
        openat(above, name, DIRECTORY, Mode::empty())
            .map_err(|error| self.source_failed(index, error))
    }

    fn source_failed(&self, index: Index, error: Errno) -> CopyError {
        let path = self.copier.manifest.path(index);
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => {
                CopyError::SourceChanged { path }
            }
            error => CopyError::Source {
                action: "open",
                path,
                source: error.into(),
            },
        }
    }

    /// Opens the directory in the destination that a directory goes to, after making it if need be. Says
    /// whether its `..` is another than the directory above: where a link led there, or it is the first one in an upper layer.
    fn enter_target(
        &mut self,
        above: &Arc<Target>,
        index: Index,
    ) -> Result<(Target, Stat, bool), CopyError> {
        let copier = self.copier;
        let entry = copier.manifest.entry(index);
        let name = copier.name(index);
        let cannot = |action, error| failed(action, copier.path(index).as_bstr(), error);
        let mut attempts = 0;
        loop {
            // Whatever its final mode is, it must be possible to write into it.
            let mode = Mode::from_raw_mode((entry.mode & 0o777 | 0o700).into());
            match mkdirat(above, name, mode) {
                Ok(()) => {
                    above.touch();
                    self.foreman.hand.stats.directories += 1;
                    let directory = openat(above, name, DIRECTORY, Mode::empty())
                        .map_err(|error| cannot("open", error))?;
                    let finish = Finish::Set {
                        mode: entry.mode,
                        modified: entry.stamp.modified.seconds,
                        attributes: copier.manifest.attributes_of(entry).to_vec(),
                    };
                    let mut target = Target::new(directory, finish);
                    target.in_upper = above.in_upper;
                    let entered = match copier.upper {
                        Some(upper) if !above.in_upper => {
                            target.enter_upper(upper, &copier.path(index))
                        }
                        _ => false,
                    };
                    self.foreman.hand.stats.in_upper += u64::from(target.in_upper);
                    let stat = fstat(&target).map_err(|error| cannot("examine", error))?;
                    return Ok((target, stat, entered));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(cannot("make the directory", error)),
            }
            match openat(above, name, DIRECTORY, Mode::empty()) {
                Ok(directory) => {
                    let stat = fstat(&directory).map_err(|error| cannot("examine", error))?;
                    let finish = Finish::Restore(Stamp::of(&stat).modified);
                    return Ok((Target::new(directory, finish), stat, false));
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(cannot("open", error)),
            }
            let stat = statat(above, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| cannot("examine", error))?;
            if file_type(&stat) == FileType::Symlink {
                let (target, stat) = self.follow(index)?;
                return Ok((target, stat, true));
            }
            attempts += 1;
            if attempts > ATTEMPTS {
                return Err(cannot("make the directory", Errno::EXIST));
            }
            above.touch();
            copier
                .unlink(above, name)
                .map_err(|error| cannot("replace", error))?;
        }
    }

    /// Opens the directory that a link in the destination leads to.
    ///
    /// Two directories of the source may now be one in the destination. So that the same one wins every time, and times are put back
    /// in the right order, everything from here on happens in the manifest's order.
    fn follow(&mut self, index: Index) -> Result<(Target, Stat), CopyError> {
        self.foreman.drain()?;
        self.alone = true;
        let path = self.copier.path(index);
        let opened = open_in_root(
            self.copier.to_root,
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY,
        );
        match opened {
            Ok(directory) => {
                let stat =
                    fstat(&directory).map_err(|error| failed("examine", path.as_bstr(), error))?;
                let finish = Finish::Restore(Stamp::of(&stat).modified);
                Ok((Target::new(directory, finish), stat))
            }
            Err(Errno::NOENT) => Err(CopyError::DanglingLink { path }),
            Err(Errno::LOOP) => Err(CopyError::LinkLoop { path }),
            Err(Errno::NOTDIR) => Err(CopyError::NotADirectory { path }),
            Err(error) => Err(failed("open", path.as_bstr(), error)),
        }
    }
}

/// Returns whether two sources have a name in common in the destination.
pub(super) fn overlapping(manifest: &Manifest) -> bool {
    let mut names = HashSet::new();
    let mut fresh = |index| {
        let name: &BStr = manifest.text(manifest.entry(index).name).as_bstr();
        names.insert(name)
    };
    !manifest.items.iter().all(|item| {
        let entry = manifest.entry(item.entry);
        match &entry.node {
            Node::Directory { children } if entry.name.is_empty() => {
                children.clone().all(&mut fresh)
            }
            _ => fresh(item.entry),
        }
    })
}
