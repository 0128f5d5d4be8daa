// SPDX-License-Identifier: Apache-2.0
//! What is different between two trees.
//!
//! The differences are those that make up an image layer (OCI image-spec v1.1 layer.md, "Creating"), and those that a copy of
//! a snapshot needs where its parent is there already.

use super::Cancelled;
use super::cursor::Cursor;
use super::error::TreeError;
use super::listing::{Content, ListOptions, Listing, Node, is_below, list, order};
use super::scan::{BUFFER, FILE};
use bstr::{BString, ByteSlice};
use rustix::fs::{Mode, openat};
use rustix::io::Errno;
use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// One path at which two trees differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path below the root; empty for the root itself.
    pub path: BString,
    /// What was there in the earlier tree.
    pub was: Option<Arc<Node>>,
    /// What is there in the later tree.
    pub now: Option<Arc<Node>>,
    /// The first path of the same inode in the later tree, if that is another.
    pub link: Option<BString>,
    /// Whether nothing but the names that share the inode are others.
    pub(crate) only_names: bool,
}

/// What has happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// There was nothing.
    Added,
    /// It is another, or has other attributes.
    Changed,
    /// There is nothing any more; nor below it, which is not told separately.
    Deleted,
}

impl Change {
    /// Returns what has happened.
    pub fn kind(&self) -> ChangeKind {
        match (&self.was, &self.now) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Deleted,
            _ => ChangeKind::Changed,
        }
    }
}

impl Listing {
    /// Returns where this tree differs from an `earlier` one, in the order of paths. The contents of both must have been read.
    ///
    /// A directory of which only a time has changed, by a second at least, is told too: it is what its file system says when something was put
    /// into it. When something about a file with several names has changed, all its names are told.
    pub fn changes_since(&self, earlier: &Self) -> Vec<Change> {
        let same =
            |was: &Node, now: &Node| Ok::<_, std::convert::Infallible>(was.content == now.content);
        match compare(earlier, self, alike, same) {
            Ok(changes) => changes,
            Err(never) => match never {},
        }
    }
}

/// Returns where the tree at `later` differs from the one at `earlier`, as [`Listing::changes_since`] does, reading only what may have changed.
///
/// `related` says that the later tree was made from the earlier one by a store in which an untouched file keeps its inode number and times, as copy-on-write does:
/// files that have theirs are not read. Without it, all files of equal size are compared.
pub fn diff(
    earlier: BorrowedFd<'_>,
    later: BorrowedFd<'_>,
    related: bool,
    cancelled: Cancelled<'_>,
) -> Result<(Listing, Vec<Change>), TreeError> {
    let options = ListOptions::default();
    let was = list(earlier, &options, &mut |_| {}, cancelled)?;
    let now = list(later, &options, &mut |_| {}, cancelled)?;
    let mut contents = Contents::new(earlier, later, cancelled)?;
    let changes = compare(&was, &now, alike, |one, other| {
        contents.same(related.then_some(&was), one, other)
    })?;
    Ok((now, changes))
}

/// Returns whether two nodes look alike, times included.
fn alike(one: &Node, other: &Node) -> bool {
    // Archives and some tools keep whole seconds only.
    one.looks_like(other) && one.modified.0 == other.modified.0
}

