// SPDX-License-Identifier: Apache-2.0
//! Segments of one gzip member (RFC 1951, RFC 1952): each is compressed by itself, primed with what stands before it, and ends with
//! an empty stored block, so that it ends with a byte. Put one behind the other they are what one compressor could have written.
//!
//! There is one member and a plain header: opam 2.6 stops after the first member, and trips over headers with extra fields.

use super::Error;
use flate2::{Compress, Compression, FlushCompress, Status};
use sha2::{Digest, Sha256};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

/// How much of what stands before it a segment is primed with. Deflate looks back 32 KiB; on opam files the farther half gives 1.4 % of the
/// size, and takes a fifth of the time.
pub(super) const PRIMING: usize = 16 << 10;

/// No name, no time, no extra field; written on Unix.
pub const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

/// An empty final block (fixed codes), which ends the member's data.
const FINAL_BLOCK: [u8; 2] = [3, 0];

/// On opam files level 6 takes a tenth longer for 0.4 % fewer bytes, level 9 twice as long for more.
const LEVEL: u32 = 5;

/// A compressed piece of the tar.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Segment {
    /// How many bytes of the tar it holds.
    pub raw_bytes: u64,
    /// Their CRC-32.
    pub crc: u32,
    /// How many bytes it has.
    pub bytes: u64,
    /// The SHA-256 of those.
    pub digest: [u8; 32],
}

/// Compresses `raw`, which stands behind `before` in the tar.
pub(super) fn compress(before: &[u8], raw: &[u8]) -> Result<(Segment, Vec<u8>), Error> {
    let failed = |what: &dyn std::fmt::Display| Error::Compression(what.to_string());
    // A new one each time: after `Compress::reset` some matches of zlib-rs 0.6.8 depend on what was compressed before.
    let mut compressor = Compress::new(Compression::new(LEVEL), false);
    let dictionary = &before[before.len().saturating_sub(PRIMING)..];
    if !dictionary.is_empty() {
        let set = compressor.set_dictionary(dictionary);
        set.map_err(|error| failed(&error))?;
    }
    // Room for the worst case, so that one call does it: what comes out must not depend on how it is asked for.
    let mut deflated = Vec::with_capacity(raw.len() + raw.len() / 8 + 256);
    let status = compressor
        .compress_vec(raw, &mut deflated, FlushCompress::Sync)
        .map_err(|error| failed(&error))?;
    let complete =
        compressor.total_in() == raw.len() as u64 && deflated.len() < deflated.capacity();
    if !complete || status != Status::Ok {
        return Err(failed(&"the compressor stopped"));
    }
    // There are a thousand of them in memory.
    deflated.shrink_to_fit();
    let segment = Segment {
        raw_bytes: raw.len() as u64,
        crc: zlib_rs::crc32::crc32(0, raw),
        bytes: deflated.len() as u64,
        digest: Sha256::digest(&deflated).into(),
    };
    Ok((segment, deflated))
}

/// How long [`trailer`] is.
pub(super) const TRAILER: usize = 10;

/// Returns what stands behind the last segment: the end of the data, the CRC-32 of the whole tar, and its length.
pub fn trailer<'a>(segments: impl IntoIterator<Item = &'a Segment>) -> [u8; TRAILER] {
    let (mut crc, mut length) = (0, 0_u64);
    for segment in segments {
        crc = zlib_rs::crc32::crc32_combine(crc, segment.crc, segment.raw_bytes);
        length += segment.raw_bytes;
    }
    let mut trailer = [0; TRAILER];
    trailer[..2].copy_from_slice(&FINAL_BLOCK);
    trailer[2..6].copy_from_slice(&crc.to_le_bytes());
    // Modulo 2^32 (RFC 1952, "ISIZE").
    trailer[6..].copy_from_slice(&length.to_le_bytes()[..4]);
    trailer
}

/// Something to compress: its place in the results, what stands before it, and it itself.
type Job = (usize, Vec<u8>, Vec<u8>);

/// What became of it.
type Done = (usize, Result<(Segment, Vec<u8>), Error>);

/// Threads that compress. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Pool {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
    given: usize,
}

impl Pool {
    /// Starts the threads.
    pub(super) fn start<'scope>(scope: &'scope Scope<'scope, '_>, threads: usize) -> Self {
        // What waits is in memory: no more than a few megabytes.
        let (jobs, waiting) = sync_channel::<Job>(64);
        let (results, done) = channel::<Done>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let (waiting, results) = (Arc::clone(&waiting), results.clone());
            scope.spawn(move || work(&waiting, &results));
        }
        Self {
            jobs,
            done,
            given: 0,
        }
    }

    /// Gives the next segment; waits while too many wait.
    pub(super) fn give(&mut self, before: Vec<u8>, raw: Vec<u8>) -> Result<(), Error> {
        let job = (self.given, before, raw);
        self.given += 1;
        let gone = |_| Error::Compression("the compressing threads are gone".to_owned());
        self.jobs.send(job).map_err(gone)
    }

    /// Returns all segments, in the order in which they were given.
    pub(super) fn finish(self) -> Result<Vec<(Segment, Vec<u8>)>, Error> {
        drop(self.jobs);
        let mut done: Vec<Done> = self.done.iter().collect();
        if done.len() != self.given {
            return Err(Error::Compression("a segment was lost".to_owned()));
        }
        done.sort_by_key(|(place, _)| *place);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

fn work(waiting: &Mutex<Receiver<Job>>, results: &Sender<Done>) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok((place, before, raw)) = job else {
            return;
        };
        if results.send((place, compress(&before, &raw))).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use proptest::prelude::*;
    use std::io::Read;

    proptest! {
        #[test]
        fn segments_are_one_member(pieces in proptest::collection::vec("[ab]{0,20000}|[a-z]{0,300}", 0..8)) {
            let (mut file, mut raw, mut segments) = (HEADER.to_vec(), Vec::new(), Vec::new());
            for piece in &pieces {
                let (segment, deflated) = compress(&raw, piece.as_bytes()).expect("compressed");
                prop_assert!(deflated.ends_with(&[0, 0, 0xff, 0xff]));
                file.extend_from_slice(&deflated);
                raw.extend_from_slice(piece.as_bytes());
                segments.push(segment);
            }
            file.extend_from_slice(&trailer(&segments));
            let mut unpacked = Vec::new();
            let mut decoder = GzDecoder::new(file.as_slice());
            decoder.read_to_end(&mut unpacked).expect("a gzip member with the right sum and length");
            prop_assert_eq!(unpacked, raw);
            prop_assert!(decoder.into_inner().is_empty(), "nothing behind it");
        }
    }
}
