// SPDX-License-Identifier: Apache-2.0
//! Verifying a store: its books, and every tree against its recorded digest.

use super::books::Listed;
use super::{Forest, Progress, Recorded, Seen, add, held, take_down, threads};
use crate::lock::{Lease, Removal};
use crate::{Engine, Error, blocking};
use obuild_images::tree::Listing;
use obuild_stores::{Finding, FindingKind, SnapshotId};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

/// The name under which the database remembers the last check.
pub(super) const LAST: &str = "store check";

/// Paths of a damaged tree that are named.
const NAMED: usize = 5;

/// How a store is checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Look at the books only, and read no tree.
    pub quick: bool,
    /// Remove damaged snapshots, with what stands on them, so that the next build makes them again.
    pub repair: bool,
    /// Change nothing at all, and record nothing.
    pub dry_run: bool,
    /// How many chains of snapshots are read at once; `None` for as many as there are processors.
    pub threads: Option<usize>,
}

/// What a check has found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Snapshots in the store.
    pub snapshots: usize,
    /// Trees that are what was recorded.
    pub verified: usize,
    /// Trees that had no recorded digest: they were read, and what was found is recorded now.
    pub recorded: usize,
    /// Bytes of content that were read.
    pub bytes: u64,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// Damaged snapshots, and those that stand on them; none of them can be used.
    pub unusable: Vec<SnapshotId>,
    /// Those of them that were removed.
    pub removed: Vec<SnapshotId>,
    /// Logs whose step is not in the store: mostly of steps that failed. A later prune removes them.
    pub logs_of_nothing: usize,
}

impl CheckReport {
    /// Returns how many findings are damage.
    pub fn damage(&self) -> usize {
        self.count(FindingKind::Damage)
    }

    /// Returns how many findings are wrong books.
    pub fn books(&self) -> usize {
        self.count(FindingKind::Books)
    }

    fn count(&self, kind: FindingKind) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.kind == kind)
            .count()
    }
}

impl Engine {
    /// Checks the store and mends its books. Builds may go on meanwhile; nothing that is being checked is pruned.
    ///
    /// A tree without a recorded digest is read and its digest recorded, unless it is a dry run.
    pub async fn check(
        self: &Arc<Self>,
        options: CheckOptions,
        progress: Arc<Progress>,
        cancel: &CancellationToken,
    ) -> Result<CheckReport, Error> {
        let mut report = CheckReport::default();
        self.check_database(&options, &mut report).await?;
        let engine = Arc::clone(self);
        let (listed, in_use, lease, findings) = blocking(move || {
            let findings = match engine.store().upkeep() {
                Some(upkeep) => upkeep.audit(!options.dry_run).map_err(Error::Store)?,
                None => Vec::new(),
            };
            let in_use = Removal::begin(engine.state())?.in_use;
            let mut lease = Lease::create(engine.state())?;
            let listed = engine.store().list().map_err(Error::Store)?;
            lease.add(listed.iter().map(|(id, _)| *id))?;
            Ok((listed, in_use, lease, findings))
        })
        .await?;
        report.findings.extend(findings);
        report.snapshots = listed.len();
        missing_parents(&listed, &mut report);
        let rows = self
            .check_rows(&options, &listed, &in_use, &mut report)
            .await?;
        if !options.quick {
            let recorded = self.database().await?.digests().await?;
            let logs = self.check_logs(&rows, &recorded, &mut report)?;
            if !options.dry_run {
                self.renew_sizes(&rows).await?;
            }
            self.check_trees(
                &options,
                &listed,
                recorded,
                &logs,
                progress,
                cancel,
                &mut report,
            )
            .await?;
        }
        drop(lease);
        report.unusable = unusable(&listed, &report.findings);
        if options.repair && !options.dry_run {
            self.remove_unusable(&mut report).await?;
        }
        if !options.dry_run {
            self.remember(&report).await?;
        }
        Ok(report)
    }

