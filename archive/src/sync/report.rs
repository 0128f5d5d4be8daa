// SPDX-License-Identifier: Apache-2.0
//! What a sync did, for whoever asked for it.

use super::job::{Job, Jobs};
use crate::Checksum;
use crate::index;
use crate::state::{Failure, Note, State, SyncRecord, Table};
use std::collections::HashSet;
use std::time::Duration;

/// What a sync did.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether there was nothing to do.
    pub nothing: bool,
    /// The figures, as they are remembered.
    pub record: SyncRecord,
    /// Archives that were looked at and were there.
    pub present: u64,
    /// Archives that came.
    pub fetched: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// What did not come this time, with the packages that want it.
    pub failed: Vec<Failure>,
    /// All that is missing now, also what was not tried this time.
    pub missing: u64,
    /// What is wrong with the opam files that were read.
    pub problems: Vec<Problem>,
    /// What was done to the index, if there is to be one.
    pub index: Option<index::Report>,
    /// Checksums that belong to two archives.
    pub collisions: Vec<Checksum>,
    /// How long it took.
    pub time: Duration,
}

/// Something wrong with an opam file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The opam file.
    pub path: String,
    /// What is wrong, and where.
    pub note: Note,
}

impl Report {
    pub(super) fn nothing(state: &State, time: Duration) -> Self {
        Self {
            nothing: true,
            missing: state.failures.len() as u64,
            record: SyncRecord {
                to: state.commit.clone().unwrap_or_default(),
                from: state.commit.clone(),
                ..SyncRecord::default()
            },
            time,
            ..Self::default()
        }
    }

    pub(super) fn new(jobs: &Jobs, touched: &HashSet<String>, table: &Table) -> Self {
        let read = table
            .packages
            .iter()
            .filter(|(path, _)| touched.contains(*path));
        let problems = read.flat_map(|(path, package)| {
            package.notes.iter().map(|note| Problem {
                path: path.clone(),
                note: note.clone(),
            })
        });
        Self {
            present: jobs.present,
            problems: problems.collect(),
            ..Self::default()
        }
    }

    /// Notes what became of a job.
    pub(super) fn note(&mut self, job: &Job, outcome: super::run::Outcome, state: &mut State) {
        match outcome {
            super::run::Outcome::Here(collisions) => {
                self.present += 1;
                self.collisions.extend(collisions);
                state.failures.remove(&job.key);
            }
            super::run::Outcome::Fetched { bytes, collisions } => {
                self.fetched += 1;
                self.fetched_bytes += bytes;
                self.collisions.extend(collisions);
                state.failures.remove(&job.key);
            }
            super::run::Outcome::Failed {
                kind,
                attempts,
                asked,
            } => {
                let failure = Failure::after(
                    state.failures.get(&job.key),
                    kind,
                    attempts,
                    job.packages.clone(),
                    asked,
                    crate::state::now(),
                );
                self.failed.push(failure.clone());
                state.failures.insert(job.key.clone(), failure);
            }
        }
    }
}
