// SPDX-License-Identifier: Apache-2.0
//! Walks a copy's sources and takes down what is there.
//!
//! What a source means and what is refused is as in OBuilder (614c8ac `lib/manifest.ml`): links are never followed, a link as the
//! last component is copied as a link, excluded names are base names at every level below a source.

mod read;

use self::read::{Hand, Unit, attributes};
use super::crew::{self, Foreman};
use super::error::ScanError;
use super::ladder::{DIRECTORY, Ladder, Names};
use super::manifest::{Entry, Index, Item, Manifest, NONE, Node, index};
use super::memo::DigestMemo;
use super::stamp::{Stamp, describe, file_type, permissions};
use super::{Cancelled, SourceKind};
use bstr::BString;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

/// What to scan.
#[derive(Clone, Copy, Debug)]
pub struct ScanRequest<'a> {
    /// Paths below the root. A leading `/` is harmless; `.` and `/` mean the root's content.
    pub src: &'a [BString],
    /// Base names that are left out at every level below a source.
    pub exclude: &'a [BString],
    /// Whose tree it is.
    pub kind: SourceKind,
}

/// How files are opened for reading: not through a link, and without waiting should it have become a pipe.
pub(crate) const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Files read by one thread in one go, at most.
const UNIT_FILES: usize = 64;

/// Bytes after which a unit of work is large enough.
const UNIT_BYTES: u64 = 4 << 20;

/// Bytes read at once.
pub(crate) const BUFFER: usize = 256 * 1024;

/// Takes down the sources below `root` with their digests, reading only files that `memo` does not know.
///
/// The memo is used for a context only: the mount of a build's tree has a device number that is
/// used again for other trees.
///
/// # Errors
///
/// The first error of the first source that has one. A file that changes while it is read is read again, and is an error in the end.
pub fn scan(
    root: BorrowedFd<'_>,
    request: &ScanRequest<'_>,
    memo: &mut DigestMemo,
    cancelled: Cancelled<'_>,
) -> Result<Manifest, ScanError> {
    if request.src.is_empty() {
        return Err(ScanError::NoSources);
    }
    let begun = SystemTime::now();
    let kind = request.kind;
    let make_hand = || Hand {
        buffer: vec![0; BUFFER],
        found: Vec::new(),
    };
    let work = |hand: &mut Hand, unit: Unit| unit.read(hand, kind, cancelled);
    let (manifest, hands) = crew::run(&make_hand, &work, |foreman| {
        let mut walker = Walker {
            request,
            cancelled,
            memo,
            manifest: Manifest::default(),
            inodes: HashMap::new(),
            names: Names::default(),
            buffer: Vec::new(),
        };
        for source in request.src {
            walker.source(root, source, foreman)?;
        }
        Ok(walker.manifest)
    })?;
    Ok(complete(manifest, hands, kind, memo, begun))
}

/// Puts together what the walk and the threads found.
fn complete(
    mut manifest: Manifest,
    hands: Vec<Hand>,
    kind: SourceKind,
    memo: &mut DigestMemo,
    begun: SystemTime,
) -> Manifest {
    for found in hands.into_iter().flat_map(|hand| hand.found) {
        let attributes = manifest.add_attributes(found.attributes);
        let entry = &mut manifest.entries[found.entry as usize];
        entry.stamp = found.stamp;
        entry.mode = found.mode;
        entry.attributes = attributes;
        entry.node = Node::File {
            digest: found.digest,
        };
        if kind == SourceKind::Context {
            memo.insert(&found.stamp, found.digest, begun);
        }
    }
    for place in 0..manifest.entries.len() {
        let leader = manifest.entries[place].leader;
        if leader != NONE && leader as usize != place {
            let leader = manifest.entry(leader).clone();
            let entry = &mut manifest.entries[place];
            entry.stamp = leader.stamp;
            entry.mode = leader.mode;
            entry.attributes = leader.attributes;
            entry.node = leader.node;
        }
    }
    manifest
}

struct Walker<'a> {
    request: &'a ScanRequest<'a>,
    cancelled: Cancelled<'a>,
    memo: &'a mut DigestMemo,
    manifest: Manifest,
    /// The first entry of every inode with several names.
    inodes: HashMap<(u64, u64), Index>,
    names: Names,
    buffer: Vec<u8>,
}

type Crew<'scope, 'env> = Foreman<'scope, 'env, Unit, Hand, ScanError>;

