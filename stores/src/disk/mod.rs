// SPDX-License-Identifier: Apache-2.0
//! A store in a directory: all the bookkeeping that the kinds have in common.
//!
//! ```text
//! PATH/obuild-store           the format: "overlay 1", and what the kind keeps there
//!      boot                   the boot in which the store was last opened
//!      snapshots/ID/fs        the tree, or its topmost layer
//!                   meta      what it stands on
//!                   merged    only where layers were squashed: this layer and some of those below it
//!                   child.ID  one for each snapshot that was begun from it (a name of that one's `meta`)
//!      drafts/OWNER/ID.N/…    a snapshot being made, in the same shape
//!      drafts/OWNER/c-X.N/…   a lease of a cache; `pins` names the layers it stands on
//!      provisional/X.OWNER.N  X was committed from drafts/OWNER/X.N and may not be on the disk yet (likewise)
//!      caches/c-X/…           see `caches`
//!      trash/OWNER.N          being deleted
//!      state/                 the user's own
//! ```
//!
//! *Commit* is one rename from `drafts` to `snapshots`. *Deletion* is one rename to `trash`; the work comes after. The
//! store as a whole is locked (`flock(2)` on PATH) shared while a draft is begun, and alone while snapshots are removed,
//! so that a parent cannot go while a child starts from it. A directory in `snapshots` without `meta` is no snapshot but the
//! rest of one. Nothing on the way of a step reads a directory.

mod audit;
mod cache_name;
mod caches;
mod durability;
mod format;
mod meta;
mod owner;
mod snapshots;
mod stack;

use crate::draft::Draft;
use crate::place::{Lock, Place};
use crate::store::{CacheLease, Options, Snapshot, Space, Store, StoreUrl, Touched};
use crate::trees::Trees;
use crate::upkeep::Upkeep;
use crate::{Error, SnapshotId};
pub(crate) use owner::unique_name;
use owner::{Owner, purpose};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// A store in a directory.
pub(crate) struct Disk {
    shared: Arc<Shared>,
}

/// What a store shares with its drafts and leases.
pub(crate) struct Shared {
    pub(crate) place: Place,
    pub(crate) trees: Box<dyn Trees>,
    url: String,
    state: PathBuf,
    wait: Duration,
    /// The owner's name, used before it is one too.
    name: String,
    owner: OnceLock<Owner>,
    making_owner: Mutex<()>,
    counter: AtomicU64,
}

impl Shared {
    /// Locks the store: shared to begin something, alone (`exclusive`) to remove something.
    fn lock(&self, exclusive: bool) -> Result<Lock, Error> {
        let lock = self.place.lock(".", exclusive, self.wait)?;
        Ok(lock.expect("the directory that is held open is there"))
    }

    /// Returns how caches are kept.
    fn cache_trees(&self) -> &dyn Trees {
        self.trees.for_caches().unwrap_or(self.trees.as_ref())
    }

