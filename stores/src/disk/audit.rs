// SPDX-License-Identifier: Apache-2.0
//! Whether a store's books are right, and mending them.

use super::Shared;
use super::meta::Meta;
use super::owner::{LiveDrafts, purpose};
use crate::store::Store as _;
use crate::upkeep::{DraftStatus, Finding, FindingKind, Status, Upkeep};
use crate::{Error, SnapshotId};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

impl Upkeep for super::Disk {
    fn status(&self) -> Result<Status, Error> {
        let shared = &self.shared;
        Ok(Status {
            format: super::format::VERSION,
            drafts: shared.draft_statuses()?,
            trash: shared.place.names("trash")?.len(),
        })
    }

    fn audit(&self, mend: bool) -> Result<Vec<Finding>, Error> {
        let shared = &self.shared;
        let mut audit = Audit {
            shared,
            mend,
            findings: Vec::new(),
            trash: Vec::new(),
        };
        {
            // Nothing is begun or removed meanwhile; what is committed meanwhile was a draft when we began.
            let _lock = shared.lock(true)?;
            let live = shared.live_drafts()?;
            audit.drafts()?;
            audit.snapshots(&live)?;
        }
        audit.caches()?;
        for name in &audit.trash {
            shared.trees.destroy(&shared.place, name)?;
        }
        audit.strays()?;
        let findings = audit.findings;
        if mend && !findings.is_empty() {
            self.sweep()?;
        }
        Ok(findings)
    }
}

impl Shared {
    fn draft_statuses(&self) -> Result<Vec<DraftStatus>, Error> {
        let mut statuses = Vec::new();
        if self.place.names("drafts")?.is_empty() {
            return Ok(statuses);
        }
        let _lock = self.lock(true)?;
        for owner in self.place.names("drafts")? {
            let alive = self.is_alive(&owner)?;
            let (opened, process) = parse_owner(&owner);
            for slot in self.place.names(&format!("drafts/{owner}"))? {
                statuses.push(DraftStatus {
                    id: purpose(&slot).parse().ok(),
                    process,
                    opened,
                    alive,
                });
            }
        }
        Ok(statuses)
    }
}

/// Takes an owner's name apart: see `unique_name`.
fn parse_owner(name: &str) -> (Option<SystemTime>, Option<u32>) {
    let mut parts = name.split('-');
    let opened = parts
        .next()
        .and_then(|nanoseconds| u64::from_str_radix(nanoseconds, 16).ok())
        .map(|nanoseconds| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds));
    let process = parts
        .next()
        .and_then(|process| u32::from_str_radix(process, 16).ok());
    (opened, process)
}

struct Audit<'a> {
    shared: &'a Shared,
    mend: bool,
    findings: Vec<Finding>,
    /// What is to be deleted when nothing is locked any more.
    trash: Vec<String>,
}

