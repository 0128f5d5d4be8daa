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

mod place;
mod walk;

use self::place::Place;
use self::walk::Walk;
use super::Cancelled;
use super::crew;
use super::data::{self, Cloning, DataError, modified};
use super::destination::{Target, failed, make_directories, settle};
use super::error::CopyError;
use super::manifest::{Entry, Index, Manifest, NONE, Node};
use super::scan::{BUFFER, FILE};
use super::stamp::{Stamp, file_type};
use bstr::{BString, ByteSlice};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat, statat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;
use std::collections::HashMap;
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
    /// If the destination is a mount of an overlay that nobody else uses: its upper layer. The mount must not be used after the copy.
    pub upper: Option<BorrowedFd<'a>>,
}

/// What a copy made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Files written.
    pub files: u64,
    /// Directories made; not those that were there.
    pub directories: u64,
    /// Those of them that were filled in the overlay's upper layer.
    pub in_upper: u64,
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
        upper: request.upper.filter(|_| may_enter_upper(manifest)),
        cloning: Cloning::new(),
        cloning_in_upper: Cloning::new(),
        linked: Mutex::default(),
        cancelled,
    };
    let mut base = make_directories(to_root, &place.base, request.owner, contents.unwrap_or(0))?;
    if let Some(upper) = copier.upper {
        base.enter_upper(upper, &place.base.join(&b"/"[..]));
    }
    let base = Arc::new(base);
    let make_hand = || Hand {
        buffer: vec![0; BUFFER],
        stats: CopyStats::default(),
    };
    let work = |hand: &mut Hand, unit: Unit| copier.unit(hand, unit);
    let ((), hands) = crew::run(&make_hand, &work, |foreman| {
        Walk::new(&copier, foreman).items(&base)
    })?;
    copier.release(base, NONE)?;
    let mut stats = CopyStats::default();
    for hand in hands {
        stats.files += hand.stats.files;
        stats.directories += hand.stats.directories;
        stats.in_upper += hand.stats.in_upper;
        stats.symlinks += hand.stats.symlinks;
        stats.hard_links += hand.stats.hard_links;
        stats.bytes += hand.stats.bytes;
    }
    Ok(stats)
}

/// Returns whether a copy may fill directories in an overlay's upper layer: only where the copy does not look at anything that it has made itself, which
/// has another inode in the overlay, and where no attribute would mean something to the overlay (`userxattr`).
fn may_enter_upper(manifest: &Manifest) -> bool {
    let attributes = || manifest.attributes.iter().flatten();
    manifest.entries.iter().all(|entry| entry.leader == NONE)
        && !attributes().any(|(name, _)| name.starts_with(b"user.overlay."))
        && !walk::overlapping(manifest)
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
    upper: Option<BorrowedFd<'a>>,
    cloning: Cloning,
    cloning_in_upper: Cloning,
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

    /// Returns what is known of cloning into a directory.
    fn cloning(&self, target: &Target) -> &Cloning {
        if target.in_upper {
            &self.cloning_in_upper
        } else {
            &self.cloning
        }
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
            self.cloning(target),
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
