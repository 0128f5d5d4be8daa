// SPDX-License-Identifier: Apache-2.0
//! `index.tar.gz` and `repo`: what opam clients read of a repository, kept up to date by what changed.
//!
//! The tar is cut into segments that are compressed each by itself, primed with what stands before it ([`Segment`]). A merge compresses
//! the segments that it touched and those within 32 KiB behind them; the file is byte for byte what one made from nothing would be.
//! `version` and `repo`, which has the stamp, are a segment that nothing is primed from, so that a new stamp changes nothing else.
//!
//! What a client must be given is measured with opam 2.1, 2.3 and 2.6: one gzip member, a plain header, plain files only, sorted.

mod deflate;
mod error;
mod fields;
mod parts;
mod split;
mod state;
mod tar;
#[cfg(test)]
mod tests;
mod update;

pub use deflate::{HEADER, Segment, trailer};
pub use error::Error;
pub use fields::Fields;
pub(crate) use parts::LIST;
pub use parts::{Part, Parts};

use crate::replace::{replace, replace_several};
use crate::repository::{Commit, Repository, Skipped};
use deflate::compress;
use state::{State, Table};
use std::io::Read as _;
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// What an update did.
#[derive(Debug)]
pub struct Report {
    /// What the index is of.
    pub commit: Commit,
    /// What it was of before; nothing if it was made from nothing.
    pub from: Option<Commit>,
    /// Files that were added, changed or removed.
    pub files: usize,
    /// Segments that were compressed, of `segments`.
    pub compressed: usize,
    /// How many segments there are.
    pub segments: usize,
    /// How many bytes of the tar were compressed.
    pub raw_bytes: u64,
    /// To how many.
    pub new_bytes: u64,
    /// How long `index.tar.gz` is.
    pub bytes: u64,
    /// What was left out of the repository, of what was looked at.
    pub skipped: Vec<Skipped>,
    /// What is wrong with the repository's own `repo` file.
    pub remarks: Vec<String>,
}

/// An index, in memory (4 MB for opam-repository).
#[derive(Debug)]
pub struct Index {
    segments: Vec<Segment>,
    /// The whole of `index.tar.gz`.
    file: Vec<u8>,
    repo: String,
}

impl Index {
    /// Brings the index of `state` to a state of the repository, from the last one if it is known, else from nothing.
    ///
    /// Nothing is published: see [`Index::publish`]. `state` is a directory of its own. A process that dies leaves the last index.
    ///
    /// `stamp` is what clients compare; without it, it is the commit. Waits while another process brings it on.
    pub fn update(
        state: &Path,
        repository: &mut Repository,
        commit: &Commit,
        fields: &Fields,
        stamp: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<(Self, Report), Error> {
        let state = State::open(state, cancel)?;
        let old = state.table()?;
        let finish = |table: &Table| {
            let stamp = stamp.unwrap_or(commit.as_str());
            let (repo, remarks) = fields::repo_file(table.repo.as_deref(), fields, stamp);
            Ok::<_, Error>((Self::assemble(&state, table, repo)?, remarks))
        };
        let increment = old.as_ref().map(|old| {
            let (table, work) = update::by_changes(&state, old, repository, commit)?;
            let (index, remarks) = finish(&table)?;
            Ok((index, remarks, table, work))
        });
        let (from, (index, remarks, table, work)) = match increment {
            Some(Ok(done)) => (old.as_ref().map(|old| old.commit.clone()), done),
            // There is none, or it is of no use, or there is nothing to compare with.
            None
            | Some(Err(
                Error::Damaged { .. }
                | Error::Repository(crate::repository::Error::NoSuchCommit { .. }),
            )) => {
                let generation = old.as_ref().map_or(0, |old| old.generation) + 1;
                let (table, work) = update::from_nothing(&state, generation, repository, commit)?;
                let (index, remarks) = finish(&table)?;
                (None, (index, remarks, table, work))
            }
            Some(Err(error)) => return Err(error),
        };
        if old.as_ref() != Some(&table) {
            state.write(&table)?;
        }
        let report = Report {
            commit: commit.clone(),
            from,
            files: work.files,
            compressed: work.segments,
            segments: index.segments.len(),
            raw_bytes: work.raw_bytes,
            new_bytes: work.bytes,
            bytes: index.file.len() as u64,
            skipped: work.skipped,
            remarks,
        };
        Ok((index, report))
    }

    fn assemble(state: &State, table: &Table, repo: String) -> Result<Self, Error> {
        let mut head = Vec::new();
        if let Some(version) = &table.version {
            tar::append(&mut head, b"version", version, false);
        }
        tar::append(&mut head, b"repo", repo.as_bytes(), false);
        let (head, head_bytes) = compress(&[], &head)?;
        let (tail, tail_bytes) = compress(&[], &tar::END)?;
        let pieces = table.pieces.iter().map(|piece| piece.segment.clone());
        let segments: Vec<Segment> = [head].into_iter().chain(pieces).chain([tail]).collect();
        let length: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let mut file = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 64);
        file.extend_from_slice(&HEADER);
        file.extend_from_slice(&head_bytes);
        let store = state.store(table.generation, false)?;
        store.deflated(&table.pieces, &mut file)?;
        file.extend_from_slice(&tail_bytes);
        file.extend_from_slice(&trailer(&segments));
        Ok(Self {
            segments,
            file,
            repo,
        })
    }