    /// Reads every tree that can be read, and compares it with what was recorded.
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, with what the steps before found"
    )]
    async fn check_trees(
        self: &Arc<Self>,
        options: &CheckOptions,
        listed: &Listed,
        recorded: HashMap<SnapshotId, Recorded>,
        logs: &HashMap<SnapshotId, Vec<u8>>,
        progress: Arc<Progress>,
        cancel: &CancellationToken,
        report: &mut CheckReport,
    ) -> Result<(), Error> {
        let useless: HashSet<SnapshotId> = unusable(listed, &report.findings).into_iter().collect();
        let readable: Listed = listed
            .iter()
            .filter(|(id, _)| !useless.contains(id))
            .copied()
            .collect();
        progress
            .total
            .store(readable.len() as u64, Ordering::Relaxed);
        let (engine, cancel) = (Arc::clone(self), cancel.clone());
        let (threads, dry_run) = (threads(options.threads), options.dry_run);
        let shown = Arc::clone(&progress);
        let (recorded, found) = blocking(move || {
            let found = Mutex::new(Found::default());
            Forest::new(&readable).each(threads, &|id, parent: Option<&Seen>| {
                let seen = engine.check_tree(id, parent, &recorded, &shown, &cancel, &found);
                add(&shown.done, 1);
                seen
            })?;
            let found = std::mem::take(&mut *held(&found));
            if !dry_run && !found.new.is_empty() {
                // What is provisional may be dropped and built again, with another digest.
                engine.store().sync().map_err(Error::Store)?;
            }
            Ok((recorded, found))
        })
        .await?;
        report.bytes = progress.bytes.load(Ordering::Relaxed);
        report.verified = found.verified.len();
        report.findings.extend(found.findings);
        if dry_run {
            return Ok(());
        }
        report.recorded = found.new.len();
        let log = |id: &SnapshotId| logs.get(id).cloned().unwrap_or_default();
        let mut news: Vec<_> = found
            .new
            .iter()
            .map(|(id, tree)| (*id, *tree, log(id)))
            .collect();
        // A log that has changed has been told once.
        news.extend(found.verified.iter().filter_map(|id| {
            let recorded = recorded.get(id)?;
            (recorded.log != log(id)).then(|| (*id, recorded.tree, log(id)))
        }));
        self.database().await?.set_digests(&news).await
    }

    fn check_tree(
        &self,
        id: SnapshotId,
        parent: Option<&Seen>,
        recorded: &HashMap<SnapshotId, Recorded>,
        progress: &Progress,
        cancel: &CancellationToken,
        found: &Mutex<Found>,
    ) -> Result<Option<Seen>, Error> {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let found = || held(found);
        let snapshot = match self.store().get(id) {
            Ok(Some(snapshot)) => snapshot,
            // By a stranger's hand: what is leased is not pruned.
            Ok(None) => {
                found().damage(id, "its files are gone".to_owned());
                return Ok(None);
            }
            Err(error) => {
                found().damage(id, crate::error::chain(&error));
                return Ok(None);
            }
        };
        let mut reading = |count| add(&progress.bytes, count);
        let listing = match take_down(&snapshot.rootfs, parent, &mut reading, cancel) {
            Ok(listing) => listing,
            Err(trouble) if trouble.is_damage() => {
                found().damage(id, trouble.text());
                return Ok(None);
            }
            Err(trouble) => return Err(trouble.into_error(id)),
        };
        let digest = listing.digest();
        match recorded.get(&id) {
            Some(recorded) if recorded.tree != digest => {
                let message = format!(
                    "its content is not what was recorded ({})",
                    suspects(&listing, recorded.at)
                );
                found().damage(id, message);
                return Ok(None);
            }
            Some(_) => found().verified.push(id),
            None => found().new.push((id, digest)),
        }
        Ok(Some(Seen {
            rootfs: snapshot.rootfs,
            listing,
        }))
    }

    /// Removes what cannot be used, leaves first, unless a running build counts on it.
    async fn remove_unusable(self: &Arc<Self>, report: &mut CheckReport) -> Result<(), Error> {
        let engine = Arc::clone(self);
        let unusable = report.unusable.clone();
        let (removed, kept) = blocking(move || {
            let removal = Removal::begin(engine.state())?;
            let (mut removed, mut kept) = (Vec::new(), Vec::new());
            for id in unusable.into_iter().rev() {
                if removal.in_use.contains(&id) {
                    kept.push((id, "a running build uses it".to_owned()));
                    continue;
                }
                match engine.store().remove(id) {
                    Ok(()) => {
                        engine.remove_log(id);
                        removed.push(id);
                    }
                    Err(error @ obuild_stores::Error::HasChildren { .. }) => {
                        kept.push((id, error.to_string()));
                    }
                    Err(error) => return Err(Error::Store(error)),
                }
            }
            Ok((removed, kept))
        })
        .await?;
        self.database().await?.forget(&removed).await?;
        for finding in &mut report.findings {
            if finding.snapshot.is_some_and(|id| removed.contains(&id)) {
                finding.mended = true;
            }
        }
        for (id, why) in kept {
            report.findings.push(Finding {
                kind: FindingKind::Damage,
                snapshot: Some(id),
                message: format!("it could not be removed: {why}"),
                mended: false,
            });
        }
        report.removed = removed;
        Ok(())
    }

    /// Notes when the store was checked and what is still wrong, for `obuild store info`.
    async fn remember(&self, report: &CheckReport) -> Result<(), Error> {
        let left = report
            .findings
            .iter()
            .filter(|finding| finding.kind == FindingKind::Damage && !finding.mended)
            .count();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let text = format!("{} {left}", now.as_millis());
        self.database().await?.set_memo(LAST, text.as_bytes()).await
    }

    /// Returns when the store was last checked and how much damage that check left; `None` if it never was.
    pub(super) async fn last_check(&self) -> Result<Option<(SystemTime, usize)>, Error> {
        let memo = self.database().await?.memo(LAST).await?;
        Ok(memo.and_then(|text| {
            let text = String::from_utf8(text).ok()?;
            let (time, left) = text.split_once(' ')?;
            let time = std::time::Duration::from_millis(time.parse().ok()?);
            Some((UNIX_EPOCH + time, left.parse().ok()?))
        }))
    }
}

