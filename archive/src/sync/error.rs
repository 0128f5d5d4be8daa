// SPDX-License-Identifier: Apache-2.0
//! What ends a sync. An archive that cannot be had does not, nor an opam file that cannot be read.

use crate::cache::CacheError;
use crate::fetch::FetchError;
use crate::index;
use crate::repository;
use crate::state::StateError;

/// What ends a sync.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The directory of the archive cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The repository cannot be read.
    #[error("the repository cannot be read")]
    Repository(#[from] repository::Error),
    /// The index cannot be made.
    #[error("the index cannot be made")]
    Index(#[from] index::Error),
    /// There is no client to fetch with.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Somebody wanted it to end.
    #[error("interrupted")]
    Interrupted,
}
