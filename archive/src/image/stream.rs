// SPDX-License-Identifier: Apache-2.0
//! Layers as streams: tar archives that are made while somebody reads them, from any place on.
//!
//! Layers are not compressed, since archives cannot be, and not kept, since they are a function of the files that they hold: owner and mode are
//! always the same, and so is the time but for that of the index and the site, which is remembered.

use super::ImageError;
use crate::tar::{self, BLOCK, Dialect, END, append_long};
use ::tar::EntryType;
use fs_err as fs;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The room for a name in a header.
const FIELD: usize = 100;

/// A part of a layer: some bytes, the content of a file, some more bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub(super) before: Vec<u8>,
    pub(super) file: Option<Content>,
    pub(super) after: Vec<u8>,
}

/// The content of a file.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// Its sha256 digest, in hexadecimal, or the beginning of that, where it is known.
    pub(super) sha256: Option<String>,
}

/// The parts of a layer, but for the end of the archive.
pub(super) type Pieces = Box<dyn Iterator<Item = Piece> + Send>;

/// Returns how many zeros follow a content of this size.
pub(super) fn padding(size: u64) -> usize {
    usize::try_from(size.next_multiple_of(BLOCK as u64) - size).expect("less than a block")
}

/// Writes the header of a file or a directory whose time does not matter.
pub(super) fn entry(into: &mut Vec<u8>, kind: EntryType, name: &str, mode: u32, size: u64) {
    header(into, kind, name, "", mode, size, 0);
}

/// Writes the header of a file of a time, in seconds since 1970.
pub(super) fn timed(into: &mut Vec<u8>, name: &str, mode: u32, size: u64, modified: u64) {
    header(into, EntryType::Regular, name, "", mode, size, modified);
}

/// Writes a hard or a symbolic link.
pub(super) fn link(into: &mut Vec<u8>, kind: EntryType, name: &str, target: &str) {
    let mode = if kind == EntryType::Symlink {
        0o777
    } else {
        0o644
    };
    header(into, kind, name, target, mode, 0, 0);
}

/// Writes a header, with GNU's long names before it where a name is too long. The owner is always the same.
fn header(
    into: &mut Vec<u8>,
    kind: EntryType,
    name: &str,
    target: &str,
    mode: u32,
    size: u64,
    modified: u64,
) {
    let mut short = [target.as_bytes(), name.as_bytes()];
    for (text, long) in short
        .iter_mut()
        .zip([EntryType::GNULongLink, EntryType::GNULongName])
    {
        if text.len() > FIELD {
            append_long(into, Dialect::Gnu, long, text);
            *text = &text[..FIELD];
        }
    }
    let [target, name] = short;
    let entry = tar::Entry {
        kind,
        prefix: b"",
        name,
        target,
        mode,
        size,
        modified,
    };
    into.extend_from_slice(&tar::header(Dialect::Gnu, &entry));
}

/// Returns the entries of all directories that these files are in.
pub(super) fn directories<'a>(files: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut names = BTreeSet::new();
    for file in files {
        let mut end = file.len();
        while let Some(slash) = file[..end].rfind('/') {
            if !names.insert(&file[..=slash]) {
                break;
            }
            end = slash;
        }
    }
    let mut bytes = Vec::new();
    for name in names {
        entry(&mut bytes, EntryType::Directory, name, 0o755, 0);
    }
    bytes
}

fn open(path: &Path, size: u64) -> io::Result<fs::File> {
    let file = fs::File::open(path)?;
    if file.metadata()?.len() == size {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its size has changed",
        ))
    }
}

/// Returns a layer's size without reading files.
pub(super) fn length(pieces: Pieces) -> u64 {
    let pieces = pieces.map(|piece| {
        let content = piece.file.map_or(0, |content| content.size);
        (piece.before.len() + piece.after.len()) as u64 + content
    });
    pieces.sum::<u64>() + END.len() as u64
}

