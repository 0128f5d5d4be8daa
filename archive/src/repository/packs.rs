// SPDX-License-Identifier: Apache-2.0
//! Packs of a git repository, read in place: gitformat-pack(5), version 2 of packs and of their indexes, SHA-1 names.
//!
//! Only what is certain is answered; of everything else (another version, something damaged or out of proportion) the answer is
//! [`Unknown`], and git itself is asked. Whether an object is the one of its
//! name is for the caller to see.

use super::cat_file::Kind;
use libdeflater::Decompressor;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An object's name.
pub(super) type Id = [u8; 20];

/// git is to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unknown;

/// The largest object, or part of one, that is put together here.
pub(super) const LARGEST: usize = 32 << 20;

/// How many deltas may lie upon one another. git makes 50, and 250 if it is told to.
const CHAIN: usize = 4096;

/// How much is remembered of what deltas refer to: neighbours in a tree refer to the same.
const BASES_BYTES: usize = 24 << 20;

/// What is not kept on the way to something else.
const LARGE: usize = 64 << 10;

/// How much is read at first: of opam-repository nearly all objects have less.
const READ: usize = 4 << 10;

/// The names that begin with one byte, and where their objects are.
struct Bucket {
    names: Vec<u8>,
    offsets: Vec<u8>,
}

/// One pack and its index.
pub(super) struct Pack {
    index: File,
    entries: File,
    /// How long the file of the entries is.
    bytes: u64,
    /// How many names begin with this byte or a lower one.
    fanout: Box<[u32; 256]>,
    buckets: Box<[OnceLock<Option<Bucket>>; 256]>,
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Pack")
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

/// What the header of an index has before its names: the magic number, the version, the fan-out table.
const NAMES_AT: u64 = 8 + 4 * 256;

impl Pack {
    /// Opens a pack by its index; nothing if it is not one that is known here.
    pub(super) fn open(index: &Path) -> Option<Self> {
        let open = |path: &Path| Some(fs_err::File::open(path).ok()?.into_parts().0);
        let pack = open(&index.with_extension("pack"))?;
        let index = open(index)?;
        let mut head = vec![0; usize::try_from(NAMES_AT).ok()?];
        index.read_exact_at(&mut head, 0).ok()?;
        if head[..8] != [0xff, b't', b'O', b'c', 0, 0, 0, 2] {
            return None;
        }
        let mut fanout = Box::new([0; 256]);
        let mut last = 0;
        for (count, bytes) in fanout.iter_mut().zip(head[8..].as_chunks().0) {
            *count = u32::from_be_bytes(*bytes);
            if *count < last {
                return None;
            }
            last = *count;
        }
        // Names, checksums, offsets, then 8 bytes for each offset above 2 GiB, then two checksums of 20 bytes. With
        // the 32 bytes of a SHA-256 name the sum would be another.
        let count = u64::from(last);
        let large = index.metadata().ok()?.len();
        let large = large.checked_sub(NAMES_AT + 28 * count + 40)?;
        let mut magic = [0; 8];
        pack.read_exact_at(&mut magic, 0).ok()?;
        let known = large.is_multiple_of(8) && large / 8 <= count;
        if !known || magic != *b"PACK\0\0\0\x02" {
            return None;
        }
        Some(Self {
            bytes: pack.metadata().ok()?.len(),
            index,
            entries: pack,
            fanout,
            buckets: Box::new([const { OnceLock::new() }; 256]),
        })
    }

    /// Returns where an object is; nothing if it is not here, or nobody can tell.
    pub(super) fn find(&self, id: &Id) -> Option<u64> {
        let byte = usize::from(id[0]);
        let bucket = self.buckets[byte].get_or_init(|| self.bucket(byte));
        let bucket = bucket.as_ref()?;
        let place = bucket.names.as_chunks().0.binary_search(id).ok()?;
        let offset = u32::from_be_bytes(*bucket.offsets.as_chunks().0.get(place)?);
        if offset & 0x8000_0000 == 0 {
            return Some(u64::from(offset));
        }
        let count = u64::from(self.fanout[255]);
        let at = NAMES_AT + 28 * count + 8 * u64::from(offset & 0x7fff_ffff);
        let mut large = [0; 8];
        self.index.read_exact_at(&mut large, at).ok()?;
        Some(u64::from_be_bytes(large))
    }

