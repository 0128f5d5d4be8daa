// SPDX-License-Identifier: Apache-2.0
//! The file `meta` of a snapshot: its parent, and the layers that its tree stands on.
//!
//! ```text
//! parent 5e88…            none for a base
//! lower 5e88…/fs          one line a layer, topmost first; none for a tree that is whole
//! merged-over 9f86…/fs    only where layers were squashed: children stand on this snapshot's `merged` over that
//! ```

use crate::SnapshotId;
use std::fmt::Write as _;

/// What a snapshot is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) lower: Vec<Layer>,
    pub(crate) merged_over: Option<Layer>,
}

/// A directory of a snapshot that serves as a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) id: SnapshotId,
    pub(crate) merged: bool,
}

impl Layer {
    /// Returns the layer that the snapshot itself wrote.
    pub(crate) fn own(id: SnapshotId) -> Self {
        Self { id, merged: false }
    }

    fn name(self) -> String {
        format!("{}/{}", self.id, if self.merged { "merged" } else { "fs" })
    }

    /// Returns its name in the store.
    pub(crate) fn path(self) -> String {
        format!("snapshots/{}", self.name())
    }

    fn parse(text: &str) -> Option<Self> {
        let (id, part) = text.split_once('/')?;
        let merged = match part {
            "fs" => false,
            "merged" => true,
            _ => return None,
        };
        Some(Self {
            id: id.parse().ok()?,
            merged,
        })
    }
}

impl Meta {
    /// Returns what a tree made from the snapshot `id`, which has this meta, stands on, if trees are `stacked`.
    pub(crate) fn child(&self, id: SnapshotId, stacked: bool) -> Self {
        let own = Layer::own(id);
        let lower = match self.merged_over {
            _ if !stacked => Vec::new(),
            Some(bottom) => vec![Layer { id, merged: true }, bottom],
            None => [own]
                .into_iter()
                .chain(self.lower.iter().copied())
                .collect(),
        };
        Self {
            parent: Some(id),
            lower,
            merged_over: None,
        }
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(parent) = self.parent {
            writeln!(text, "parent {parent}").expect("a string takes all");
        }
        for layer in &self.lower {
            writeln!(text, "lower {}", layer.name()).expect("a string takes all");
        }
        if let Some(layer) = self.merged_over {
            writeln!(text, "merged-over {}", layer.name()).expect("a string takes all");
        }
        text
    }

    /// Reads it back; `None` when it is not what [`Meta::to_text`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut meta = Self::default();
        for line in text.lines() {
            let (key, value) = line.split_once(' ')?;
            match key {
                "parent" => meta.parent = Some(value.parse().ok()?),
                "lower" => meta.lower.push(Layer::parse(value)?),
                "merged-over" => meta.merged_over = Some(Layer::parse(value)?),
                _ => return None,
            }
        }
        Some(meta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> SnapshotId {
        SnapshotId::from_digest([byte; 32])
    }

    #[test]
    fn meta_reads_back_as_written() {
        let base = Meta::default();
        let child = base.child(id(1), true);
        let mut squashed = child.child(id(2), true);
        squashed.merged_over = Some(Layer::own(id(1)));
        for meta in [base, child, squashed] {
            assert_eq!(Meta::parse(&meta.to_text()), Some(meta));
        }
        assert_eq!(Meta::parse("lower ../../etc/fs\n"), None);
        assert_eq!(Meta::parse("parent\n"), None);
    }

    #[test]
    fn children_of_a_squashed_snapshot_stand_on_two_layers() {
        let mut meta = Meta::default().child(id(1), true).child(id(2), true);
        assert_eq!(meta.lower, [Layer::own(id(2)), Layer::own(id(1))]);
        meta.merged_over = Some(Layer::own(id(1)));
        let child = meta.child(id(3), true);
        assert_eq!(
            child.lower,
            [
                Layer {
                    id: id(3),
                    merged: true
                },
                Layer::own(id(1))
            ]
        );
        assert_eq!(meta.child(id(3), false).lower, []);
    }
}
