// SPDX-License-Identifier: Apache-2.0
//! Looking at a store and removing from it: listing, deleting, pruning by last use, disk use.

use crate::lock::Removal;
use crate::{Engine, Error, StepRecord, blocking, ids};
use obuild_images::registry::{DIRECTORY, KeptBlob, kept_blobs};
use obuild_specs::StepId;
use obuild_stores::{SnapshotId, Space};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What to remove. Steps go in the order of their last use, oldest first, and only when nothing stands on them.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Only steps that no build has used for this long.
    pub older_than: Option<Duration>,
    /// Stop when steps and kept layers hold no more than this many bytes.
    pub keep_storage_bytes: Option<u64>,
    /// Stop when the file system has this many bytes free.
    pub free_bytes: Option<u64>,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The steps, in the order of removal.
    pub steps: Vec<StepRecord>,
    /// The bytes that they held.
    pub bytes: u64,
    /// How many layers of registries that were kept.
    pub layers: usize,
    /// The bytes that those held.
    pub layers_bytes: u64,
}

/// What a store holds.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Number of steps.
    pub steps: usize,
    /// Bytes that the steps hold.
    pub steps_bytes: u64,
    /// Caches with their bytes.
    pub caches: Vec<(Vec<u8>, u64)>,
    /// Bytes of logs.
    pub logs_bytes: u64,
    /// Number of blobs that were fetched from registries and are kept.
    pub blobs: usize,
    /// Bytes of those.
    pub blobs_bytes: u64,
    /// The file system below.
    pub space: Space,
}

impl Engine {
    /// Returns every step in the store, oldest first; those that the database does not know have `kind` `unknown`.
    pub async fn steps(self: &Arc<Self>) -> Result<Vec<StepRecord>, Error> {
        let mut known = self.database().await?.steps().await?;
        let engine = Arc::clone(self);
        let listed = blocking(move || engine.store().list().map_err(Error::Store)).await?;
        let mut steps: Vec<StepRecord> = listed
            .into_iter()
            .map(|(id, parent)| {
                let mut record = known.remove(&id).unwrap_or_else(|| StepRecord {
                    config: None,
                    id,
                    step: StepId::from_digest(*id.as_bytes()),
                    parent,
                    kind: "unknown".to_owned(),
                    heading: "(not in the database)".to_owned(),
                    created: UNIX_EPOCH,
                    used: UNIX_EPOCH,
                    duration: Duration::ZERO,
                    size_bytes: None,
                });
                record.parent = parent;
                record
            })
            .collect();
        steps.sort_by_key(|step| (step.created, step.id));
        Ok(steps)
    }

