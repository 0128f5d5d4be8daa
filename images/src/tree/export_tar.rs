// SPDX-License-Identifier: Apache-2.0
//! Writes a tree as a tar stream that depends on nothing but the tree.
//!
//! Entries are in bytewise order of names, a directory before its content, the root itself left out. The format is POSIX pax:
//! plain ustar headers, and an extended header (POSIX.1-2017 `pax`, "Extended Header") only where one is needed. Extended attributes
//! go into `SCHILY.xattr.` records, as star, GNU tar and every container tool have them. Times are whole seconds: parts of seconds
//! would need an extended header for every entry.

use super::Cancelled;
use super::error::ExportError;
use super::export_dir::{ExportStats, Links, Progress, is_portable, source};
use super::scan::{BUFFER, FILE};
use super::stamp::{Stamp, file_type, permissions};
use super::walk::{Step, Walk};
use super::xattr::{self, Attributes};
use bstr::{BStr, ByteSlice};
use rustix::fs::{FileType, Mode, Stat, fstat, major, minor, openat, readlinkat};
use rustix::io::Errno;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tar::{EntryType, Header};

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// The largest user or group id in a header: seven octal digits.
const LARGEST_ID: u64 = 0o7_777_777;

/// The largest size or time in a header: eleven octal digits.
const LARGEST_NUMBER: u64 = 0o77_777_777_777;

/// Writes the tree at `root` to `writer`. Times later than `latest`, in seconds since 1970, are written as `latest`.
///
/// Sockets are left out and counted. After an error the stream is incomplete.
///
/// # Errors
///
/// [`ExportError::Write`] when `writer` fails.
pub fn export_tar(
    root: BorrowedFd<'_>,
    writer: &mut dyn Write,
    latest: Option<i64>,
    progress: Progress<'_>,
    cancelled: Cancelled<'_>,
) -> Result<ExportStats, ExportError> {
    let top = BStr::new("/");
    let mut walk = Walk::new(root).map_err(|error| source("open", top, error))?;
    let mut archive = Archive {
        writer,
        latest,
        buffer: vec![0; BUFFER],
        links: Links::default(),
        stats: ExportStats::default(),
        progress,
        cancelled,
    };
    loop {
        if cancelled() {
            return Err(ExportError::Cancelled);
        }
        let step = walk
            .next()
            .map_err(|error| source("read", walk.path(), error))?;
        match step {
            None => break,
            Some(Step::Left) => continue,
            Some(Step::Entry(stat)) => archive.entry(&mut walk, &stat)?,
        }
        (archive.progress)(&archive.stats);
    }
    archive.write(&[0; 2 * BLOCK])?;
    archive.writer.flush().map_err(ExportError::Write)?;
    Ok(archive.stats)
}

struct Archive<'a> {
    writer: &'a mut dyn Write,
    latest: Option<i64>,
    buffer: Vec<u8>,
    links: Links,
    stats: ExportStats,
    progress: Progress<'a>,
    cancelled: Cancelled<'a>,
}

/// What a header says of an entry, beside its facts.
struct Member<'a> {
    kind: EntryType,
    path: &'a [u8],
    target: &'a [u8],
    size: u64,
    attributes: &'a Attributes,
}

