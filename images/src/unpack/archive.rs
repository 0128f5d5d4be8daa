// SPDX-License-Identifier: Apache-2.0
//! Reads a tar stream entry by entry: ustar, GNU, V7 and PAX, with GNU and PAX sparse files.
//!
//! The header's layout comes from the `tar` crate. Its iterator is not used: it keeps extension records of any size in
//! memory, splits them at line feeds (which breaks binary attributes) and does not know PAX sparse files. Every
//! allocation here has a bound; a body is handed out as it streams by.

use super::Error;
use super::pax::{self, Pax};
use std::io::{self, BufRead};
use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

const BLOCK: u64 = 512;
const BLOCK_BYTES: usize = 512;
/// The largest extension record; Go's `archive/tar` has the same bound (`maxSpecialFileSize`).
const MAX_RECORD: u64 = 1 << 20;
/// The most extents of a sparse file: 4 MiB of map.
const MAX_EXTENTS: usize = 1 << 18;

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file whose whole content is the body.
    File,
    /// A file of `size` bytes, of which the body holds the extents.
    Sparse { size: u64, map: Vec<Extent> },
    /// A directory.
    Directory,
    /// A symbolic link to this text.
    Symlink(Vec<u8>),
    /// Another name for the entry of this name.
    HardLink(Vec<u8>),
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry without its body.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The name as written.
    pub(super) name: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream.