/// What the threads of a check have found.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    verified: Vec<SnapshotId>,
    new: Vec<(SnapshotId, [u8; 32])>,
}

impl Found {
    fn damage(&mut self, id: SnapshotId, message: String) {
        self.findings.push(Finding {
            kind: FindingKind::Damage,
            snapshot: Some(id),
            message,
            mended: false,
        });
    }
}

/// Names what has changed in a tree since its digest was recorded: in a snapshot, nothing may.
fn suspects(listing: &Listing, recorded: i64) -> String {
    let changed: Vec<String> = listing
        .nodes()
        .iter()
        .filter(|node| {
            let (seconds, nanoseconds) = node.changed();
            seconds
                .saturating_mul(1000)
                .saturating_add(i64::from(nanoseconds / 1_000_000))
                > recorded
        })
        .map(|node| format!("/{}", node.path))
        .collect();
    if changed.is_empty() {
        return "no file was written since: the disk may be failing".to_owned();
    }
    let named = changed[..changed.len().min(NAMED)].join(", ");
    match changed.len().saturating_sub(NAMED) {
        0 => format!("written since: {named}"),
        more => format!("written since: {named} and {more} more"),
    }
}

/// Tells of snapshots whose parent is not there, if the store has not.
fn missing_parents(listed: &Listed, report: &mut CheckReport) {
    let there: HashSet<SnapshotId> = listed.iter().map(|(id, _)| *id).collect();
    let told: HashSet<SnapshotId> = report
        .findings
        .iter()
        .filter_map(|finding| finding.snapshot)
        .collect();
    for (id, parent) in listed {
        if let Some(parent) = parent
            && !there.contains(parent)
            && !told.contains(id)
        {
            report.findings.push(Finding {
                kind: FindingKind::Damage,
                snapshot: Some(*id),
                message: format!("its parent {parent} is gone"),
                mended: false,
            });
        }
    }
}

/// Returns what is damaged and what stands on it, parents before children.
fn unusable(listed: &Listed, findings: &[Finding]) -> Vec<SnapshotId> {
    let damaged: HashSet<SnapshotId> = findings
        .iter()
        .filter(|finding| finding.kind == FindingKind::Damage)
        .filter_map(|finding| finding.snapshot)
        .collect();
    // One whose meta is unreadable is in no list, but its children name it as their parent.
    let mut all = listed.clone();
    let known: HashSet<SnapshotId> = listed.iter().map(|(id, _)| *id).collect();
    all.extend(
        damaged
            .iter()
            .filter(|id| !known.contains(id))
            .map(|id| (*id, None)),
    );
    let forest = Forest::new(&all);
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for id in forest.in_order() {
        if damaged.contains(&id) && !seen.contains(&id) {
            for id in forest.descendants(id) {
                if seen.insert(id) {
                    found.push(id);
                }
            }
        }
    }
    found
}
