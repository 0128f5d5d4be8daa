// SPDX-License-Identifier: Apache-2.0
//! What is remembered between syncs: which commit was read, what it declares, what is missing, what nobody names.
//!
//! Two files in `.obuild/`: `state.json`, small, read each time, and the table of packages that it names, read only when
//! something changed. Each is written whole beside the old one, synced and renamed; the table first. So at any moment the state is
//! that of before or that of after. The archives themselves are not in it: what is in the cache is what is there.

mod failure;
mod status;
mod table;

pub use failure::{Attempt, Failure, FailureKind};
pub use status::{Missing, Noted, Status};
pub use table::{Declared, Note, Package, Table};

use crate::cache::private;
use crate::replace::replace;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970, UTC.
pub type Unix = u64;

/// Returns the time.
pub fn now() -> Unix {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Raised when a released version's files would be misunderstood.
const FORMAT: u32 = 1;

/// So many syncs are remembered.
const SYNCS: usize = 50;

/// The state of an archive.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// Where the packages come from, as it was given.
    pub repository: String,
    /// The branch, tag or commit that was asked for.
    pub revision: Option<String>,
    /// The last commit of which everything was looked at.
    pub commit: Option<String>,
    /// When that commit was made, if the repository says so.
    #[serde(default)]
    pub committed: Option<Unix>,
    /// How the index was to be made, to see when that changes.
    #[serde(default)]
    pub index: String,
    /// The file with the table of packages.
    table: Option<String>,
    /// How many packages there are.
    pub packages: u64,
    /// How many different archives they declare.
    pub archives: u64,
    /// The next sync looks whether every archive is there, since `verify` or `gc` took some away.
    pub recheck: bool,
    /// What is missing, by the checksums that it should have.
    pub failures: BTreeMap<String, Failure>,
    /// Since when archives have been without a package.
    pub unnamed: BTreeMap<String, Unix>,
    /// What the repository has that cannot be passed on: path and reason.
    pub skipped: Vec<(String, String)>,
    /// The last syncs that did something, the oldest first.
    pub syncs: Vec<SyncRecord>,
}

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRecord {
    /// When it began.
    pub started: Unix,
    /// How long it took.
    pub milliseconds: u64,
    /// From which commit.
    pub from: Option<String>,
    /// To which commit.
    pub to: String,
    /// Opam files that were read.
    pub packages_read: u64,
    /// Packages that have gone.
    pub packages_removed: u64,
    /// Archives that came.
    pub fetched: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Archives that did not come this time.
    pub failed: u64,
}

/// The state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("the archive's state cannot be read")]
    Read(#[source] io::Error),
    /// It cannot be written.
    #[error("the archive's state cannot be written")]
    Write(#[source] io::Error),
    /// A newer obuild wrote it.
    #[error("a newer obuild wrote this archive's state (format {0})")]
    Newer(u32),
}

impl StateError {
    /// Returns the input/output error below, if that is what it was.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read(source) | Self::Write(source) => Some(source),
            Self::Newer(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl State {
    /// Reads the state of the archive in a directory; one without any, or with one that nobody understands, begins anew: every
    /// archive that is there is found again, and nothing is fetched twice.
    pub fn read(directory: &Path) -> Result<Self, StateError> {
        let path = private(directory).join("state.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(StateError::Read(error)),
        };
        match serde_json::from_slice::<Format>(&text) {
            Ok(Format { format }) if format > FORMAT => return Err(StateError::Newer(format)),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the archive's state is damaged; it is made anew"),
        }
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Reads the table that belongs to this state; nothing if it is not there or damaged.
    pub fn read_table(&self, directory: &Path) -> Option<Table> {
        let path = private(directory).join(self.table.as_ref()?);
        let data = fs::read(path).ok()?;
        Table::decode(&data)
    }

    /// Writes the state, with a table if that has changed.
    pub fn write(&mut self, directory: &Path, table: Option<&Table>) -> Result<(), StateError> {
        let private = private(directory);
        self.format = FORMAT;
        let excess = self.syncs.len().saturating_sub(SYNCS);
        self.syncs.drain(..excess);
        if let Some(table) = table {
            // Two names in turn: the state that is there goes on to name the other.
            let name = match self.table.as_deref() {
                Some("packages.a") => "packages.b",
                _ => "packages.a",
            };
            replace(&private.join(name), &table.encode()).map_err(StateError::Write)?;
            self.table = Some(name.to_owned());
            self.packages = table.packages.len() as u64;
            self.archives = table.archives() as u64;
        }
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| StateError::Write(io::Error::other(error)))?;
        text.push(b'\n');
        replace(&private.join("state.json"), &text).map_err(StateError::Write)
    }

    /// Notes that the repository was looked at, whatever came of it.
    pub fn touch(directory: &Path) -> Result<(), StateError> {
        let path = private(directory).join("checked");
        fs::write(path, now().to_string()).map_err(StateError::Write)
    }

    /// Returns when the repository was last looked at.
    pub fn touched(directory: &Path) -> Option<Unix> {
        fs::read_to_string(private(directory).join("checked"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_and_a_damaged_one_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(private(directory.path())).expect("room");
        let mut state = State::read(directory.path()).expect("there is none");
        assert_eq!(state.commit, None);
        state.commit = Some("1".repeat(40));
        let mut table = Table::default();
        table
            .packages
            .insert("packages/a/a.1/opam".to_owned(), Package::default());
        state.write(directory.path(), Some(&table)).expect("room");

        let mut again = State::read(directory.path()).expect("it is there");
        assert_eq!((again.commit, again.packages), (state.commit.clone(), 1));
        assert_eq!(again.table.as_deref(), Some("packages.a"));
        again.commit = None;
        let mut again = State::read(directory.path()).expect("it is there");
        assert_eq!(again.read_table(directory.path()), Some(table));
        again
            .write(directory.path(), Some(&Table::default()))
            .expect("room");
        assert_eq!(again.read_table(directory.path()), Some(Table::default()));
        assert_eq!(
            state
                .read_table(directory.path())
                .map(|table| table.packages.len()),
            Some(1),
            "the table of before is still there, should the state not get written"
        );

        fs::write(private(directory.path()).join("packages.b"), "rot").expect("room");
        assert_eq!(again.read_table(directory.path()), None);
        fs::write(
            private(directory.path()).join("state.json"),
            "{\"format\":1,",
        )
        .expect("room");
        assert_eq!(State::read(directory.path()).expect("anew").commit, None);
        fs::write(
            private(directory.path()).join("state.json"),
            "{\"format\":99}",
        )
        .expect("room");
        assert!(matches!(
            State::read(directory.path()),
            Err(StateError::Newer(99))
        ));
    }
}