    /// Returns the snapshot that an id, or the beginning of one (at least four digits), stands for.
    ///
    /// A step's id means its newest result. A step that failed with its tree kept is found by the step's id too.
    pub async fn find(self: &Arc<Self>, text: &str) -> Result<SnapshotId, Error> {
        let missing = || Error::NoSuchStep(text.to_owned());
        if text.len() < 4 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(missing());
        }
        if let Ok(id) = text.parse::<SnapshotId>() {
            let newest = self.database().await?.overrides().await?.get(&id).copied();
            for id in [newest, Some(id), Some(ids::failed(id))]
                .into_iter()
                .flatten()
            {
                if self.store().get(id).map_err(Error::Store)?.is_some() {
                    return Ok(id);
                }
            }
            return Err(missing());
        }
        let text_lower = text.to_ascii_lowercase();
        let steps = self.steps().await?;
        let fitting: BTreeSet<SnapshotId> = steps
            .iter()
            .filter(|step| {
                step.id.to_string().starts_with(&text_lower)
                    || step.step.to_string().starts_with(&text_lower)
            })
            .map(|step| step.id)
            .collect();
        match (fitting.first(), fitting.len()) {
            (None, _) => Err(missing()),
            (Some(id), 1) => Ok(*id),
            (_, count) => Err(Error::AmbiguousId {
                prefix: text.to_owned(),
                count,
            }),
        }
    }

    /// Returns the id of a log that a text stands for: of a step in the store or of one that failed.
    pub async fn find_log(self: &Arc<Self>, text: &str) -> Result<SnapshotId, Error> {
        if let Ok(id) = text.parse::<SnapshotId>()
            && self.log_path(id).exists()
        {
            return Ok(id);
        }
        // A step that failed has a log and no snapshot, or one of another name.
        let directory = self.state().join("logs");
        let io = |source| Error::Io {
            action: "list",
            path: directory.clone(),
            source,
        };
        let mut fitting = Vec::new();
        for entry in fs_err::read_dir(&directory).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            if let Some(name) = name.to_str()
                && text.len() >= 4
                && name.starts_with(text)
                && let Ok(id) = name.parse()
            {
                fitting.push(id);
            }
        }
        match fitting.as_slice() {
            // A base that was unpacked has no log.
            [] => self.find(text).await,
            [id] => Ok(*id),
            _ => Err(Error::AmbiguousId {
                prefix: text.to_owned(),
                count: fitting.len(),
            }),
        }
    }

    /// Removes a step; with `recursive`, also everything that stands on it. Returns what was removed.
    pub async fn delete(
        self: &Arc<Self>,
        id: SnapshotId,
        recursive: bool,
    ) -> Result<Vec<SnapshotId>, Error> {
        let engine = Arc::clone(self);
        let removed = blocking(move || {
            let store = engine.store();
            let children = children(&store.list().map_err(Error::Store)?);
            // Parents before children here; removal goes from the end.
            let mut doomed = vec![id];
            let mut next = 0;
            while next < doomed.len() {
                doomed.extend(children.get(&doomed[next]).into_iter().flatten());
                next += 1;
            }
            if doomed.len() > 1 && !recursive {
                return Err(Error::HasChildren {
                    id: id.to_string(),
                    count: doomed.len() - 1,
                });
            }
            let removal = Removal::begin(engine.state())?;
            if let Some(used) = doomed.iter().find(|id| removal.in_use.contains(id)) {
                return Err(Error::InUse(used.to_string()));
            }
            for id in doomed.iter().rev() {
                store.remove(*id).map_err(Error::Store)?;
                engine.remove_log(*id);
            }
            engine.sweep_images()?;
            Ok(doomed)
        })
        .await?;
        self.database().await?.forget(&removed).await?;
        Ok(removed)
    }

    /// Removes layers that were kept after they were fetched, oldest first, then steps by their last use, leaves first. What a running build
    /// counts on stays.
    ///
    /// `tell` hears of every step before it is removed and ends the pruning by returning `false`.
    pub async fn prune(
        self: &Arc<Self>,
        options: PruneOptions,
        mut tell: impl FnMut(&StepRecord, u64) -> bool + Send + 'static,
    ) -> Result<Pruned, Error> {
        let steps = self.sized_steps().await?;
        let engine = Arc::clone(self);
        let pruned = blocking(move || {
            let store = engine.store();
            let mut left: HashMap<SnapshotId, usize> = children(
                &steps
                    .iter()
                    .map(|step| (step.id, step.parent))
                    .collect::<Vec<_>>(),
            )
            .into_iter()
            .map(|(id, children)| (id, children.len()))
            .collect();
            let by_id: HashMap<SnapshotId, &StepRecord> =
                steps.iter().map(|step| (step.id, step)).collect();
            let mut leaves: BTreeSet<(SystemTime, SnapshotId)> = steps
                .iter()
                .filter(|step| !left.contains_key(&step.id))
                .map(|step| (step.used, step.id))
                .collect();
            let mut held: u64 = steps.iter().filter_map(|step| step.size_bytes).sum();
            let mut available = store.space().map_err(Error::Store)?.available;
            let oldest = options
                .older_than
                .and_then(|age| SystemTime::now().checked_sub(age));
            let mut pruned = Pruned::default();
            let blobs = engine.kept_blobs()?;
            held += blobs.iter().map(|blob| blob.bytes).sum::<u64>();
            let everything = options.older_than.is_none()
                && options.keep_storage_bytes.is_none()
                && options.free_bytes.is_none();
            for blob in blobs {
                if oldest.is_some_and(|oldest| blob.fetched > oldest)
                    || options.keep_storage_bytes.is_some_and(|keep| held <= keep)
                    || options.free_bytes.is_some_and(|free| available >= free)
                {
                    break;
                }
                if (blob.is_document() && !everything) || !(options.dry_run || blob.remove()) {
                    continue;
                }
                held = held.saturating_sub(blob.bytes);
                available = available.saturating_add(blob.bytes);
                pruned.layers += 1;
                pruned.layers_bytes += blob.bytes;
            }
            while let Some((used, id)) = leaves.pop_first() {
                if oldest.is_some_and(|oldest| used > oldest)
                    || options.keep_storage_bytes.is_some_and(|keep| held <= keep)
                    || options.free_bytes.is_some_and(|free| available >= free)
                {
                    break;
                }
                let step = by_id[&id];
                let size = step.size_bytes.unwrap_or(0);
                if !options.dry_run {
                    // Taken anew for each step, so that builds that start meanwhile wait for one removal at most.
                    let removal = Removal::begin(engine.state())?;
                    if removal.in_use.contains(&id) {
                        continue;
                    }
                    if !tell(step, size) {
                        break;
                    }
                    match store.remove(id) {
                        Ok(()) => engine.remove_log(id),
                        // Something was built on it since we looked.
                        Err(obuild_stores::Error::HasChildren { .. }) => continue,
                        Err(error) => return Err(Error::Store(error)),
                    }
                    if options.free_bytes.is_some() {
                        available = store.space().map_err(Error::Store)?.available;
                    }
                } else if !tell(step, size) {
                    break;
                }
                if options.dry_run {
                    available = available.saturating_add(size);
                }
                held = held.saturating_sub(size);
                pruned.bytes += size;
                pruned.steps.push(step.clone());
                if let Some(parent) = step.parent
                    && let Some(count) = left.get_mut(&parent)
                {
                    *count -= 1;
                    if *count == 0
                        && let Some(parent) = by_id.get(&parent)
                    {
                        leaves.insert((parent.used, parent.id));
                    }
                }
            }
            if !options.dry_run {
                store.sweep().map_err(Error::Store)?;
                engine.sweep_images()?;
                engine.remove_stale_logs(oldest)?;
            }
            Ok((pruned, options.dry_run))
        })
        .await?;
        let (pruned, dry_run) = pruned;
        if !dry_run {
            let ids: Vec<SnapshotId> = pruned.steps.iter().map(|step| step.id).collect();
            self.database().await?.forget(&ids).await?;
        }
        Ok(pruned)
    }

    fn kept_blobs(&self) -> Result<Vec<KeptBlob>, Error> {
        let path = self.state().join(DIRECTORY);
        kept_blobs(&path).map_err(|source| Error::Io {
            action: "list",
            path,
            source,
        })
    }

    /// Returns what the store holds.
    pub async fn usage(self: &Arc<Self>) -> Result<Usage, Error> {
        let steps = self.sized_steps().await?;
        let engine = Arc::clone(self);
        blocking(move || {
            let store = engine.store();
            let directory = engine.state().join("logs");
            let io = |source| Error::Io {
                action: "list",
                path: directory.clone(),
                source,
            };
            let mut logs_bytes = 0;
            for entry in fs_err::read_dir(&directory).map_err(io)? {
                // A log that was removed meanwhile has no size.
                logs_bytes += entry
                    .map_err(io)?
                    .metadata()
                    .map_or(0, |metadata| metadata.len());
            }
            let blobs = engine.kept_blobs()?;
            Ok(Usage {
                blobs: blobs.len(),
                blobs_bytes: blobs.iter().map(|blob| blob.bytes).sum(),
                steps: steps.len(),
                steps_bytes: steps.iter().filter_map(|step| step.size_bytes).sum(),
                caches: store.caches().map_err(Error::Store)?,
                logs_bytes,
                space: store.space().map_err(Error::Store)?,
            })
        })
        .await
    }

    /// Returns all steps with their sizes, measuring those that nobody has measured before.
    pub async fn sized_steps(self: &Arc<Self>) -> Result<Vec<StepRecord>, Error> {
        let mut steps = self.steps().await?;
        let unknown: Vec<SnapshotId> = steps
            .iter()
            .filter(|step| step.size_bytes.is_none())
            .map(|step| step.id)
            .collect();
        if unknown.is_empty() {
            return Ok(steps);
        }
        let engine = Arc::clone(self);
        let sizes = blocking(move || {
            let mut sizes = Vec::with_capacity(unknown.len());
            for id in unknown {
                match engine.store().size(id) {
                    Ok(size) => sizes.push((id, size)),
                    // Removed by another process since the listing.
                    Err(obuild_stores::Error::NoSuchSnapshot(_)) => {}
                    Err(error) => return Err(Error::Store(error)),
                }
            }
            Ok(sizes)
        })
        .await?;
        self.database().await?.set_sizes(&sizes).await?;
        let sizes: HashMap<_, _> = sizes.into_iter().collect();
        for step in &mut steps {
            step.size_bytes = step.size_bytes.or_else(|| sizes.get(&step.id).copied());
        }
        Ok(steps)
    }

    pub(crate) fn remove_log(&self, id: SnapshotId) {
        // A base has no log, and a log that stays is removed by a later prune.
        let _ = fs_err::remove_file(self.log_path(id));
    }

    /// Removes logs of steps that are not in the store (they failed), unless they are newer than `oldest`.
    fn remove_stale_logs(&self, oldest: Option<SystemTime>) -> Result<(), Error> {
        let kept: HashSet<SnapshotId> = self
            .store()
            .list()
            .map_err(Error::Store)?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let directory = self.state().join("logs");
        let io = |source| Error::Io {
            action: "list",
            path: directory.clone(),
            source,
        };
        let day_ago = SystemTime::now().checked_sub(Duration::from_hours(24));
        for entry in fs_err::read_dir(&directory).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<SnapshotId>().ok())
            else {
                continue;
            };
            let limit = oldest.or(day_ago);
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| limit.is_some_and(|limit| time < limit));
            if old && !kept.contains(&id) {
                self.remove_log(id);
            }
        }
        Ok(())
    }
}

/// Returns the snapshots that stand on each.
fn children(steps: &[(SnapshotId, Option<SnapshotId>)]) -> HashMap<SnapshotId, Vec<SnapshotId>> {
    let mut children: HashMap<SnapshotId, Vec<SnapshotId>> = HashMap::new();
    for (id, parent) in steps {
        if let Some(parent) = parent {
            children.entry(*parent).or_default().push(*id);
        }
    }
    children
}
