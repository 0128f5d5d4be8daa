// SPDX-License-Identifier: Apache-2.0
//! Finding the ids of a build's steps, which for a copy means looking at what it copies.

use super::Build;
use crate::job::{Scanned, Source, scan};
use crate::{Error, blocking, ids};
use obuild_images::tree::DigestMemo;
use obuild_sandboxes::Cancel;
use obuild_specs::{Copy, CopySource, NodeIndex, Operation, identity};
use std::sync::Arc;

impl Build {
    /// Gives every needed node the id that it can have before anything runs, and takes the lease on all of them.
    pub(super) async fn identify_all(self: &Arc<Self>, needed: &[NodeIndex]) -> Result<(), Error> {
        for &index in needed {
            self.identify(index, false).await?;
        }
        let snapshots = needed
            .iter()
            .filter_map(|index| self.states[*index].snapshot.get().copied());
        self.lease
            .lock()
            .expect("no holder of this lock panics")
            .add(snapshots)
    }

    /// Gives the node its id, if that can be known. With `now`, everything that it stands on is there.
    pub(super) async fn identify(
        self: &Arc<Self>,
        index: NodeIndex,
        now: bool,
    ) -> Result<(), Error> {
        let state = &self.states[index];
        if state.step.get().is_some() {
            return Ok(());
        }
        let step = match &self.plan.nodes[index].operation {
            Operation::Base { id, .. } => *id,
            Operation::Run { parent, run } => match self.states[*parent].step.get() {
                Some(parent) => identity::run_id(parent, run),
                None => return Ok(()),
            },
            Operation::Copy { parent, copy } => {
                let digest = self.tree_digest(index, copy, now).await?;
                match (self.states[*parent].step.get(), digest) {
                    (Some(parent), Some(digest)) => identity::copy_id(parent, &digest, copy),
                    _ => return Ok(()),
                }
            }
        };
        let plain = ids::snapshot(step);
        let snapshot = if self.forced[index] {
            ids::again(step, &self.nonce)
        } else {
            match self.overrides.get(&plain) {
                Some(newer) if self.exists(*newer)? => *newer,
                _ => plain,
            }
        };
        // Only one task identifies a node: `identify_all` before, or the node's own later.
        let _ = state.step.set(step);
        let _ = state.snapshot.set(snapshot);
        Ok(())
    }

    /// Returns the digest of what a copy copies; for the result of a step that has not run, `None`.
    async fn tree_digest(
        self: &Arc<Self>,
        index: NodeIndex,
        copy: &Copy,
        now: bool,
    ) -> Result<Option<[u8; 32]>, Error> {
        let state = &self.states[index];
        if let Some(digest) = state.digest.get() {
            return Ok(Some(*digest));
        }
        let digest = match copy.source {
            CopySource::Context => {
                let mut memo = self.memo.lock().await;
                let name = self.settings.context.to_string_lossy().into_owned();
                let mut digests = match memo.take() {
                    Some(digests) => digests,
                    None => DigestMemo::from_bytes(
                        &self
                            .engine
                            .database()
                            .await?
                            .memo(&name)
                            .await?
                            .unwrap_or_default(),
                    ),
                };
                let source = Source::Context(self.settings.context.clone());
                let (scanned, digests) = self
                    .scan(index, copy, source, move |scan| {
                        let scanned = scan(&mut digests)?;
                        Ok((scanned, digests))
                    })
                    .await?;
                if digests.changed() {
                    self.engine
                        .database()
                        .await?
                        .set_memo(&name, &digests.to_bytes())
                        .await?;
                }
                *memo = Some(digests);
                let digest = scanned.manifest.digest();
                let _ = state.scanned.set(Arc::new(scanned));
                digest
            }
            CopySource::Node(source) => {
                let Some(snapshot) = self.states[source].snapshot.get().copied() else {
                    return Ok(None);
                };
                let request = request_digest(copy);
                let database = self.engine.database().await?;
                if let Some(digest) = database.tree_digest(snapshot, request).await? {
                    digest
                } else if now || self.exists(snapshot)? {
                    let scanned = self
                        .scan(index, copy, Source::Snapshot(snapshot), |scan| {
                            scan(&mut DigestMemo::default())
                        })
                        .await?;
                    let digest = scanned.manifest.digest();
                    database.set_tree_digest(snapshot, request, digest).await?;
                    let _ = state.scanned.set(Arc::new(scanned));
                    digest
                } else if let Some(digest) = self.told_digest(index, copy).await? {
                    digest
                } else {
                    return Ok(None);
                }
            }
        };
        let _ = state.digest.set(digest);
        Ok(Some(digest))
    }

    /// Runs a scan on a blocking thread, which the build's cancellation stops.
    async fn scan<T: Send + 'static>(
        self: &Arc<Self>,
        index: NodeIndex,
        copy: &Copy,
        source: Source,
        work: impl FnOnce(&mut dyn FnMut(&mut DigestMemo) -> Result<Scanned, Error>) -> Result<T, Error>
        + Send
        + 'static,
    ) -> Result<T, Error> {
        let stop = Cancel::new().map_err(|error| Error::Bug(format!("eventfd: {error}")))?;
        let heading = self.plan.nodes[index].heading.clone();
        let copy = copy.clone();
        let engine = Arc::clone(&self.engine);
        let stopped = stop.clone();
        let scanning = blocking(move || {
            work(&mut |memo| scan(&heading, &copy, &source, engine.store(), memo, &stopped))
        });
        tokio::pin!(scanning);
        tokio::select! {
            result = &mut scanning => result,
            () = self.cancel.cancelled() => {
                stop.cancel();
                scanning.await
            }
        }
    }
}

/// Returns a digest of which files a copy asks for, length-prefixed so that no two requests look alike.
pub(super) fn request_digest(copy: &Copy) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for list in [&copy.src, &copy.exclude] {
        hash.update((list.len() as u64).to_le_bytes());
        for item in list {
            hash.update((item.len() as u64).to_le_bytes());
            hash.update(item.as_slice());
        }
    }
    hash.finalize().into()
}
