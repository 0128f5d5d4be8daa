// SPDX-License-Identifier: Apache-2.0
//! Drafts and snapshots.

use super::Shared;
use super::meta::{Layer, Merged, Meta, VOID};
use super::owner::LiveDrafts;
use super::stack::crowd;
use crate::draft::Draft;
use crate::store::Snapshot;
use crate::{Error, SnapshotId, tree};
use std::io;
use std::sync::Arc;

/// What a draft holds on to; dropped, it throws the draft away.
pub(super) struct Slot {
    shared: Arc<Shared>,
    id: SnapshotId,
    owner: String,
    /// Its directory in `drafts/OWNER`.
    name: String,
    meta: Meta,
    done: bool,
}

impl Slot {
    fn path(&self) -> String {
        format!("drafts/{}/{}", self.owner, self.name)
    }

    fn throw_away(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        let shared = &self.shared;
        let trash = shared.trash(&self.path())?;
        if let Some(parent) = self.meta.parent {
            let _lock = shared.lock(true)?;
            shared.forget_child(parent, self.id, &shared.live_drafts()?)?;
        }
        match trash {
            Some(trash) => shared.trees.destroy(&shared.place, &trash),
            None => Ok(()),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Err(error) = self.throw_away() {
            tracing::warn!(%error, "a draft could not be thrown away; the next sweep will try again");
        }
    }
}

impl Shared {
    /// Reads what a snapshot stands on; `None` when it is not there.
    pub(super) fn meta(&self, id: SnapshotId) -> Result<Option<Meta>, Error> {
        let name = format!("snapshots/{id}/meta");
        let Some(text) = self.place.read(&name)? else {
            return Ok(None);
        };
        let damaged = || {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
            self.place.error("read", &name, source)
        };
        Meta::parse(&text).map(Some).ok_or_else(damaged)
    }

    /// As [`Shared::meta`], but `None` also when a tree that the snapshot consists of is gone: somebody has removed it
    /// behind our back, and the step has to run again.
    pub(super) fn whole(&self, id: SnapshotId) -> Result<Option<Meta>, Error> {
        let Some(meta) = self.meta(id)? else {
            return Ok(None);
        };
        if !self.trees.is_there(&self.place, &Layer::own(id).path())? {
            return Ok(None);
        }
        for layer in &meta.lower {
            if !self.trees.is_there(&self.place, &layer.path())? {
                return Ok(None);
            }
        }
        Ok(Some(meta))
    }

    /// Removes what is left of a snapshot that is no longer whole.
    fn clear(&self, id: SnapshotId) -> Result<(), Error> {
        let meta = format!("snapshots/{id}/meta");
        if !self.place.exists(&meta)? || self.whole(id)?.is_some() {
            return Ok(());
        }
        tracing::warn!(%id, "a snapshot has lost its files; the step runs again");
        let mut trash = Vec::new();
        {
            let _lock = self.lock(true)?;
            if self.trees.layers().is_some() {
                // What stands on it has lost them too, and must not come to stand on another one's.
                self.drop_with_descendants(id, &mut trash)?;
            } else {
                trash.extend(self.trash(&format!("snapshots/{id}"))?);
            }
        }
        self.delete_all(&trash)
    }

    /// Describes a snapshot.
    pub(super) fn snapshot(&self, id: SnapshotId, meta: &Meta) -> Result<Snapshot, Error> {
        Ok(Snapshot {
            id,
            parent: meta.parent,
            rootfs: self.trees.readable(&self.place, &meta.layers(id))?,
        })
    }

    pub(super) fn prepare(
        self: &Arc<Self>,
        id: SnapshotId,
        parent: Option<SnapshotId>,
    ) -> Result<Draft, Error> {
        let mut slot = Slot {
            shared: Arc::clone(self),
            id,
            owner: self.owner()?.name.clone(),
            name: format!("{id}.{}", self.number()),
            meta: Meta::default(),
            done: true,
        };
        self.clear(id)?;
        self.begin(&mut slot, parent)?;
        let below: Vec<String> = match parent {
            Some(parent) if slot.meta.lower.is_empty() => vec![Layer::own(parent).path()],
            _ => slot.meta.lower.iter().map(|layer| layer.path()).collect(),
        };
        let rootfs = self.trees.create(&self.place, &slot.path(), &below)?;
        Ok(Draft {
            id,
            parent,
            rootfs,
            guard: Box::new(slot),
        })
    }

