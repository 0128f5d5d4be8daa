// SPDX-License-Identifier: Apache-2.0
//! Where a directory is in a tree, without holding it open.

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A directory by its name and the one above it; the top of the tree is `None`.
pub(super) struct Node {
    name: CString,
    above: Option<Arc<Self>>,
}

impl Node {
    pub(super) fn new(name: CString, above: Option<Arc<Self>>) -> Self {
        Self { name, above }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Not by recursion: a tree may be deeper than a stack.
        let mut above = self.above.take();
        while let Some(mut node) = above.and_then(Arc::into_inner) {
            above = node.above.take();
        }
    }
}

/// Opens a file or directory for reading without leaving a mark in its time of access, if the process may.
pub(super) fn open_quietly(directory: impl AsFd, name: &CStr, more: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    let quiet = flags | OFlags::NOATIME;
    match rustix::fs::openat(&directory, name, quiet, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(directory, name, flags, Mode::empty()),
        result => result,
    }
}

fn open(directory: impl AsFd, name: &CStr) -> Result<OwnedFd> {
    open_quietly(directory, name, OFlags::DIRECTORY)
}

/// Opens a directory of the tree at `top`, name by name, so that no path is too long.
pub(super) fn locate(top: BorrowedFd<'_>, node: Option<&Node>) -> Result<OwnedFd> {
    let mut names = Vec::new();
    let mut next = node;
    while let Some(node) = next {
        names.push(node.name.as_c_str());
        next = node.above.as_deref();
    }
    let mut directory = open(top, c".")?;
    for name in names.into_iter().rev() {
        directory = open(&directory, name)?;
    }
    Ok(directory)
}

/// Directories that wait with their descriptors, at most; others are found again by their names.
const OPEN: usize = 48;

/// How many directories are held open for those below them.
#[derive(Default)]
pub(super) struct Budget(AtomicUsize);

/// Something open that counts against a budget.
pub(super) struct Held<'a, D> {
    pub(super) open: D,
    budget: &'a Budget,
}

impl<'a, D> Held<'a, D> {
    pub(super) fn new(open: D, budget: &'a Budget) -> Arc<Self> {
        budget.0.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { open, budget })
    }

    /// Returns whether there is room to hold it for later.
    pub(super) fn may_wait(&self) -> bool {
        self.budget.0.load(Ordering::Relaxed) <= OPEN
    }
}

impl<D> Drop for Held<'_, D> {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A directory that waits to be worked on.
pub(super) struct Waiting<'a, D> {
    /// The directory above, if it is still open.
    pub(super) above: Option<Arc<Held<'a, D>>>,
    /// Which one it is; `None` is the top.
    pub(super) node: Option<Arc<Node>>,
}

impl<'a, D> Waiting<'a, D> {
    /// Describes the directory `name` in `above`, which is at `node`.
    pub(super) fn below(above: &Arc<Held<'a, D>>, node: Option<&Arc<Node>>, name: CString) -> Self {
        Self {
            above: above.may_wait().then(|| Arc::clone(above)),
            node: Some(Arc::new(Node::new(name, node.cloned()))),
        }
    }

    /// Opens it in the tree at `top`; `choose` picks that tree's from what is held of the directory above.
    pub(super) fn open(
        &self,
        top: BorrowedFd<'_>,
        choose: impl FnOnce(&D) -> BorrowedFd<'_>,
    ) -> Result<OwnedFd> {
        match (&self.above, &self.node) {
            (Some(above), Some(node)) => open(choose(&above.open), &node.name),
            (_, node) => locate(top, node.as_deref()),
        }
    }
}