    fn bucket(&self, byte: usize) -> Option<Bucket> {
        let start = byte.checked_sub(1).map_or(0, |before| self.fanout[before]);
        let (start, count) = (u64::from(start), self.fanout[byte] - start);
        let total = u64::from(self.fanout[255]);
        let read = |at: u64, bytes: usize| {
            let mut table = vec![0; usize::try_from(count).ok()? * bytes];
            self.index.read_exact_at(&mut table, at).ok()?;
            Some(table)
        };
        Some(Bucket {
            names: read(NAMES_AT + 20 * start, 20)?,
            offsets: read(NAMES_AT + 24 * total + 4 * start, 4)?,
        })
    }
}

/// What the entry of a pack is.
enum Form {
    Whole(Kind),
    /// A delta to the entry that begins so many bytes before.
    Before(u64),
    /// A delta to an object by its name.
    Named(Id),
}

/// What a delta is applied to.
type Base = (Kind, Arc<Vec<u8>>);

/// Takes objects out of packs.
pub(super) struct Reader {
    inflate: Inflate,
    /// By pack and offset.
    bases: HashMap<(usize, u64), Base>,
    bases_bytes: usize,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Reader")
            .field("bases", &self.bases.len())
            .finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            inflate: Inflate::new(),
            bases: HashMap::new(),
            bases_bytes: 0,
        }
    }

    /// Reads the object at `offset` of the pack `number`.
    pub(super) fn read(
        &mut self,
        packs: &[Pack],
        number: usize,
        offset: u64,
    ) -> Result<(Kind, Vec<u8>), Unknown> {
        let pack = packs.get(number).ok_or(Unknown)?;
        let mut at = offset;
        // The deltas on the way to something whole, the last first applied, with where they stand.
        let mut deltas: Vec<(u64, Vec<u8>)> = Vec::new();
        let (kind, mut content): Base = loop {
            if let Some((kind, content)) = self.bases.get(&(number, at)) {
                break (*kind, Arc::clone(content));
            }
            let (form, bytes) = self.entry(pack, at)?;
            match form {
                Form::Whole(kind) if deltas.is_empty() => return Ok((kind, bytes)),
                Form::Whole(kind) => {
                    let content = Arc::new(bytes);
                    self.remember((number, at), kind, &content, deltas.len());
                    break (kind, content);
                }
                Form::Before(distance) => {
                    deltas.push((at, bytes));
                    at = at.checked_sub(distance).ok_or(Unknown)?;
                }
                // In the same pack, whatever wrote it (gitformat-pack(5), "deltified representation").
                Form::Named(id) => {
                    deltas.push((at, bytes));
                    at = pack.find(&id).ok_or(Unknown)?;
                }
            }
            if deltas.len() > CHAIN {
                return Err(Unknown);
            }
        };
        while let Some((at, delta)) = deltas.pop() {
            let next = apply(&content, &delta).ok_or(Unknown)?;
            if deltas.is_empty() {
                return Ok((kind, next));
            }
            content = Arc::new(next);
            self.remember((number, at), kind, &content, deltas.len());
        }
        Ok((kind, content.to_vec()))
    }

    /// Keeps what is the base of a delta, with `deltas` more to apply to it. Of large ones only the last: the tree of all packages is changed by
    /// every commit, and to keep all its states on the way to one costs more than to make some again.
    fn remember(&mut self, place: (usize, u64), kind: Kind, content: &Arc<Vec<u8>>, deltas: usize) {
        if content.len() > LARGE && deltas > 1 {
            return;
        }
        if self.bases_bytes + content.len() > BASES_BYTES {
            // What is still needed comes back; opam-repository's fit.
            self.bases.clear();
            self.bases_bytes = 0;
        }
        self.bases_bytes += content.len();
        self.bases.insert(place, (kind, Arc::clone(content)));
    }

    /// Reads the entry at an offset: what it is, and its own bytes.
    fn entry(&mut self, pack: &Pack, offset: u64) -> Result<(Form, Vec<u8>), Unknown> {
        let left = pack.bytes.checked_sub(offset).ok_or(Unknown)?;
        let room = usize::try_from(left).map_or(READ, |left| left.min(READ));
        let mut start = [0; READ];
        let start = &mut start[..room];
        pack.entries
            .read_exact_at(start, offset)
            .map_err(|_| Unknown)?;
        let (form, size, used) = entry_header(start).ok_or(Unknown)?;
        if size < 8 * READ
            && let Some(content) = self.inflate.all(size, &start[used..])
        {
            return Ok((form, content));
        }
        // Some more than what cannot be compressed has. Streams that are longer still are not git's.
        let longest = used + size + size / 8 + 64;
        let longest = usize::try_from(left).map_or(longest, |left| longest.min(left));
        let mut whole = vec![0; longest];
        let read = pack.entries.read_exact_at(&mut whole, offset);
        read.map_err(|_| Unknown)?;
        let content = self.inflate.all(size, &whole[used..]);
        Ok((form, content.ok_or(Unknown)?))
    }
}

