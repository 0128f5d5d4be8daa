// SPDX-License-Identifier: Apache-2.0
//! Copying results from one store to another, of any kinds: parents first, and of each snapshot only what differs from its parent.
//!
//! A snapshot appears in the new store by its commit, so a copy that is killed is taken up where it ended. What is in the new store already
//! stays, also if its tree is another: two runs of one step may differ. What stands on it is then copied onto the tree that is there,
//! by the difference to that, and is as it was in the old store in any case: its digest is compared.

use super::{
    Forest, Progress, Recorded, Seen, Trouble, add, held, take_down, threads, with_ancestors,
};
use crate::lock::{Lease, StepLock};
use crate::{Engine, Error, StepRecord, blocking};
use obuild_images::tree::{self, ListOptions, Listing};
use obuild_stores::{Draft, Rootfs, Snapshot, SnapshotId};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often to ask for the lock of a step that somebody is building in the new store.
const POLL: Duration = Duration::from_millis(20);

/// Differences that are named when a copy is not what was copied.
const NAMED: usize = 3;

/// What is copied.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// These snapshots with all that they stand on; `None` for every snapshot.
    pub ids: Option<Vec<SnapshotId>>,
    /// Also copy the caches that the new store does not have, or has empty.
    pub caches: bool,
    /// How many chains are copied at once; `None` for as many as there are processors.
    pub threads: Option<usize>,
}

/// What was copied.
#[derive(Clone, Debug, Default)]
pub struct CopyReport {
    /// Snapshots that were copied.
    pub copied: usize,
    /// Snapshots that were there.
    pub present: usize,
    /// Bytes of content that were written.
    pub bytes: u64,
    /// Caches that were copied.
    pub caches: usize,
    /// Snapshots that could not be copied since they are damaged, and why; what stands on them was left out too.
    pub failed: Vec<(SnapshotId, String)>,
}

/// A snapshot in both stores.
struct Pair {
    from: Seen,
    to: Seen,
}

/// What the threads of a copy have done.
#[derive(Default)]
struct Done {
    copied: Vec<(SnapshotId, [u8; 32])>,
    failed: Vec<(SnapshotId, String)>,
    /// Snapshots that are the same in both stores.
    same: Vec<SnapshotId>,
}

impl Engine {
    /// Copies results, with their logs and what the database knows of them, to another store.
    pub async fn copy_to(
        self: &Arc<Self>,
        to: &Arc<Self>,
        options: CopyOptions,
        progress: Arc<Progress>,
        cancel: &CancellationToken,
    ) -> Result<CopyReport, Error> {
        let (ours, theirs) = (self.database().await?, to.database().await?);
        let (ours_recorded, theirs_recorded) = (ours.digests().await?, theirs.digests().await?);
        let work = Work {
            from: Arc::clone(self),
            to: Arc::clone(to),
            ours: ours_recorded,
            theirs: theirs_recorded,
            needed: HashSet::new(),
            progress,
            cancel: cancel.clone(),
            done: Mutex::default(),
        };
        let (ids, threads) = (options.ids.clone(), threads(options.threads));
        let (work, chains, leases, result) = blocking(move || work.run(ids, threads)).await?;
        // Also after a failure: what was copied is copied.
        let done = std::mem::take(&mut *work.done());
        let chain: Vec<SnapshotId> = chains.iter().map(|(id, _)| *id).collect();
        self.copy_rows(to, &chains, &done).await?;
        let mut report = CopyReport {
            copied: done.copied.len(),
            present: 0,
            bytes: work.progress.bytes.load(Ordering::Relaxed),
            caches: 0,
            failed: done.failed,
        };
        let engine = Arc::clone(to);
        report.present = blocking(move || {
            let mut there = 0;
            for id in chain {
                there += usize::from(super::is_there(engine.store(), id)?);
            }
            Ok(there)
        })
        .await?
        .saturating_sub(report.copied);
        result?;
        drop(leases);
        if options.caches {
            report.caches = blocking(move || work.caches()).await?;
        }
        Ok(report)
    }

