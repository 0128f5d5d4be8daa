// SPDX-License-Identifier: Apache-2.0
//! Putting a build's results together for other machines.

use crate::{BuildResult, Engine, Error, ResultStep, StepRecord, blocking, ids};
use obuild_images::{
    CacheExport, CacheImport, Digest, SharedCopy, SharedLayer, SharedStep, layer, shared_layers,
};
use obuild_stores::SnapshotId;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Which results are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportMode {
    /// The target and what it stands on.
    Min,
    /// Every step of the build.
    Max,
}

impl Engine {
    /// Puts a build's results together for a cache. Layers that were made before are not made again. What the build did not have to fetch of
    /// `imports`, because something upon it was there, is passed on as they have it.
    pub async fn export_cache(
        self: &Arc<Self>,
        result: &BuildResult,
        mode: ExportMode,
        imports: &[Arc<CacheImport>],
        threads: usize,
        cancel: &CancellationToken,
    ) -> Result<CacheExport, Error> {
        let records = self.database().await?.steps().await?;
        let trees = self.database().await?.digests().await?;
        let mut copies = Vec::new();
        for (step, source, request) in result.steps.iter().filter_map(|step| step.copies) {
            let database = self.database().await?;
            let mut files = database.tree_digest(source, request).await?;
            let source = ids::snapshot(step);
            if files.is_none() {
                files = database.told_digest(source, request).await?;
            }
            copies.extend(files.map(|files| SharedCopy {
                source,
                request: Digest::from_bytes(request),
                files: Digest::from_bytes(files),
            }));
        }
        let trees: HashMap<SnapshotId, [u8; 32]> = trees
            .into_iter()
            .map(|(id, recorded)| (id, recorded.tree))
            .collect();
        let steps = result.steps.clone();
        let target = result.snapshot;
        let imports = imports.to_vec();
        let (engine, cancel) = (Arc::clone(self), cancel.clone());
        blocking(move || {
            let chosen = choose(&engine, &steps, target, mode)?;
            let mut export = CacheExport::default();
            for (place, snapshot) in chosen.into_iter().enumerate() {
                let (Some(snapshot), Some(parent)) = (snapshot, steps[place].parent) else {
                    continue;
                };
                let step = &steps[place];
                let shared = Sharing {
                    engine: &engine,
                    threads,
                    cancel: &cancel,
                    record: records.get(&snapshot),
                    tree: trees.get(&snapshot).copied(),
                };
                shared.add(&mut export, step, &steps[parent], snapshot)?;
            }
            if mode == ExportMode::Max {
                carry(&mut export, &steps, &imports);
            }
            for copy in copies {
                export.add_copy(copy);
            }
            Ok(export)
        })
        .await
    }
}

/// Passes steps on that are not here, each upon its parent.
fn carry(export: &mut CacheExport, steps: &[ResultStep], imports: &[Arc<CacheImport>]) {
    for step in steps {
        let Some(parent) = step.parent.map(|place| ids::snapshot(steps[place].step)) else {
            continue;
        };
        let id = ids::snapshot(step.step);
        imports
            .iter()
            .any(|cache| export.carry_step(cache, id, parent));
    }
}

/// Decides which snapshot is shared for each step. A layer means something only upon the one that its snapshot was made from, which need not be
/// the one that the step below has its name from.
fn choose(
    engine: &Engine,
    steps: &[ResultStep],
    target: SnapshotId,
    mode: ExportMode,
) -> Result<Vec<Option<SnapshotId>>, Error> {
    let mut chosen: Vec<Option<SnapshotId>> = vec![None; steps.len()];
    let mut order: Vec<usize> = (0..steps.len()).collect();
    // The target's own come first, and from the top: so a chain is seen whole.
    order.sort_by_key(|place| (steps[*place].snapshot != target, std::cmp::Reverse(*place)));
    for start in order {
        if mode == ExportMode::Min && steps[start].snapshot != target {
            continue;
        }
        let mut chain = Vec::new();
        let (mut place, mut snapshot) = (start, steps[start].snapshot);
        let fits = loop {
            let Some(there) = engine.store().get(snapshot).map_err(Error::Store)? else {
                break false;
            };
            if chosen[place].is_some_and(|other| other != snapshot) {
                break false;
            }
            chain.push((place, snapshot));
            match (steps[place].parent, there.parent) {
                (None, _) => break snapshot == steps[place].snapshot,
                (Some(below), Some(parent)) => (place, snapshot) = (below, parent),
                (Some(_), None) => break false,
            }
        };
        if fits {
            for (place, snapshot) in chain {
                chosen[place] = Some(snapshot);
            }
        } else {
            tracing::debug!(step = %steps[start].step, "the step is not shared");
        }
    }
    Ok(chosen)
}

/// What it takes to share one step.
struct Sharing<'a> {
    engine: &'a Engine,
    threads: usize,
    cancel: &'a CancellationToken,
    record: Option<&'a StepRecord>,
    tree: Option<[u8; 32]>,
}

impl Sharing<'_> {
    fn add(
        &self,
        export: &mut CacheExport,
        step: &ResultStep,
        parent: &ResultStep,
        snapshot: SnapshotId,
    ) -> Result<(), Error> {
        let store = self.engine.store();
        let there = store.get(snapshot).map_err(Error::Store)?;
        let since = there.and_then(|there| there.parent);
        let options = shared_layers(self.threads);
        let cancelled = || self.cancel.is_cancelled();
        let layer = match layer(store, since, snapshot, &options, &cancelled) {
            Err(obuild_images::Error::Cancelled) => return Err(Error::Cancelled),
            layer => layer.map_err(Error::Image)?,
        };
        if let Some(layer) = &layer {
            export.add_layer(layer);
        }
        // One that wrote nothing may have no log.
        let log = fs_err::read(self.engine.log_path(snapshot)).unwrap_or_default();
        let log = (!log.is_empty()).then(|| export.add_log(log));
        let record = self.record;
        export.add_step(SharedStep {
            step: ids::snapshot(step.step),
            parent: ids::snapshot(parent.step),
            kind: record.map_or("run", |record| &record.kind).to_owned(),
            heading: step.heading.clone(),
            created: record.map_or(0, |record| crate::database::milliseconds(record.created)),
            duration: record.map_or(0, |record| {
                u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX)
            }),
            layer: layer.map(|layer| SharedLayer {
                blob: obuild_images::SharedBlob {
                    digest: layer.digest,
                    size: layer.size,
                },
                diff_id: layer.diff_id,
            }),
            log,
            tree: self.tree.map(Digest::from_bytes),
        });
        Ok(())
    }
}