/// Reads the header of an entry; returns the size of its bytes and its own length too.
fn entry_header(bytes: &[u8]) -> Option<(Form, usize, usize)> {
    let first = *bytes.first()?;
    let mut size = u64::from(first & 15);
    let (mut shift, mut used, mut last) = (4, 1, first);
    while last & 0x80 != 0 {
        last = *bytes.get(used)?;
        used += 1;
        size |= u64::from(last & 0x7f).checked_shl(shift)?;
        shift += 7;
        if shift > 42 {
            return None;
        }
    }
    let form = match (first >> 4) & 7 {
        1 => Form::Whole(Kind::Commit),
        2 => Form::Whole(Kind::Tree),
        3 => Form::Whole(Kind::Blob),
        4 => Form::Whole(Kind::Tag),
        6 => {
            let mut byte = *bytes.get(used)?;
            used += 1;
            let mut distance = u64::from(byte & 0x7f);
            while byte & 0x80 != 0 {
                byte = *bytes.get(used)?;
                used += 1;
                distance = (distance + 1).checked_mul(0x80)? | u64::from(byte & 0x7f);
            }
            Form::Before(distance)
        }
        7 => {
            let id = *bytes.get(used..)?.first_chunk()?;
            used += 20;
            Form::Named(id)
        }
        _ => return None,
    };
    // A delta to itself has no end.
    let endless = matches!(form, Form::Before(0));
    let size = usize::try_from(size).ok()?;
    (size <= LARGEST && !endless).then_some((form, size, used))
}

/// Unpacks zlib streams (RFC 1950) that are in memory, one after the other.
pub(super) struct Inflate(Decompressor);

impl Inflate {
    pub(super) fn new() -> Self {
        Self(Decompressor::new())
    }

    /// Returns the `size` bytes of a stream that `input` begins with. Nothing if there are more or fewer, or they are not what they were,
    /// or `input` ends before them.
    fn all(&mut self, size: usize, input: &[u8]) -> Option<Vec<u8>> {
        let mut content = vec![0; size];
        let unpacked = self.0.zlib_decompress(input, &mut content).ok()?;
        (unpacked == size).then_some(content)
    }

    /// Returns a loose object (gitformat-loose(5)): its kind, its size, a zero and its bytes.
    pub(super) fn loose(&mut self, file: &[u8]) -> Option<(Kind, Vec<u8>)> {
        let mut head = [0; 32];
        // The size is not known before; so much of it says it.
        let read = flate2::read::ZlibDecoder::new(file).read(&mut head).ok()?;
        let end = head[..read].iter().position(|byte| *byte == 0)?;
        let (kind, size) = std::str::from_utf8(&head[..end]).ok()?.split_once(' ')?;
        let kind = Kind::parse(kind)?;
        let size = size.parse::<usize>().ok().filter(|size| *size <= LARGEST)?;
        let mut content = self.all(end + 1 + size, file)?;
        content.drain(..=end);
        Some((kind, content))
    }
}

/// Applies a delta; nothing if it does not fit its base.
fn apply(base: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut rest = delta;
    let base_size = delta_size(&mut rest)?;
    let size = delta_size(&mut rest)?;
    if base_size != base.len() || size > LARGEST {
        return None;
    }
    let mut out = Vec::with_capacity(size);
    while let Some((&instruction, behind)) = rest.split_first() {
        rest = behind;
        if instruction & 0x80 == 0 {
            // So many bytes that follow; none at all is reserved.
            let length = usize::from(instruction);
            if length == 0 {
                return None;
            }
            let (new, behind) = rest.split_at_checked(length)?;
            out.extend_from_slice(new);
            rest = behind;
        } else {
            let mut field = |bits: std::ops::Range<u8>| {
                let mut value = 0;
                for (place, bit) in bits.enumerate() {
                    if instruction & (1 << bit) != 0 {
                        let (&byte, behind) = rest.split_first()?;
                        rest = behind;
                        value |= usize::from(byte) << (8 * place);
                    }
                }
                Some(value)
            };
            let at = field(0..4)?;
            let length = match field(4..7)? {
                0 => 0x1_0000,
                length => length,
            };
            out.extend_from_slice(base.get(at..at.checked_add(length)?)?);
        }
        if out.len() > size {
            return None;
        }
    }
    (out.len() == size).then_some(out)
}

fn delta_size(rest: &mut &[u8]) -> Option<usize> {
    let (mut size, mut shift) = (0_u64, 0);
    loop {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        size |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return usize::try_from(size).ok();
        }
        if shift > 42 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_delta_copies_and_adds() {
        // To 7 bytes from 5: two from offset 3, "x", four from the start.
        let delta = [5, 7, 0x91, 3, 2, 1, b'x', 0x90, 4];
        assert_eq!(apply(b"abcde", &delta), Some(b"dexabcd".to_vec()));
        for (base, delta) in [
            (&b"abcd"[..], &delta[..]),
            (b"abcde", &delta[..8]),
            (b"abcde", &[5, 2, 0x91, 4, 2]),
            (b"abcde", &[5, 1, 0]),
            (b"abcde", &[5, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f]),
        ] {
            assert_eq!(apply(base, delta), None, "{delta:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), base in "[a-z]{0,50}") {
            let _ = apply(base.as_bytes(), &bytes);
            let _ = entry_header(&bytes);
            let _ = Inflate::new().loose(&bytes);
        }
    }
}
