// SPDX-License-Identifier: Apache-2.0
//! What a kind of store is to [`Disk`](crate::disk::Disk), which does all the bookkeeping: how it makes writable
//! trees, and what a tree stands on.

use crate::place::Place;
use crate::tree::{self, Subvolumes};
use crate::{Error, Kind, Rootfs, SnapshotId};
use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

/// A way to keep writable copies of trees in the directories of a store.
///
/// Names are relative to the store's [`Place`]. A *slot* is a directory of its own that holds one tree, as `fs`, and
/// what the kind keeps beside it.
pub(crate) trait Trees: Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// Checks that a store can be made at the place, whose directory is there, and names the remedy if not.
    fn probe(&self, place: &Place) -> Result<(), Error>;

    /// Returns how many layers a tree may stand on before they are squashed. `None`: each tree is whole, and
    /// stands on nothing once it is made.
    fn layers(&self) -> Option<Layers>;

    /// Makes `SLOT/fs`: empty if `below` is, else a writable view of the layers in `below`, topmost first.
    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error>;

    /// Deletes a directory for good. It is in another directory of the store, `trash` if it can be.
    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error>;

    /// Returns the bytes that the tree at `name` holds of its own.
    fn size(&self, place: &Place, name: &str, has_parent: bool) -> Result<u64, Error>;

    /// Returns how to read a tree that consists of these layers, topmost first.
    fn readable(&self, place: &Place, layers: &[String]) -> Result<Rootfs, Error> {
        Ok(readable(place, layers))
    }

    /// Finishes the tree in a slot, just before it becomes the snapshot `id` by a rename.
    fn seal(&self, _place: &Place, _slot: &str, _id: SnapshotId) -> Result<(), Error> {
        Ok(())
    }

    /// Returns whether a snapshot's tree is there, of which only a part is in the store's own directory.
    fn is_intact(&self, _place: &Place, _snapshot: &str) -> Result<bool, Error> {
        Ok(true)
    }

    /// Returns a directory on the file system that holds the trees, if that may be another one than the store's.
    fn elsewhere(&self, _place: &Place) -> Result<Option<OwnedFd>, Error> {
        Ok(None)
    }

    /// Cleans up outside of the store's directory after owners that are dead, whose slots are being deleted.
    fn sweep(&self, _place: &Place, _dead: &[String]) -> Result<(), Error> {
        Ok(())
    }

    /// Returns how caches are kept, if not as snapshots are.
    fn for_caches(&self) -> Option<&dyn Trees> {
        None
    }
}

/// The limits on stacks of layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layers {
    /// For snapshots.
    pub(crate) snapshot: usize,
    /// For caches.
    pub(crate) cache: usize,
}

/// Deletes a directory for good.
pub(crate) fn destroy(place: &Place, name: &str, subvolumes: Subvolumes<'_>) -> Result<(), Error> {
    let (directory, entry) = name
        .rsplit_once('/')
        .expect("it is in a directory of the store");
    let fail = |errno| place.error("delete", name, errno);
    let entry = CString::new(entry).expect("a store's names hold no NUL");
    let directory = place.open_directory(directory).map_err(fail)?;
    tree::remove(directory.as_fd(), &entry, subvolumes).map_err(fail)
}

/// Returns how to read a tree that consists of these layers, topmost first.
pub(crate) fn readable(place: &Place, layers: &[String]) -> Rootfs {
    let mut lower: Vec<PathBuf> = layers.iter().map(|layer| place.path(layer)).collect();
    if lower.len() == 1 {
        return Rootfs::Directory(lower.remove(0));
    }
    Rootfs::Overlay(crate::OverlayMount { lower, upper: None })
}
