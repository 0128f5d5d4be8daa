// SPDX-License-Identifier: Apache-2.0
//! What a kind of store is to [`Disk`](crate::disk::Disk), which does all the bookkeeping: how it makes writable
//! trees, and what a tree stands on.

use crate::place::Place;
use crate::tree::{self, Subvolumes};
use crate::{Error, Kind, Rootfs, Space};
use std::ffi::CString;
use std::os::fd::AsFd as _;
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

    /// Called when nothing writes to `SLOT/fs` any more, before it becomes a snapshot or the content of a cache.
    fn finish(&self, _place: &Place, _slot: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Returns how to read a tree that consists of these layers, topmost first.
    fn readable(&self, place: &Place, layers: &[String]) -> Result<Rootfs, Error> {
        let mut lower: Vec<PathBuf> = layers.iter().map(|layer| place.path(layer)).collect();
        Ok(if lower.len() == 1 {
            Rootfs::Directory(lower.remove(0))
        } else {
            Rootfs::Overlay(crate::OverlayMount { lower, upper: None })
        })
    }

    /// Deletes a directory for good. It is in another directory of the store, `trash` if it can be.
    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error>;

    /// Returns the bytes that the tree at `name` holds of its own.
    fn size(&self, place: &Place, name: &str, has_parent: bool) -> Result<u64, Error>;

    /// Returns the bytes of the tree at `name`, whoever else holds them too.
    fn whole_size(&self, place: &Place, name: &str) -> Result<u64, Error> {
        let fail = |errno| place.error("measure", name, errno);
        tree::size(place.open_directory(name).map_err(fail)?).map_err(fail)
    }

    /// Returns the space of the file system below the store.
    fn space(&self, place: &Place) -> Result<Space, Error> {
        let statvfs = rustix::fs::fstatvfs(place.descriptor())
            .map_err(|errno| place.error("look at", ".", errno))?;
        Ok(Space {
            total: statvfs.f_blocks * statvfs.f_frsize,
            available: statvfs.f_bavail * statvfs.f_frsize,
        })
    }

    /// Has everything that was written so far reach the disk.
    fn sync(&self, place: &Place) -> Result<(), Error> {
        rustix::fs::syncfs(place.descriptor()).map_err(|errno| place.error("write out", ".", errno))
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
