// SPDX-License-Identifier: Apache-2.0
//! The index in parts: a file a segment, named by its digest, and a list of them. Whoever has the parts can put `index.tar.gz`
//! together; from one index to the next only the segments that changed are new files.
//!
//! The list is binary and short, because digests make the most of it and it travels with every merge: the magic number, what stands
//! behind the last segment (10 bytes), and of each segment the first 20 bytes of its SHA-256 and its length (LEB128). Of the last
//! 200 merges of opam-repository it has 17 kB.

use super::deflate::{HEADER, Segment, TRAILER, trailer};
use super::{Error, Index, publish};
use crate::replace::replace_unsynced;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"obuildi2";

/// The file that has the list.
pub(crate) const LIST: &str = "segments";

/// How much of its digest names a segment: enough that nobody makes two of a name by chance or by trying.
const NAME: usize = 20;

/// A part of the index: a segment in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    name: [u8; NAME],
    /// Its length.
    pub bytes: u64,
}

impl Part {
    fn of(segment: &Segment) -> Self {
        let mut name = [0; NAME];
        name.copy_from_slice(&segment.digest[..NAME]);
        Self {
            name,
            bytes: segment.bytes,
        }
    }

    /// Returns the name of its file.
    pub fn name(&self) -> String {
        hex::encode(self.name)
    }

    fn holds(&self, content: &[u8]) -> bool {
        content.len() as u64 == self.bytes && Sha256::digest(content)[..NAME] == self.name
    }
}

impl Index {
    /// Returns the parts in their order.
    pub fn parts(&self) -> Vec<Part> {
        self.segments().map(Part::of).collect()
    }

    /// Returns the list of the parts.
    pub fn list(&self) -> Vec<u8> {
        let mut list = MAGIC.to_vec();
        list.extend_from_slice(&trailer(self.segments()));
        for part in self.parts() {
            list.extend_from_slice(&part.name);
            let mut left = part.bytes;
            while left >= 0x80 {
                list.push(left.to_le_bytes()[0] | 0x80);
                left >>= 7;
            }
            list.push(left.to_le_bytes()[0]);
        }
        list
    }

    /// Writes the parts of the index into a directory: those that are not there yet, then the list. Removes nothing.
    pub fn write_parts(&self, directory: &Path) -> Result<(), Error> {
        self.write_segments(directory)?;
        publish(&directory.join(LIST), &self.list())
    }

    /// Writes the segments into a directory, without the list.
    pub(crate) fn write_segments(&self, directory: &Path) -> Result<(), Error> {
        fs_err::create_dir_all(directory).map_err(Error::io("make", directory))?;
        let mut written = Vec::new();
        self.each_segment(&mut |segment, content| {
            let path = directory.join(Part::of(segment).name());
            if !fs_err::read(&path).is_ok_and(|there| there == content) {
                replace_unsynced(&path, content).map_err(Error::io("write", &path))?;
                written.push(path);
            }
            Ok(())
        })?;
        // All are written before the first is waited for: that costs the disk little more than one.
        for path in written {
            let sync = || fs_err::File::open(&path)?.sync_all();
            sync().map_err(Error::io("write", &path))?;
        }
        Ok(())
    }
}

/// The parts of an index, to put it together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    directory: PathBuf,
    list: Vec<Part>,
    trailer: [u8; TRAILER],
    digest: [u8; 32],
}

impl Parts {
    /// Reads the list of a directory that [`Index::write_parts`] wrote.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(LIST);
        let list = fs_err::read(&path).map_err(Error::io("read", &path))?;
        let digest = Sha256::digest(&list).into();
        let (trailer, list) = parse(&list).ok_or(Error::Damaged { path })?;
        Ok(Self {
            directory: directory.to_owned(),
            list,
            trailer,
            digest,
        })
    }

    /// Returns the SHA-256 of the list, which tells one index from another.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Returns how long `index.tar.gz` is.
    pub fn bytes(&self) -> u64 {
        let parts = self.list.iter().map(|part| part.bytes);
        parts.sum::<u64>() + (HEADER.len() + TRAILER) as u64
    }

    /// Writes `index.tar.gz`. What is damaged is found out, and then something incomplete was written.
    pub fn write(&self, out: &mut impl Write) -> Result<(), Error> {
        let failed = |error| Error::io("write", Path::new("index.tar.gz"))(error);
        out.write_all(&HEADER).map_err(failed)?;
        for part in &self.list {
            let path = self.directory.join(part.name());
            let content = fs_err::read(&path).map_err(Error::io("read", &path))?;
            if !part.holds(&content) {
                return Err(Error::Damaged { path });
            }
            out.write_all(&content).map_err(failed)?;
        }
        out.write_all(&self.trailer).map_err(failed)
    }
}

fn parse(list: &[u8]) -> Option<([u8; TRAILER], Vec<Part>)> {
    let (trailer, mut rest) = list.strip_prefix(MAGIC)?.split_first_chunk()?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (name, behind) = rest.split_first_chunk()?;
        rest = behind;
        let (mut bytes, mut shift) = (0_u64, 0);
        loop {
            let (byte, behind) = rest.split_first()?;
            rest = behind;
            bytes |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 56 {
                return None;
            }
        }
        parts.push(Part { name: *name, bytes });
    }
    Some((*trailer, parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[&MAGIC[..], &bytes].concat());
        }
    }
}