/// Makes a layer to find out its digest and size. `tick` is told of every part that is read, and says whether to stop.
pub(super) fn measure(
    pieces: Pieces,
    tick: &mut dyn FnMut(u64) -> bool,
) -> Result<([u8; 32], u64), ImageError> {
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut add = |bytes: &[u8]| {
        hash.update(bytes);
        size += bytes.len() as u64;
    };
    let mut buffer = vec![0; 256 << 10];
    for piece in pieces {
        add(&piece.before);
        if let Some(content) = &piece.file {
            let failed = |source| ImageError::Read {
                path: content.path.clone(),
                source,
            };
            let file = open(&content.path, content.size).map_err(failed)?;
            let mut file = file.take(content.size);
            let mut own = content.sha256.as_ref().map(|_| Sha256::new());
            loop {
                let length = match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(failed(error)),
                };
                if let Some(own) = &mut own {
                    own.update(&buffer[..length]);
                }
                add(&buffer[..length]);
                if tick(length as u64) {
                    return Err(ImageError::Cancelled);
                }
            }
            if file.limit() > 0 {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let own = own
                .map(|own| hex::encode(own.finalize()))
                .unwrap_or_default();
            if !own.starts_with(content.sha256.as_deref().unwrap_or_default()) {
                return Err(ImageError::Damaged {
                    path: content.path.clone(),
                });
            }
        }
        add(&piece.after);
    }
    add(&END);
    Ok((hash.finalize().into(), size))
}

/// Reads a layer.
pub(super) struct Reader {
    pieces: Option<Pieces>,
    /// What is read first.
    bytes: io::Cursor<Vec<u8>>,
    /// Then this,
    content: Option<io::Take<fs::File>>,
    /// and this.
    after: Vec<u8>,
}

impl Reader {
    /// Opens the layer past its first `offset` bytes. Files are opened when their turn comes.
    pub(super) fn new(pieces: Pieces, mut offset: u64) -> io::Result<Self> {
        let mut reader = Self {
            pieces: Some(pieces),
            bytes: io::Cursor::default(),
            content: None,
            after: Vec::new(),
        };
        while let Some(piece) = reader.next() {
            let (before, after) = (piece.before.len() as u64, piece.after.len() as u64);
            let content = piece.file.as_ref().map_or(0, |content| content.size);
            if offset >= before + content + after {
                offset -= before + content + after;
                continue;
            }
            reader.load(piece, offset.saturating_sub(before).min(content))?;
            reader.bytes.set_position(offset.min(before));
            if let Some(rest) = offset.checked_sub(before + content) {
                reader.content = None;
                reader.bytes = io::Cursor::new(std::mem::take(&mut reader.after));
                reader.bytes.set_position(rest);
            }
            break;
        }
        Ok(reader)
    }

    /// Returns the next part; the last one is the end of the archive.
    fn next(&mut self) -> Option<Piece> {
        let pieces = self.pieces.as_mut()?;
        Some(pieces.next().unwrap_or_else(|| {
            self.pieces = None;
            Piece {
                before: END.to_vec(),
                ..Piece::default()
            }
        }))
    }

    fn load(&mut self, piece: Piece, skipped: u64) -> io::Result<()> {
        self.content = match piece.file {
            Some(content) => {
                let mut file = open(&content.path, content.size)?;
                file.seek(SeekFrom::Start(skipped))?;
                Some(file.take(content.size - skipped))
            }
            None => None,
        };
        self.bytes = io::Cursor::new(piece.before);
        self.after = piece.after;
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let length = self.bytes.read(buffer)?;
            if length > 0 {
                return Ok(length);
            }
            if let Some(content) = &mut self.content {
                let length = content.read(buffer)?;
                if length > 0 {
                    return Ok(length);
                }
                if content.limit() > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.content = None;
            }
            if !self.after.is_empty() {
                self.bytes = io::Cursor::new(std::mem::take(&mut self.after));
                continue;
            }
            match self.next() {
                Some(piece) => self.load(piece, 0)?,
                None => return Ok(0),
            }
        }
    }
}
