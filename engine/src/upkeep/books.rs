// SPDX-License-Identifier: Apache-2.0
//! The engine's own books against the store: rows, logs, locks, sizes.

use super::Recorded;
use super::check::{CheckOptions, CheckReport};
use crate::{Engine, Error, StepRecord, blocking};
use obuild_specs::StepId;
use obuild_stores::{Finding, FindingKind, SnapshotId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Snapshots with their parents.
pub(super) type Listed = Vec<(SnapshotId, Option<SnapshotId>)>;

pub(super) fn books(snapshot: Option<SnapshotId>, message: String, mended: bool) -> Finding {
    Finding {
        kind: FindingKind::Books,
        snapshot,
        message,
        mended,
    }
}

impl Engine {
    /// Looks at the database file itself.
    pub(super) async fn check_database(
        self: &Arc<Self>,
        options: &CheckOptions,
        report: &mut CheckReport,
    ) -> Result<(), Error> {
        let database = self.database().await?;
        if let Some(aside) = database.aside() {
            let message = format!(
                "the database was no database; it was put aside as {} and a new one begun",
                aside.display()
            );
            report.findings.push(books(None, message, true));
        }
        if let Some(wrong) = database.quick_check().await? {
            let mended = !options.dry_run;
            let mut message = format!("the database is damaged: {wrong}");
            if mended {
                let aside = database.rebuild().await?;
                message = format!("{message}; it was put aside as {}", aside.display());
            }
            report.findings.push(books(None, message, mended));
        }
        Ok(())
    }

    /// Compares the rows with the snapshots.
    pub(super) async fn check_rows(
        self: &Arc<Self>,
        options: &CheckOptions,
        listed: &Listed,
        in_use: &HashSet<SnapshotId>,
        report: &mut CheckReport,
    ) -> Result<HashMap<SnapshotId, StepRecord>, Error> {
        let database = self.database().await?;
        let mend = !options.dry_run;
        let mut rows = database.steps().await?;
        let there: HashMap<SnapshotId, Option<SnapshotId>> = listed.iter().copied().collect();
        let gone: Vec<SnapshotId> = rows
            .keys()
            .filter(|id| !there.contains_key(id))
            .copied()
            .collect();
        let engine = Arc::clone(self);
        let gone = blocking(move || {
            let mut lost = Vec::new();
            for id in gone {
                // It may have been built since the listing.
                if !super::is_there(engine.store(), id).unwrap_or(true) {
                    lost.push(id);
                }
            }
            Ok(lost)
        })
        .await?;
        for id in &gone {
            let heading = rows.remove(id).map_or_else(String::new, |row| row.heading);
            let message = format!("the database knows of it, the store does not: {heading}");
            report.findings.push(books(Some(*id), message, mend));
        }
        let mut new = Vec::new();
        let mut parents = Vec::new();
        for (id, parent) in listed {
            match rows.get(id) {
                // A build that is running writes its rows at its end.
                None if in_use.contains(id) => {}
                None => {
                    let record = self.unknown(*id, *parent);
                    let message = "the database does not know of it".to_owned();
                    report.findings.push(books(Some(*id), message, mend));
                    rows.insert(*id, record.clone());
                    new.push(record);
                }
                Some(row) if row.parent != *parent => {
                    parents.push((*id, *parent));
                    let message = "the database has a wrong parent for it".to_owned();
                    report.findings.push(books(Some(*id), message, mend));
                }
                Some(_) => {}
            }
        }
        if mend {
            if !gone.is_empty() {
                database.forget(&gone).await?;
            }
            if !new.is_empty() {
                database.adopt(&new).await?;
            }
            if !parents.is_empty() {
                database.set_parents(&parents).await?;
            }
        }
        Ok(rows)
    }

    /// Returns a row for a snapshot of which only the store knows. It counts as used when its log was written, or now.
    fn unknown(&self, id: SnapshotId, parent: Option<SnapshotId>) -> StepRecord {
        let time = fs_err::metadata(self.log_path(id))
            .and_then(|metadata| metadata.modified())
            .unwrap_or_else(|_| SystemTime::now());
        StepRecord {
            id,
            step: StepId::from_digest(*id.as_bytes()),
            parent,
            kind: if parent.is_none() { "base" } else { "unknown" }.to_owned(),
            heading: "(found by obuild store check)".to_owned(),
            created: time,
            used: time,
            duration: Duration::ZERO,
            size_bytes: None,
            config: None,
        }
    }

    /// Measures again what has been measured before. A size that is another is no finding: file systems allocate late and give back
    /// what they took in advance (XFS), so that a tree's blocks change while its content does not.
    pub(super) async fn renew_sizes(
        self: &Arc<Self>,
        rows: &HashMap<SnapshotId, StepRecord>,
    ) -> Result<(), Error> {
        let known: Vec<(SnapshotId, u64)> = rows
            .values()
            .filter_map(|row| Some((row.id, row.size_bytes?)))
            .collect();
        let engine = Arc::clone(self);
        let changed = blocking(move || {
            let mut changed = Vec::new();
            for (id, known) in known {
                match engine.store().size(id) {
                    Ok(size) if size != known => changed.push((id, size)),
                    // One that cannot be measured is found damaged, or has gone.
                    _ => {}
                }
            }
            Ok(changed)
        })
        .await?;
        if !changed.is_empty() {
            self.database().await?.set_sizes(&changed).await?;
        }
        Ok(())
    }

    /// Looks for logs that are lost or not what they were, and for those of nothing. Returns the digests of those that are there.
    pub(super) fn check_logs(
        &self,
        rows: &HashMap<SnapshotId, StepRecord>,
        recorded: &HashMap<SnapshotId, Recorded>,
        report: &mut CheckReport,
    ) -> Result<HashMap<SnapshotId, Vec<u8>>, Error> {
        let directory = self.state().join("logs");
        let io = |source| Error::Io {
            action: "list",
            path: directory.clone(),
            source,
        };
        let mut there = HashSet::new();
        for entry in fs_err::read_dir(&directory).map_err(io)? {
            if let Some(id) = entry
                .map_err(io)?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<SnapshotId>().ok())
            {
                there.insert(id);
            }
        }
        report.logs_of_nothing = there.iter().filter(|id| !rows.contains_key(id)).count();
        let mut digests = HashMap::new();
        for row in rows.values() {
            let found = there.contains(&row.id);
            let digest = if found {
                self.log_digest(row.id)?
            } else {
                Vec::new()
            };
            let before = recorded
                .get(&row.id)
                .map(|recorded| recorded.log.as_slice());
            let wrong = match before {
                Some(before) if before != digest && !found => Some("its log is gone"),
                Some(before) if before != digest => Some("its log is not what was recorded"),
                // Every command that obuild runs has a log, if an empty one.
                None if !found && row.kind == "run" => Some("its log is gone"),
                _ => None,
            };
            if let Some(wrong) = wrong {
                report
                    .findings
                    .push(books(Some(row.id), wrong.to_owned(), false));
            }
            digests.insert(row.id, digest);
        }
        Ok(digests)
    }
}