    /// Returns the index that the last sync has published in an archive's directory; nothing if `index.tar.gz` is not what is remembered of
    /// it, because something else made it.
    pub fn published(directory: &Path) -> Result<Option<Self>, Error> {
        let state = crate::cache::private(directory).join("index");
        let read = |name: &str| fs_err::read(directory.join(name)).ok();
        let (true, Some(file), Some(repo)) = (
            state.is_dir(),
            read("index.tar.gz"),
            read("repo").and_then(|repo| String::from_utf8(repo).ok()),
        ) else {
            return Ok(None);
        };
        let state = State::open(&state, &CancellationToken::new())?;
        let Some(table) = state.table()? else {
            return Ok(None);
        };
        match Self::assemble(&state, &table, repo) {
            Ok(index) => Ok(Some(index).filter(|index| index.file == file)),
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the segments of the file in their order. What stands before them is [`HEADER`], behind them [`trailer`].
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the whole of `index.tar.gz`.
    pub fn file(&self) -> &[u8] {
        &self.file
    }

    /// Returns the text of the `repo` file.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Puts `index.tar.gz` and `repo` into a directory, each whole or not at all, and only if it says something new.
    pub fn publish(&self, directory: &Path) -> Result<(), Error> {
        fs_err::create_dir_all(directory).map_err(Error::io("make", directory))?;
        let mut files = vec![
            ("index.tar.gz", self.file.as_slice()),
            ("repo", self.repo.as_bytes()),
        ];
        files.retain(|(name, content)| !is_there(&directory.join(name), content));
        replace_several(directory, &files).map_err(Error::io("write into", directory))
    }
}

/// Puts a file in its place when it is complete and on the disk. One that has the same bytes stays, and its time with it.
fn publish(path: &Path, content: &[u8]) -> Result<(), Error> {
    if is_there(path, content) {
        return Ok(());
    }
    replace(path, content).map_err(Error::io("write", path))
}

fn is_there(path: &Path, content: &[u8]) -> bool {
    let length = fs_err::metadata(path).map(|metadata| metadata.len());
    let same_length = length.is_ok_and(|length| length == content.len() as u64);
    same_length && holds(path, content).unwrap_or(false)
}

/// Compares a file piece by piece, which takes no memory of its size.
fn holds(path: &Path, content: &[u8]) -> std::io::Result<bool> {
    let mut file = fs_err::File::open(path)?;
    let mut piece = vec![0; 64 << 10];
    for wanted in content.chunks(piece.len()) {
        let there = &mut piece[..wanted.len()];
        file.read_exact(there)?;
        if there != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}
