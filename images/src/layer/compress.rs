// SPDX-License-Identifier: Apache-2.0
//! Compresses a stream with several threads, into bytes that do not depend on how many they are.
//!
//! The stream is cut into blocks of a fixed size, each compressed by itself. Blocks of gzip are pieces of one deflate stream that
//! end at byte boundaries (RFC 1951 3.2.4, as zlib's `Z_SYNC_FLUSH` makes them) in one member (RFC 1952); blocks of zstd are frames
//! of their own, one behind the other (RFC 8878 3.1). Every reader takes both.

use crate::Digest;
use flate2::{Compress, Crc, FlushCompress, Status};
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip with a level from 0 to 9.
    Gzip(u32),
    /// zstd with a level from 1 to 19.
    Zstd(i32),
}

impl Default for Compression {
    /// What every tool reads, at the level that is the default everywhere.
    fn default() -> Self {
        Self::Gzip(6)
    }
}

impl Compression {
    /// Returns the media type of a layer: OCI image-spec v1.1 layer.md.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// Smaller blocks spread better and compress worse; each costs five bytes of gzip at least, and forgets what was before.
    fn block_bytes(self) -> usize {
        match self {
            Self::None | Self::Gzip(_) => 1 << 20,
            Self::Zstd(_) => 4 << 20,
        }
    }

    fn compress(self, block: &[u8], last: bool) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(block.to_vec()),
            Self::Gzip(level) => deflate(block, level, last),
            Self::Zstd(level) => zstd::bulk::compress(block, level),
        }
    }
}

/// A gzip header without a name and a time, made on no system in particular.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

