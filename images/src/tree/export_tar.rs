// SPDX-License-Identifier: Apache-2.0
//! Writes a tree as a tar stream that depends on nothing but the tree.
//!
//! Entries are in bytewise order of names, a directory before its content, the root itself left out. [`super::tar_writer`] says what an entry looks like.

use super::Cancelled;
use super::error::ExportError;
use super::export_dir::{ExportStats, Links, Progress, is_portable, source};
use super::scan::{BUFFER, FILE};
use super::stamp::{Stamp, file_type, permissions};
use super::tar_writer::{Member, TarWriter};
use super::walk::{Step, Walk};
use super::xattr::{self, Attributes};
use bstr::BStr;
use rustix::fs::{FileType, Mode, Stat, fstat, major, minor, openat, readlinkat};
use rustix::io::Errno;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use tar::EntryType;

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
        tar: TarWriter::new(writer),
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
    archive.tar.finish()?;
    Ok(archive.stats)
}

struct Archive<'a> {
    tar: TarWriter<'a>,
    latest: Option<i64>,
    buffer: Vec<u8>,
    links: Links,
    stats: ExportStats,
    progress: Progress<'a>,
    cancelled: Cancelled<'a>,
}

impl Archive<'_> {
    fn entry(&mut self, walk: &mut Walk, stat: &Stat) -> Result<(), ExportError> {
        let kind = file_type(stat);
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
                let member = self.member(&stat, EntryType::Directory, &path, &attributes);
                self.tar.header(&member)?;
                self.stats.entries += 1;
                return Ok(());
            }
            _ => {}
        }
        let none = Attributes::new();
        let earlier = self.links.earlier(stat, walk.path());
        if let Some(earlier) = earlier {
            let member = Member {
                target: &earlier,
                ..self.member(stat, EntryType::Link, walk.path(), &none)
            };
            self.tar.header(&member)?;
        } else if kind == FileType::RegularFile {
            let file = openat(walk.directory(), walk.name(), FILE, Mode::empty())
                .map_err(|error| source("open", walk.path(), error))?;
            let (stat, attributes) = facts(file.as_fd(), walk.path())?;
            let member = Member {
                size: Stamp::of(&stat).size,
                ..self.member(&stat, EntryType::Regular, walk.path(), &attributes)
            };
            self.tar.header(&member)?;
            let (stats, progress) = (&mut self.stats, &mut self.progress);
            let mut written = |count, more| {
                stats.bytes += count;
                if more {
                    progress(stats);
                }
            };
            self.tar.content(
                &file,
                &stat,
                walk.path(),
                &mut self.buffer,
                &mut written,
                self.cancelled,
            )?;
        } else {
            let named = xattr::Owner::Named(walk.directory(), walk.name());
            let attributes = xattr::read(named, is_portable)
                .map_err(|error| source("read the attributes of", walk.path(), error))?;
            let mut member = self.member(stat, EntryType::Fifo, walk.path(), &attributes);
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
            self.tar.header(&member)?;
        }
        self.stats.entries += 1;
        Ok(())
    }

    /// Says what a header holds of anything: without content, link target.
    fn member<'a>(
        &self,
        stat: &Stat,
        kind: EntryType,
        path: &'a [u8],
        attributes: &'a Attributes,
    ) -> Member<'a> {
        let seconds = Stamp::of(stat).modified.seconds;
        let device = matches!(
            file_type(stat),
            FileType::CharacterDevice | FileType::BlockDevice
        ) && kind != EntryType::Link;
        Member {
            kind,
            path,
            target: b"",
            size: 0,
            mode: permissions(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: self.latest.map_or(seconds, |latest| seconds.min(latest)),
            device: if device {
                (major(stat.st_rdev), minor(stat.st_rdev))
            } else {
                (0, 0)
            },
            attributes,
        }
    }
}

fn facts(file: BorrowedFd<'_>, path: &BStr) -> Result<(Stat, Attributes), ExportError> {
    let stat = fstat(file).map_err(|error| source("examine", path, error))?;
    let attributes = xattr::read(xattr::Owner::Open(file), is_portable)
        .map_err(|error| source("read the attributes of", path, error))?;
    Ok((stat, attributes))
}
