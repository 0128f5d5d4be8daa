// SPDX-License-Identifier: Apache-2.0
//! A tree being made.

use crate::{Rootfs, SnapshotId};
use std::any::Any;
use std::fmt;

/// A tree being made, visible to nobody else. Dropping it throws it away.
pub struct Draft {
    pub(crate) id: SnapshotId,
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) rootfs: Rootfs,
    pub(crate) guard: Guard,
}

/// What a backend keeps with a draft or a cache lease; its `Drop` is the net that cleans up.
pub(crate) type Guard = Box<dyn Any + Send + Sync>;

impl Draft {
    /// Returns the id that it will have.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Gives it another id to be committed under, for example because it holds a failed step's tree.
    pub fn rename(&mut self, id: SnapshotId) {
        self.id = id;
    }

    /// Returns the snapshot that it started from.
    pub fn parent(&self) -> Option<SnapshotId> {
        self.parent
    }

    /// Returns how to write its tree.
    pub fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Draft")
            .field("id", &self.id)
            .field("parent", &self.parent)
            .field("rootfs", &self.rootfs)
            .finish_non_exhaustive()
    }
}
