// SPDX-License-Identifier: Apache-2.0
//! Brings an archive file into a tree: one thread reads, hashes and decompresses, the other unpacks.

use crate::Error;
use crate::digest::{Digest, digest_of};
use crate::registry::Download;
use crate::unpack::{Whiteouts, unpack};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Bytes handed from thread to thread at once.
const CHUNK: usize = 256 << 10;
/// Chunks that wait for the unpacking thread.
const AHEAD: usize = 6;
/// How long bytes are waited for before a cancellation is looked for.
const TICK: Duration = Duration::from_millis(100);
/// The largest window that an archive may ask for, as a power of two: zstd refuses more by itself without `--long`
/// (zstd(1)); xz -9 takes half of it.
const WINDOW_LOG: u32 = 27;
/// The bytes that tell how a file is compressed.
const MAGIC: usize = 6;
const BZIP2: &str = "it is compressed with bzip2";

/// An archive and what is promised about it.
pub(crate) struct Blob<'a> {
    /// Its bytes.
    pub(crate) bytes: Bytes<'a>,
    /// Its path, for messages.
    pub(crate) path: &'a Path,
    /// The digest of its bytes, if there is one that nobody else checks.
    pub(crate) digest: Option<Digest>,
    /// The digest of its uncompressed content.
    pub(crate) content: Option<Digest>,
    /// How names that start with `.wh.` are read.
    pub(crate) whiteouts: Whiteouts,
}

/// Where an archive's bytes are.
#[derive(Clone, Copy)]
pub(crate) enum Bytes<'a> {
    /// In a part of a file.
    File {
        file: &'a File,
        offset: u64,
        length: u64,
    },
    /// On their way.
    Download(&'a Download),
}

impl<'a> Bytes<'a> {
    /// Takes the whole of a file.
    pub(crate) fn of(file: &'a File) -> Self {
        Self::File {
            file,
            offset: 0,
            length: u64::MAX,
        }
    }

    /// Returns a reader from the start, which `stop` ends early where it waits.
    fn reader(self, stop: &Arc<AtomicBool>) -> Box<dyn Read + Send + 'a> {
        match self {
            Self::File {
                file,
                offset,
                length,
            } => Box::new(At { file, offset }.take(length)),
            Self::Download(download) => Box::new(download.reader(Arc::clone(stop))),
        }
    }
}

/// Unpacks the blob over `root`, checking all digests. `progress` gets the number of bytes of the file read so far.
///
/// On an error the tree is half-written and its owner throws it away.
pub(crate) fn unpack_blob(
    blob: &Blob<'_>,
    root: OwnedFd,
    progress: &mut dyn FnMut(u64),
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Error> {
    // Of a download the first bytes may not have come.
    let method = match blob.bytes {
        Bytes::File { file, offset, .. } => {
            let mut magic = [0; MAGIC];
            read_full(&mut At { file, offset }, &mut magic)
                .map_err(|source| Error::io("read", blob.path, source))?;
            Some(Method::of(&magic))
        }
        Bytes::Download(_) => None,
    };
    if method == Some(Method::Bzip2) {
        return Err(Error::Compression {
            path: blob.path.to_owned(),
            method: "bzip2",
        });
    }
    let read = AtomicU64::new(0);
    let stop = Arc::new(AtomicBool::new(false));
    let (result, digest, content) = std::thread::scope(|scope| {
        let (full_sender, full) = sync_channel(AHEAD);
        let (empty, empty_receiver) = channel();
        let input = Input {
            bytes: blob.bytes.reader(&stop),
            hash: Sha256::new(),
            hashes: blob.digest.is_some(),
            read: &read,
        };
        let reader = std::thread::Builder::new()
            .name("decompress".into())
            .spawn_scoped(scope, move || pump(input, &full_sender, &empty_receiver))
            .map_err(|source| Error::io("start a thread to read", blob.path, source));
        let reader = match reader {
            Ok(reader) => reader,
            Err(error) => return (Err(error), None, None),
        };
        // A plain file's content is the file: hashing it twice would cost as much as unpacking it.
        let same = method == Some(Method::Plain) && blob.digest.is_some();
        let hash = (blob.content.is_some() && !same).then(Sha256::new);
        let mut tick = || {
            progress(read.load(Ordering::Relaxed));
            cancelled()
        };
        let mut chunks = Chunks {
            full,
            empty,
            chunk: Vec::new(),
            used: 0,
            hash,
            tick: &mut tick,
        };
        let result = unpack(&mut chunks, root, blob.whiteouts);
        let content = chunks
            .hash
            .take()
            .map(|hash| Digest(hash.finalize().into()));
        drop(chunks);
        // If it failed, the reader may still wait for bytes.
        stop.store(result.is_err(), Ordering::Relaxed);
        let digest = reader.join().ok().flatten();
        let result = result.map_err(|source| Error::Unpack {
            path: blob.path.to_owned(),
            source,
        });
        (result, digest, content)
    });
    if cancelled() {
        return Err(Error::Cancelled);
    }
    match result {
        Ok(()) => {}
        Err(
            error @ Error::Unpack {
                source: crate::UnpackError::Write { .. },
                ..
            },
        ) => return Err(error),
        // An archive that does not parse is often just damaged, and then that is the thing to say.
        Err(error) => {
            if let Some(expected) = blob.digest {
                let bytes = blob.bytes.reader(&Arc::default());
                let found = digest_of(bytes, cancelled)
                    .map_err(|source| Error::io("read", blob.path, source))?;
                check(
                    blob.path,
                    "its digest",
                    expected,
                    found.ok_or(Error::Cancelled)?,
                )?;
            }
            return Err(error);
        }
    }
    let ended = || {
        let early = io::Error::other("the reading thread ended early");
        Error::io("read", blob.path, early)
    };
    let digest = digest.ok_or_else(ended)?;
    if let Some(expected) = blob.digest {
        check(blob.path, "its digest", expected, digest)?;
    }
    match blob.content {
        Some(expected) => check(
            blob.path,
            "the digest of its uncompressed content",
            expected,
            content.unwrap_or(digest),
        ),
        None => Ok(()),
    }
}

fn check(path: &Path, what: &'static str, expected: Digest, found: Digest) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Digest {
        path: path.to_owned(),
        what,
        expected,
        found,
    })
}

