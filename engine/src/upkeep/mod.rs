// SPDX-License-Identifier: Apache-2.0
//! Looking after stores: telling their state, verifying what they hold, moving results between them.
//!
//! Every snapshot can have a *recorded digest*: what [`Listing::digest`] says of its tree, kept in the database. A check and a copy record it,
//! and so does a build that is asked to (`docs/decisions/0010-recorded-digests.md` says why the others do not).

mod books;
mod check;
mod copy;
mod forest;
mod info;
mod records;

pub use check::{CheckOptions, CheckReport};
pub use copy::{CopyOptions, CopyReport};
pub(crate) use forest::{Forest, held};
pub use info::{Health, StoreInfo};

use crate::{Engine, Error, blocking};
use obuild_images::tree::{self, ListOptions, Listing, TreeError};
use obuild_stores::{Rootfs, SnapshotId, Store};
use rustix::fs::{Mode, OFlags, openat};
use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// How far a long operation is; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Snapshots to be looked at.
    pub total: AtomicU64,
    /// Snapshots done.
    pub done: AtomicU64,
    /// Bytes of content read or written.
    pub bytes: AtomicU64,
}

/// A tree that was taken down, for those that stand on it.
pub(crate) struct Seen {
    pub(crate) rootfs: Rootfs,
    pub(crate) listing: Listing,
}

/// Takes down a tree with its contents: an overlay's layer over its parent's listing, else the whole tree, of which files that
/// the parent has are not read again.
pub(crate) fn take_down(
    rootfs: &Rootfs,
    parent: Option<&Seen>,
    reading: &mut dyn FnMut(u64),
    cancel: &CancellationToken,
) -> Result<Listing, Trouble> {
    let cancelled = || cancel.is_cancelled();
    if let Some(parent) = parent
        && parent.rootfs == *rootfs
    {
        // A step that changed nothing.
        return Ok(parent.listing.clone());
    }
    if let (Some(parent), Rootfs::Overlay(mount)) = (parent, rootfs)
        && mount.upper.is_none()
        && let [own, below @ ..] = mount.lower.as_slice()
        && layers(&parent.rootfs) == below
    {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let layer = openat(rustix::fs::CWD, own, flags, Mode::empty()).map_err(|error| {
            Trouble::Store(obuild_stores::Error::Io {
                action: "open",
                path: own.clone(),
                source: error.into(),
            })
        })?;
        return Ok(tree::list_layer(
            &parent.listing,
            layer.as_fd(),
            reading,
            &cancelled,
        )?);
    }
    let root = rootfs.open().map_err(Trouble::Store)?;
    let options = ListOptions {
        contents: true,
        known: parent.map(|parent| &parent.listing),
    };
    Ok(tree::list(root.as_fd(), &options, reading, &cancelled)?)
}

fn layers(rootfs: &Rootfs) -> &[std::path::PathBuf] {
    match rootfs {
        Rootfs::Directory(path) => std::slice::from_ref(path),
        Rootfs::Overlay(mount) => &mount.lower,
        Rootfs::Dataset(_) => &[],
    }
}

/// Why a tree could not be taken down.
#[derive(Debug)]
pub(crate) enum Trouble {
    Store(obuild_stores::Error),
    Tree(TreeError),
}

impl From<TreeError> for Trouble {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl Trouble {
    /// Returns whether something is missing from the tree, or the disk does not give it back; else it is the host's trouble.
    fn is_damage(&self) -> bool {
        let (Self::Store(obuild_stores::Error::Io { source, .. })
        | Self::Tree(TreeError::Read { source, .. })) = self
        else {
            return false;
        };
        // EIO 5, EBADMSG 74, EUCLEAN 117: what file systems say of blocks that do not match their checksums or make no sense.
        matches!(source.raw_os_error(), Some(5 | 74 | 117))
            || matches!(
                source.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::NotADirectory
                    | std::io::ErrorKind::InvalidData
                    | std::io::ErrorKind::StaleNetworkFileHandle
            )
    }

