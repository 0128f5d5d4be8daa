// SPDX-License-Identifier: Apache-2.0
//! What `obuild archive status` and the server's page show.

use super::{Attempt, State, StateError, SyncRecord, Unix};
use crate::cache::{Cache, CacheError, Entry};
use serde::Serialize;
use std::path::Path;

/// How an archive stands. Serialised as it is for programs; times are seconds since 1970.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Where the packages come from.
    pub repository: String,
    /// The branch, tag or commit that was asked for.
    pub revision: Option<String>,
    /// The last commit of which everything was looked at.
    pub commit: Option<String>,
    /// When the repository was last looked at.
    pub checked: Option<Unix>,
    /// How many packages there are.
    pub packages: u64,
    /// How many different archives they declare.
    pub declared: u64,
    /// How many archives are on disk, also those that nobody names any more.
    pub archives: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Archives that no package names any more, and that `gc` will remove.
    pub unnamed: u64,
    /// What is missing, the longest first.
    pub missing: Vec<Missing>,
    /// What is wrong with opam files.
    pub notes: Vec<Noted>,
    /// What the repository has that cannot be passed on: path and reason.
    pub skipped: Vec<(String, String)>,
    /// The last syncs that did something, the latest first.
    pub syncs: Vec<SyncRecord>,
}

/// An archive that is missing.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// The packages that declare it, as `NAME.VERSION`.
    pub packages: Vec<String>,
    /// What it should match.
    pub checksums: Vec<String>,
    /// `mismatch` or `unreachable`.
    pub kind: &'static str,
    /// What each URL gave.
    pub attempts: Vec<Attempt>,
    /// Since when it has been missing.
    pub since: Unix,
    /// How often it was tried.
    pub times: u32,
    /// When it was last tried.
    pub tried: Unix,
    /// When it is tried again.
    pub next: Unix,
}

/// Something wrong with an opam file.
#[derive(Clone, Debug, Serialize)]
pub struct Noted {
    /// The file.
    pub path: String,
    /// The line, counted from 1.
    pub line: u32,
    /// A short name, for programs.
    pub code: String,
    /// What is wrong.
    pub message: String,
}

/// Why the status cannot be told.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum StatusError {
    /// The state cannot be read.
    State(#[from] StateError),
    /// The directory cannot be read.
    Cache(#[from] CacheError),
}

impl Status {
    /// Reads how the archive in a directory stands. Locks nothing: a sync that runs shows with what it has saved.
    pub fn read(directory: &Path) -> Result<Self, StatusError> {
        let state = State::read(directory)?;
        let table = state.read_table(directory).unwrap_or_default();
        let files = Cache::open(directory)?.walk()?.files;
        let named = table.named();
        let is_named = |file: &&Entry| file.names.iter().any(|name| named.contains(name));
        let unnamed = (files.len() - files.iter().filter(is_named).count()) as u64;
        let mut missing: Vec<Missing> = state
            .failures
            .iter()
            .map(|(key, failure)| Missing {
                packages: failure.packages.iter().map(|path| package(path)).collect(),
                checksums: key.split(' ').map(str::to_owned).collect(),
                kind: failure.kind.name(),
                attempts: failure.attempts.clone(),
                since: failure.since,
                times: failure.times,
                tried: failure.tried,
                next: failure.next,
            })
            .collect();
        missing
            .sort_by(|one, other| (one.since, &one.packages).cmp(&(other.since, &other.packages)));
        let notes = table.packages.into_iter().flat_map(|(path, package)| {
            package.notes.into_iter().map(move |note| Noted {
                path: path.clone(),
                line: note.line,
                code: note.code,
                message: note.message,
            })
        });
        Ok(Self {
            checked: State::touched(directory),
            packages: state.packages,
            declared: state.archives,
            archives: files.len() as u64,
            bytes: files.iter().map(|file| file.size).sum(),
            unnamed,
            missing,
            notes: notes.collect(),
            skipped: state.skipped,
            syncs: state.syncs.into_iter().rev().collect(),
            repository: state.repository,
            revision: state.revision,
            commit: state.commit,
        })
    }
}

/// Returns `NAME.VERSION` of `packages/NAME/NAME.VERSION/opam`.
pub(crate) fn package(path: &str) -> String {
    let without = path.strip_suffix("/opam").unwrap_or(path);
    without.rsplit('/').next().unwrap_or(without).to_owned()
}