fn deflate(block: &[u8], level: u32, last: bool) -> io::Result<Vec<u8>> {
    let mut deflate = Compress::new(flate2::Compression::new(level), false);
    let flush = if last {
        FlushCompress::Finish
    } else {
        FlushCompress::Sync
    };
    let mut out = Vec::with_capacity(block.len() / 2 + 64);
    loop {
        let done = usize::try_from(deflate.total_in()).map_err(io::Error::other)?;
        let status = deflate.compress_vec(&block[done..], &mut out, flush)?;
        let all = deflate.total_in() == block.len() as u64;
        // A flush is complete when it did not fill the room that it had.
        let complete = if last {
            status == Status::StreamEnd
        } else {
            all && out.len() < out.capacity()
        };
        if complete {
            return Ok(out);
        }
        out.reserve(out.capacity().max(1024));
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// The digest of what was compressed.
    pub(super) content: Digest,
    /// The digest of the result.
    pub(super) digest: Digest,
    /// The size of the result in bytes.
    pub(super) size: u64,
}

/// Compresses what is written to it.
pub(super) struct Packer<W: Write> {
    compression: Compression,
    threads: usize,
    block: Vec<u8>,
    content: Sha256,
    check: Crc,
    crew: Option<Crew>,
    waiting: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    out: W,
    digest: Sha256,
    size: u64,
}

impl<W: Write> Packer<W> {
    pub(super) fn new(out: W, compression: Compression, threads: usize) -> io::Result<Self> {
        let mut packer = Self {
            compression,
            threads,
            block: Vec::new(),
            content: Sha256::new(),
            check: Crc::new(),
            crew: None,
            waiting: VecDeque::new(),
            out,
            digest: Sha256::new(),
            size: 0,
        };
        if matches!(compression, Compression::Gzip(_)) {
            packer.put(&GZIP_HEADER)?;
        }
        Ok(packer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Has the full block compressed.
    fn hand_over(&mut self) -> io::Result<()> {
        let block = std::mem::take(&mut self.block);
        if self.threads < 2 || self.compression == Compression::None {
            let packed = self.compression.compress(&block, false)?;
            self.block = block;
            self.block.clear();
            return self.put(&packed);
        }
        let crew = match &mut self.crew {
            Some(crew) => crew,
            empty => empty.insert(Crew::start(self.compression, self.threads)?),
        };
        self.waiting.push_back(crew.give(block)?);
        // So that memory does not grow when the threads are slower than the tree.
        while self.waiting.len() > 2 * self.threads {
            self.take()?;
        }
        Ok(())
    }

    /// Writes the next block that was handed over.
    fn take(&mut self) -> io::Result<()> {
        if let Some(next) = self.waiting.pop_front() {
            let packed = next.recv().map_err(io::Error::other)??;
            self.put(&packed)?;
        }
        Ok(())
    }

    /// Ends the stream. Returns where it was written to, and what.
    pub(super) fn finish(mut self) -> io::Result<(W, Packed)> {
        while !self.waiting.is_empty() {
            self.take()?;
        }
        let block = std::mem::take(&mut self.block);
        let packed = self.compression.compress(&block, true)?;
        self.put(&packed)?;
        if matches!(self.compression, Compression::Gzip(_)) {
            let (sum, amount) = (self.check.sum(), self.check.amount());
            self.put(&sum.to_le_bytes())?;
            self.put(&amount.to_le_bytes())?;
        }
        self.out.flush()?;
        let packed = Packed {
            content: Digest(self.content.finalize().into()),
            digest: Digest(self.digest.finalize().into()),
            size: self.size,
        };
        Ok((self.out, packed))
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let whole = self.compression.block_bytes();
        // A full block waits for more, since the last one is compressed otherwise.
        if self.block.len() == whole {
            self.hand_over()?;
        }
        let count = bytes.len().min(whole - self.block.len());
        let bytes = &bytes[..count];
        self.content.update(bytes);
        if matches!(self.compression, Compression::Gzip(_)) {
            self.check.update(bytes);
        }
        self.block.extend_from_slice(bytes);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Job = (Vec<u8>, SyncSender<io::Result<Vec<u8>>>);

/// Threads that compress blocks; they end when it is dropped.
struct Crew {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn start(compression: Compression, count: usize) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let work = move |queue: &Mutex<Receiver<Job>>| {
            loop {
                let next = queue.lock().map(|queue| queue.recv());
                let Ok(Ok((block, answer))) = next else {
                    return;
                };
                // Nobody waits for it any more after an error.
                let _ = answer.send(compression.compress(&block, false));
            }
        };
        let start = |_| {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new()
                .name("compress".to_owned())
                .spawn(move || work(&queue))
        };
        Ok(Self {
            jobs: Some(jobs),
            threads: (0..count).map(start).collect::<io::Result<_>>()?,
        })
    }

    fn give(&self, block: Vec<u8>) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
        let (answer, answered) = sync_channel(1);
        let jobs = self.jobs.as_ref().expect("taken only when it is dropped");
        jobs.send((block, answer)).map_err(io::Error::other)?;
        Ok(answered)
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked gave no answer, which has been told.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pack(content: &[u8], compression: Compression, threads: usize) -> (Vec<u8>, Packed) {
        let mut packer = Packer::new(Vec::new(), compression, threads).unwrap();
        // Pieces of odd lengths, so that blocks do not end where writes do.
        for piece in content.chunks(77_777) {
            packer.write_all(piece).unwrap();
        }
        packer.finish().unwrap()
    }

    /// Bytes of which some can be compressed, the same in every run.
    fn content(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let byte = |index: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if (index / 5000).is_multiple_of(2) {
                (state >> 33).to_le_bytes()[0]
            } else {
                b'x'
            }
        };
        (0..length).map(byte).collect()
    }

    #[test]
    fn every_reader_gets_back_what_was_packed_by_any_number_of_threads() {
        for length in [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20, (9 << 20) + 17] {
            let content = content(length);
            for compression in [
                Compression::None,
                Compression::Gzip(0),
                Compression::Gzip(6),
                Compression::Zstd(3),
            ] {
                let (bytes, packed) = pack(&content, compression, 1);
                assert_eq!(pack(&content, compression, 3), (bytes.clone(), packed));
                assert_eq!(packed.content, Digest::of(&content));
                assert_eq!(packed.digest, Digest::of(&bytes));
                assert_eq!(packed.size, bytes.len() as u64);
                let mut read = Vec::new();
                match compression {
                    Compression::None => read.clone_from(&bytes),
                    // Not the decoder of several members: it is one.
                    Compression::Gzip(_) => {
                        let mut decoder = flate2::bufread::GzDecoder::new(&bytes[..]);
                        decoder.read_to_end(&mut read).unwrap();
                        assert!(decoder.into_inner().is_empty());
                    }
                    Compression::Zstd(_) => {
                        read = zstd::stream::decode_all(&bytes[..]).unwrap();
                    }
                }
                assert!(read == content, "{compression:?} of {length} bytes");
                if length > 1 << 20
                    && !matches!(compression, Compression::None | Compression::Gzip(0))
                {
                    assert!(bytes.len() < length * 3 / 4);
                }
            }
        }
    }
}