    /// Makes the slot's directory and marks the parent, which cannot go any more after that. The store is locked
    /// no longer when this returns, as a failed slot is thrown away under a lock.
    fn begin(&self, slot: &mut Slot, parent: Option<SnapshotId>) -> Result<(), Error> {
        let _lock = parent.is_some().then(|| self.lock(false)).transpose()?;
        if self.place.exists(&format!("snapshots/{}/meta", slot.id))? {
            return Err(Error::Exists(slot.id));
        }
        if let Some(parent) = parent {
            let meta = self.whole(parent)?.ok_or(Error::NoSuchSnapshot(parent))?;
            slot.meta = meta.child(parent, self.trees.layers().is_some());
        }
        let path = slot.path();
        self.place.make_directory(&path, 0o755)?;
        slot.done = false;
        self.place
            .write(&format!("{path}/meta"), &slot.meta.to_text())?;
        match parent {
            Some(parent) => self
                .place
                .mark(&format!("snapshots/{parent}/child.{}", slot.id)),
            None => Ok(()),
        }
    }

    /// Takes the slot out of a draft, which must be of this store.
    fn slot(self: &Arc<Self>, draft: Draft) -> Result<Box<Slot>, Error> {
        match draft.guard.downcast::<Slot>() {
            Ok(slot) if Arc::ptr_eq(&slot.shared, self) => Ok(slot),
            _ => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "it is of another store");
                Err(self.place.error("commit a draft to", ".", source))
            }
        }
    }

    pub(super) fn discard(self: &Arc<Self>, draft: Draft) -> Result<(), Error> {
        self.slot(draft)?.throw_away()
    }

    pub(super) fn commit(self: &Arc<Self>, draft: Draft) -> Result<Snapshot, Error> {
        // Every way out before the rename drops the slot, and with it the draft.
        let id = draft.id;
        let mut slot = self.slot(draft)?;
        if let Some(meta) = self.whole(id)? {
            slot.throw_away()?;
            return self.snapshot(id, &meta);
        }
        let path = slot.path();
        let parent = slot.meta.parent.map(|parent| Layer::own(parent).path());
        self.trees
            .finish(&self.place, &path, parent.as_deref(), Some(id))?;
        // Declared after the slot and so dropped before it, whose dropping takes the lock itself.
        let mut renamed = None;
        if id != slot.id
            && let Some(parent) = slot.meta.parent
        {
            // Held until the rename: a sweep would take the new mark for one that a dead process left.
            renamed = Some(self.lock(false)?);
            self.place.mark(&format!("snapshots/{parent}/child.{id}"))?;
        }
        if let Some(layers) = self.trees.layers() {
            if self.is_void(&slot)? {
                slot.meta.void = true;
                self.place.append(&format!("{path}/meta"), VOID)?;
            } else if slot.meta.lower.len() >= layers.snapshot {
                self.squash_draft(&mut slot)?;
            }
        }
        // Before the rename: no journal writes the later of two changes without the earlier, so after a power cut
        // the mark is there if the snapshot is.
        let mark = format!("provisional/{id}.{}.{}", slot.owner, number(&slot.name));
        self.place.link(&format!("{path}/meta"), &mark)?;
        let target = format!("snapshots/{id}");
        loop {
            if self.place.rename_new(&path, &target)? {
                slot.done = true;
                drop(renamed);
                if id != slot.id
                    && let Some(parent) = slot.meta.parent
                {
                    let _lock = self.lock(true)?;
                    self.forget_child(parent, slot.id, &self.live_drafts()?)?;
                }
                return self.snapshot(id, &slot.meta);
            }
            if let Some(meta) = self.whole(id)? {
                drop(renamed);
                slot.throw_away()?;
                self.place.unlink(&mark)?;
                return self.snapshot(id, &meta);
            }
            // What is left of a snapshot whose deletion was cut short.
            self.throw_away(&target)?;
        }
    }

    /// Returns whether the draft's layer changes nothing of what it stands on, as after `true`.
    ///
    /// Every layer makes each miss in a merged directory slower, and every mount.
    fn is_void(&self, slot: &Slot) -> Result<bool, Error> {
        let own = format!("{}/fs", slot.path());
        let layer = |number: usize| {
            let layer = slot.meta.lower.get(number)?;
            Some(self.place.open_directory(&layer.path()))
        };
        let upper = self.open_layer(&own)?;
        tree::is_void(&upper, layer).map_err(|errno| self.place.error("look at", &own, errno))
    }

    /// Makes `merged` from the draft's layer and the upper ones below it. The last one stays what it is: it is the
    /// base, mostly larger than the others together.
    fn squash_draft(&self, slot: &mut Slot) -> Result<(), Error> {
        let own = format!("{}/fs", slot.path());
        let mut entries = vec![self.count(&own)?];
        let (_, middle) = slot
            .meta
            .lower
            .split_last_mut()
            .expect("the limit is above zero");
        for layer in middle {
            if layer.entries == 0 {
                layer.entries = self.count(&layer.path())?;
            }
            entries.push(layer.entries);
        }
        let paths = |layers: &[Layer]| layers.iter().map(|layer| layer.path()).collect::<Vec<_>>();
        let (squashed, over) = slot.meta.lower.split_at(crowd(&entries) - 1);
        let mut layers = paths(squashed);
        layers.insert(0, own);
        let merged = format!("{}/merged", slot.path());
        let entries = self.squash(&layers, &paths(over), &merged)?;
        slot.meta.merged = Some(Merged {
            entries,
            over: over.to_vec(),
        });
        self.place
            .write(&format!("{}/meta", slot.path()), &slot.meta.to_text())
    }

    pub(super) fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        // Others leave the trash of an owner alone; without one they help to delete it.
        if let Err(error) = self.owner() {
            tracing::debug!(%error, "removing without an owner");
        }
        let lock = self.lock(true)?;
        let directory = format!("snapshots/{id}");
        let live = self.live_drafts()?;
        let mut children = Vec::new();
        for name in self.place.names(&directory)? {
            let Some(child) = name
                .strip_prefix("child.")
                .and_then(|child| child.parse().ok())
            else {
                continue;
            };
            if self.is_wanted(child, &live)? {
                children.push(child);
            } else {
                self.place.unlink(&format!("{directory}/{name}"))?;
            }
        }
        if !children.is_empty() {
            return Err(Error::HasChildren { id, children });
        }
        // A snapshot whose meta is damaged can be removed all the same.
        let parent = self.meta(id).ok().flatten().and_then(|meta| meta.parent);
        let trash = self.trash(&directory)?;
        if let Some(parent) = parent {
            self.forget_child(parent, id, &live)?;
        }
        drop(lock);
        match trash {
            Some(trash) => self.trees.destroy(&self.place, &trash),
            None => Ok(()),
        }
    }

    /// Takes the mark of a child out of its parent, if nobody wants the child. The store must be locked alone.
    pub(super) fn forget_child(
        &self,
        parent: SnapshotId,
        id: SnapshotId,
        live: &LiveDrafts,
    ) -> Result<(), Error> {
        if self.is_wanted(id, live)? {
            return Ok(());
        }
        self.place.unlink(&format!("snapshots/{parent}/child.{id}"))
    }

    /// Returns whether a snapshot is there or being made. The store must be locked alone since before the drafts were
    /// listed: so none can have come, and one that was committed since is found among the snapshots.
    fn is_wanted(&self, id: SnapshotId, live: &LiveDrafts) -> Result<bool, Error> {
        Ok(live.contains(&id.to_string()) || self.place.exists(&format!("snapshots/{id}/meta"))?)
    }
}

/// Returns the number at the end of a slot's name.
pub(super) fn number(slot: &str) -> &str {
    slot.rsplit_once('.').map_or("", |(_, number)| number)
}