    /// Copies what the database knows of the snapshots that are in the new store now.
    async fn copy_rows(
        self: &Arc<Self>,
        to: &Arc<Self>,
        chains: &[(SnapshotId, Option<SnapshotId>)],
        done: &Done,
    ) -> Result<(), Error> {
        let (ours, theirs) = (self.database().await?, to.database().await?);
        let engine = Arc::clone(to);
        let all = chains.to_vec();
        let there = blocking(move || {
            let mut there = HashMap::new();
            for (id, parent) in all {
                if super::is_there(engine.store(), id)? {
                    there.insert(id, parent);
                }
            }
            // What is provisional may be dropped: nothing is recorded of it before this.
            engine.store().sync().map_err(Error::Store)?;
            Ok(there)
        })
        .await?;
        let rows = ours.steps().await?;
        let wanted: Vec<StepRecord> = rows
            .into_values()
            .filter(|row| there.contains_key(&row.id))
            .map(|row| StepRecord {
                // What it takes is another file system's affair.
                size_bytes: None,
                ..row
            })
            .collect();
        theirs.adopt(&wanted).await?;
        let overrides: Vec<_> = ours
            .overrides()
            .await?
            .into_iter()
            .filter(|(_, id)| there.contains_key(id))
            .collect();
        theirs.add_overrides(&overrides).await?;
        let mut digests = Vec::new();
        for (id, tree) in &done.copied {
            digests.push((*id, *tree, to.log_digest(*id)?));
        }
        theirs.set_digests(&digests).await?;
        let mut same: Vec<SnapshotId> = done.copied.iter().map(|(id, _)| *id).collect();
        same.extend(&done.same);
        ours.copy_memories(theirs, &same).await
    }
}

struct Work {
    from: Arc<Engine>,
    to: Arc<Engine>,
    ours: HashMap<SnapshotId, Recorded>,
    theirs: HashMap<SnapshotId, Recorded>,
    /// Snapshots that are missing in the new store, and those that such ones stand on.
    needed: HashSet<SnapshotId>,
    progress: Arc<Progress>,
    cancel: CancellationToken,
    done: Mutex<Done>,
}

type Ran = (
    Work,
    Vec<(SnapshotId, Option<SnapshotId>)>,
    (Lease, Lease),
    Result<(), Error>,
);

