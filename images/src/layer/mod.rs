// SPDX-License-Identifier: Apache-2.0
//! Layers of images, made from what snapshots changed.
//!
//! A layer is a function of two trees and its [`LayerOptions`] alone: whichever store holds the trees, the bytes are the same. What a
//! store knows of a change ([`obuild_stores::Touched`]) only says where to look. Layers are kept in the store's state directory, so that the second
//! time they cost nothing.

mod changes;
mod compress;
mod content;
mod explain;
mod keep;
mod touched;
mod write;
pub use compress::Compression;
pub use content::{Member, Piece};
use explain::explain;
pub use explain::{Aspect, Difference};
pub(crate) use keep::{adopt, blob_path};
pub use keep::{forget_layers, forget_layers_of, known_diff_id};

use crate::tree::{Cancelled, ExportError, TreeError};
use crate::{Digest, Error};
use bstr::BString;
use obuild_stores::{SnapshotId, Store, Touched};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// What becomes of modification times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Times {
    /// Everything has this one, in seconds since 1970, and no difference of times is one.
    Fixed(i64),
    /// Those after this one become this one, as `SOURCE_DATE_EPOCH` asks for.
    Latest(i64),
}

/// 1980-01-01, the earliest that ZIP archives can hold: tools that make these from what is in an image fail for since ones.
pub const FIXED_TIME: i64 = 315_532_800;

impl Times {
    fn of(self, seconds: i64) -> i64 {
        match self {
            Self::Fixed(seconds) => seconds,
            Self::Latest(latest) => seconds.min(latest),
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Self::Fixed(FIXED_TIME)
    }
}

/// How layers are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerOptions {
    /// What becomes of times.
    pub times: Times,
    /// How they are compressed.
    pub compression: Compression,
    /// How many threads compress; 0 and 1 are one.
    pub threads: usize,
}

/// A layer in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Where it is.
    pub path: PathBuf,
    /// The digest of the file.
    pub digest: Digest,
    /// The size of the file in bytes.
    pub size: u64,
    /// The digest of the archive that it is when it is not compressed.
    pub diff_id: Digest,
    /// What it is.
    pub media_type: String,
}

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A tree could not be read.
    #[error("cannot read what changed")]
    Tree(#[from] TreeError),
    /// An entry could not be written.
    #[error("cannot write the layer")]
    Export(#[from] ExportError),
    /// A file has a name that means something else in a layer.
    #[error("{path:?} cannot be in a layer: names that begin with .wh. stand for what is deleted")]
    Whiteout {
        /// The file.
        path: BString,
    },
    /// The file could not be written.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
}

/// Returns what the snapshot `snapshot` changed against `since`, one that it was made from, or all of it if there is none. `None` when nothing changed.
///
/// # Errors
///
/// [`Error::Layer`] when it cannot be made; also when the snapshots are not there, or the one was not made from the other.
pub fn layer(
    store: &dyn Store,
    since: Option<SnapshotId>,
    snapshot: SnapshotId,
    options: &LayerOptions,
    cancelled: Cancelled<'_>,
) -> Result<Option<LayerBlob>, Error> {
    if let Some(kept) = keep::find(store.state_dir(), since, snapshot, options)? {
        return Ok(kept.0);
    }
    let failed = |error: LayerError| match error {
        LayerError::Tree(TreeError::Cancelled) | LayerError::Export(ExportError::Cancelled) => {
            Error::Cancelled
        }
        source => Error::Layer {
            id: snapshot.to_string(),
            source: Box::new(source),
        },
    };
    let get = |id: SnapshotId| {
        let snapshot = store.get(id)?;
        snapshot.ok_or(obuild_stores::Error::NoSuchSnapshot(id))
    };
    let mut touched = Vec::new();
    let mut next = Some(snapshot);
    while next != since {
        let Some(id) = next else {
            return Err(Error::NotMadeFrom {
                id: snapshot.to_string(),
                earlier: since.map(|id| id.to_string()).unwrap_or_default(),
            });
        };
        if since.is_some() {
            touched.push(store.touched(id)?);
        }
        next = get(id)?.parent;
    }
    let root = get(snapshot)?.rootfs.open()?;
    let since_root = since
        .map(|id| Ok::<_, Error>(get(id)?.rootfs.open()?))
        .transpose()?;
    let changes = changes::changes(
        since_root.as_ref().map(AsFd::as_fd),
        root.as_fd(),
        &touched,
        options.times,
        cancelled,
    )
    .map_err(|error| failed(error.into()))?;
    let blob = if changes.changes.is_empty() {
        None
    } else {
        Some(
            keep::write(store.state_dir(), options, |writer| {
                write::write(&changes, root.as_fd(), options.times, writer, cancelled)
            })
            .map_err(failed)?,
        )
    };
    keep::remember(store.state_dir(), since, snapshot, options, blob.as_ref())
        .map_err(|error| failed(LayerError::Write(error)))?;
    Ok(blob)
}

/// Returns where the tree of one snapshot differs from that of another, whatever they have to do with each other, and be they of two stores, as
/// far as a layer with these times would tell it.
pub fn differences(
    one: (&dyn Store, SnapshotId),
    other: (&dyn Store, SnapshotId),
    times: Times,
    cancelled: Cancelled<'_>,
) -> Result<Vec<Difference>, Error> {
    let open = |(store, id): (&dyn Store, SnapshotId)| {
        let snapshot = store.get(id)?;
        let snapshot = snapshot.ok_or(obuild_stores::Error::NoSuchSnapshot(id))?;
        snapshot.rootfs.open()
    };
    let failed = |error: TreeError| match error {
        TreeError::Cancelled => Error::Cancelled,
        source => Error::Layer {
            id: other.1.to_string(),
            source: Box::new(source.into()),
        },
    };
    let (one, there) = (open(one)?, open(other)?);
    let found = changes::changes(
        Some(one.as_fd()),
        there.as_fd(),
        &[Touched::Anything],
        times,
        cancelled,
    )
    .map_err(failed)?;
    explain(&found.changes, one.as_fd(), there.as_fd(), times).map_err(failed)
}

#[cfg(test)]
mod tests;