    pub(crate) fn into_error(self, id: SnapshotId) -> Error {
        match self {
            Self::Store(error) => Error::Store(error),
            Self::Tree(TreeError::Cancelled) => Error::Cancelled,
            Self::Tree(source) => Error::Tree {
                id: id.to_string(),
                source,
            },
        }
    }

    fn text(&self) -> String {
        let error: &dyn std::error::Error = match self {
            Self::Store(error) => error,
            Self::Tree(error) => error,
        };
        crate::error::chain(error)
    }
}

/// A snapshot's digests as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) tree: [u8; 32],
    /// SHA-256 of the log; empty if it was missing.
    pub(crate) log: Vec<u8>,
    /// When, in milliseconds since 1970.
    pub(crate) at: i64,
}

impl Engine {
    /// Records the digests of snapshots, and of those that they stand on, that have none. Returns how many that were.
    pub async fn record_digests(
        self: &Arc<Self>,
        ids: Vec<SnapshotId>,
        cancel: &CancellationToken,
    ) -> Result<usize, Error> {
        let recorded = self.database().await?.digests().await?;
        let (engine, cancel) = (Arc::clone(self), cancel.clone());
        let found = blocking(move || {
            let listed = engine.store().list().map_err(Error::Store)?;
            let chains = with_ancestors(&listed, &ids);
            if chains.iter().all(|(id, _)| recorded.contains_key(id)) {
                return Ok(Vec::new());
            }
            let found = Mutex::new(Vec::new());
            Forest::new(&chains).each(1, &|id, parent: Option<&Seen>| {
                let Some(snapshot) = engine.store().get(id).map_err(Error::Store)? else {
                    return Ok(None);
                };
                let listing = take_down(&snapshot.rootfs, parent, &mut |_| {}, &cancel)
                    .map_err(|trouble| trouble.into_error(id))?;
                if !recorded.contains_key(&id) {
                    let new = (id, listing.digest(), engine.log_digest(id)?);
                    held(&found).push(new);
                }
                Ok(Some(Seen {
                    rootfs: snapshot.rootfs,
                    listing,
                }))
            })?;
            // What is provisional may be dropped and built again, with another digest.
            engine.store().sync().map_err(Error::Store)?;
            Ok(std::mem::take(&mut *held(&found)))
        })
        .await?;
        self.database().await?.set_digests(&found).await?;
        Ok(found.len())
    }

    /// Returns the SHA-256 of a snapshot's log; nothing if it has none.
    pub(crate) fn log_digest(&self, id: SnapshotId) -> Result<Vec<u8>, Error> {
        use sha2::Digest as _;
        let path = self.log_path(id);
        let io = |source| Error::Io {
            action: "read",
            path: path.clone(),
            source,
        };
        let mut file = match fs_err::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io(error)),
        };
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match std::io::Read::read(&mut file, &mut buffer).map_err(io)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        Ok(hash.finalize().to_vec())
    }
}

/// Returns the snapshots and all that they stand on, with their parents.
pub(crate) fn with_ancestors(
    listed: &[(SnapshotId, Option<SnapshotId>)],
    ids: &[SnapshotId],
) -> Vec<(SnapshotId, Option<SnapshotId>)> {
    let parents: HashMap<SnapshotId, Option<SnapshotId>> = listed.iter().copied().collect();
    let mut chains = HashMap::new();
    for id in ids {
        let mut next = Some(*id);
        while let Some(id) = next
            && let Some(parent) = parents.get(&id)
            && chains.insert(id, *parent).is_none()
        {
            next = *parent;
        }
    }
    chains.into_iter().collect()
}

/// Returns how many chains to work on at once.
fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| {
        // More readers than that make a disk slower.
        std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
    })
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Returns whether the store still has the snapshot.
fn is_there(store: &dyn Store, id: SnapshotId) -> Result<bool, Error> {
    Ok(store.get(id).map_err(Error::Store)?.is_some())
}
