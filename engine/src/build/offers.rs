// SPDX-License-Identifier: Apache-2.0
//! What caches of other machines offer to a build: which steps are fetched, and what runs after all when one cannot be.

use super::{Build, identify::request_digest};
use crate::fetch::Fetch;
use crate::job::{Ready, Source, scan};
use crate::{Error, Event, blocking, ids};
use obuild_images::Digest;
use obuild_images::tree::DigestMemo;
use obuild_sandboxes::Cancel;
use obuild_specs::{Copy, CopySource, NodeIndex, Operation, StepId};
use obuild_stores::SnapshotId;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::sync::Arc;

/// A step of a finished build, for those who share its result.
#[derive(Clone, Debug)]
pub struct ResultStep {
    /// The node of the plan.
    pub node: NodeIndex,
    /// The step's identity.
    pub step: StepId,
    /// The snapshot that holds its tree.
    pub snapshot: SnapshotId,
    /// Where in the build's steps that is which it stands on; a base stands on none.
    pub parent: Option<usize>,
    /// The step as the spec has it.
    pub heading: String,
    /// What it copied from another step's result: that step, and the digest of which files were asked for.
    pub(crate) copies: Option<(StepId, SnapshotId, [u8; 32])>,
    /// The digest of what it copied, if it is a copy.
    pub copied: Option<[u8; 32]>,
}

impl Build {
    /// Returns what a cache has of the step and of all that it stands on.
    pub(super) fn offer(&self, index: NodeIndex) -> Option<Fetch> {
        self.settings.imports.iter().find_map(|cache| {
            let mut steps = Vec::new();
            let mut at = index;
            while let Some(parent) = self.plan.nodes[at].operation.parent() {
                let state = &self.states[at];
                if self.forced[at] || state.refused.initialized() {
                    return None;
                }
                let found = cache.find(ids::snapshot(*state.step.get()?))?;
                if found.parent != ids::snapshot(*self.states[parent].step.get()?) {
                    return None;
                }
                steps.push((found.clone(), ids::snapshot(*state.step.get()?)));
                at = parent;
            }
            steps.reverse();
            Fetch::new(Arc::clone(cache), *self.states[at].snapshot.get()?, steps)
        })
    }

    /// Returns what has to be there before the node has its result.
    pub(super) fn needs(&self, index: NodeIndex) -> Vec<NodeIndex> {
        let operation = &self.plan.nodes[index].operation;
        match (self.offer(index), operation.parent()) {
            (Some(_), Some(parent)) => vec![parent],
            _ => operation.edges().collect(),
        }
    }

