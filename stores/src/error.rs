// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in a store.

use crate::SnapshotId;
use std::io;
use std::path::PathBuf;

/// Why a store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on the store's files failed. A full disk is a `source` of kind `StorageFull`.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `create`, `rename`, `mount`.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The snapshot is not in the store.
    #[error("there is no snapshot {0} in the store")]
    NoSuchSnapshot(SnapshotId),
    /// A snapshot of this id is already there.
    #[error("snapshot {0} is already in the store")]
    Exists(SnapshotId),
    /// The snapshot cannot be removed because others stand on it.
    #[error("snapshot {id} has {} children", children.len())]
    HasChildren {
        /// The snapshot.
        id: SnapshotId,
        /// Those that stand on it.
        children: Vec<SnapshotId>,
    },
    /// The text is not a store's URL.
    #[error("{url:?} does not name a store: {reason}")]
    BadUrl {
        /// The text.
        url: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// The directory cannot hold this kind of store (wrong file system, no permission, not a store, other kind).
    #[error("{} cannot be {article} {kind} store: {reason}", path.display(), article = if matches!(*kind, "overlay" | "xfs" | "rsync") { "an" } else { "a" })]
    Unsuitable {
        /// The directory.
        path: PathBuf,
        /// The kind that was asked for.
        kind: &'static str,
        /// Why not, and what to do.
        reason: String,
    },
    /// The mode of an rsync store is missing, or is not what the store has.
    #[error("the rsync mode does not fit {url}: {reason}")]
    RsyncMode {
        /// The store.
        url: String,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A program that a store is worked with did not do what was asked.
    #[error("`{command}` failed: {said}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said, on one line, and what to do.
        said: String,
    },
    /// The store was written by a newer version of the program.
    #[error("the store at {} has format {found}, but this program knows formats up to {known}", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is known.
        known: u32,
    },
}

impl Error {
    /// Returns what a person can do about it, if that is the same wherever it happens.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Tool { .. } => Some(
                "nothing that was cached is lost: run the build again when the command works. `dmesg` tells if the kernel killed it for want of memory",
            ),
            _ => None,
        }
    }

    /// Wraps what the kernel said of `path`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: source.into(),
        }
    }
}
