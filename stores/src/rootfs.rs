// SPDX-License-Identifier: Apache-2.0
//! A tree as a sandbox or a copy gets it: a directory, or a recipe for a mount.

use std::path::PathBuf;

/// A tree that can be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// The directory is the tree.
    Directory(PathBuf),
    /// The tree appears when the overlay is mounted. Whoever needs it mounts it: detached, or in a mount
    /// namespace of its own, so that nothing is ever mounted on the host.
    Overlay(OverlayMount),
    /// The tree is a dataset of ZFS that is mounted when [`Rootfs::open`] is called, and stays so while the descriptor is open.
    Dataset(crate::Dataset),
}

/// The recipe for an overlay mount; all paths absolute. See Linux `Documentation/filesystems/overlayfs.rst`.
///
/// [`Rootfs::open`] follows it, with the options that a store relies on; it is better not to do it by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayMount {
    /// Read-only layers, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Where writes go; `None` makes the mount read-only.
    pub upper: Option<Upper>,
    /// An empty tree with what a sandbox mounts over and many trees lack (`/etc/hosts`), where the store has one. As one more lower layer
    /// below all others it saves making such a mount point for each step, and the copy of its directory that this leaves in `upper`. It
    /// is not part of the tree: who reads or copies does not mount it.
    pub points: Option<PathBuf>,
}

/// The writable layer of an overlay mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Receives changed files.
    pub upper: PathBuf,
    /// The kernel's scratch directory, empty, on the same file system as `upper`.
    pub work: PathBuf,
}
