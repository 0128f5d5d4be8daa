// SPDX-License-Identifier: Apache-2.0
//! What survives: marks of what is not on the disk yet, repair after a boot, and the sweep after a crash.
//!
//! A commit leaves a mark in `provisional/`, named after the draft it came from. [`Shared::sync`] has the file system
//! written out and takes away the marks that were there before. After a boot the marks that are left name what may be torn:
//! files whose names reached the disk and whose bytes did not.

use super::meta::Meta;
use super::{Shared, purpose};
use crate::place::Place;
use crate::{Error, SnapshotId};
use std::path::Path;

const BOOT: &str = "boot";

impl Shared {
    /// Drops what was provisional when the machine went down.
    pub(super) fn recover(&self, boot_id: Option<&str>) -> Result<(), Error> {
        let now = match boot_id {
            Some(id) => id.to_owned(),
            None => this_boot()?,
        };
        let seen = || {
            Ok::<_, Error>(
                self.place
                    .read(BOOT)?
                    .is_some_and(|boot| boot.trim() == now),
            )
        };
        if seen()? {
            return Ok(());
        }
        let lock = self.lock(true)?;
        if seen()? {
            return Ok(());
        }
        let mut trash = Vec::new();
        // No process of an earlier boot lives, so every mark is of something finished or given up.
        let marks = self.place.names("provisional")?;
        for mark in &marks {
            let name = committed_as(mark).0;
            if let Ok(id) = name.parse() {
                self.drop_with_descendants(id, &mut trash)?;
            } else {
                trash.extend(self.trash(&format!("caches/{name}"))?);
            }
        }
        for mark in &marks {
            self.place.unlink(&format!("provisional/{mark}"))?;
        }
        if !marks.is_empty() {
            tracing::info!(
                count = marks.len(),
                "dropped what had not reached the disk when the machine went down"
            );
        }
        // In place, which works on a full disk too; half of it is no boot's id, and has the next one look again.
        self.place.overwrite(BOOT, &format!("{now}\n"))?;
        drop(lock);
        if let Err(error) = self.delete_all(&trash) {
            tracing::warn!(%error, "not all that was dropped could be deleted");
        }
        Ok(())
    }

    /// Deletes all of it that can be deleted. Returns the first error.
    pub(super) fn delete_all(&self, trash: &[String]) -> Result<(), Error> {
        let deleted: Vec<_> = trash
            .iter()
            .map(|name| self.trees.destroy(&self.place, name))
            .collect();
        deleted.into_iter().collect()
    }

    /// Moves a snapshot and everything that stands on it to the trash, descendants first, so that a crash in
    /// the middle leaves no snapshot without its parent.
    pub(super) fn drop_with_descendants(
        &self,
        id: SnapshotId,
        trash: &mut Vec<String>,
    ) -> Result<(), Error> {
        let mut found = vec![id];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            next += 1;
            for name in self.place.names(&format!("snapshots/{parent}"))? {
                found.extend(
                    name.strip_prefix("child.")
                        .and_then(|child| child.parse::<SnapshotId>().ok()),
                );
            }
        }
        for id in found.into_iter().rev() {
            trash.extend(self.trash(&format!("snapshots/{id}"))?);
        }
        Ok(())
    }

    /// Returns what has been committed since the last sync.
    pub(super) fn provisional(&self) -> Result<Vec<SnapshotId>, Error> {
        let marks = self.place.names("provisional")?;
        // Caches are marked too, by names that are no ids.
        let ids = marks.iter().map(|mark| committed_as(mark).0.parse());
        Ok(ids.filter_map(Result::ok).collect())
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        // What is still a draft at this moment may be committed after the file system was written out.
        let mut marks = Vec::new();
        for mark in self.place.names("provisional")? {
            if !self
                .place
                .exists(&format!("drafts/{}", committed_as(&mark).1))?
            {
                marks.push(mark);
            }
        }
        self.trees.sync(&self.place)?;
        for mark in &marks {
            self.place.unlink(&format!("provisional/{mark}"))?;
        }
        if !marks.is_empty() {
            // A mark that came back after a power cut would take with it what is on the disk.
            self.place
                .open_directory("provisional")
                .and_then(rustix::fs::fsync)
                .map_err(|errno| self.place.error("write out", "provisional", errno))?;
        }
        Ok(())
    }

    /// Returns whether there is anything that [`Shared::sweep`] would look at.
    pub(super) fn has_leftovers(&self) -> Result<bool, Error> {
        Ok(!self.place.names("drafts")?.is_empty() || !self.place.names("trash")?.is_empty())
    }

    pub(super) fn sweep(&self) -> Result<(), Error> {
        let lock = self.lock(true)?;
        let mut dead = Vec::new();
        let mut alive = Vec::new();
        for owner in self.place.names("drafts")? {
            if self.is_alive(&owner)? {
                alive.push(owner);
            } else {
                dead.push(owner);
            }
        }
        let mut orphans = Vec::new();
        let mut trash = Vec::new();
        for owner in &dead {
            for slot in self.place.names(&format!("drafts/{owner}"))? {
                let meta = self.place.read(&format!("drafts/{owner}/{slot}/meta"));
                let parent = meta
                    .ok()
                    .flatten()
                    .and_then(|meta| Meta::parse(&meta)?.parent);
                if let (Ok(id), Some(parent)) = (purpose(&slot).parse(), parent) {
                    orphans.push((parent, id));
                }
            }
            trash.extend(self.trash(&format!("drafts/{owner}"))?);
        }
        let live = self.live_drafts()?;
        for (parent, id) in orphans {
            self.forget_child(parent, id, &live)?;
        }
        // Others are at work on theirs.
        let others = |entry: &String| {
            let owner = entry.split_once('.').map_or("", |(owner, _)| owner);
            owner != self.name && alive.iter().any(|alive| alive == owner)
        };
        let entries = self.place.names("trash")?;
        let entries = entries.into_iter().filter(|entry| !others(entry));
        trash.extend(entries.map(|entry| format!("trash/{entry}")));
        drop(lock);
        if !dead.is_empty() {
            self.sweep_caches()?;
        }
        self.delete_all(&trash)
    }
}

impl Shared {
    /// Removes what is left of snapshots whose deletion was cut short, and trees whose snapshots are gone. Looks at every snapshot.
    pub(super) fn sweep_rests(&self) -> Result<(), Error> {
        let mut trash = Vec::new();
        {
            let _lock = self.lock(true)?;
            for name in self.place.names("snapshots")? {
                if !self.place.exists(&format!("snapshots/{name}/meta"))? {
                    trash.extend(self.trash(&format!("snapshots/{name}"))?);
                }
            }
        }
        self.delete_all(&trash)?;
        let strays = self.trees.strays(&self.place, true)?;
        if strays > 0 {
            tracing::info!(strays, "deleted trees whose snapshots somebody has removed");
        }
        Ok(())
    }
}

/// Splits a mark into what was committed, and the draft it was committed from.
fn committed_as(mark: &str) -> (&str, String) {
    let mut parts = mark.rsplitn(3, '.');
    let (number, owner) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let name = parts.next().unwrap_or(mark);
    (name, format!("{owner}/{name}.{number}"))
}

/// Returns the kernel's random id of this boot (`random(4)`).
fn this_boot() -> Result<String, Error> {
    let directory = Place::open(Path::new("/proc/sys/kernel/random"))?;
    let id = directory.read("boot_id")?.unwrap_or_default();
    Ok(id.trim().to_owned())
}