impl Work {
    fn run(mut self, ids: Option<Vec<SnapshotId>>, threads: usize) -> Result<Ran, Error> {
        let mut leases = (
            Lease::create(self.from.state())?,
            Lease::create(self.to.state())?,
        );
        let listed = self.from.store().list().map_err(Error::Store)?;
        let chains = match ids {
            Some(ids) => with_ancestors(&listed, &ids),
            None => listed,
        };
        leases.0.add(chains.iter().map(|(id, _)| *id))?;
        leases.1.add(chains.iter().map(|(id, _)| *id))?;
        let there: HashSet<SnapshotId> = self
            .to
            .store()
            .list()
            .map_err(Error::Store)?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        let missing: Vec<SnapshotId> = chains
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| !there.contains(id))
            .collect();
        self.progress
            .total
            .store(missing.len() as u64, Ordering::Relaxed);
        let needed = with_ancestors(&chains, &missing);
        self.needed = needed.iter().map(|(id, _)| *id).collect();
        let result = Forest::new(&needed).each(threads, &|id, parent| self.one(id, parent));
        Ok((self, chains, leases, result))
    }

    fn done(&self) -> std::sync::MutexGuard<'_, Done> {
        held(&self.done)
    }

    fn failed(&self, id: SnapshotId, why: String) {
        self.done().failed.push((id, why));
    }

    /// Copies one snapshot, whose parent has been copied.
    fn one(&self, id: SnapshotId, parent: Option<&Pair>) -> Result<Option<Pair>, Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Some(source) = self.from.store().get(id).map_err(Error::Store)? else {
            self.failed(id, "its files are gone".to_owned());
            return Ok(None);
        };
        if let (Some(gone), None) = (source.parent, parent) {
            self.failed(id, format!("its parent {gone} is gone"));
            return Ok(None);
        }
        let from = match take_down(
            &source.rootfs,
            parent.map(|pair| &pair.from),
            &mut |_| {},
            &self.cancel,
        ) {
            Ok(listing) => listing,
            Err(trouble) if trouble.is_damage() => {
                self.failed(id, trouble.text());
                return Ok(None);
            }
            Err(trouble) => return Err(trouble.into_error(id)),
        };
        let digest = from.digest();
        if self.ours.get(&id).is_some_and(|ours| ours.tree != digest) {
            self.failed(id, "its content is not what was recorded".to_owned());
            return Ok(None);
        }
        let to = if let Some(there) = self.to.store().get(id).map_err(Error::Store)? {
            self.present(&there, parent, &from, digest)?
        } else {
            let _lock = loop {
                if self.cancel.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                if let Some(lock) = StepLock::try_acquire(self.to.state(), id)? {
                    break lock;
                }
                std::thread::sleep(POLL);
            };
            match self.to.store().get(id).map_err(Error::Store)? {
                // Somebody has built it meanwhile.
                Some(there) => self.present(&there, parent, &from, digest)?,
                None => match self.write(&source, parent, &from, digest)? {
                    Some(made) => made,
                    None => return Ok(None),
                },
            }
        };
        Ok(Some(Pair {
            from: Seen {
                rootfs: source.rootfs,
                listing: from,
            },
            to,
        }))
    }

    /// Takes down a tree that the new store has already, for those that stand on it.
    fn present(
        &self,
        there: &Snapshot,
        parent: Option<&Pair>,
        from: &Listing,
        digest: [u8; 32],
    ) -> Result<Seen, Error> {
        let recorded = self.theirs.get(&there.id);
        let listing = if recorded.is_some_and(|recorded| recorded.tree == digest) {
            from.clone()
        } else {
            let above = parent.map(|pair| &pair.to);
            take_down(&there.rootfs, above, &mut |_| {}, &self.cancel)
                .map_err(|trouble| trouble.into_error(there.id))?
        };
        if listing.digest() == digest {
            self.done().same.push(there.id);
        }
        Ok(Seen {
            rootfs: there.rootfs.clone(),
            listing,
        })
    }

    /// Makes the snapshot in the new store. Returns nothing if what was made is not what was copied.
    fn write(
        &self,
        source: &Snapshot,
        parent: Option<&Pair>,
        from: &Listing,
        digest: [u8; 32],
    ) -> Result<Option<Seen>, Error> {
        let (id, store) = (source.id, self.to.store());
        let draft = store.prepare(id, source.parent).map_err(Error::Store)?;
        let written = self.fill(&draft, source, parent, from);
        let listing = match written {
            Ok(listing) => listing,
            Err(trouble) => {
                drop(draft);
                return Err(trouble.into_error(id));
            }
        };
        if listing.digest() != digest {
            let changes = listing.changes_since(from);
            let named: Vec<String> = changes
                .iter()
                .take(NAMED)
                .map(|change| format!("/{}", change.path))
                .collect();
            self.failed(id, format!("the copy differs at {}", named.join(", ")));
            store.discard(draft).map_err(Error::Store)?;
            return Ok(None);
        }
        // Whoever finds the snapshot must find its log.
        self.copy_log(id)?;
        let made = store.commit(draft).map_err(Error::Store)?;
        self.done().copied.push((id, digest));
        add(&self.progress.done, 1);
        Ok(Some(Seen {
            rootfs: made.rootfs,
            listing,
        }))
    }

    /// Writes the difference into the draft, reads it back, and returns what is there now.
    fn fill(
        &self,
        draft: &Draft,
        source: &Snapshot,
        parent: Option<&Pair>,
        from: &Listing,
    ) -> Result<Listing, Trouble> {
        let cancelled = || self.cancel.is_cancelled();
        let target = draft.rootfs().open().map_err(Trouble::Store)?;
        let empty;
        let earlier = if let Some(parent) = parent {
            &parent.to.listing
        } else {
            empty = contents(target.as_fd(), None, &cancelled)?;
            &empty
        };
        let changes = from.changes_since(earlier);
        let tree = source.rootfs.open().map_err(Trouble::Store)?;
        let mut wrote = |count| add(&self.progress.bytes, count);
        tree::apply(
            from,
            &changes,
            tree.as_fd(),
            target.as_fd(),
            &mut wrote,
            &cancelled,
        )?;
        if let (Some(parent), Rootfs::Overlay(mount)) = (parent, draft.rootfs())
            && let Some(upper) = &mount.upper
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let layer = openat(CWD, &upper.upper, flags, Mode::empty()).map_err(|error| {
                Trouble::Store(obuild_stores::Error::Io {
                    action: "open",
                    path: upper.upper.clone(),
                    source: error.into(),
                })
            })?;
            let below = &parent.to.listing;
            return Ok(tree::list_layer(
                below,
                layer.as_fd(),
                &mut |_| {},
                &cancelled,
            )?);
        }
        Ok(contents(
            target.as_fd(),
            parent.map(|parent| &parent.to.listing),
            &cancelled,
        )?)
    }

    fn copy_log(&self, id: SnapshotId) -> Result<(), Error> {
        let (from, to) = (self.from.log_path(id), self.to.log_path(id));
        let unfinished = to.with_extension(format!("copy-{}", std::process::id()));
        let copied =
            fs_err::copy(&from, &unfinished).and_then(|_| fs_err::rename(&unfinished, &to));
        match copied {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::Io {
                action: "copy the log to",
                path: to,
                source: error,
            }),
            // A snapshot of unknown origin has no log.
            _ => Ok(()),
        }
    }

    /// Copies the caches that the new store does not have, or has empty. Returns how many.
    fn caches(&self) -> Result<usize, Error> {
        let mut copied = 0;
        let cancelled = || self.cancel.is_cancelled();
        for (name, _) in self.from.store().caches().map_err(Error::Store)? {
            // The top directory is given to whoever leases the cache next.
            let source = self
                .from
                .store()
                .lease_cache(&name, (0, 0))
                .map_err(Error::Store)?;
            let target = self
                .to
                .store()
                .lease_cache(&name, (0, 0))
                .map_err(Error::Store)?;
            let copy = || -> Result<bool, Trouble> {
                let from = source.rootfs.open().map_err(Trouble::Store)?;
                let to = target.rootfs.open().map_err(Trouble::Store)?;
                let earlier = contents(to.as_fd(), None, &cancelled)?;
                if earlier.nodes().len() > 1 {
                    return Ok(false);
                }
                let listing = contents(from.as_fd(), None, &cancelled)?;
                let changes = listing.changes_since(&earlier);
                let mut wrote = |count| add(&self.progress.bytes, count);
                tree::apply(
                    &listing,
                    &changes,
                    from.as_fd(),
                    to.as_fd(),
                    &mut wrote,
                    &cancelled,
                )?;
                Ok(true)
            };
            let made = copy().map_err(|trouble| match trouble {
                Trouble::Store(error) => Error::Store(error),
                Trouble::Tree(tree::TreeError::Cancelled) => Error::Cancelled,
                Trouble::Tree(source) => Error::Cache {
                    name: String::from_utf8_lossy(&name).into_owned(),
                    source,
                },
            })?;
            if made {
                self.to
                    .store()
                    .release_cache(target)
                    .map_err(Error::Store)?;
                copied += 1;
            }
        }
        if copied > 0 {
            self.to.store().sync().map_err(Error::Store)?;
        }
        Ok(copied)
    }
}

fn contents(
    root: rustix::fd::BorrowedFd<'_>,
    known: Option<&Listing>,
    cancelled: tree::Cancelled<'_>,
) -> Result<Listing, tree::TreeError> {
    let options = ListOptions {
        contents: true,
        known,
    };
    tree::list(root, &options, &mut |_| {}, cancelled)
}
