// SPDX-License-Identifier: Apache-2.0
//! Taking a step's result from a cache that another machine has filled, instead of running the step.
//!
//! A layer says what a step changed, and means something only upon the tree that it was made upon. So what a fetched result stands on is
//! fetched too, unless the store has it from the same cache, or has put it there itself. A result of the same step that was built here may be
//! another: it stays as it is, and what was fetched beside it gets a name of its own.

use crate::job::Progress;
use crate::lock::StepLock;
use crate::log::{POLL, Writer};
use crate::{Engine, Error, StepRecord, ids};
use obuild_images::{CacheImport, Digest, Fetching, SharedStep, known_diff_id, shared_layers};
use obuild_sandboxes::Cancel;
use obuild_specs::StepId;
use obuild_stores::SnapshotId;
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A step of a cache, with what it stands on.
#[derive(Clone)]
pub(crate) struct Fetch {
    cache: Arc<CacheImport>,
    base: SnapshotId,
    /// The steps between the base and this one, lowest first.
    below: Vec<Rung>,
    step: SharedStep,
}

/// A step that another stands on.
#[derive(Clone)]
struct Rung {
    step: SharedStep,
    /// What the step's result is called in this store.
    plain: SnapshotId,
    /// What the cache's result is called where that name belongs to another.
    other: SnapshotId,
}

impl Fetch {
    /// Puts together what the cache has: the base's snapshot, and the steps upon it with the names of their results, lowest first.
    pub(crate) fn new(
        cache: Arc<CacheImport>,
        base: SnapshotId,
        steps: Vec<(SharedStep, SnapshotId)>,
    ) -> Option<Self> {
        let mut content = Sha256::new();
        content.update(base.as_bytes());
        let mut below: Vec<Rung> = steps
            .into_iter()
            .map(|(step, plain)| {
                content.update(step.diff_id().map_or([0; 32], |digest| *digest.as_bytes()));
                let other = ids::fetched(plain, &content.clone().finalize().into());
                Rung { step, plain, other }
            })
            .collect();
        let step = below.pop()?.step;
        Some(Self {
            cache,
            base,
            below,
            step,
        })
    }

    /// Returns the snapshots that may be made besides the step's own.
    pub(crate) fn others(&self) -> impl Iterator<Item = SnapshotId> {
        self.below.iter().map(|rung| rung.other)
    }

    /// Returns the kind that the step had where it was run.
    pub(crate) fn kind(&self) -> &'static str {
        if self.step.kind == "copy" {
            "copy"
        } else {
            "run"
        }
    }

    /// Returns what the step's layer is upon, if all below it has been fetched.
    pub(crate) fn parent(&self) -> SnapshotId {
        self.below.last().map_or(self.base, |rung| rung.plain)
    }

    /// Returns when the step was run, and how long it took.
    pub(crate) fn made(&self) -> (SystemTime, Duration) {
        made(&self.step)
    }

    /// Returns the digest of the tree, if the cache has it.
    pub(crate) fn tree(&self) -> Option<Digest> {
        self.step.tree
    }

    /// Begins to fetch the step's layer.
    pub(crate) fn start(&self) -> Result<Fetching, Error> {
        let started = self.cache.start(&self.step);
        started.map_err(|error| self.failed(error))
    }

    fn failed(&self, source: obuild_images::Error) -> Error {
        match source {
            obuild_images::Error::Cancelled => Error::Cancelled,
            source => Error::NotFetched {
                heading: self.step.heading.clone(),
                cache: self.cache.title().to_owned(),
                source: Box::new(source),
            },
        }
    }

    /// Makes the step's snapshot and its log. The caller holds the step's lock.
    pub(crate) fn execute(
        &self,
        engine: &Engine,
        id: SnapshotId,
        fetching: Fetching,
        log: &mut Writer,
        cancel: &Cancel,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let mut parent = self.base;
        for rung in &self.below {
            parent = self.rung(engine, rung, parent, cancel)?;
        }
        let mut tell = |event: obuild_images::Progress<'_>| match event {
            obuild_images::Progress::Unpack { bytes, total, .. }
            | obuild_images::Progress::Fetch { bytes, total } => progress(bytes, Some(total)),
            _ => {}
        };
        let cancelled = || cancel.is_cancelled();
        let placed = fetching.place(engine.store(), id, parent, &mut tell, &cancelled);
        placed.map_err(|error| self.failed(error))?;
        match self.cache.log(&self.step, &cancelled) {
            Ok(text) => log.write(&text),
            // The result is there; to run the step for its log would be no help.
            Err(error) => tracing::warn!(%error, "the step's log could not be fetched"),
        }
        Ok(())
    }

    /// Sees to it that a result that others stand on is there as the cache has it, and returns its name.
    fn rung(
        &self,
        engine: &Engine,
        rung: &Rung,
        parent: SnapshotId,
        cancel: &Cancel,
    ) -> Result<SnapshotId, Error> {
        let store = engine.store();
        let get = |id| store.get(id).map_err(Error::Store);
        let is_same = || -> Result<bool, Error> {
            let there = get(rung.plain)?.is_some_and(|there| there.parent == Some(parent));
            let known = || known_diff_id(store, parent, rung.plain, &shared_layers(1));
            Ok(there && known() == Some(rung.step.diff_id()))
        };
        if is_same()? {
            return Ok(rung.plain);
        }
        let id = if get(rung.plain)?.is_none() {
            rung.plain
        } else {
            rung.other
        };
        let _lock = loop {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if let Some(lock) = StepLock::try_acquire(engine.state(), id)? {
                break lock;
            }
            std::thread::sleep(POLL);
        };
        if id == rung.plain && get(id)?.is_some() {
            // Somebody has made it meanwhile, which may be another.
            return if is_same()? {
                Ok(id)
            } else {
                self.rung(engine, rung, parent, cancel)
            };
        }
        if get(id)?.is_some() {
            return Ok(id);
        }
        obuild_images::forget_layers_of(store, id).map_err(Error::Image)?;
        let started = self.cache.start(&rung.step);
        let placed = started.and_then(|fetching| {
            fetching.place(store, id, parent, &mut |_| {}, &|| cancel.is_cancelled())
        });
        placed.map_err(|error| self.failed(error))?;
        let (created, duration) = made(&rung.step);
        let record = StepRecord {
            id,
            // Not the step's: builds are to go on taking what they have for its result.
            step: StepId::from_digest(*id.as_bytes()),
            parent: Some(parent),
            kind: rung.step.kind.clone(),
            heading: rung.step.heading.clone(),
            created,
            used: SystemTime::now(),
            duration,
            size_bytes: None,
            config: None,
        };
        engine
            .finished
            .lock()
            .expect("no holder of this lock panics")
            .push(record);
        Ok(id)
    }
}

fn made(step: &SharedStep) -> (SystemTime, Duration) {
    let since = Duration::from_millis(u64::try_from(step.created).unwrap_or(0));
    // A time that cannot be is none.
    let created = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
    (created, Duration::from_millis(step.duration))
}