    /// Returns a number that this store gives once.
    fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Puts something out of sight, by moving it to the trash. Returns what is to be deleted, or `None` if there
    /// is nothing.
    fn trash(&self, name: &str) -> Result<Option<String>, Error> {
        // No owner is made for it: a full disk must not keep anyone from making room.
        let trash = format!("trash/{}.{}", self.name, self.number());
        match self.place.rename(name, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => {
                // A full btrfs has no room for a rename, but for deletion. Without its meta a snapshot is none.
                self.place.unlink(&format!("{name}/meta"))?;
                Ok(Some(name.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes something for good, by way of the trash.
    fn throw_away(&self, name: &str) -> Result<(), Error> {
        match self.trash(name)? {
            Some(trash) => self.trees.destroy(&self.place, &trash),
            None => Ok(()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.get() {
            // What is left in it, or it itself, the next sweep takes.
            let _ = self
                .place
                .remove_directory(&format!("drafts/{}", owner.name));
        }
    }
}

impl Disk {
    /// Opens the store in the directory `path`, or makes it where there is nothing; repairs what a crash left.
    pub(crate) fn open(
        url: &StoreUrl,
        path: &Path,
        options: &Options,
        mut trees: Box<dyn Trees>,
    ) -> Result<Self, Error> {
        let place = format::open(path, trees.as_mut(), options.wait)?;
        let shared = Arc::new(Shared {
            state: place.path("state"),
            place,
            trees,
            url: url.to_string(),
            wait: options.wait,
            name: unique_name(),
            owner: OnceLock::new(),
            making_owner: Mutex::new(()),
            counter: AtomicU64::new(0),
        });
        shared.recover(options.boot_id.as_deref())?;
        let disk = Self { shared };
        // What cannot be cleaned up now is no reason not to work.
        if disk.shared.has_leftovers()?
            && let Err(error) = disk.shared.sweep()
        {
            tracing::warn!(%error, "what an earlier process left could not be cleaned up");
        }
        Ok(disk)
    }
}

impl Store for Disk {
    fn url(&self) -> String {
        self.shared.url.clone()
    }

    fn state_dir(&self) -> &Path {
        &self.shared.state
    }

    fn prepare(&self, id: SnapshotId, parent: Option<SnapshotId>) -> Result<Draft, Error> {
        self.shared.prepare(id, parent)
    }

    fn commit(&self, draft: Draft) -> Result<Snapshot, Error> {
        self.shared.commit(draft)
    }

    fn discard(&self, draft: Draft) -> Result<(), Error> {
        self.shared.discard(draft)
    }

    fn get(&self, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
        let meta = self.shared.whole(id)?;
        meta.map(|meta| self.shared.snapshot(id, &meta)).transpose()
    }

    fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        self.shared.remove(id)
    }

    fn list(&self) -> Result<Vec<(SnapshotId, Option<SnapshotId>)>, Error> {
        let mut all = Vec::new();
        for name in self.shared.place.names("snapshots")? {
            // Another process may have removed it since.
            let Ok(id) = name.parse() else { continue };
            match self.shared.meta(id) {
                Ok(Some(meta)) => all.push((id, meta.parent)),
                Ok(None) => {}
                // One that cannot be read must not hide the others; `audit` tells of it.
                Err(error) => tracing::warn!(%error, %id, "a snapshot is damaged"),
            }
        }
        Ok(all)
    }

    fn size(&self, id: SnapshotId) -> Result<u64, Error> {
        let meta = self.shared.whole(id)?.ok_or(Error::NoSuchSnapshot(id))?;
        let name = format!("snapshots/{id}/fs");
        let parent = meta.parent.map(|parent| format!("snapshots/{parent}/fs"));
        self.shared
            .trees
            .size(&self.shared.place, &name, parent.as_deref())
    }

    fn space(&self) -> Result<Space, Error> {
        self.shared.trees.space(&self.shared.place)
    }

    fn lease_cache(&self, name: &[u8], owner: (u32, u32)) -> Result<CacheLease, Error> {
        self.shared.lease_cache(name, owner)
    }

    fn release_cache(&self, lease: CacheLease) -> Result<(), Error> {
        self.shared.release_cache(lease)
    }

    fn caches(&self) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        self.shared.caches()
    }

    fn delete_cache(&self, name: &[u8]) -> Result<(), Error> {
        self.shared.delete_cache(name)
    }

    fn touched(&self, id: SnapshotId) -> Result<Touched, Error> {
        let shared = &self.shared;
        let meta = shared.whole(id)?.ok_or(Error::NoSuchSnapshot(id))?;
        let own = format!("snapshots/{id}/fs");
        if meta.parent.is_none() {
            return Ok(Touched::Anything);
        }
        if meta.void {
            return Ok(Touched::Paths(Vec::new()));
        }
        if shared.trees.layers().is_some() {
            return Ok(Touched::Layer(shared.place.path(&own)));
        }
        // What is only in memory, nobody finds on the disk.
        if shared.provisional()?.contains(&id) {
            shared.sync()?;
        }
        let paths = shared.trees.touched(&shared.place, &own)?;
        Ok(paths.map_or(Touched::Anything, Touched::Paths))
    }

    fn provisional(&self) -> Result<Vec<SnapshotId>, Error> {
        self.shared.provisional()
    }

    fn sync(&self) -> Result<(), Error> {
        self.shared.sync()
    }

    fn sweep(&self) -> Result<(), Error> {
        self.shared.sweep()?;
        self.shared.sweep_rests()
    }

    fn upkeep(&self) -> Option<&dyn Upkeep> {
        Some(self)
    }
}
