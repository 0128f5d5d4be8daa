// SPDX-License-Identifier: Apache-2.0
//! `index.tar.gz` and `repo`: what opam clients read of a repository, kept up to date by what changed.
//!
//! The tar is cut into segments that are compressed each by itself, primed with what stands before it ([`Segment`]). A merge compresses
//! the segments that it touched and those within 16 KiB behind them; the file is byte for byte what one made from nothing would be.
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
use state::{State, Store, Table, split};
use std::io::{Read as _, Write};
use std::path::Path;
use tokio_util::sync::CancellationToken;
use update::Work;

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

/// An index. What it is made of is on the disk, where it stays while this is kept; what other processes do does not change it.
#[derive(Debug)]
pub struct Index {
    table: Table,
    store: Store,
    /// The first segment and the last, which are in no table.
    head: (Segment, Vec<u8>),
    tail: (Segment, Vec<u8>),
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
        let finish = |(table, work): (Table, Work)| {
            let stamp = stamp.unwrap_or(commit.as_str());
            let (repo, remarks) = fields::repo_file(table.repo.as_deref(), fields, stamp);
            Ok::<_, Error>((Self::open(&state, table, repo)?, remarks, work))
        };
        let increment = old
            .as_ref()
            .map(|old| finish(update::by_changes(&state, old, repository, commit)?));
        let (from, (index, remarks, work)) = match increment {
            Some(Ok(done)) => (old.as_ref().map(|old| old.commit.clone()), done),
            // There is none, or it is of no use, or there is nothing to compare with.
            None
            | Some(Err(
                Error::Damaged { .. }
                | Error::Repository(crate::repository::Error::NoSuchCommit { .. }),
            )) => {
                let generation = old.as_ref().map_or(0, |old| old.generation) + 1;
                let made = update::from_nothing(&state, generation, repository, commit)?;
                (None, finish(made)?)
            }
            Some(Err(error)) => return Err(error),
        };
        if old.as_ref() != Some(&index.table) {
            state.write(&index.table)?;
        }
        let report = Report {
            commit: commit.clone(),
            from,
            files: work.files,
            compressed: work.segments,
            segments: index.segments().count(),
            raw_bytes: work.raw_bytes,
            new_bytes: work.bytes,
            bytes: index.bytes(),
            skipped: work.skipped,
            remarks,
        };
        Ok((index, report))
    }

    /// Opens what a table says, and looks whether it is as it was written.
    fn open(state: &State, table: Table, repo: String) -> Result<Self, Error> {
        let mut head = Vec::new();
        if let Some(version) = &table.version {
            tar::append(&mut head, b"version", version, false);
        }
        tar::append(&mut head, b"repo", repo.as_bytes(), false);
        let store = state.store(table.generation, false)?;
        store.deflated(&table.pieces, &mut |_, _| Ok::<(), Error>(()))?;
        Ok(Self {
            table,
            store,
            head: compress(&[], &head)?,
            tail: compress(&[], &tar::END)?,
            repo,
        })
    }

    /// Returns the index that the last sync has published in an archive's directory; nothing if `index.tar.gz` is not what is remembered of
    /// it, because something else made it.
    pub fn published(directory: &Path) -> Result<Option<Self>, Error> {
        let state = crate::cache::private(directory).join("index");
        let repo = fs_err::read_to_string(directory.join("repo"));
        let (true, Ok(repo)) = (state.is_dir(), repo) else {
            return Ok(None);
        };
        let state = State::open(&state, &CancellationToken::new())?;
        let Some(table) = state.table()? else {
            return Ok(None);
        };
        match Self::open(&state, table, repo) {
            Ok(index) => Ok(Some(index).filter(|index| index.is(&directory.join("index.tar.gz")))),
            Err(Error::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the segments of the file in their order. What stands before them is [`HEADER`], behind them [`trailer`].
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        let pieces = self.table.pieces.iter().map(|piece| &piece.segment);
        std::iter::once(&self.head.0)
            .chain(pieces)
            .chain([&self.tail.0])
    }

    /// Passes on the segments with their compressed bytes.
    fn each_segment(
        &self,
        visit: &mut impl FnMut(&Segment, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        visit(&self.head.0, &self.head.1)?;
        self.store.deflated(&self.table.pieces, &mut |run, bytes| {
            let mut rest = bytes;
            for piece in run {
                let (own, behind) = split(rest, &piece.segment);
                visit(&piece.segment, own)?;
                rest = behind;
            }
            Ok::<(), Error>(())
        })?;
        visit(&self.tail.0, &self.tail.1)
    }

    /// Returns how long `index.tar.gz` is.
    pub fn bytes(&self) -> u64 {
        let segments: u64 = self.segments().map(|segment| segment.bytes).sum();
        (HEADER.len() + deflate::TRAILER) as u64 + segments
    }

    /// Writes `index.tar.gz`. What cannot be read back from the disk is an error too.
    pub fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(&HEADER)?;
        out.write_all(&self.head.1)?;
        self.store
            .deflated(&self.table.pieces, &mut |_, bytes| out.write_all(bytes))?;
        out.write_all(&self.tail.1)?;
        out.write_all(&trailer(self.segments()))
    }

    /// Returns the text of the `repo` file.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// Puts `index.tar.gz` and `repo` into a directory, each whole or not at all, and only if it says something new.
    pub fn publish(&self, directory: &Path) -> Result<(), Error> {
        fs_err::create_dir_all(directory).map_err(Error::io("make", directory))?;
        let mut files: Vec<(&str, &crate::replace::Write<'_>)> = Vec::new();
        let index = |file: &mut fs_err::File| self.write(file);
        if !self.is(&directory.join("index.tar.gz")) {
            files.push(("index.tar.gz", &index));
        }
        let repo = |file: &mut fs_err::File| file.write_all(self.repo.as_bytes());
        if !is_there(&directory.join("repo"), self.repo.as_bytes()) {
            files.push(("repo", &repo));
        }
        replace_several(directory, &files).map_err(Error::io("write into", directory))
    }

    /// Returns whether a file holds this index.
    fn is(&self, path: &Path) -> bool {
        holds(path, self.bytes(), |out| self.write(out))
    }
}

/// Returns whether a file has what is written, which is so many bytes.
fn holds(
    path: &Path,
    bytes: u64,
    write: impl FnOnce(&mut Comparison) -> std::io::Result<()>,
) -> bool {
    let length = fs_err::metadata(path).map(|metadata| metadata.len());
    let compare = |file| {
        let there = Vec::new();
        write(&mut Comparison { file, there })
    };
    length.is_ok_and(|length| length == bytes) && fs_err::File::open(path).and_then(compare).is_ok()
}

/// Takes what a file should hold, and fails where it holds something else.
struct Comparison {
    file: fs_err::File,
    there: Vec<u8>,
}

impl Write for Comparison {
    fn write(&mut self, wanted: &[u8]) -> std::io::Result<usize> {
        self.there.resize(wanted.len(), 0);
        self.file.read_exact(&mut self.there)?;
        if self.there == wanted {
            Ok(wanted.len())
        } else {
            Err(std::io::ErrorKind::InvalidData.into())
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
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
    holds(path, content.len() as u64, |out| out.write_all(content))
}