/// Compares two listings; `same` says whether what is `alike` has the same content.
pub(crate) fn compare<E>(
    earlier: &Listing,
    later: &Listing,
    alike: impl Fn(&Node, &Node) -> bool,
    mut same: impl FnMut(&Node, &Node) -> Result<bool, E>,
) -> Result<Vec<Change>, E> {
    let (was_leaders, now_leaders) = (earlier.leaders(), later.leaders());
    let leader = |listing: &Listing, leaders: &[Option<usize>], index: usize| {
        let leader = leaders[index].filter(|leader| *leader != index)?;
        Some(listing.nodes()[leader].path.clone())
    };
    let (was, now) = (earlier.nodes(), later.nodes());
    let mut changes: Vec<Change> = Vec::new();
    // Whether the node, which is a file's first name, is written anew.
    let mut written = vec![false; now.len()];
    let (mut left, mut right) = (0, 0);
    while left < was.len() || right < now.len() {
        let ordering = match (was.get(left), now.get(right)) {
            (Some(was), Some(now)) => order(&was.path, &now.path),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        if ordering == Ordering::Less {
            let node = &was[left];
            left += 1;
            // What was in a directory goes with it.
            let gone = changes.last().is_some_and(|change| {
                is_below(&node.path, &change.path)
                    && change.now.as_ref().is_none_or(|now| !now.is_directory())
            });
            if !gone {
                changes.push(Change {
                    path: node.path.clone(),
                    was: Some(Arc::clone(node)),
                    now: None,
                    link: None,
                    only_names: false,
                });
            }
            continue;
        }
        let node = &now[right];
        let link = leader(later, &now_leaders, right);
        let mut change = ordering == Ordering::Greater;
        let mut only_names = false;
        let mut before = None;
        if ordering == Ordering::Equal {
            let old = &was[left];
            let first_written = now_leaders[right].is_some_and(|leader| written[leader]);
            let other = !alike(old, node) || !same(old, node)?;
            only_names = !other && (first_written || leader(earlier, &was_leaders, left) != link);
            change = other || only_names;
            before = Some(Arc::clone(old));
            left += 1;
        }
        if change {
            written[right] = link.is_none();
            changes.push(Change {
                path: node.path.clone(),
                was: before,
                now: Some(Arc::clone(node)),
                link,
                only_names,
            });
        }
        right += 1;
    }
    Ok(changes)
}

/// Compares files of two trees byte by byte.
pub(crate) struct Contents<'a> {
    was: Cursor<'a>,
    now: Cursor<'a>,
    buffers: (Vec<u8>, Vec<u8>),
    cancelled: Cancelled<'a>,
}

impl<'a> Contents<'a> {
    pub(crate) fn new(
        earlier: BorrowedFd<'a>,
        later: BorrowedFd<'a>,
        cancelled: Cancelled<'a>,
    ) -> Result<Self, TreeError> {
        Ok(Self {
            was: Cursor::new(earlier)?,
            now: Cursor::new(later)?,
            buffers: (vec![0; BUFFER], vec![0; BUFFER]),
            cancelled,
        })
    }

    /// Compares two nodes of one path that look alike. `related` is the earlier listing, if the later tree was made from that one by a
    /// store.
    pub(crate) fn same(
        &mut self,
        related: Option<&Listing>,
        one: &Node,
        other: &Node,
    ) -> Result<bool, TreeError> {
        if related.is_some_and(|was| was.untouched(other).is_some()) {
            return Ok(true);
        }
        match (&one.content, &other.content) {
            (Content::File { size_bytes, .. }, Content::File { .. }) => {
                self.equal(one, *size_bytes)
            }
            (one, other) => Ok(one == other),
        }
    }

    /// Compares two files of this length. Where most files are small, to ask each for its end as well would be a tenth of the cost.
    fn equal(&mut self, node: &Node, mut left: u64) -> Result<bool, TreeError> {
        let failed = |action| super::listing::read_failed(action, node.path.as_bstr());
        let open = |cursor: &mut Cursor<'_>| -> Result<OwnedFd, Errno> {
            let directory = cursor.enter(node.directory())?;
            openat(directory, node.name().as_bytes(), FILE, Mode::empty())
        };
        let one = open(&mut self.was).map_err(failed("open"))?;
        let other = open(&mut self.now).map_err(failed("open"))?;
        loop {
            if (self.cancelled)() {
                return Err(TreeError::Cancelled);
            }
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let (was, now) = (&mut self.buffers.0[..wanted], &mut self.buffers.1[..wanted]);
            let count = fill(one.as_fd(), was).map_err(failed("read"))?;
            let same = fill(other.as_fd(), now).map_err(failed("read"))?;
            if was[..count] != now[..same] {
                return Ok(false);
            }
            left -= wanted as u64;
            if left == 0 || count < wanted {
                return Ok(true);
            }
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(file, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