/// How a file is compressed, by its first bytes. Media types are not trusted for it: tools mislabel layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878; also a skippable frame, with which seekable layers may begin.
    Zstd,
    /// The .xz file format 1.2.
    Xz,
    Bzip2,
}

impl Method {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    fn decoder<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(WINDOW_LOG)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
                input,
                true,
                1 << (WINDOW_LOG - 10),
            )),
            Self::Bzip2 => return Err(io::Error::other(BZIP2)),
            Self::Plain => Box::new(input),
        })
    }
}

/// Returns what decompresses a file, if it is compressed.
pub(crate) fn decoder(file: File) -> io::Result<Option<Box<dyn Read>>> {
    let mut magic = [0; MAGIC];
    read_full(
        &mut At {
            file: &file,
            offset: 0,
        },
        &mut magic,
    )?;
    let method = Method::of(&magic);
    if method == Method::Plain {
        return Ok(None);
    }
    method
        .decoder(BufReader::with_capacity(CHUNK, file))
        .map(Some)
}

/// The file, read from its start without moving its offset.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// The bytes, hashed and counted as they are read.
struct Input<'a> {
    bytes: Box<dyn Read + Send + 'a>,
    hash: Sha256,
    hashes: bool,
    read: &'a AtomicU64,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.bytes.read(buffer)?;
        if self.hashes {
            self.hash.update(&buffer[..length]);
        }
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

type Chunk = io::Result<Vec<u8>>;

/// Reads everything and sends it on; returns the digest of the file, if it is hashed, unless nobody wanted its end.
fn pump(
    mut input: Input<'_>,
    full: &SyncSender<Chunk>,
    empty: &Receiver<Vec<u8>>,
) -> Option<Digest> {
    let mut magic = [0; MAGIC];
    let begun = read_full(&mut input, &mut magic);
    let start = &magic[..*begun.as_ref().unwrap_or(&0)];
    let mut input = BufReader::with_capacity(CHUNK, start.chain(input));
    let sent = (|| -> io::Result<bool> {
        begun?;
        let mut decoder = Method::of(&magic).decoder(&mut input)?;
        loop {
            let mut chunk = empty.try_recv().unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let length = read_full(&mut decoder, &mut chunk)?;
            chunk.truncate(length);
            if length == 0 {
                return Ok(true);
            }
            if full.send(Ok(chunk)).is_err() {
                return Ok(false);
            }
        }
    })();
    match sent {
        Ok(true) => {}
        Ok(false) => return None,
        Err(error) => {
            // If nobody listens any more, there is an earlier error.
            let _ = full.send(Err(error));
            return None;
        }
    }
    // A decoder may stop before the end of the file, but the digest is of all of it.
    io::copy(&mut input, &mut io::sink()).ok()?;
    let (_, input) = input.into_inner().into_inner();
    Some(Digest(input.hash.finalize().into()))
}

/// Reads until the buffer is full or there is no more.
pub(crate) fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// The other end: the stream as the unpacking thread reads it.
struct Chunks<'a> {
    full: Receiver<Chunk>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    used: usize,
    hash: Option<Sha256>,
    /// Reports progress and returns whether to stop.
    tick: &'a mut dyn FnMut() -> bool,
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.chunk.len() {
            if (self.tick)() {
                return Err(io::Error::other("cancelled"));
            }
            let next = loop {
                match self.full.recv_timeout(TICK) {
                    Ok(next) => break next?,
                    // The sender is gone: that was all.
                    Err(RecvTimeoutError::Disconnected) => break Vec::new(),
                    // A download may be slow.
                    Err(RecvTimeoutError::Timeout) if (self.tick)() => {
                        return Err(io::Error::other("cancelled"));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
            };
            if let Some(hash) = &mut self.hash {
                hash.update(&next);
            }
            let old = std::mem::replace(&mut self.chunk, next);
            self.used = 0;
            // The reading thread may have ended already.
            let _ = self.empty.send(old);
        }
        Ok(&self.chunk[self.used..])
    }

    fn consume(&mut self, length: usize) {
        self.used += length;
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}
