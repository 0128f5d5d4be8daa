// SPDX-License-Identifier: Apache-2.0
//! Copies what a manifest lists onto another tree.
//!
//! The meaning of the destination is OBuilder's (614c8ac `lib/tar_transfer.ml`), its extraction that of GNU tar, with these
//! decisions (`docs/decisions/0003-copy-modes.md`):
//!
//! * A directory that was there keeps owner, mode and time, also when something is put into it.
//! * A file replaces a file or a link (which is not written through), never a directory.
//! * A directory replaces a file; where the destination has a link to a directory, that one is filled.
//! * Modes are kept whole, times in whole seconds; everything made gets the owner of the step's user.

use super::Cancelled;
use super::crew::{self, Foreman};
use super::data::{self, Cloning, DataError, modified};
use super::destination::{
    Finish, Target, absolute, failed, link, make_directories, open_in_root, settle,
};
use super::error::CopyError;
use super::ladder::{DIRECTORY, Ladder};
use super::manifest::{Entry, Index, Item, Manifest, NONE, Node};
use super::scan::{BUFFER, FILE};
use super::stamp::{Stamp, file_type};
use bstr::{BStr, BString, ByteSlice};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, mkdirat, openat, statat,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a manifest goes, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct CopyRequest<'a> {
    /// Absolute path in the destination. With a trailing `/` the sources keep their names in it, without, the one
    /// source gets this name. The content of `.` goes into it either way.
    pub dst: &'a [u8],
    /// User and group id of everything that is made.
    pub owner: (u32, u32),
}

/// What a copy made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Files written.
    pub files: u64,
    /// Directories made; not those that were there.
    pub directories: u64,
    /// Symbolic links made.
    pub symlinks: u64,
    /// Further names given to files written.
    pub hard_links: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Entries of one directory that a thread does in one go, at most.
const UNIT_ENTRIES: Index = 32;

/// Attempts to clear away what is in the place of a new file. More than one is needed only when others write to the tree.
const ATTEMPTS: u32 = 8;

/// Copies the manifest's entries from the tree at `from_root`, which it was made of, to the tree at `to_root`.
///
/// Paths in the destination are resolved inside `to_root`, whatever its symbolic links say. After an error the destination
/// is incomplete and must be thrown away.
///
/// # Errors
///
/// [`CopyError::SourceChanged`] for a file that is not what the scan has seen, before or after it is read.
pub fn copy(
    manifest: &Manifest,
    from_root: BorrowedFd<'_>,
    to_root: BorrowedFd<'_>,
    request: &CopyRequest<'_>,
    cancelled: Cancelled<'_>,
) -> Result<CopyStats, CopyError> {
    let place = Place::new(manifest, request.dst)?;
    let contents = manifest
        .items
        .iter()
        .map(|item| manifest.entry(item.entry))
        .filter(|entry| entry.name.is_empty())
        .map(|entry| entry.stamp.modified.seconds)
        .next_back();
    let copier = Copier {
        manifest,
        from_root,
        to_root,
        place: &place,
        owner: request.owner,
        cloning: Cloning::new(),
        linked: Mutex::default(),
        cancelled,
    };
    let base = make_directories(to_root, &place.base, request.owner, contents.unwrap_or(0))?;
    let base = Arc::new(base);
    let make_hand = || Hand {
        buffer: vec![0; BUFFER],
        stats: CopyStats::default(),
    };
    let work = |hand: &mut Hand, unit: Unit| copier.unit(hand, unit);
    let ((), hands) = crew::run(&make_hand, &work, |foreman| {
        let mut walk = Walk {
            copier: &copier,
            foreman,
            alone: false,
            source: None,
        };
        walk.items(&base)
    })?;
    copier.release(base, NONE)?;
    let mut stats = CopyStats::default();
    for hand in hands {
        stats.files += hand.stats.files;
        stats.directories += hand.stats.directories;
        stats.symlinks += hand.stats.symlinks;
        stats.hard_links += hand.stats.hard_links;
        stats.bytes += hand.stats.bytes;
    }
    Ok(stats)
}

/// The destination, understood.
struct Place<'a> {
    /// The directory that the sources go into, by its components.
    base: Vec<&'a [u8]>,
    /// The name of the one source, if it does not keep its own.
    name: Option<&'a [u8]>,
}

impl<'a> Place<'a> {
    fn new(manifest: &Manifest, dst: &'a [u8]) -> Result<Self, CopyError> {
        let bad = |reason| CopyError::BadDestination {
            destination: dst.into(),
            reason,
        };
        if !dst.starts_with(b"/") {
            return Err(bad("is not absolute"));
        }
        if dst.contains(&0) {
            return Err(bad("contains a zero byte"));
        }
        let mut base: Vec<&[u8]> = dst
            .split(|&byte| byte == b'/')
            .filter(|component| !component.is_empty() && *component != b".")
            .collect();
        let [item] = &*manifest.items else {
            return if dst.ends_with(b"/") {
                Ok(Self { base, name: None })
            } else {
                Err(CopyError::ManyToOne {
                    destination: dst.into(),
                })
            };
        };
        let entry = manifest.entry(item.entry);
        if dst.ends_with(b"/") || entry.name.is_empty() {
            return Ok(Self { base, name: None });
        }
        match base.pop() {
            Some(b"..") => Err(bad("ends in '..'")),
            Some(name) => Ok(Self {
                base,
                name: Some(name),
            }),
            // `/.`
            None => Err(bad("has no name in it")),
        }
    }