impl Walker<'_> {
    /// Takes down one source.
    fn source(
        &mut self,
        root: BorrowedFd<'_>,
        source: &BString,
        foreman: &mut Crew<'_, '_>,
    ) -> Result<(), ScanError> {
        let components = components(source)?;
        let open = |directory: BorrowedFd<'_>, name: &[u8]| {
            openat(directory, name, DIRECTORY, Mode::empty())
        };
        // Not a duplicate, which would share the caller's place in the listing.
        let mut directory = open(root, b".").map_err(|error| io("open", ".".into(), error))?;
        let Some((last, parents)) = components.split_last() else {
            let stat = fstat(&directory).map_err(|error| io("examine", ".".into(), error))?;
            let entry = self.start(b"", BString::default(), &stat, directory.as_fd())?;
            return self.tree(entry, directory, foreman);
        };
        let mut path = BString::default();
        for name in parents {
            let next = join(&path, name);
            match self.examine(directory.as_fd(), name, &next, source)? {
                FileType::Directory => {}
                FileType::RegularFile => {
                    return Err(ScanError::NotADirectory {
                        path: next,
                        source_path: source.clone(),
                    });
                }
                other => {
                    return Err(ScanError::NotARegularFile {
                        path: next,
                        source_path: source.clone(),
                        found: describe(other),
                    });
                }
            }
            directory =
                open(directory.as_fd(), name).map_err(|error| io("open", next.clone(), error))?;
            path = next;
        }
        let full = join(&path, last);
        self.examine(directory.as_fd(), last, &full, source)?;
        let stat = statat(&directory, *last, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| io("examine", full.clone(), error))?;
        let entry = self.start(last, path.clone(), &stat, directory.as_fd())?;
        if let Node::Directory { .. } = self.manifest.entry(entry).node {
            let directory =
                open(directory.as_fd(), last).map_err(|error| io("open", full, error))?;
            return self.tree(entry, directory, foreman);
        }
        let mut unit = Unit::new(&Arc::new(directory), path);
        self.want(entry, last, &stat, &mut unit);
        if unit.files.is_empty() {
            Ok(())
        } else {
            foreman.submit(unit)
        }
    }

    /// Returns what kind of file a component of a source is.
    fn examine(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &BString,
        source: &BString,
    ) -> Result<FileType, ScanError> {
        if (self.cancelled)() {
            return Err(ScanError::Cancelled);
        }
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(file_type(&stat)),
            Err(Errno::NOENT) => Err(ScanError::NotFound {
                source_path: source.clone(),
            }),
            Err(error) => Err(io("examine", path.clone(), error)),
        }
    }

    /// Begins an item.
    fn start(
        &mut self,
        name: &[u8],
        directory: BString,
        stat: &Stat,
        parent: BorrowedFd<'_>,
    ) -> Result<Index, ScanError> {
        let item = Item {
            entry: index(self.manifest.len()),
            directory,
        };
        self.manifest.items.push(item);
        self.add(NONE, name, stat, parent)
    }

    /// Takes down what is below a directory, depth first, without recursion.
    fn tree(
        &mut self,
        entry: Index,
        directory: OwnedFd,
        foreman: &mut Crew<'_, '_>,
    ) -> Result<(), ScanError> {
        let mut ladder = Ladder::new(Arc::new(directory));
        let mut open = vec![self.list(entry, ladder.top(), foreman)?];
        while let Some(children) = open.last_mut() {
            let next = children
                .find(|&child| matches!(self.manifest.entry(child).node, Node::Directory { .. }));
            if let Some(child) = next {
                let name = self.manifest.text(self.manifest.entry(child).name);
                let directory = openat(ladder.top(), name, DIRECTORY, Mode::empty())
                    .map_err(|error| self.trouble("open", child, error))?;
                let stat =
                    fstat(&directory).map_err(|error| self.trouble("examine", child, error))?;
                ladder.descend(Arc::new(directory), &stat, false);
                let children = self.list(child, ladder.top(), foreman)?;
                open.push(children);
            } else {
                open.pop();
                if !open.is_empty() {
                    ladder
                        .ascend(|directory, _| directory)
                        .map_err(|error| self.trouble("go back up in", entry, error))?;
                }
            }
        }
        Ok(())
    }

    /// Takes down the content of one directory and has its unknown files read.
    fn list(
        &mut self,
        entry: Index,
        directory: &Arc<OwnedFd>,
        foreman: &mut Crew<'_, '_>,
    ) -> Result<Range<Index>, ScanError> {
        if (self.cancelled)() {
            return Err(ScanError::Cancelled);
        }
        let mut names = std::mem::take(&mut self.names);
        names
            .read(directory.as_fd(), &mut self.buffer)
            .map_err(|error| self.trouble("list", entry, error))?;
        let attributes = attributes(directory.as_fd(), self.request.kind)
            .map_err(|error| self.trouble("read the attributes of", entry, error))?;
        let attributes = self.manifest.add_attributes(attributes);
        self.manifest.entries[entry as usize].attributes = attributes;
        let first = index(self.manifest.len());
        let mut unit: Option<Unit> = None;
        for name in names.iter() {
            if self.request.exclude.iter().any(|excluded| excluded == name) {
                continue;
            }
            let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Gone since it was listed: as if it had never been there.
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    return Err(io("examine", join(&self.manifest.path(entry), name), error));
                }
            };
            let child = self.add(entry, name, &stat, directory.as_fd())?;
            let known = unit.take();
            let mut current = known.unwrap_or_else(|| Unit::new(directory, BString::default()));
            self.want(child, name, &stat, &mut current);
            if current.files.len() >= UNIT_FILES || current.bytes >= UNIT_BYTES {
                current.path = self.manifest.path(entry);
                foreman.submit(current)?;
            } else {
                unit = Some(current);
            }
        }
        if let Some(mut unit) = unit
            && !unit.files.is_empty()
        {
            unit.path = self.manifest.path(entry);
            foreman.submit(unit)?;
        }
        let children = first..index(self.manifest.len());
        self.manifest.entries[entry as usize].node = Node::Directory {
            children: children.clone(),
        };
        self.names = names;
        Ok(children)
    }

    /// Adds an entry, without digest.
    fn add(
        &mut self,
        parent: Index,
        name: &[u8],
        stat: &Stat,
        directory: BorrowedFd<'_>,
    ) -> Result<Index, ScanError> {
        let node = match file_type(stat) {
            FileType::RegularFile => Node::File { digest: [0; 32] },
            FileType::Directory => Node::Directory { children: 0..0 },
            FileType::Symlink => {
                let target = match readlinkat(directory, name, Vec::new()) {
                    Ok(target) => target,
                    Err(Errno::INVAL | Errno::NOENT) => {
                        let path = self.path_in(parent, name);
                        return Err(ScanError::SourceChanged { path });
                    }
                    Err(error) => return Err(io("read", self.path_in(parent, name), error)),
                };
                Node::Symlink {
                    target: self.manifest.add_text(target.as_bytes()),
                }
            }
            other => {
                return Err(ScanError::UnsupportedType {
                    path: self.path_in(parent, name),
                    found: describe(other),
                });
            }
        };
        let name = self.manifest.add_text(name);
        Ok(self.manifest.add_entry(Entry {
            name,
            parent,
            mode: permissions(stat),
            stamp: Stamp::of(stat),
            node,
            leader: NONE,
            attributes: NONE,
        }))
    }

    /// Gives a file its digest from the memo or from the inode's first entry, else adds it to what must be read.
    fn want(&mut self, child: Index, name: &[u8], stat: &Stat, unit: &mut Unit) {
        let entry = &mut self.manifest.entries[child as usize];
        let Node::File { digest } = &mut entry.node else {
            return;
        };
        let stamp = entry.stamp;
        if stat.st_nlink > 1 {
            let leader = *self
                .inodes
                .entry((stamp.device, stamp.inode))
                .or_insert(child);
            if leader != child {
                entry.leader = leader;
                self.manifest.entries[leader as usize].leader = leader;
                return;
            }
        }
        if self.request.kind == SourceKind::Context
            && let Some(known) = self.memo.get(&stamp)
        {
            *digest = known;
            return;
        }
        let place = unit.names.len()..unit.names.len() + name.len();
        unit.names.extend_from_slice(name);
        unit.files.push((child, place));
        unit.bytes += stamp.size;
    }

    fn path_in(&self, parent: Index, name: &[u8]) -> BString {
        if parent == NONE {
            let directory = self.manifest.items.last().map(|item| &item.directory);
            join(directory.unwrap_or(&BString::default()), name)
        } else {
            join(&self.manifest.path(parent), name)
        }
    }

    /// Makes the error of a directory: one that has gone or become something else was changed under our hands.
    fn trouble(&self, action: &'static str, entry: Index, error: Errno) -> ScanError {
        let path = self.manifest.path(entry);
        match error {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => {
                ScanError::SourceChanged { path }
            }
            error => io(action, path, error),
        }
    }
}

/// Splits a source into its components.
fn components(source: &BString) -> Result<Vec<&[u8]>, ScanError> {
    let components: Vec<&[u8]> = source
        .split(|&byte| byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
        .collect();
    if components.contains(&b"..".as_slice()) {
        return Err(ScanError::ParentInSource {
            source_path: source.clone(),
        });
    }
    Ok(components)
}

pub(crate) fn join(directory: &BString, name: &[u8]) -> BString {
    if directory.is_empty() || directory == "." {
        return name.into();
    }
    let mut path = directory.clone();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

fn io(action: &'static str, path: BString, error: Errno) -> ScanError {
    ScanError::Io {
        action,
        path,
        source: error.into(),
    }
}
