// SPDX-License-Identifier: Apache-2.0
//! The file `meta` of a snapshot: its parent, and the layers that its tree stands on.
//!
//! ```text
//! parent 5e88…            none for a base
//! lower 5e88…/fs 0        one line a layer, topmost first, with its number of entries, 0 if nobody counted;
//!                         none for a tree that is whole
//! merged 120              only where layers were squashed: children stand on `merged`, of so many entries …
//! over 9f86…/fs 0         … and on these layers
//! void                    only where the snapshot changed nothing: its tree is that of `lower`, its own layer is left out
//! ```

use crate::SnapshotId;
use std::fmt::Write as _;

/// What a snapshot is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) parent: Option<SnapshotId>,
    pub(crate) lower: Vec<Layer>,
    pub(crate) merged: Option<Merged>,
    /// Whether its own layer changes nothing, so that neither it nor its children need it.
    pub(crate) void: bool,
}

/// The line that says so.
pub(crate) const VOID: &str = "void\n";

/// A directory of a snapshot that serves as a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    id: SnapshotId,
    merged: bool,
    /// How many entries it has, 0 if nobody counted.
    pub(crate) entries: u64,
}

/// What a snapshot's `merged` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Merged {
    pub(crate) entries: u64,
    /// The layers that it lies on.
    pub(crate) over: Vec<Layer>,
}

impl Layer {
    /// Returns the layer that the snapshot itself wrote.
    pub(crate) fn own(id: SnapshotId) -> Self {
        Self {
            id,
            merged: false,
            entries: 0,
        }
    }

    fn name(self) -> String {
        format!("{}/{}", self.id, if self.merged { "merged" } else { "fs" })
    }

    /// Returns its name in the store.
    pub(crate) fn path(self) -> String {
        format!("snapshots/{}", self.name())
    }

    fn parse(text: &str) -> Option<Self> {
        let (name, entries) = text.split_once(' ')?;
        let (id, part) = name.split_once('/')?;
        let merged = match part {
            "fs" => false,
            "merged" => true,
            _ => return None,
        };
        Some(Self {
            id: id.parse().ok()?,
            merged,
            entries: entries.parse().ok()?,
        })
    }
}

impl Meta {
    /// Returns what a tree made from the snapshot `id`, which has this meta, stands on, if trees are `stacked`.
    pub(crate) fn child(&self, id: SnapshotId, stacked: bool) -> Self {
        let (top, rest) = match &self.merged {
            None => (Layer::own(id), &self.lower),
            Some(merged) => (
                Layer {
                    id,
                    merged: true,
                    entries: merged.entries,
                },
                &merged.over,
            ),
        };
        let mut lower = Vec::new();
        if stacked {
            if !self.void {
                lower.push(top);
            }
            lower.extend(rest);
        }
        Self {
            parent: Some(id),
            lower,
            ..Self::default()
        }
    }

    /// Returns the layers of the tree of the snapshot `id`, which has this meta, topmost first.
    pub(crate) fn layers(&self, id: SnapshotId) -> Vec<String> {
        let own = (!self.void).then(|| Layer::own(id));
        own.iter()
            .chain(&self.lower)
            .map(|layer| layer.path())
            .collect()
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(parent) = self.parent {
            writeln!(text, "parent {parent}").expect("a string takes all");
        }
        let write = |text: &mut String, key, layer: &Layer| {
            writeln!(text, "{key} {} {}", layer.name(), layer.entries).expect("a string takes all");
        };
        for layer in &self.lower {
            write(&mut text, "lower", layer);
        }
        if let Some(merged) = &self.merged {
            writeln!(text, "merged {}", merged.entries).expect("a string takes all");
            for layer in &merged.over {
                write(&mut text, "over", layer);
            }
        }
        if self.void {
            text.push_str(VOID);
        }
        text
    }

    /// Reads it back; `None` when it is not what [`Meta::to_text`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut meta = Self::default();
        for line in text.lines() {
            if line == VOID.trim_end() {
                meta.void = true;
                continue;
            }
            let (key, value) = line.split_once(' ')?;
            match key {
                "parent" => meta.parent = Some(value.parse().ok()?),
                "lower" => meta.lower.push(Layer::parse(value)?),
                "merged" => {
                    let entries = value.parse().ok()?;
                    meta.merged = Some(Merged {
                        entries,
                        over: Vec::new(),
                    });
                }
                "over" => meta.merged.as_mut()?.over.push(Layer::parse(value)?),
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
        squashed.merged = Some(Merged {
            entries: 9,
            over: vec![Layer::own(id(1))],
        });
        let mut void = child.clone();
        void.void = true;
        for meta in [base, child, squashed, void] {
            assert_eq!(Meta::parse(&meta.to_text()), Some(meta));
        }
        for damaged in [
            "lower ../../etc/fs 0\n",
            "parent\n",
            "over x/fs 0\n",
            "lower x/fs\n",
            "x y",
        ] {
            assert_eq!(Meta::parse(damaged), None);
        }
    }

    #[test]
    fn children_of_a_squashed_snapshot_stand_on_what_is_merged() {
        let mut meta = Meta::default().child(id(1), true).child(id(2), true);
        assert_eq!(meta.lower, [Layer::own(id(2)), Layer::own(id(1))]);
        meta.merged = Some(Merged {
            entries: 9,
            over: vec![Layer::own(id(1))],
        });
        let child = meta.child(id(3), true);
        assert_eq!(
            child.lower,
            [
                Layer {
                    id: id(3),
                    merged: true,
                    entries: 9
                },
                Layer::own(id(1))
            ]
        );
        assert_eq!(meta.child(id(3), false).lower, []);
    }

    #[test]
    fn a_layer_that_changes_nothing_is_left_out() {
        let mut meta = Meta::default().child(id(1), true).child(id(2), true);
        meta.void = true;
        assert_eq!(meta.child(id(3), true).lower, meta.lower);
        assert_eq!(meta.child(id(3), true).parent, Some(id(3)));
        assert_eq!(
            meta.layers(id(3)),
            [Layer::own(id(2)).path(), Layer::own(id(1)).path()]
        );
    }
}
