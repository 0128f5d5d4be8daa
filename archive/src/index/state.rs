// SPDX-License-Identifier: Apache-2.0
//! What is kept between two runs: the tar's pieces and their compressed forms in two files that are only appended to, and a table that
//! says what of them is the index.
//!
//! The table is replaced by a rename, and nothing that a table in use names is overwritten: a process may die at any point. There
//! is no syncing; what a power failure garbles is found by checksums, and then the index is made from nothing.

use super::Error;
use super::deflate::Segment;
use crate::replace::replace_unsynced;
use crate::repository::Commit;
use bstr::BString;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Another layout, or another compressor, makes everything anew; so does another release, whose compressor may be another.
const FORMAT: &str = concat!("obuild index 2 ", env!("CARGO_PKG_VERSION"));

/// When the files have so many times the bytes that are in use, they are written anew.
const SURPLUS: u64 = 3;

/// How much is read at once.
const RUN_BYTES: u64 = 128 << 10;

/// A piece of the tar, from one file that starts a segment to before the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// The path of its first file.
    pub(super) first: BString,
    /// Where the tar's bytes are.
    pub(super) raw_at: u64,
    /// Where the compressed bytes are.
    pub(super) deflated_at: u64,
    /// The CRC-32 of the compressed bytes.
    pub(super) deflated_crc: u32,
    pub(super) segment: Segment,
}

/// What the index is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    format: String,
    /// The part of the two files' names that changes when they are written anew.
    pub(super) generation: u64,
    pub(super) commit: Commit,
    /// The repository's own `repo` and `version`.
    pub(super) repo: Option<Vec<u8>>,
    pub(super) version: Option<Vec<u8>>,
    pub(super) pieces: Vec<Piece>,
    /// How much of the two files is used.
    pub(super) raw_end: u64,
    pub(super) deflated_end: u64,
}

impl Table {
    pub(super) fn new(generation: u64, commit: Commit) -> Self {
        Self {
            format: FORMAT.to_owned(),
            generation,
            commit,
            repo: None,
            version: None,
            pieces: Vec::new(),
            raw_end: 0,
            deflated_end: 0,
        }
    }

    /// Returns a copy that has everything but the pieces.
    pub(super) fn without_pieces(&self) -> Self {
        Self {
            format: self.format.clone(),
            generation: self.generation,
            commit: self.commit.clone(),
            repo: self.repo.clone(),
            version: self.version.clone(),
            pieces: Vec::new(),
            raw_end: self.raw_end,
            deflated_end: self.deflated_end,
        }
    }

    /// Returns whether most of the files' bytes are of no use any more.
    pub(super) fn is_sparse(&self) -> bool {
        let (raw, deflated) = self.pieces.iter().fold((0, 0), |(raw, deflated), piece| {
            (
                raw + piece.segment.raw_bytes,
                deflated + piece.segment.bytes,
            )
        });
        let slack = 1 << 20;
        self.raw_end > SURPLUS * raw + slack || self.deflated_end > SURPLUS * deflated + slack
    }
}

/// The directory that everything is in, locked.
#[derive(Debug)]
pub(super) struct State {
    directory: PathBuf,
    _lock: File,
}

/// The two files of a generation.
#[derive(Debug)]
pub(super) struct Store {
    raw: (File, PathBuf),
    deflated: (File, PathBuf),
}