    /// Takes the step's result from a cache; returns whether that went well.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        index: NodeIndex,
        fetch: Fetch,
    ) -> Result<bool, Error> {
        self.lease
            .lock()
            .expect("no holder of this lock panics")
            .add(fetch.others())?;
        let tree = fetch.tree();
        match self.fly(index, Some(fetch)).await {
            Ok(()) => {
                if let Some(tree) = tree {
                    let _ = self.states[index].tree.set(*tree.as_bytes());
                }
                Ok(true)
            }
            Err(error) if error.is_not_fetched() => {
                // Where one below was refused, that was told.
                if self.offer(index).is_some() {
                    let message = format!("{}; the step is run", error.told());
                    self.tell(Event::Warning { message }).await;
                }
                // Once is enough.
                let _ = self.states[index].refused.set(());
                self.demand(index)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Records what the trees of fetched results have to be, so that `obuild store check` finds out if they are something else.
    pub(super) async fn record_fetched(&self, needed: &[NodeIndex]) -> Result<(), Error> {
        let mut digests = Vec::new();
        for state in needed.iter().map(|index| &self.states[*index]) {
            if let (Some(id), Some(tree)) = (state.snapshot.get(), state.tree.get()) {
                let log = fs_err::read(self.engine.log_path(*id)).unwrap_or_default();
                let log = (!log.is_empty()).then(|| Sha256::digest(&log).to_vec());
                digests.push((*id, *tree, log.unwrap_or_default()));
            }
        }
        if digests.is_empty() {
            return Ok(());
        }
        self.engine.database().await?.set_digests(&digests).await
    }

    /// Returns what ends when the step that a node stands on is there.
    pub(super) fn ready(self: &Arc<Self>, index: NodeIndex) -> Option<Ready> {
        let parent = self.plan.nodes[index].operation.parent()?;
        let build = Arc::clone(self);
        Some(Box::pin(async move {
            tokio::select! {
                () = build.states[parent].done.wait() => {}
                () = build.cancel.cancelled() => return Err(Error::Cancelled),
            }
            // There is no hope where one below was refused: it would be asked for in vain once more.
            match build.offer(index) {
                Some(_) => Ok(()),
                None => Err(Error::NothingBelow {
                    heading: build.plan.nodes[index].heading.clone(),
                }),
            }
        }))
    }

    /// Wakes the nodes that a node needs now that it is to be run, and those that these need.
    fn demand(&self, index: NodeIndex) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut stack = self.needs(index);
        while let Some(index) = stack.pop() {
            if !seen.insert(index) {
                continue;
            }
            let state = &self.states[index];
            let twin = state.snapshot.get().and_then(|id| {
                let first = self.first.get()?;
                first.get(id).copied()
            });
            for index in [Some(index), twin].into_iter().flatten() {
                // It may be awake.
                let _ = self.states[index].wanted.set(());
            }
            if let Some(snapshot) = state.snapshot.get()
                && self.exists(*snapshot)?
            {
                continue;
            }
            stack.extend(self.needs(index));
        }
        Ok(())
    }

    /// Returns the digest of what a copy copies, as a cache has it, or had it in an earlier build. It is checked if the copy has to be made here.
    pub(super) async fn told_digest(
        &self,
        index: NodeIndex,
        copy: &Copy,
    ) -> Result<Option<[u8; 32]>, Error> {
        let (CopySource::Node(source), true) = (copy.source, self.trusting) else {
            return Ok(None);
        };
        if self.forced[source] {
            // It is run again, and may give something else.
            return Ok(None);
        }
        let Some(source) = self.states[source].step.get() else {
            return Ok(None);
        };
        let source = ids::snapshot(*source);
        let request = request_digest(copy);
        let database = self.engine.database().await?;
        let known = database.told_digest(source, request).await?;
        let mut imports = self.settings.imports.iter();
        let told = imports
            .find_map(|cache| cache.copied(source, Digest::from_bytes(request)))
            .map(|digest| *digest.as_bytes());
        if let Some(told) = told
            && known != Some(told)
        {
            // Without the cache, the result is to be found as well.
            database.set_told_digest(source, request, told).await?;
        }
        let digest = told.or(known);
        if digest.is_some() {
            let _ = self.states[index].told.set(());
        }
        Ok(digest)
    }

    /// Looks at what a copy copies whose digest a cache has told: a result must not get the id of another.
    pub(super) async fn check_told(self: &Arc<Self>, index: NodeIndex) -> Result<(), Error> {
        let node = &self.plan.nodes[index];
        let Operation::Copy { copy, .. } = &node.operation else {
            return Ok(());
        };
        let (CopySource::Node(source), true) = (copy.source, self.states[index].told.initialized())
        else {
            return Ok(());
        };
        let source = self.snapshot(source)?;
        let (copy, heading) = (copy.clone(), node.heading.clone());
        let engine = Arc::clone(&self.engine);
        let scanned = blocking(move || {
            let stop = Cancel::new().map_err(|error| Error::Bug(format!("eventfd: {error}")))?;
            let from = Source::Snapshot(source);
            let memo = &mut DigestMemo::default();
            scan(&heading, &copy, &from, engine.store(), memo, &stop)
        })
        .await?;
        if self.states[index].digest.get() == Some(&scanned.manifest.digest()) {
            return Ok(());
        }
        Err(Error::NotAsTold {
            heading: node.heading.clone(),
        })
    }

    /// Returns the steps that have an id, with what is needed to share them.
    pub(super) fn result_steps(&self, needed: &[NodeIndex]) -> Vec<ResultStep> {
        let mut places = std::collections::HashMap::new();
        let mut steps = Vec::new();
        for &index in needed {
            let (node, state) = (&self.plan.nodes[index], &self.states[index]);
            let (Some(step), Some(snapshot)) = (state.step.get(), state.snapshot.get()) else {
                continue;
            };
            let parent = match node.operation.parent() {
                None => None,
                Some(parent) => match places.get(&parent) {
                    Some(place) => Some(*place),
                    None => continue,
                },
            };
            let copies = match &node.operation {
                Operation::Copy { copy, .. } => match copy.source {
                    CopySource::Node(source) => {
                        let source = &self.states[source];
                        let known = source.step.get().zip(source.snapshot.get());
                        known.map(|(step, id)| (*step, *id, request_digest(copy)))
                    }
                    CopySource::Context => None,
                },
                _ => None,
            };
            places.insert(index, steps.len());
            steps.push(ResultStep {
                node: index,
                step: *step,
                snapshot: *snapshot,
                parent,
                heading: node.heading.clone(),
                copies,
                copied: state.digest.get().copied(),
            });
        }
        steps
    }
}