    fn path(&self) -> BString {
        absolute(self.base.join(&b"/"[..]).as_bstr())
    }
}

/// Files and links of one directory.
struct Unit {
    source: Arc<OwnedFd>,
    target: Arc<Target>,
    entries: Range<Index>,
}

/// What a thread copies with, and what it has done.
struct Hand {
    buffer: Vec<u8>,
    stats: CopyStats,
}

/// What all threads share.
struct Copier<'a> {
    manifest: &'a Manifest,
    from_root: BorrowedFd<'a>,
    to_root: BorrowedFd<'a>,
    place: &'a Place<'a>,
    owner: (u32, u32),
    cloning: Cloning,
    linked: Mutex<Linked>,
    cancelled: Cancelled<'a>,
}

/// Where inodes with several names have been written.
#[derive(Default)]
struct Linked {
    /// The entry that was written first and what inode it is in the destination, by the source inode's first entry.
    written: HashMap<Index, (Index, Inode)>,
    /// The reverse.
    leaders: HashMap<Inode, Index>,
}

/// Device and inode number. The number is used again when the last name has gone.
type Inode = (u64, u64);

impl Copier<'_> {
    /// Copies the files and links of a directory but for hard links, which the walk does.
    fn unit(&self, hand: &mut Hand, unit: Unit) -> Result<(), CopyError> {
        let first = unit.entries.start;
        for index in unit.entries {
            let entry = self.manifest.entry(index);
            match &entry.node {
                Node::File { .. } if entry.leader == NONE => {
                    self.file(hand, &unit.source, &unit.target, index)?;
                }
                Node::Symlink { target } => {
                    let content = self.manifest.text(*target);
                    self.symlink(hand, &unit.target, index, content)?;
                }
                Node::File { .. } | Node::Directory { .. } => {}
            }
        }
        self.release(unit.target, self.manifest.entry(first).parent)
    }

    /// Copies one file and returns what it has become.
    fn file(
        &self,
        hand: &mut Hand,
        source: &OwnedFd,
        target: &Target,
        index: Index,
    ) -> Result<OwnedFd, CopyError> {
        if (self.cancelled)() {
            return Err(CopyError::Cancelled);
        }
        let entry = self.manifest.entry(index);
        let changed = || CopyError::SourceChanged {
            path: self.manifest.path(index),
        };
        let source_failed = |action, error: Errno| match error {
            Errno::NOENT | Errno::LOOP | Errno::NXIO => changed(),
            error => CopyError::Source {
                action,
                path: self.manifest.path(index),
                source: error.into(),
            },
        };
        let target_failed = |action, error| failed(action, self.path(index).as_bstr(), error);
        let from = openat(source, self.manifest.text(entry.name), FILE, Mode::empty())
            .map_err(|error| source_failed("open", error))?;
        let before = fstat(&from).map_err(|error| source_failed("examine", error))?;
        if Stamp::of(&before) != entry.stamp || file_type(&before) != FileType::RegularFile {
            return Err(changed());
        }
        let to = self.create(target, index, entry)?;
        let copied = data::copy(
            from.as_fd(),
            to.as_fd(),
            &before,
            &mut hand.buffer,
            &self.cloning,
            self.cancelled,
        );
        copied.map_err(|error| match error {
            DataError::Read(error) => source_failed("read", error),
            DataError::Write(error) => target_failed("write", error),
            DataError::Changed => changed(),
            DataError::Cancelled => CopyError::Cancelled,
        })?;
        let after = fstat(&from).map_err(|error| source_failed("examine", error))?;
        if Stamp::of(&after) != entry.stamp {
            return Err(changed());
        }
        settle(
            to.as_fd(),
            entry.mode,
            self.owner,
            self.manifest.attributes_of(entry),
            entry.stamp.modified.seconds,
        )
        .map_err(|error| target_failed("set the owner, mode or time of", error))?;
        hand.stats.files += 1;
        hand.stats.bytes += entry.stamp.size;
        Ok(to)
    }

    /// Makes a new, empty file in the place of whatever is there.
    fn create(&self, target: &Target, index: Index, entry: &Entry) -> Result<OwnedFd, CopyError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The set-id bits come last, after the owner.
        let mode = Mode::from_raw_mode((entry.mode & 0o777).into());
        self.replacing(target, index, "create", |name| {
            openat(target, name, flags, mode)
        })
    }

    /// Does `make`, clearing away the file or link that is in its place.
    fn replacing<T>(
        &self,
        target: &Target,
        index: Index,
        action: &'static str,
        make: impl Fn(&[u8]) -> Result<T, Errno>,
    ) -> Result<T, CopyError> {
        let name = self.name(index);
        target.touch();
        let mut attempts = 0;
        loop {
            match make(name) {
                Ok(new) => return Ok(new),
                Err(Errno::EXIST) if attempts < ATTEMPTS => attempts += 1,
                Err(error) => return Err(failed(action, self.path(index).as_bstr(), error)),
            }
            match self.unlink(target, name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) => {
                    return Err(CopyError::FileOverDirectory {
                        path: self.path(index),
                    });
                }
                Err(error) => return Err(failed("replace", self.path(index).as_bstr(), error)),
            }
        }
    }

    /// Removes a file or link, which is then no longer there to be linked to.
    fn unlink(&self, target: &Target, name: &[u8]) -> Result<(), Errno> {
        let mut linked = self.linked();
        if !linked.leaders.is_empty() {
            let stat = statat(target, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if let Some(leader) = linked.leaders.remove(&(stat.st_dev, stat.st_ino)) {
                linked.written.remove(&leader);
            }
        }
        drop(linked);
        unlinkat(target, name, AtFlags::empty())
    }

    fn linked(&self) -> MutexGuard<'_, Linked> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn symlink(
        &self,
        hand: &mut Hand,
        target: &Target,
        index: Index,
        content: &[u8],
    ) -> Result<(), CopyError> {
        if (self.cancelled)() {
            return Err(CopyError::Cancelled);
        }
        self.replacing(target, index, "make the link", |name| {
            symlinkat(content, target, name)
        })?;
        let name = self.name(index);
        let entry = self.manifest.entry(index);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let set = || {
            let stat = statat(target, name, nofollow)?;
            if (stat.st_uid, stat.st_gid) != self.owner {
                let (uid, gid) = self.owner;
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                chownat(target, name, Some(uid), Some(gid), nofollow)?;
            }
            utimensat(
                target,
                name,
                &modified(entry.stamp.modified.seconds, 0),
                nofollow,
            )
        };
        set().map_err(|error| {
            failed(
                "set the owner or time of",
                self.path(index).as_bstr(),
                error,
            )
        })?;
        hand.stats.symlinks += 1;
        Ok(())
    }

    /// Returns an entry's name in the destination.
    fn name(&self, index: Index) -> &[u8] {
        let entry = self.manifest.entry(index);
        match self.place.name {
            Some(name) if entry.parent == NONE => name,
            _ => self.manifest.text(entry.name),
        }
    }

    /// Returns an entry's absolute path in the destination; of no entry, the directory that the sources go into.
    fn path(&self, index: Index) -> BString {
        let mut path = self.place.path();
        if index == NONE {
            return path;
        }
        let mut names = self.manifest.names_below_item(index);
        let mut top = index;
        while self.manifest.entry(top).parent != NONE {
            top = self.manifest.entry(top).parent;
        }
        names.insert(0, self.name(top));
        for name in names {
            if !path.ends_with(b"/") && !name.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        path
    }

    /// Gives back a reference to an entry's directory; the last one finishes it.
    fn release(&self, target: Arc<Target>, index: Index) -> Result<(), CopyError> {
        let Some(target) = Arc::into_inner(target) else {
            return Ok(());
        };
        target.finish(self.owner).map_err(|error| {
            let path = self.path(index);
            failed("set the owner, mode or time of", path.as_bstr(), error)
        })
    }
}

