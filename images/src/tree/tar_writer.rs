// SPDX-License-Identifier: Apache-2.0
//! Writes tar entries in a form that depends on nothing but what is written.
//!
//! The format is POSIX pax: plain ustar headers, and an extended header (POSIX.1-2017 `pax`, "Extended Header") only where one is
//! needed. Extended attributes go into `SCHILY.xattr.` records, as star, GNU tar and every container tool have them. Times are whole
//! seconds: parts of seconds would need an extended header for every entry.

use super::Cancelled;
use super::error::ExportError;
use super::export_dir::source;
use super::stamp::Stamp;
use super::xattr::Attributes;
use bstr::{BStr, ByteSlice};
use rustix::fs::{Stat, fstat};
use rustix::io::Errno;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use tar::{EntryType, Header};

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// The largest user or group id in a header: seven octal digits.
const LARGEST_ID: u64 = 0o7_777_777;

/// The largest size or time in a header: eleven octal digits.
const LARGEST_NUMBER: u64 = 0o77_777_777_777;

/// What a header says of an entry.
pub(crate) struct Member<'a> {
    pub(crate) kind: EntryType,
    /// With a `/` at its end if it is a directory's.
    pub(crate) path: &'a [u8],
    pub(crate) target: &'a [u8],
    pub(crate) size: u64,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    /// Major and minor number.
    pub(crate) device: (u32, u32),
    pub(crate) attributes: &'a Attributes,
}

/// Writes entries.
pub(crate) struct TarWriter<'a> {
    writer: &'a mut dyn Write,
}

impl<'a> TarWriter<'a> {
    pub(crate) fn new(writer: &'a mut dyn Write) -> Self {
        Self { writer }
    }

    /// Writes a header, with an extended one before it if it does not hold everything.
    pub(crate) fn header(&mut self, member: &Member<'_>) -> Result<(), ExportError> {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        let fields = header
            .as_ustar_mut()
            .expect("the header has just been made as ustar");
        let (prefix, name) = split(member.path).unwrap_or_else(|| {
            record(&mut records, b"path", member.path);
            (b"", &member.path[..fields.name.len()])
        });
        fields.prefix[..prefix.len()].copy_from_slice(prefix);
        fields.name[..name.len()].copy_from_slice(name);
        if member.target.len() > fields.linkname.len() {
            record(&mut records, b"linkpath", member.target);
        }
        let shown = member.target.len().min(fields.linkname.len());
        fields.linkname[..shown].copy_from_slice(&member.target[..shown]);
        header.set_entry_type(member.kind);
        header.set_mode(member.mode.into());
        for (key, id) in [(&b"uid"[..], member.uid), (b"gid", member.gid)] {
            if u64::from(id) > LARGEST_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        header.set_uid(u64::from(member.uid).min(LARGEST_ID));
        header.set_gid(u64::from(member.gid).min(LARGEST_ID));
        if member.size > LARGEST_NUMBER {
            record(&mut records, b"size", member.size.to_string().as_bytes());
        }
        header.set_size(member.size);
        let in_header = u64::try_from(member.modified)
            .ok()
            .filter(|&seconds| seconds <= LARGEST_NUMBER);
        if in_header.is_none() {
            record(
                &mut records,
                b"mtime",
                member.modified.to_string().as_bytes(),
            );
        }
        header.set_mtime(in_header.unwrap_or(0));
        let device = header
            .set_device_major(member.device.0)
            .and_then(|()| header.set_device_minor(member.device.1));
        device.map_err(ExportError::Write)?;
        for (name, value) in member.attributes {
            let key = [b"SCHILY.xattr.", name.as_slice()].concat();
            record(&mut records, &key, value);
        }
        if !records.is_empty() {
            self.extended(&records, member.path)?;
        }
        header.set_cksum();
        self.write(header.as_bytes())
    }

    /// Writes an extended header. Its name is for readers that do not know it.
    fn extended(&mut self, records: &[u8], path: &[u8]) -> Result<(), ExportError> {
        let mut header = Header::new_ustar();
        let fields = header
            .as_ustar_mut()
            .expect("the header has just been made as ustar");
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let base = path.rsplit_str("/").next().unwrap_or(path);
        let mut name = b"PaxHeaders/".to_vec();
        name.extend_from_slice(&base[..base.len().min(80)]);
        fields.name[..name.len()].copy_from_slice(&name);
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(records)?;
        self.pad(records.len() as u64)
    }

    /// Writes the content of a file that must not change meanwhile. `written` hears how many bytes each time, and whether more follow.
    pub(crate) fn content(
        &mut self,
        file: &OwnedFd,
        stat: &Stat,
        path: &BStr,
        buffer: &mut [u8],
        written: &mut dyn FnMut(u64, bool),
        cancelled: Cancelled<'_>,
    ) -> Result<(), ExportError> {
        let changed = || ExportError::SourceChanged { path: path.into() };
        let size = Stamp::of(stat).size;
        let mut left = size;
        while left > 0 {
            if cancelled() {
                return Err(ExportError::Cancelled);
            }
            let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = match rustix::io::read(file, &mut buffer[..want]) {
                Ok(0) => return Err(changed()),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(source("read", path, error)),
            };
            self.write(&buffer[..count])?;
            left -= count as u64;
            written(count as u64, left > 0);
        }
        let after = fstat(file).map_err(|error| source("examine", path, error))?;
        if Stamp::of(&after) != Stamp::of(stat) {
            return Err(changed());
        }
        self.pad(size)
    }

    /// Has the content of an entry of this size written, and fills up its last block.
    pub(crate) fn body<T>(
        &mut self,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> T,
    ) -> Result<T, ExportError> {
        let written = write(self.writer);
        self.pad(size)?;
        Ok(written)
    }

    /// Fills up the last block of something of this size.
    fn pad(&mut self, size: u64) -> Result<(), ExportError> {
        let missing = size.next_multiple_of(BLOCK as u64) - size;
        let zeros = std::io::repeat(0).take(missing);
        std::io::copy(&mut { zeros }, &mut *self.writer)
            .map(drop)
            .map_err(ExportError::Write)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.writer.write_all(bytes).map_err(ExportError::Write)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Result<(), ExportError> {
        self.write(&[0; 2 * BLOCK])?;
        self.writer.flush().map_err(ExportError::Write)
    }
}

/// Splits a path over the header's prefix (155 bytes) and name (100 bytes) at a `/`, which is then left out.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The name must not be empty, and a directory's last byte is a `/`.
    let latest = path.len().checked_sub(2)?.min(155);
    let slash = path[..=latest]
        .rfind_byte(b'/')
        .filter(|&slash| slash > 0)?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (name.len() <= 100).then_some((prefix, name))
}

/// Appends an extended header record: its own length in decimal, blank, key, `=`, value, newline.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