pub(super) struct Archive<R> {
    input: R,
    /// Bytes of the current body that nobody has read.
    body: u64,
    /// Zeros up to the next block.
    padding: u64,
    position: u64,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            body: 0,
            padding: 0,
            position: 0,
        }
    }

    /// Returns the next entry, skipping what is left of the last one's body; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip(self.body.saturating_add(self.padding))?;
        (self.body, self.padding) = (0, 0);
        let (mut pax, mut long_name, mut long_link) = (None, None, None);
        loop {
            let Some(header) = self.header()? else {
                return if pax.is_none() && long_name.is_none() && long_link.is_none() {
                    Ok(None)
                } else {
                    Err(self.malformed("it ends after an extension header"))
                };
            };
            let size = self.unsigned(&header.as_old().size, "size")?;
            match header.as_bytes()[156] {
                b'x' => {
                    let record = self.record(size)?;
                    let parsed = pax::parse(&record).map_err(|reason| self.malformed(reason))?;
                    if pax.replace(parsed).is_some() {
                        return Err(self.malformed("two extension headers for one entry"));
                    }
                }
                b'L' => long_name = Some(until_nul(self.record(size)?)),
                b'K' => long_link = Some(until_nul(self.record(size)?)),
                // Global records (git archive writes a comment) and GNU volume labels describe no entry.
                b'g' | b'V' => {
                    self.skip(padded(size).ok_or_else(|| self.malformed("a size overflows"))?)?;
                }
                _ => {
                    return self
                        .entry(&header, size, pax.unwrap_or_default(), long_name, long_link)
                        .map(Some);
                }
            }
        }
    }

    /// Returns bytes of the body, at most `limit`; none when it ends. [`Self::consume`] moves on.
    pub(super) fn chunk(&mut self, limit: u64) -> Result<&[u8], Error> {
        let limit = self.body.min(limit);
        if limit == 0 {
            return Ok(&[]);
        }
        if fill(&mut self.input)?.is_empty() {
            return Err(self.malformed("it ends inside a file"));
        }
        let bytes = fill(&mut self.input)?;
        let length = bytes
            .len()
            .min(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(&bytes[..length])
    }

    /// Marks bytes of the last [`Self::chunk`] as read.
    pub(super) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.position += length as u64;
        self.body -= length as u64;
    }

    /// Reads to the end of the stream, so that whoever checks its digest sees all of it.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        loop {
            let length = fill(&mut self.input)?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed {
            reason: reason.into(),
            position: self.position,
        }
    }

    /// Reads one block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, Error> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let bytes = fill(&mut self.input)?;
            if bytes.is_empty() {
                return if filled == 0 {
                    Ok(None)
                } else {
                    Err(self.malformed("it ends inside a header"))
                };
            }
            let length = bytes.len().min(BLOCK_BYTES - filled);
            block[filled..filled + length].copy_from_slice(&bytes[..length]);
            self.input.consume(length);
            self.position += length as u64;
            filled += length;
        }
        Ok(Some(block))
    }

    /// Reads a header and checks its sum; `None` at the end, which is a block of zeros or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        let written = self.unsigned(&header.as_old().cksum, "checksum")?;
        let (unsigned, signed) = checksums(&block);
        // POSIX sums unsigned bytes; old Sun tars summed signed ones.
        if written != unsigned && i64::try_from(written) != Ok(signed) {
            return Err(self.malformed("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// Reads the body of an extension header.
    fn record(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_RECORD {
            return Err(self.malformed(format!(
                "an extension header of {size} bytes (the limit is {MAX_RECORD})"
            )));
        }
        let mut record = Vec::new();
        self.body = size;
        while self.body > 0 {
            let bytes = self.chunk(u64::MAX)?;
            record.extend_from_slice(bytes);
            let length = bytes.len();
            self.consume(length);
        }
        self.skip(padding(size))?;
        Ok(record)
    }

    fn skip(&mut self, mut length: u64) -> Result<(), Error> {
        while length > 0 {
            let available = fill(&mut self.input)?.len();
            if available == 0 {
                return Err(self.malformed("it ends inside a file"));
            }
            let step = available.min(usize::try_from(length).unwrap_or(usize::MAX));
            self.input.consume(step);
            self.position += step as u64;
            length -= step as u64;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Error> {
        let old = header.as_old();
        let size = pax.size.unwrap_or(size);
        padded(size).ok_or_else(|| self.malformed("a size overflows"))?;
        let plain_name = || header.path_bytes().into_owned();
        let name = pax.path.or(long_name).unwrap_or_else(plain_name);
        let link = pax
            .link
            .or(long_link)
            .unwrap_or_else(|| until_nul(old.linkname.to_vec()));
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => (self.number(&old.mtime, "mtime")?, 0),
        };
        let flag = header.as_bytes()[156];
        // Those below have no body, whatever their size says (as Go's archive/tar, which most layers come from).
        if matches!(flag, b'1'..=b'6') {
            (self.body, self.padding) = (0, 0);
        } else {
            (self.body, self.padding) = (size, padding(size));
        }
        let device = || -> Result<(u32, u32), Error> {
            let ustar = header
                .as_ustar()
                .map(|header| (&header.dev_major, &header.dev_minor));
            let gnu = header
                .as_gnu()
                .map(|header| (&header.dev_major, &header.dev_minor));
            let Some((major, minor)) = ustar.or(gnu) else {
                return Err(self.malformed("a device without numbers"));
            };
            Ok((
                self.small(major, "device number")?,
                self.small(minor, "device number")?,
            ))
        };
        let kind = match flag {
            // Before ustar a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' if pax.sparse.present || pax.sparse.major.is_some() => {
                let real = pax
                    .sparse
                    .real_size
                    .ok_or_else(|| self.malformed("a sparse file without a size"))?;
                let map = if pax.sparse.major == Some(1) {
                    self.map_in_body()?
                } else {
                    pax.sparse.map
                };
                self.sparse(real, map)?
            }
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' => device().map(|(major, minor)| Kind::Character(major, minor))?,
            b'4' => device().map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => {
                let (real, map) = self.gnu_map(header)?;
                self.sparse(real, map)?
            }
            _ => {
                return Err(Error::Refused {
                    entry: name.into(),
                    reason: format!("it is of the unknown type {:?}", char::from(flag)),
                });
            }
        };
        Ok(Entry {
            name: pax.sparse.name.unwrap_or(name),
            kind,
            mode: self.small(&old.mode, "mode")? & 0o7777,
            uid: self.id(pax.uid, &old.uid)?,
            gid: self.id(pax.gid, &old.gid)?,
            mtime,
            xattrs: pax.xattrs,
        })
    }

    /// Checks a sparse file's map against its size and its body.
    fn sparse(&self, size: u64, mut map: Vec<Extent>) -> Result<Kind, Error> {
        let (mut end, mut total) = (0_u64, 0_u64);
        for extent in &map {
            let next = extent.offset.checked_add(extent.length);
            let (true, Some(next)) = (extent.offset >= end, next) else {
                return Err(self.malformed("the extents of a sparse file overlap"));
            };
            (end, total) = (next, total.saturating_add(extent.length));
        }
        if end > size || total != self.body {
            return Err(self.malformed("the extents of a sparse file do not fit its size"));
        }
        map.retain(|extent| extent.length > 0);
        Ok(Kind::Sparse { size, map })
    }

    /// Reads the map of the old GNU format: in the header and in blocks that follow it.
    fn gnu_map(&mut self, header: &Header) -> Result<(u64, Vec<Extent>), Error> {
        let Some(gnu) = header.as_gnu() else {
            return Err(self.malformed("a GNU sparse file without a GNU header"));
        };
        let mut map = Vec::new();
        self.add_extents(&mut map, &gnu.sparse)?;
        let mut more = gnu.isextended[0] == 1;
        while more {
            let Some(block) = self.block()? else {
                return Err(self.malformed("it ends inside a header"));
            };
            let mut extension = GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(&block);
            self.add_extents(&mut map, extension.sparse())?;
            more = extension.is_extended();
        }
        Ok((self.unsigned(&gnu.realsize, "real size")?, map))
    }

    fn add_extents(&self, map: &mut Vec<Extent>, extents: &[GnuSparseHeader]) -> Result<(), Error> {
        for extent in extents.iter().filter(|extent| !extent.is_empty()) {
            if map.len() == MAX_EXTENTS {
                return Err(self.malformed("a sparse file of too many extents"));
            }
            map.push(Extent {
                offset: self.unsigned(&extent.offset, "offset")?,
                length: self.unsigned(&extent.numbytes, "length")?,
            });
        }
        Ok(())
    }

    /// Reads the map of the PAX 1.0 format: lines of decimal numbers at the body's start, padded to a block.
    fn map_in_body(&mut self) -> Result<Vec<Extent>, Error> {
        let mut taken = 0_u64;
        let mut line = |archive: &mut Self| -> Result<u64, Error> {
            let mut digits = Vec::new();
            loop {
                let byte = archive.chunk(1)?.first().copied();
                let Some(byte) = byte
                    .filter(|byte| digits.len() < 20 && (byte.is_ascii_digit() || *byte == b'\n'))
                else {
                    return Err(archive.malformed("the map of a sparse file does not parse"));
                };
                archive.consume(1);
                taken += 1;
                if byte == b'\n' {
                    return pax::decimal(&digits).ok_or_else(|| {
                        archive.malformed("the map of a sparse file does not parse")
                    });
                }
                digits.push(byte);
            }
        };
        let count = line(self)?;
        if count > MAX_EXTENTS as u64 {
            return Err(self.malformed("a sparse file of too many extents"));
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push(Extent {
                offset: line(self)?,
                length: line(self)?,
            });
        }
        let rest = padding(taken);
        if rest > self.body {
            return Err(self.malformed("the map of a sparse file does not parse"));
        }
        self.skip(rest)?;
        self.body -= rest;
        Ok(map)
    }

    /// Reads a numeric field: octal, or base 256 when its first bit is set (GNU tar, `from_header`). Blank is zero.
    fn number(&self, field: &[u8], what: &str) -> Result<i64, Error> {
        let bad = || self.malformed(format!("a header's {what} does not parse"));
        if field[0] & 0x80 != 0 {
            let start = if field[0] & 0x40 != 0 { -1_i128 } else { 0 };
            let first = i128::from(field[0] & 0x3f) | (start << 6);
            let number = field[1..].iter().try_fold(first, |number, &byte| {
                number
                    .checked_mul(256)
                    .map(|number| number | i128::from(byte))
            });
            return number
                .and_then(|number| i64::try_from(number).ok())
                .ok_or_else(bad);
        }
        let digits = field.iter().skip_while(|byte| **byte == b' ');
        let mut number = 0_i64;
        for &byte in digits.take_while(|byte| !matches!(byte, b' ' | 0)) {
            let digit = matches!(byte, b'0'..=b'7')
                .then(|| i64::from(byte - b'0'))
                .ok_or_else(bad)?;
            number = number
                .checked_mul(8)
                .and_then(|number| number.checked_add(digit))
                .ok_or_else(bad)?;
        }
        Ok(number)
    }

    fn unsigned(&self, field: &[u8], what: &str) -> Result<u64, Error> {
        let number = self.number(field, what)?;
        u64::try_from(number).map_err(|_| self.malformed(format!("a header's {what} is negative")))
    }

    fn small(&self, field: &[u8], what: &str) -> Result<u32, Error> {
        let number = self.number(field, what)?;
        u32::try_from(number)
            .map_err(|_| self.malformed(format!("a header's {what} is out of range")))
    }

    /// An owner; the largest number is not one (chown(2) takes it as "leave alone").
    fn id(&self, pax: Option<u64>, field: &[u8]) -> Result<u32, Error> {
        let number = match pax {
            Some(number) => number,
            None => self.unsigned(field, "owner")?,
        };
        u32::try_from(number)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| self.malformed("an owner is out of range"))
    }
}

fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], Error> {
    // `fill_buf` in a loop would borrow for too long; ask until it is not interrupted, then borrow.
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Read(error)),
        }
    }
    input.fill_buf().map_err(Error::Read)
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn padded(size: u64) -> Option<u64> {
    size.checked_add(padding(size))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// Sums a header as unsigned and as signed bytes, its checksum field read as blanks.
fn checksums(block: &[u8; BLOCK_BYTES]) -> (u64, i64) {
    let mut sums = (0, 0);
    for (index, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&index) {
            b' '
        } else {
            byte
        };
        sums.0 += u64::from(byte);
        sums.1 += i64::from(byte.cast_signed());
    }
    sums
}
