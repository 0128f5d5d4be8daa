// SPDX-License-Identifier: Apache-2.0
//! The seam: what every snapshot store does and promises.

use crate::draft::Guard;
use crate::upkeep::Upkeep;
use crate::{Draft, Error, Rootfs, SnapshotId};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keeps trees, each under an id and with at most one parent.
///
/// What callers may rely on, for every backend:
///
/// * *Many processes.* Any number of processes, and threads in each, may use one store at once. The caller
///   sees to it that one id is not prepared twice at the same time (the engine holds a lock on the step).
/// * *Atomic.* A snapshot appears whole, by one atomic act in [`Store::commit`], or not at all.
/// * *Crash-safe.* `kill -9` at any instant leaves committed snapshots intact; drafts whose owner is gone are swept
///   by the next `open` (or [`Store::sweep`]) and never become visible.
/// * *Power loss.* A commit is provisional until [`Store::sync`] returns. The first open after a boot drops every
///   snapshot that was still provisional (and what was built on it), since its files may be torn.
/// * *Immutable.* The tree of a committed snapshot never changes.
pub trait Store: Send + Sync {
    /// Returns the URL that `open` accepts for this store, for example `overlay:/var/lib/obuild`.
    fn url(&self) -> String;

    /// Returns the directory in which the store's user keeps its own files (database, logs, locks).
    ///
    /// It is on the same host for every backend and survives with the store.
    fn state_dir(&self) -> &Path;

    /// Starts a new tree: empty, or a writable copy-on-write copy of `parent`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSnapshot`] when `parent` is not there; [`Error::Exists`] when `id` is.
    fn prepare(&self, id: SnapshotId, parent: Option<SnapshotId>) -> Result<Draft, Error>;

    /// Makes the draft's tree the snapshot of its id, atomically.
    ///
    /// The draft must not be mounted for writing any more. On an error the draft is discarded. If another process has
    /// committed the same id meanwhile, the draft is discarded and the existing snapshot returned.
    fn commit(&self, draft: Draft) -> Result<Snapshot, Error>;

    /// Throws the draft away. Dropping a [`Draft`] does the same, but hides errors.
    fn discard(&self, draft: Draft) -> Result<(), Error>;

    /// Returns the snapshot, or `None` if it is not in the store. Costs a few system calls.
    fn get(&self, id: SnapshotId) -> Result<Option<Snapshot>, Error>;

    /// Removes a snapshot that has no children. Removing one that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`Error::HasChildren`] when other snapshots stand on it.
    fn remove(&self, id: SnapshotId) -> Result<(), Error>;

    /// Returns every snapshot's id with its parent's, in no order.
    fn list(&self) -> Result<Vec<(SnapshotId, Option<SnapshotId>)>, Error>;

    /// Returns the bytes of disk that the snapshot holds beyond what its parent holds; an estimate where the
    /// file system shares extents.
    fn size(&self, id: SnapshotId) -> Result<u64, Error>;

    /// Returns the space of the file system below the store.
    fn space(&self) -> Result<Space, Error>;

    /// Takes a private copy of the persistent cache `name`, made empty and owned by `owner` (uid, gid) if new.
    ///
    /// OBuilder's semantics (`lib/s.ml`, `cache`): each user gets a private snapshot of the cache's content; the top
    /// directory is given to `owner`. `name` may hold any bytes and cannot escape the store's cache directory.
    fn lease_cache(&self, name: &[u8], owner: (u32, u32)) -> Result<CacheLease, Error>;

    /// Gives a cache back. If nobody has replaced it since the lease was taken, the leased tree becomes the cache's
    /// new content; otherwise it is thrown away. Must not be mounted any more. Dropping the lease throws it away.
    fn release_cache(&self, lease: CacheLease) -> Result<(), Error>;

    /// Returns all caches with their size in bytes.
    fn caches(&self) -> Result<Vec<(Vec<u8>, u64)>, Error>;

    /// Removes a cache. Leases of it stay usable; releasing them does not bring it back.
    fn delete_cache(&self, name: &[u8]) -> Result<(), Error>;