/// The walk over the manifest, which makes the directories.
struct Walk<'w, 'a, 'scope, 'env> {
    copier: &'w Copier<'a>,
    foreman: &'w mut Foreman<'scope, 'env, Unit, Hand, CopyError>,
    /// Nothing is done by other threads any more: see [`Walk::follow`].
    alone: bool,
    /// The directory of the last item.
    source: Option<(&'w BString, Arc<OwnedFd>)>,
}

impl<'w> Walk<'w, '_, '_, '_> {
    fn items(&mut self, base: &Arc<Target>) -> Result<(), CopyError> {
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
        let finish = target.finish.clone();
        let mut targets = Ladder::new(target);
        self.files(children.clone(), sources.top(), targets.top())?;
        let mut open = vec![(children, finish, entry)];
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
                let finish = target.finish.clone();
                // One that is closed to make room is finished when it has come back.
                drop(targets.descend(Arc::new(target), &stat, linked));
                self.files(children.clone(), sources.top(), targets.top())?;
                open.push((children.clone(), finish, child));
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
                        let target = Target::new(directory, open[depth].1.clone());
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
                if self.alone {
                    self.copier.unit(&mut self.foreman.hand, unit)?;
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
    /// whether a link led there.
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
                    let stat = fstat(&directory).map_err(|error| cannot("examine", error))?;
                    let finish = Finish::Set {
                        mode: entry.mode,
                        modified: entry.stamp.modified.seconds,
                        attributes: copier.manifest.attributes_of(entry).to_vec(),
                    };
                    return Ok((Target::new(directory, finish), stat, false));
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
fn overlapping(manifest: &Manifest) -> bool {
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
