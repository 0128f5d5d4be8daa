// SPDX-License-Identifier: Apache-2.0
//! What a store is and how it is, at a glance.

use super::Forest;
use crate::lock::Removal;
use crate::{Engine, Error, blocking};
use obuild_stores::{Capabilities, FileSystem, Space, Status, StoreUrl};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// What a store is and how it is.
#[derive(Clone, Debug)]
pub struct StoreInfo {
    /// The URL that opens it.
    pub url: String,
    /// The word that its URL begins with.
    pub kind: String,
    /// What its kind can do.
    pub capabilities: Option<Capabilities>,
    /// The directory of database, logs and locks.
    pub state_dir: PathBuf,
    /// What the store itself tells, if it keeps books of its own.
    pub status: Option<Status>,
    /// Snapshots in it.
    pub snapshots: usize,
    /// Snapshots in the longest chain.
    pub depth: usize,
    /// Snapshots that a power cut would take, since they have not been synced to the disk.
    pub provisional: usize,
    /// Snapshots that a running build counts on.
    pub in_use: usize,
    /// Snapshots with a recorded digest.
    pub digests: usize,
    /// Bytes that steps hold, of those that have been measured, and how many those are.
    pub steps_bytes: (u64, usize),
    /// Caches with their sizes; only if they were to be measured.
    pub caches: Option<Vec<(Vec<u8>, u64)>>,
    /// Space of the file system.
    pub space: Space,
    /// The file system below the state directory.
    pub file_system: Option<FileSystem>,
    /// When the store was last checked.
    pub last_check: Option<SystemTime>,
    /// What is known to be wrong.
    pub health: Health,
}

/// What is known to be wrong with a store without reading its trees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// One line for each kind of problem.
    pub problems: Vec<String>,
}

impl Engine {
    /// Describes the store. With `sizes`, measures what nobody has measured yet, which can take long.
    pub async fn info(self: &Arc<Self>, sizes: bool) -> Result<StoreInfo, Error> {
        if sizes {
            self.sized_steps().await?;
        }
        let database = self.database().await?;
        let (rows, digests) = (database.steps().await?, database.digests().await?);
        let mut problems = Vec::new();
        if let Some(aside) = database.aside() {
            problems.push(format!(
                "the database was damaged and put aside as {}",
                aside.display()
            ));
        }
        if let Some(wrong) = database.quick_check().await? {
            problems.push(format!("the database is damaged: {wrong}"));
        }
        let last = self.last_check().await?;
        if let Some((_, damage)) = last
            && damage > 0
        {
            problems.push(format!("the last check found {damage} damaged snapshots"));
        }
        let engine = Arc::clone(self);
        blocking(move || {
            let store = engine.store();
            let url = store.url();
            let listed = store.list().map_err(Error::Store)?;
            let there: HashSet<_> = listed.iter().map(|(id, _)| *id).collect();
            let in_use = Removal::begin(engine.state())?.in_use;
            let orphans = listed
                .iter()
                .filter(|(_, parent)| parent.is_some_and(|parent| !there.contains(&parent)));
            let unknown = there
                .iter()
                .filter(|id| !rows.contains_key(id) && !in_use.contains(id));
            let counts = [
                (orphans.count(), "snapshots whose parent is gone"),
                (unknown.count(), "snapshots that the database does not know"),
                (
                    rows.keys().filter(|id| !there.contains(id)).count(),
                    "steps in the database whose snapshot is gone",
                ),
            ];
            for (count, what) in counts {
                if count > 0 {
                    problems.push(format!("{count} {what}"));
                }
            }
            let status = store
                .upkeep()
                .map(obuild_stores::Upkeep::status)
                .transpose()
                .map_err(Error::Store)?;
            let measured = rows.values().filter_map(|row| row.size_bytes);
            let kind = url.split(':').next().unwrap_or_default().to_owned();
            Ok(StoreInfo {
                capabilities: url
                    .parse::<StoreUrl>()
                    .ok()
                    .and_then(|url| url.kind.capabilities()),
                kind,
                url,
                state_dir: engine.state().to_owned(),
                status,
                snapshots: listed.len(),
                depth: Forest::new(&listed).depth(),
                provisional: store.provisional().map_err(Error::Store)?.len(),
                in_use: there.intersection(&in_use).count(),
                digests: digests.keys().filter(|id| there.contains(id)).count(),
                steps_bytes: (measured.clone().sum(), measured.count()),
                caches: if sizes {
                    Some(store.caches().map_err(Error::Store)?)
                } else {
                    None
                },
                space: store.space().map_err(Error::Store)?,
                file_system: FileSystem::of(engine.state()),
                last_check: last.map(|(time, _)| time),
                health: Health { problems },
            })
        })
        .await
    }
}
