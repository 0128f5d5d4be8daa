// SPDX-License-Identifier: Apache-2.0
//! Changed opam files become changed rows of the table.

use super::SyncError;
use crate::Checksum;
use crate::opam::{self, ProblemKind};
use crate::repository::{Change, Commit, Error, Repository};
use crate::state::{Declared, Note, Package, State, Table, now};
use bstr::ByteSlice;
use std::collections::HashSet;

/// What was read.
pub(super) struct Read {
    pub(super) repository: Repository,
    pub(super) table: Table,
    /// The opam files that were read.
    pub(super) touched: HashSet<String>,
    pub(super) packages: u64,
    pub(super) removed: u64,
    /// Whether that was everything.
    pub(super) whole: bool,
}

/// Reads what differs between two commits, or everything if there is no first one, or no longer.
pub(super) fn read(
    repository: Repository,
    from: Option<&Commit>,
    to: &Commit,
    old: Table,
    state: &mut State,
) -> Result<Read, SyncError> {
    let before = old.named();
    let mut read = Read {
        repository,
        table: Table::default(),
        touched: HashSet::new(),
        packages: 0,
        removed: 0,
        whole: from.is_none(),
    };
    let skipped = if from.is_some() {
        read.table = old;
        match visit(from, to, &mut read) {
            Err(Error::NoSuchCommit { .. }) => {
                // The branch was rewritten and the old commit swept away.
                read.table = Table::default();
                read.touched.clear();
                (read.packages, read.removed, read.whole) = (0, 0, true);
                visit(None, to, &mut read)?
            }
            result => result?,
        }
    } else {
        let skipped = visit(None, to, &mut read)?;
        let gone = |path: &&String| !read.table.packages.contains_key(*path);
        read.removed = old.packages.keys().filter(gone).count() as u64;
        skipped
    };
    if read.whole {
        state.skipped.clear();
    }
    state
        .skipped
        .retain(|(path, _)| !read.touched.contains(path));
    for skipped in skipped {
        let path = skipped.path.escape_bytes().to_string();
        state.skipped.retain(|(known, _)| *known != path);
        state.skipped.push((path, skipped.reason.to_string()));
    }
    note_unnamed(&before, &read.table, state);
    Ok(read)
}

/// Remembers since when archives have been without a package, for `gc`.
fn note_unnamed(before: &HashSet<Checksum>, table: &Table, state: &mut State) {
    let named = table.named();
    for checksum in before.difference(&named) {
        state
            .unnamed
            .entry(checksum.to_string())
            .or_insert_with(now);
    }
    state.unnamed.retain(|checksum, _| {
        checksum
            .parse()
            .is_ok_and(|checksum| !named.contains(&checksum))
    });
}

fn visit(
    from: Option<&Commit>,
    to: &Commit,
    read: &mut Read,
) -> Result<Vec<crate::repository::Skipped>, Error> {
    let Read {
        repository,
        table,
        touched,
        packages,
        removed,
        ..
    } = read;
    repository.changes(from, to, &mut |change: Change| -> Result<(), Error> {
        let Some(path) = opam_file(&change) else {
            return Ok(());
        };
        match &change.content {
            Some(text) => {
                table.packages.insert(path.clone(), package(text));
                *packages += 1;
            }
            None if table.packages.remove(&path).is_some() => *removed += 1,
            None => {}
        }
        touched.insert(path);
        Ok(())
    })
}

/// Returns the path of a change if it is a package's opam file: `packages/…/NAME.VERSION/opam`.
fn opam_file(change: &Change) -> Option<String> {
    let path = change.path.to_str().ok()?;
    let directory = path.strip_prefix("packages/")?.strip_suffix("/opam")?;
    let package = directory.rsplit('/').next()?;
    package.contains('.').then(|| path.to_owned())
}

/// Reads an opam file. One that is broken gives what was understood of it.
fn package(text: &[u8]) -> Package {
    let parsed = opam::parse(text);
    let sources = opam::sources(&parsed);
    let line = |offset: usize| u32::try_from(opam::place(text, offset).line).unwrap_or(u32::MAX);
    let mut notes: Vec<Note> = parsed
        .errors
        .iter()
        .map(|error| Note {
            code: "syntax".to_owned(),
            line: u32::try_from(error.place.line).unwrap_or(u32::MAX),
            message: error.message.clone(),
        })
        .collect();
    let problems = sources.sources.iter().flat_map(|source| &source.problems);
    for problem in sources.problems.iter().chain(problems) {
        notes.push(Note {
            code: problem.kind.code().to_owned(),
            line: line(problem.span.start),
            message: problem.to_string(),
        });
    }
    let sources = sources.sources.into_iter().filter(|source| {
        let hopeless = |problem: &opam::Problem| matches!(problem.kind, ProblemKind::Conflict(_));
        !source.is_vcs() && !source.checksums.is_empty() && !source.problems.iter().any(hopeless)
    });
    let sources = sources
        .map(|source| {
            let mut checksums = source.checksums;
            checksums.sort_unstable_by(|one, other| other.cmp(one));
            Declared {
                section: source.section.to_string(),
                url: source.url.to_string(),
                mirrors: source.mirrors.iter().map(ToString::to_string).collect(),
                checksums,
            }
        })
        .collect();
    Package { sources, notes }
}
