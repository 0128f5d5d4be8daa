// SPDX-License-Identifier: Apache-2.0
//! Looking after a store: what it can do, what state it is in, and whether its own books are right.

use crate::{Error, Kind, SnapshotId};
use std::time::SystemTime;

/// What a store that keeps books of its own can tell of them. See [`Store::upkeep`](crate::Store::upkeep).
pub trait Upkeep {
    /// Describes the store's state. Costs a few system calls, however much it holds.
    fn status(&self) -> Result<Status, Error>;

    /// Looks for what a crash, a fault or a stranger's hand has left wrong, without reading trees. With `mend`, puts
    /// right what can be put right without losing a snapshot. Safe while others use the store: they wait
    /// meanwhile, about 10 ms for every thousand snapshots.
    fn audit(&self, mend: bool) -> Result<Vec<Finding>, Error>;
}

/// The state of a store.
#[derive(Clone, Debug)]
pub struct Status {
    /// The version of the format that it is kept in.
    pub format: u32,
    /// Trees that are being made.
    pub drafts: Vec<DraftStatus>,
    /// Trees that are being deleted.
    pub trash: usize,
}

/// A tree that is being made.
#[derive(Clone, Debug)]
pub struct DraftStatus {
    /// What it will be; `None` for the copy of a cache that a step works on.
    pub id: Option<SnapshotId>,
    /// The process that makes it, by its number in the namespace that it runs in.
    pub process: Option<u32>,
    /// When that process opened the store.
    pub opened: Option<SystemTime>,
    /// Whether the process has the store open still; else the next sweep takes the draft.
    pub alive: bool,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub kind: FindingKind,
    /// The snapshot that it is about.
    pub snapshot: Option<SnapshotId>,
    /// What is wrong, for people.
    pub message: String,
    /// Whether it was put right.
    pub mended: bool,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// The snapshot cannot be used as it is.
    Damage,
    /// Bookkeeping that is wrong and can be put right without a loss.
    Books,
}

/// What copies of a tree share with the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Blocks: a changed file costs what was changed in it.
    Blocks,
    /// Files: a changed file costs its whole size.
    Files,
    /// Nothing, or what the user chose.
    Varies,
}

/// What a kind of store can do beyond what every [`Store`](crate::Store) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What a snapshot shares with its parent.
    pub sharing: Sharing,
    /// Whether beginning a step costs the same, however large the tree is.
    pub constant_time: bool,
    /// Whether the change that a snapshot made is kept apart, so that it is read without comparing trees.
    pub layers: bool,
}

impl Kind {
    /// Returns what the kind can do; `None` if nobody has said.
    pub fn capabilities(self) -> Option<Capabilities> {
        let (sharing, constant_time, layers) = match self.name() {
            "overlay" => (Sharing::Files, true, true),
            "btrfs" | "zfs" => (Sharing::Blocks, true, false),
            "xfs" => (Sharing::Blocks, false, false),
            "rsync" => (Sharing::Varies, false, false),
            "docker" => (Sharing::Files, true, false),
            _ => return None,
        };
        Some(Capabilities {
            sharing,
            constant_time,
            layers,
        })
    }
}