impl Archive<'_> {
    fn entry(&mut self, walk: &mut Walk, stat: &Stat) -> Result<(), ExportError> {
        let kind = file_type(stat);
        let mut member = Member {
            kind: EntryType::Regular,
            path: walk.path(),
            target: b"",
            size: 0,
            attributes: &Attributes::new(),
        };
        match kind {
            FileType::Socket => {
                self.stats.sockets_left_out += 1;
                return Ok(());
            }
            FileType::Directory => {
                walk.enter()
                    .map_err(|error| source("open", walk.path(), error))?;
                let (stat, attributes) = facts(walk.directory(), walk.path())?;
                let mut path = walk.path().to_vec();
                path.push(b'/');
                member = Member {
                    kind: EntryType::Directory,
                    path: &path,
                    attributes: &attributes,
                    target: b"",
                    size: 0,
                };
                self.header(&stat, &member)?;
                self.stats.entries += 1;
                return Ok(());
            }
            _ => {}
        }
        let earlier = self.links.earlier(stat, walk.path());
        if let Some(earlier) = earlier {
            member.kind = EntryType::Link;
            member.target = &earlier;
            self.header(stat, &member)?;
            self.stats.entries += 1;
            return Ok(());
        }
        if kind == FileType::RegularFile {
            let file = openat(walk.directory(), walk.name(), FILE, Mode::empty())
                .map_err(|error| source("open", walk.path(), error))?;
            let (stat, attributes) = facts(file.as_fd(), walk.path())?;
            member.attributes = &attributes;
            member.size = Stamp::of(&stat).size;
            self.header(&stat, &member)?;
            self.content(&file, &stat, walk.path())?;
        } else {
            let named = xattr::Owner::Named(walk.directory(), walk.name());
            let attributes = xattr::read(named, is_portable)
                .map_err(|error| source("read the attributes of", walk.path(), error))?;
            member.attributes = &attributes;
            let target;
            member.kind = match kind {
                FileType::Symlink => {
                    target = readlinkat(walk.directory(), walk.name(), Vec::new())
                        .map_err(|error| source("read", walk.path(), error))?;
                    member.target = target.as_bytes();
                    EntryType::Symlink
                }
                FileType::CharacterDevice => EntryType::Char,
                FileType::BlockDevice => EntryType::Block,
                FileType::Fifo => EntryType::Fifo,
                _ => return Err(source("archive", walk.path(), Errno::OPNOTSUPP)),
            };
            self.header(stat, &member)?;
        }
        self.stats.entries += 1;
        Ok(())
    }

    /// Writes a header, with an extended one before it if it does not hold everything.
    fn header(&mut self, stat: &Stat, member: &Member<'_>) -> Result<(), ExportError> {
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
        header.set_mode(permissions(stat).into());
        for (key, id) in [(&b"uid"[..], stat.st_uid), (b"gid", stat.st_gid)] {
            if u64::from(id) > LARGEST_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        header.set_uid(u64::from(stat.st_uid).min(LARGEST_ID));
        header.set_gid(u64::from(stat.st_gid).min(LARGEST_ID));
        if member.size > LARGEST_NUMBER {
            record(&mut records, b"size", member.size.to_string().as_bytes());
        }
        header.set_size(member.size);
        let seconds = Stamp::of(stat).modified.seconds;
        let seconds = self.latest.map_or(seconds, |latest| seconds.min(latest));
        let in_header = u64::try_from(seconds)
            .ok()
            .filter(|&seconds| seconds <= LARGEST_NUMBER);
        if in_header.is_none() {
            record(&mut records, b"mtime", seconds.to_string().as_bytes());
        }
        header.set_mtime(in_header.unwrap_or(0));
        let (device_major, device_minor) = match member.kind {
            EntryType::Char | EntryType::Block => (major(stat.st_rdev), minor(stat.st_rdev)),
            _ => (0, 0),
        };
        let device = header
            .set_device_major(device_major)
            .and_then(|()| header.set_device_minor(device_minor));
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

    fn content(&mut self, file: &OwnedFd, stat: &Stat, path: &BStr) -> Result<(), ExportError> {
        let changed = || ExportError::SourceChanged { path: path.into() };
        let size = Stamp::of(stat).size;
        let mut left = size;
        while left > 0 {
            if (self.cancelled)() {
                return Err(ExportError::Cancelled);
            }
            let room = self.buffer.len();
            let want = usize::try_from(left).map_or(room, |left| left.min(room));
            let count = match rustix::io::read(file, &mut self.buffer[..want]) {
                Ok(0) => return Err(changed()),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(source("read", path, error)),
            };
            self.writer
                .write_all(&self.buffer[..count])
                .map_err(ExportError::Write)?;
            left -= count as u64;
            self.stats.bytes += count as u64;
            if left > 0 {
                (self.progress)(&self.stats);
            }
        }
        let after = fstat(file).map_err(|error| source("examine", path, error))?;
        if Stamp::of(&after) != Stamp::of(stat) {
            return Err(changed());
        }
        self.pad(size)
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
}

fn facts(file: BorrowedFd<'_>, path: &BStr) -> Result<(Stat, Attributes), ExportError> {
    let stat = fstat(file).map_err(|error| source("examine", path, error))?;
    let attributes = xattr::read(xattr::Owner::Open(file), is_portable)
        .map_err(|error| source("read the attributes of", path, error))?;
    Ok((stat, attributes))
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
