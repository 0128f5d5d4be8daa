// SPDX-License-Identifier: Apache-2.0
//! What a kind of store is to [`Disk`](crate::disk::Disk), which does all the bookkeeping: how it makes writable
//! trees, and what a tree stands on.

use crate::place::Place;
use crate::tree::{self, Sharing, Subvolumes};
use crate::{Error, Kind, Rootfs, SnapshotId, Space};
use rustix::fs::{AtFlags, Mode};
use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

/// A way to keep writable copies of trees in the directories of a store.
///
/// Names are relative to the store's [`Place`]. A *slot* is a directory of its own that holds one tree, as `fs`, and
/// what the kind keeps beside it.
pub(crate) trait Trees: Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// Takes over what the store's format file holds besides the kind and version, `None` for a store about to be
    /// made, and returns what it is to hold: whole lines, or nothing.
    fn settle(&mut self, recorded: Option<&str>) -> Result<String, Error> {
        let _ = recorded;
        Ok(String::new())
    }

    /// Checks that a store can be made at the place, whose directory is there, and names the remedy if not.
    fn probe(&self, place: &Place) -> Result<(), Error>;

    /// Makes what the store uses beside what all kinds have, and can do without. Called whenever it is opened.
    fn furnish(&self, _place: &Place) -> Result<(), Error> {
        Ok(())
    }

    /// Returns how many layers a tree may stand on before they are squashed. `None`: each tree is whole, and
    /// stands on nothing once it is made.
    fn layers(&self) -> Option<Layers>;

    /// Makes `SLOT/fs`: empty if `below` is, else a writable view of the layers in `below`, topmost first.
    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error>;

    /// Does what is to be done to a draft's `SLOT/fs` when nothing writes to it any more, before it becomes the snapshot `id`, or the
    /// content of a cache. `parent` is the tree that it was made from. There may be such a snapshot already: then
    /// the draft is thrown away next.
    fn finish(
        &self,
        place: &Place,
        slot: &str,
        parent: Option<&str>,
        id: Option<SnapshotId>,
    ) -> Result<(), Error> {
        let _ = (place, slot, parent, id);
        Ok(())
    }

    /// Returns whether a finished tree is there.
    fn is_there(&self, place: &Place, name: &str) -> Result<bool, Error> {
        place.exists(name)
    }

    /// Returns how to read a tree that consists of these layers, topmost first.
    fn readable(&self, place: &Place, layers: &[String]) -> Result<Rootfs, Error> {
        let mut lower: Vec<PathBuf> = layers.iter().map(|layer| place.path(layer)).collect();
        Ok(if lower.len() == 1 {
            Rootfs::Directory(lower.remove(0))
        } else {
            Rootfs::Overlay(crate::OverlayMount {
                lower,
                upper: None,
                points: None,
            })
        })
    }

    /// Deletes a directory for good. It is in another directory of the store, `trash` if it can be.
    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error>;

    /// Returns the bytes that the tree at `name` holds of its own, beyond what the one at `parent` holds.
    fn size(&self, place: &Place, name: &str, parent: Option<&str>) -> Result<u64, Error>;

    /// Returns the paths at which the whole tree at `name` may differ from the one that it was made from, as
    /// [`Touched::Paths`](crate::Touched::Paths) has them. `None`: nobody knows.
    fn touched(&self, place: &Place, name: &str) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let _ = (place, name);
        Ok(None)
    }

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

    /// Returns how many trees, of those that are not in the store's own directory, nothing in it stands for any more: somebody has
    /// removed that by hand. With `delete` they are deleted, but for those in use.
    fn strays(&self, place: &Place, delete: bool) -> Result<usize, Error> {
        let _ = (place, delete);
        Ok(0)
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

/// Makes `SLOT/fs` for kinds whose trees are whole: empty, or a copy of the tree in `below`.
pub(crate) fn create_copy(place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
    let name = format!("{slot}/fs");
    let fail = |action, errno| place.error(action, &name, errno);
    place.make_directory(&name, 0o755)?;
    if let Some(source) = below.first() {
        let target = place
            .open_directory(&name)
            .map_err(|errno| fail("open", errno))?;
        let top = place
            .open_directory(source)
            .map_err(|errno| place.error("open", source, errno))?;
        tree::replicate(top.as_fd(), target.as_fd())
            .map_err(|errno| place.error("copy", source, errno))?;
    } else {
        // Whatever the umask is.
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::chmodat(place.descriptor(), &name, mode, AtFlags::empty())
            .map_err(|errno| fail("create", errno))?;
    }
    Ok(Rootfs::Directory(place.path(&name)))
}

/// Returns the bytes of a whole tree beyond those that it shares with its parent.
pub(crate) fn size(
    place: &Place,
    name: &str,
    parent: Option<(&str, Sharing)>,
) -> Result<u64, Error> {
    let open = |name: &str| {
        place
            .open_directory(name)
            .map_err(|errno| place.error("open", name, errno))
    };
    let top = open(name)?;
    let size = match parent {
        Some((parent, sharing)) => tree::own_size(top.as_fd(), open(parent)?.as_fd(), sharing),
        None => tree::size(top),
    };
    size.map_err(|errno| place.error("measure", name, errno))
}