impl Audit<'_> {
    fn damage(&mut self, id: SnapshotId, message: String) {
        self.findings.push(Finding {
            kind: FindingKind::Damage,
            snapshot: Some(id),
            message,
            mended: false,
        });
    }

    fn books(&mut self, snapshot: Option<SnapshotId>, message: String, mended: bool) {
        self.findings.push(Finding {
            kind: FindingKind::Books,
            snapshot,
            message,
            mended,
        });
    }

    /// The store must be locked alone for this and the next.
    fn drafts(&mut self) -> Result<(), Error> {
        let place = &self.shared.place;
        let mut dead = 0;
        for owner in place.names("drafts")? {
            if !self.shared.is_alive(&owner)? {
                dead += place.names(&format!("drafts/{owner}"))?.len().max(1);
            }
        }
        if dead > 0 {
            // The sweep that follows takes them.
            self.books(None, format!("{dead} drafts of dead processes"), self.mend);
        }
        Ok(())
    }

    fn snapshots(&mut self, live: &LiveDrafts) -> Result<(), Error> {
        let shared = self.shared;
        let place = &shared.place;
        let mut metas: HashMap<SnapshotId, Meta> = HashMap::new();
        let mut unreadable = Vec::new();
        for name in place.names("snapshots")? {
            let Ok(id) = name.parse::<SnapshotId>() else {
                let message = format!(
                    "{} is no snapshot",
                    place.path("snapshots").join(&name).display()
                );
                self.books(None, message, false);
                continue;
            };
            match shared.meta(id) {
                Ok(Some(meta)) => {
                    metas.insert(id, meta);
                }
                Ok(None) => {
                    if self.mend {
                        self.trash
                            .extend(shared.trash(&format!("snapshots/{name}"))?);
                    }
                    let message = "the rest of a snapshot whose deletion was cut short".to_owned();
                    self.books(Some(id), message, self.mend);
                }
                Err(error) => {
                    self.damage(id, chain(&error));
                    unreadable.push(id);
                }
            }
        }
        let mut there: HashMap<String, bool> = HashMap::new();
        let mut exists = |name: String| -> Result<bool, Error> {
            if let Some(there) = there.get(&name) {
                return Ok(*there);
            }
            let exists = if name.ends_with("/fs") {
                shared.trees.is_there(place, &name)?
            } else {
                place.exists(&name)?
            };
            there.insert(name, exists);
            Ok(exists)
        };
        for (id, meta) in &metas {
            if !exists(format!("snapshots/{id}/fs"))? {
                self.damage(*id, "its tree is gone".to_owned());
            }
            if let Some(parent) = meta.parent {
                if !metas.contains_key(&parent) && !unreadable.contains(&parent) {
                    self.damage(*id, format!("its parent {parent} is gone"));
                } else if !exists(format!("snapshots/{parent}/child.{id}"))? {
                    if self.mend {
                        place.mark(&format!("snapshots/{parent}/child.{id}"))?;
                    }
                    let message = format!("its parent {parent} does not know of it");
                    self.books(Some(*id), message, self.mend);
                }
            }
            for layer in &meta.lower {
                // A missing parent has been told.
                if metas.contains_key(&layer.snapshot()) && !exists(layer.path())? {
                    self.damage(*id, format!("its layer {} is gone", layer.path()));
                }
            }
        }
        for id in metas.keys() {
            for name in place.names(&format!("snapshots/{id}"))? {
                let Some(Ok(child)) = name.strip_prefix("child.").map(str::parse::<SnapshotId>)
                else {
                    continue;
                };
                let wanted = metas
                    .get(&child)
                    .is_some_and(|meta| meta.parent == Some(*id))
                    || unreadable.contains(&child)
                    || live.contains(&child.to_string());
                if !wanted {
                    if self.mend {
                        place.unlink(&format!("snapshots/{id}/{name}"))?;
                    }
                    let message = format!("it counts a child that is not there ({child})");
                    self.books(Some(*id), message, self.mend);
                }
            }
        }
        Ok(())
    }

    fn caches(&mut self) -> Result<(), Error> {
        for (name, lost) in self.shared.broken_caches()? {
            let text = String::from_utf8_lossy(&name).into_owned();
            if self.mend {
                // What a cache held can be made again by whoever uses it.
                self.shared.delete_cache(&name)?;
            }
            let message = format!("the cache {text:?} has lost {lost}");
            self.books(None, message, self.mend);
        }
        Ok(())
    }
}

impl Audit<'_> {
    /// To be called when the trash is deleted.
    fn strays(&mut self) -> Result<(), Error> {
        // The sweep that follows takes them.
        let strays = self.shared.trees.strays(&self.shared.place, false)?;
        if strays > 0 {
            let message = format!("{strays} trees that no snapshot or cache stands for");
            self.books(None, message, self.mend);
        }
        Ok(())
    }
}

/// Writes an error and its causes on one line.
fn chain(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owners_name_tells_whose_it_is() {
        let (opened, process) = parse_owner(&super::super::owner::unique_name());
        assert_eq!(process, Some(std::process::id()));
        let age = opened.unwrap().elapsed().unwrap();
        assert!(age < Duration::from_mins(1), "{age:?}");
        assert_eq!(parse_owner("x"), (None, None));
    }
}
