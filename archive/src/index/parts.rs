// SPDX-License-Identifier: Apache-2.0
//! The index in parts: a file a segment, named by its SHA-256, and a list of them. Whoever has the parts can put `index.tar.gz`
//! together; from one index to the next only the segments that changed are new files.
//!
//! The list is binary, because digests make the most of it and it travels with every merge: the magic number, the count (u32), and of
//! each segment its digest, its length, the length of what it holds (u32 each) and the CRC-32 of that, all little-endian.

use super::deflate::{HEADER, Segment, trailer};
use super::{Error, Index, publish};
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"obuildi1";

/// The file that has the list.
const LIST: &str = "segments";

/// How many bytes the list has for a segment.
const ROW: usize = 32 + 4 + 4 + 4;

/// The length of the longest segment that can be in the list.
const LONGEST: u64 = u32::MAX as u64;

impl Index {
    /// Writes the parts of the index into a directory: those that are not there yet, then the list. Removes nothing.
    pub fn write_parts(&self, directory: &Path) -> Result<(), Error> {
        fs_err::create_dir_all(directory).map_err(Error::io("make", directory))?;
        let mut list = MAGIC.to_vec();
        let segments = self.segments();
        let number = |number: u64| {
            u32::try_from(number)
                .map(u32::to_le_bytes)
                .map_err(|_| Error::Compression(format!("a segment has more than {LONGEST} bytes")))
        };
        list.extend_from_slice(&number(segments.len() as u64)?);
        let mut rest = &self.file()[HEADER.len()..];
        for segment in segments {
            let (content, behind) =
                rest.split_at(usize::try_from(segment.bytes).unwrap_or(usize::MAX));
            rest = behind;
            list.extend_from_slice(&segment.digest);
            list.extend_from_slice(&number(segment.bytes)?);
            list.extend_from_slice(&number(segment.raw_bytes)?);
            list.extend_from_slice(&segment.crc.to_le_bytes());
            let path = part(directory, segment);
            let known = fs_err::metadata(&path);
            if !known.is_ok_and(|metadata| metadata.len() == segment.bytes) {
                publish(&path, content)?;
            }
        }
        publish(&directory.join(LIST), &list)
    }
}

/// The parts of an index, to put it together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    directory: PathBuf,
    segments: Vec<Segment>,
}

impl Parts {
    /// Reads the list of a directory that [`Index::write_parts`] wrote.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(LIST);
        let list = fs_err::read(&path).map_err(Error::io("read", &path))?;
        let segments = parse(&list).ok_or(Error::Damaged { path })?;
        Ok(Self {
            directory: directory.to_owned(),
            segments,
        })
    }

    /// Returns the segments in their order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the file that a segment is in.
    pub fn path(&self, segment: &Segment) -> PathBuf {
        part(&self.directory, segment)
    }

    /// Returns how long `index.tar.gz` is.
    pub fn bytes(&self) -> u64 {
        let segments = self.segments.iter().map(|segment| segment.bytes);
        segments.sum::<u64>() + (HEADER.len() + trailer([]).len()) as u64
    }

    /// Writes `index.tar.gz`.
    pub fn write(&self, out: &mut impl Write) -> Result<(), Error> {
        let failed = |error| Error::io("write", Path::new("index.tar.gz"))(error);
        out.write_all(&HEADER).map_err(failed)?;
        for segment in &self.segments {
            let path = self.path(segment);
            let bytes = fs_err::read(&path).map_err(Error::io("read", &path))?;
            if bytes.len() as u64 != segment.bytes {
                return Err(Error::Damaged { path });
            }
            out.write_all(&bytes).map_err(failed)?;
        }
        out.write_all(&trailer(&self.segments)).map_err(failed)
    }
}

fn part(directory: &Path, segment: &Segment) -> PathBuf {
    directory.join(hex::encode(segment.digest))
}

fn parse(list: &[u8]) -> Option<Vec<Segment>> {
    let (count, rows) = list.strip_prefix(MAGIC)?.split_first_chunk()?;
    let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
    if rows.len() != count.checked_mul(ROW)? {
        return None;
    }
    let row = |row: &[u8]| {
        let (digest, numbers) = row.split_first_chunk()?;
        let number = |at: usize| {
            let bytes = numbers.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        Some(Segment {
            digest: *digest,
            bytes: number(0)?.into(),
            raw_bytes: number(4)?.into(),
            crc: number(8)?,
        })
    };
    rows.chunks_exact(ROW).map(row).collect()
}