impl State {
    /// Makes the directory if need be, and waits for another process that uses it.
    pub(super) fn open(directory: &Path, cancel: &CancellationToken) -> Result<Self, Error> {
        fs_err::create_dir_all(directory).map_err(Error::io("make", directory))?;
        let path = directory.join("lock");
        let (lock, _) = fs_err::File::create(&path)
            .map_err(Error::io("make", &path))?
            .into_parts();
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        directory: directory.to_owned(),
                        _lock: lock,
                    });
                }
                Err(std::fs::TryLockError::WouldBlock) if cancel.is_cancelled() => {
                    return Err(crate::repository::Error::Cancelled.into());
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(std::fs::TryLockError::Error(error)) => {
                    return Err(Error::io("lock", &path)(error));
                }
            }
        }
    }

    fn table_path(&self) -> PathBuf {
        self.directory.join("table")
    }

    /// Reads the table; nothing if there is none that can be used.
    pub(super) fn table(&self) -> Result<Option<Table>, Error> {
        let path = self.table_path();
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let Some((bytes, crc)) = bytes.split_last_chunk() else {
            return Ok(None);
        };
        if zlib_rs::crc32::crc32(0, bytes) != u32::from_le_bytes(*crc) {
            return Ok(None);
        }
        let table = postcard::from_bytes::<Table>(bytes).ok();
        Ok(table.filter(|table| table.format == FORMAT))
    }

    /// Puts a table in the place of the last, and removes files that no table names.
    pub(super) fn write(&self, table: &Table) -> Result<(), Error> {
        let path = self.table_path();
        let mut bytes = postcard::to_allocvec(table)
            .map_err(|error| Error::io("write", &path)(std::io::Error::other(error)))?;
        bytes.extend_from_slice(&zlib_rs::crc32::crc32(0, &bytes).to_le_bytes());
        replace_unsynced(&path, &bytes).map_err(Error::io("write", &path))?;
        let keep = [
            self.raw_path(table.generation),
            self.deflated_path(table.generation),
        ];
        let entries = fs_err::read_dir(&self.directory);
        for entry in entries.map_err(Error::io("list", &self.directory))? {
            let path = entry.map_err(Error::io("list", &self.directory))?.path();
            let is_ours = path
                .extension()
                .is_some_and(|extension| extension == "raw" || extension == "deflated");
            if is_ours && !keep.contains(&path) {
                fs_err::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn raw_path(&self, generation: u64) -> PathBuf {
        self.directory.join(format!("{generation}.raw"))
    }

    fn deflated_path(&self, generation: u64) -> PathBuf {
        self.directory.join(format!("{generation}.deflated"))
    }

    /// Opens the files of a generation, empty if it is a new one.
    pub(super) fn store(&self, generation: u64, new: bool) -> Result<Store, Error> {
        let open = |path: PathBuf| {
            let mut options = fs_err::OpenOptions::new();
            // A run that was killed may have left one of the same name.
            options.read(true).write(true).create(new).truncate(new);
            match options.open(&path) {
                Ok(file) => Ok((file.into_parts().0, path)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    Err(Error::Damaged { path })
                }
                Err(error) => Err(Error::io("open", &path)(error)),
            }
        };
        Ok(Store {
            raw: open(self.raw_path(generation))?,
            deflated: open(self.deflated_path(generation))?,
        })
    }
}

impl Store {
    /// Reads a piece of the tar.
    pub(super) fn raw(&self, piece: &Piece) -> Result<Vec<u8>, Error> {
        let raw = read(&self.raw, piece.raw_at, piece.segment.raw_bytes)?;
        if zlib_rs::crc32::crc32(0, &raw) == piece.segment.crc {
            Ok(raw)
        } else {
            Err(damaged(&self.raw))
        }
    }

    /// Passes on the compressed forms of pieces, in their order. Those that lie one behind the other are read at once, in runs of
    /// which one takes little memory.
    pub(super) fn deflated<E: From<Error>>(
        &self,
        mut pieces: &[Piece],
        visit: &mut impl FnMut(&[Piece], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = Vec::new();
        while let Some(first) = pieces.first() {
            let (mut count, mut length) = (1, first.segment.bytes);
            while let Some(next) = pieces.get(count)
                && next.deflated_at == first.deflated_at + length
                && length + next.segment.bytes <= RUN_BYTES
            {
                count += 1;
                length += next.segment.bytes;
            }
            let (run, behind) = pieces.split_at(count);
            let length = usize::try_from(length).map_err(|_| damaged(&self.deflated))?;
            bytes.resize(length, 0);
            read_into(&self.deflated, first.deflated_at, &mut bytes)?;
            let mut rest = bytes.as_slice();
            for piece in run {
                let (own, behind) = split(rest, &piece.segment);
                if zlib_rs::crc32::crc32(0, own) != piece.deflated_crc {
                    return Err(damaged(&self.deflated).into());
                }
                rest = behind;
            }
            visit(run, &bytes)?;
            pieces = behind;
        }
        Ok(())
    }

    /// Returns the error that says that the tar's bytes make no sense.
    pub(super) fn damaged(&self) -> Error {
        damaged(&self.raw)
    }

    /// Writes a piece of the tar where nothing is yet, and returns where.
    pub(super) fn add_raw(&self, table: &mut Table, raw: &[u8]) -> Result<u64, Error> {
        add(&self.raw, &mut table.raw_end, raw)
    }

    /// The same of compressed bytes.
    pub(super) fn add_deflated(&self, table: &mut Table, bytes: &[u8]) -> Result<u64, Error> {
        add(&self.deflated, &mut table.deflated_end, bytes)
    }
}

/// Splits the bytes of several segments behind the first.
pub(super) fn split<'a>(bytes: &'a [u8], segment: &Segment) -> (&'a [u8], &'a [u8]) {
    // They were read by the sum of their lengths.
    let length = usize::try_from(segment.bytes).unwrap_or(usize::MAX);
    bytes.split_at(length)
}

fn damaged(file: &(File, PathBuf)) -> Error {
    Error::Damaged {
        path: file.1.clone(),
    }
}

fn read(file: &(File, PathBuf), at: u64, length: u64) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(length).map_err(|_| damaged(file))?;
    let mut bytes = vec![0; length];
    read_into(file, at, &mut bytes)?;
    Ok(bytes)
}

fn read_into(file: &(File, PathBuf), at: u64, bytes: &mut [u8]) -> Result<(), Error> {
    match file.0.read_exact_at(bytes, at) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(damaged(file)),
        Err(error) => Err(Error::io("read", &file.1)(error)),
    }
}

fn add(file: &(File, PathBuf), end: &mut u64, bytes: &[u8]) -> Result<u64, Error> {
    let at = *end;
    file.0
        .write_all_at(bytes, at)
        .map_err(Error::io("write", &file.1))?;
    *end += bytes.len() as u64;
    Ok(at)
}