    /// Returns where the snapshot's tree may differ from its parent's: as little as the store knows without reading trees.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSnapshot`] when it is not there.
    fn touched(&self, id: SnapshotId) -> Result<Touched, Error> {
        match self.get(id)? {
            Some(_) => Ok(Touched::Anything),
            None => Err(Error::NoSuchSnapshot(id)),
        }
    }

    /// Returns which snapshots a power cut would take, since [`Store::sync`] has not been called after their commit.
    ///
    /// None in a store whose commits are durable when they return.
    fn provisional(&self) -> Result<Vec<SnapshotId>, Error> {
        Ok(Vec::new())
    }

    /// Makes everything committed so far durable (one `syncfs`) and no longer provisional. May take long when much
    /// is dirty.
    fn sync(&self) -> Result<(), Error>;

    /// Removes what dead processes left behind and finishes postponed deletions. `open` calls it when
    /// there is anything to do.
    fn sweep(&self) -> Result<(), Error>;

    /// Returns what can tell of the store's own books and mend them; `None` for a store that keeps none of its own.
    fn upkeep(&self) -> Option<&dyn Upkeep> {
        None
    }
}

/// A committed, immutable tree.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The snapshot that it was made from.
    pub parent: Option<SnapshotId>,
    /// How to read its tree; an overlay recipe here has no `upper`. If it has one layer more than the parent's recipe on
    /// the same layers, that is what the snapshot changed.
    pub rootfs: Rootfs,
}

/// Where a tree may differ from its parent's. See [`Store::touched`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Where the overlay layer in this directory has entries, and below what these replace.
    Layer(PathBuf),
    /// At these paths below the root, at the names in those of them that are directories, and below what has another inode
    /// number than in the parent.
    Paths(Vec<Vec<u8>>),
    /// Anywhere.
    Anything,
}

/// Space of the file system below a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// What an ordinary process can still write.
    pub available: u64,
}

/// A private, writable copy of a cache. See [`Store::lease_cache`].
pub struct CacheLease {
    /// How the step mounts it.
    pub rootfs: Rootfs,
    /// What the backend needs to give it back.
    pub(crate) guard: Guard,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long to wait for another process that has the store locked for maintenance.
    pub wait: Duration,
    /// Which boot of the machine this is; `None` asks the kernel. Tests pass another to play a reboot.
    pub boot_id: Option<String>,
    /// How an rsync store saves room; `None` is what the store was made with. Other kinds have none.
    pub rsync_mode: Option<RsyncMode>,
    /// The program `rsync`, if an rsync store shall copy with it rather than by itself.
    pub rsync_program: Option<PathBuf>,
    /// The unix socket of the docker daemon, for a store of that kind.
    pub docker_socket: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wait: Duration::from_mins(1),
            boot_id: None,
            rsync_mode: None,
            rsync_program: None,
            // docker-ce's and every distribution's default.
            docker_socket: PathBuf::from("/var/run/docker.sock"),
        }
    }
}

/// Says which backend and place a URL names, without touching the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    /// `overlay`, `btrfs`, …
    pub kind: Kind,
    /// Absolute path of the store's directory; for [`Kind::Zfs`] the dataset's name, such as `tank/obuild`.
    pub path: PathBuf,
}

/// The backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Layers of directories, mounted as overlayfs.
    Overlay,
    /// btrfs subvolumes.
    Btrfs,
    /// Datasets of ZFS.
    Zfs,
    /// Whole trees whose files share their blocks.
    Xfs,
    /// Whole trees on any file system.
    Rsync,
    /// Images of a docker daemon.
    Docker,
}

/// What becomes of the files of an rsync store's snapshot that are still the same as its parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsyncMode {
    /// They stay copies.
    Copy,
    /// They become hard links to the parent's, if their contents are equal byte by byte.
    Hardlink,
    /// They become hard links to the parent's, if their sizes and times of modification are equal.
    HardlinkUnsafe,
}
