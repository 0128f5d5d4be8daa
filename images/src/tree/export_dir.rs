// SPDX-License-Identifier: Apache-2.0
//! Writes a tree into a directory of the host, as faithfully as the file system there allows: owners, modes, times, extended attributes,
//! hard links, links, devices, pipes, sockets and holes.

use super::Cancelled;
use super::data::{self, Cloning, DataError};
use super::destination::{link, open_in_root};
use super::error::ExportError;
use super::ladder::{DIRECTORY, Ladder, Names};
use super::scan::{BUFFER, FILE};
use super::stamp::{Stamp, file_type, permissions};
use super::walk::{Step, Walk, clear};
use super::xattr::{self, Attributes};
use crate::owners;
use bstr::{BStr, BString};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, chmodat, chownat, fchmod,
    fchown, fstat, futimens, mkdirat, mknodat, openat, readlinkat, renameat, renameat_with,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// What an export has written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportStats {
    /// Files, directories, links and all else.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Sockets that were left out, since a tar cannot hold them.
    pub sockets_left_out: u64,
}

/// Hears how far an export has come: after every entry, and while a large file is written to a tar.
pub type Progress<'a> = &'a mut dyn FnMut(&ExportStats);

/// Names tried for the directory that becomes the export.
const ATTEMPTS: u32 = 100;

/// Copies the tree at `root` to the directory `to`, which must not exist or be empty.
///
/// A directory that does not exist appears, by a rename, when everything is in it; after an error or when cancelled nothing is left.
///
/// # Errors
///
/// [`ExportError::NotEmpty`] and [`ExportError::NotADirectory`] when the place is taken. Without the privilege to give files to
/// other users or to make devices, a tree that needs it is an error; but in a user namespace everything becomes root's, and devices are left
/// out.
pub fn export_dir(
    root: BorrowedFd<'_>,
    to: &Path,
    progress: Progress<'_>,
    cancelled: Cancelled<'_>,
) -> Result<ExportStats, ExportError> {
    let place = |action| {
        move |error: Errno| ExportError::Place {
            action,
            path: to.to_owned(),
            source: error.into(),
        }
    };
    let following = DIRECTORY.difference(OFlags::NOFOLLOW);
    match openat(CWD, to, following, Mode::empty()) {
        Ok(directory) => {
            let mut names = Names::default();
            names
                .read(directory.as_fd(), &mut Vec::new())
                .map_err(place("list"))?;
            if names.len() > 0 {
                return Err(ExportError::NotEmpty { path: to.into() });
            }
            // A listed directory is at its end.
            let directory =
                openat(&directory, c".", DIRECTORY, Mode::empty()).map_err(place("open"))?;
            let exported = Export::new(directory.as_fd(), progress, cancelled).run(root);
            if exported.is_err() {
                // The first error is the one that tells; what cannot be removed now, the caller sees.
                let _ = clear(directory.as_fd());
            }
            exported
        }
        Err(Errno::NOTDIR) => Err(ExportError::NotADirectory { path: to.into() }),
        Err(Errno::NOENT) => {
            let name = to.file_name().ok_or(Errno::NOENT).map_err(place("make"))?;
            let parent = match to.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let parent = openat(CWD, parent, following, Mode::empty()).map_err(place("make"))?;
            let (sibling, directory) =
                make_sibling(&parent, name.as_encoded_bytes()).map_err(place("make"))?;
            let exported = Export::new(directory.as_fd(), progress, cancelled)
                .run(root)
                .and_then(|stats| {
                    rename_new(&parent, &sibling, name.as_encoded_bytes())
                        .map(|()| stats)
                        .map_err(|error| match error {
                            Errno::EXIST | Errno::NOTEMPTY => {
                                ExportError::NotEmpty { path: to.into() }
                            }
                            error => place("make")(error),
                        })
                });
            if exported.is_err() {
                let _ = clear(directory.as_fd());
                let _ = unlinkat(&parent, &*sibling, AtFlags::REMOVEDIR);
            }
            exported
        }
        Err(error) => Err(place("open")(error)),
    }
}

/// Makes a directory beside the export that nobody else uses.
fn make_sibling(parent: &OwnedFd, name: &[u8]) -> Result<(Vec<u8>, OwnedFd), Errno> {
    let process = std::process::id();
    for attempt in 0..ATTEMPTS {
        let mut sibling = b".".to_vec();
        // With its ends the name must stay within 255 bytes.
        sibling.extend_from_slice(&name[..name.len().min(200)]);
        sibling.extend_from_slice(format!(".obuild-{process}-{attempt}").as_bytes());
        match mkdirat(parent, &*sibling, Mode::RWXU) {
            Ok(()) => {
                let directory = openat(parent, &*sibling, DIRECTORY, Mode::empty())?;
                return Ok((sibling, directory));
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

fn rename_new(parent: &OwnedFd, from: &[u8], to: &[u8]) -> Result<(), Errno> {
    match renameat_with(parent, from, parent, to, RenameFlags::NOREPLACE) {
        // Not every file system knows the flag; a plain rename replaces nothing but an empty directory.
        Err(Errno::INVAL | Errno::NOSYS) => renameat(parent, from, parent, to),
        renamed => renamed,
    }
}

/// Accepts the extended attributes that belong to a file and not to the file system or host that it was on.
pub(crate) fn is_portable(name: &[u8]) -> bool {
    const OF_THE_HOST: [&[u8]; 5] = [
        b"trusted.overlay.",
        b"user.overlay.",
        b"security.selinux",
        b"security.ima",
        b"btrfs.",
    ];
    !OF_THE_HOST.iter().any(|prefix| name.starts_with(prefix))
}

/// Where an inode with several names went.
struct Linked {
    path: BString,
    /// Names still to come, if all are in the tree.
    left: u64,
}

/// The first path of every inode that has several names; what has been seen as often as it has names is forgotten.
#[derive(Default)]
pub(crate) struct Links(HashMap<(u64, u64), Linked>);

impl Links {
    /// Returns the path of an earlier name of the same inode, or remembers this one.
    pub(crate) fn earlier(&mut self, stat: &Stat, path: &BStr) -> Option<BString> {
        if stat.st_nlink < 2 {
            return None;
        }
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(linked) = self.0.get_mut(&inode) {
            linked.left -= 1;
            if linked.left == 0 {
                return self.0.remove(&inode).map(|linked| linked.path);
            }
            return Some(linked.path.clone());
        }
        #[allow(
            clippy::useless_conversion,
            reason = "on some architectures it has 32 bits"
        )]
        let names = u64::from(stat.st_nlink);
        let linked = Linked {
            path: path.to_owned(),
            left: names - 1,
        };
        self.0.insert(inode, linked);
        None
    }
}

struct Export<'a> {
    to: BorrowedFd<'a>,
    buffer: Vec<u8>,
    links: Links,
    cloning: Cloning,
    stats: ExportStats,
    progress: Progress<'a>,
    cancelled: Cancelled<'a>,
}

impl<'a> Export<'a> {
    fn new(to: BorrowedFd<'a>, progress: Progress<'a>, cancelled: Cancelled<'a>) -> Self {
        Self {
            to,
            buffer: vec![0; BUFFER],
            links: Links::default(),
            cloning: Cloning::new(),
            stats: ExportStats::default(),
            progress,
            cancelled,
        }
    }

    fn run(mut self, root: BorrowedFd<'_>) -> Result<ExportStats, ExportError> {
        let top = BStr::new("/");
        let mut walk = Walk::new(root).map_err(|error| source("open", top, error))?;
        let to = openat(self.to, c".", DIRECTORY, Mode::empty())
            .map_err(|error| target("open", top, error))?;
        let mut targets = Ladder::new(Arc::new(to));
        // What the open directories get when they are full.
        let mut open = vec![facts(walk.directory()).map_err(|error| source("read", top, error))?];
        loop {
            if (self.cancelled)() {
                return Err(ExportError::Cancelled);
            }
            let step = walk
                .next()
                .map_err(|error| source("read", walk.path(), error))?;
            match step {
                None => break,
                Some(Step::Left) => {
                    if let Some((stat, attributes)) = open.pop() {
                        set(targets.top().as_fd(), &stat, &attributes)
                            .map_err(|error| target("set the owner of", walk.path(), error))?;
                    }
                    targets
                        .ascend(|directory, _| directory)
                        .map_err(|error| target("go back up from", walk.path(), error))?;
                }
                Some(Step::Entry(stat)) if file_type(&stat) == FileType::Directory => {
                    let failed = |error| target("make the directory", walk.path(), error);
                    mkdirat(targets.top(), walk.name(), Mode::RWXU).map_err(failed)?;
                    let directory = openat(targets.top(), walk.name(), DIRECTORY, Mode::empty())
                        .map_err(failed)?;
                    let made = fstat(&directory).map_err(failed)?;
                    drop(targets.descend(Arc::new(directory), &made, false));
                    walk.enter()
                        .map_err(|error| source("open", walk.path(), error))?;
                    open.push(
                        facts(walk.directory())
                            .map_err(|error| source("read", walk.path(), error))?,
                    );
                }
                Some(Step::Entry(stat)) => self.entry(&walk, targets.top().as_fd(), &stat)?,
            }
            if !matches!(step, Some(Step::Left)) {
                self.stats.entries += 1;
                (self.progress)(&self.stats);
            }
        }
        if let Some((stat, attributes)) = open.pop() {
            set(self.to, &stat, &attributes)
                .map_err(|error| target("set the owner of", top, error))?;
        }
        Ok(self.stats)
    }

    /// Writes anything but a directory.
    fn entry(&mut self, walk: &Walk, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), ExportError> {
        let (name, path) = (walk.name(), walk.path());
        if let Some(earlier) = self.links.earlier(stat, path) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            return open_in_root(self.to, &earlier, flags)
                .and_then(|file| link(file.as_fd(), to, name))
                .map_err(|error| target("make the hard link", path, error));
        }
        match file_type(stat) {
            FileType::RegularFile => return self.file(walk, to),
            FileType::Symlink => {
                let content = readlinkat(walk.directory(), name, Vec::new())
                    .map_err(|error| source("read", path, error))?;
                symlinkat(content, to, name).map_err(|error| target("make", path, error))?;
            }
            FileType::BlockDevice | FileType::CharacterDevice if owners::without_devices(path) => {
                return Ok(());
            }
            kind => {
                mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)
                    .map_err(|error| target("make", path, error))?;
            }
        }
        let attributes = xattr::read(xattr::Owner::Named(walk.directory(), name), is_portable)
            .map_err(|error| source("read the attributes of", path, error))?;
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let set = || {
            let (uid, gid) = owners::exported(stat.st_uid, stat.st_gid);
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(to, name, Some(uid), Some(gid), nofollow)?;
            if file_type(stat) != FileType::Symlink {
                chmodat(
                    to,
                    name,
                    Mode::from_raw_mode(stat.st_mode & 0o7777),
                    AtFlags::empty(),
                )?;
            }
            xattr::write(xattr::Owner::Named(to, name), &attributes)?;
            utimensat(to, name, &times(stat), nofollow)
        };
        set().map_err(|error| target("set the owner, mode or time of", path, error))
    }

    fn file(&mut self, walk: &Walk, to: BorrowedFd<'_>) -> Result<(), ExportError> {
        let (name, path) = (walk.name(), walk.path());
        let from = openat(walk.directory(), name, FILE, Mode::empty())
            .map_err(|error| source("open", path, error))?;
        let (stat, attributes) =
            facts(from.as_fd()).map_err(|error| source("read the attributes of", path, error))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(to, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| target("create", path, error))?;
        let copied = data::copy(
            from.as_fd(),
            file.as_fd(),
            &stat,
            &mut self.buffer,
            &self.cloning,
            self.cancelled,
        );
        copied.map_err(|error| match error {
            DataError::Read(error) => source("read", path, error),
            DataError::Write(error) => target("write", path, error),
            DataError::Changed => ExportError::SourceChanged { path: path.into() },
            DataError::Cancelled => ExportError::Cancelled,
        })?;
        let after = fstat(&from).map_err(|error| source("examine", path, error))?;
        if Stamp::of(&after) != Stamp::of(&stat) {
            return Err(ExportError::SourceChanged { path: path.into() });
        }
        set(file.as_fd(), &stat, &attributes)
            .map_err(|error| target("set the owner, mode or time of", path, error))?;
        self.stats.bytes += Stamp::of(&stat).size;
        Ok(())
    }
}

fn facts(file: BorrowedFd<'_>) -> Result<(Stat, Attributes), Errno> {
    Ok((
        fstat(file)?,
        xattr::read(xattr::Owner::Open(file), is_portable)?,
    ))
}

/// Gives a copy what the original has. The owner comes first: changing it clears the set-id bits and capabilities (chown(2)).
fn set(file: BorrowedFd<'_>, stat: &Stat, attributes: &Attributes) -> Result<(), Errno> {
    let now = fstat(file)?;
    let (uid, gid) = owners::exported(stat.st_uid, stat.st_gid);
    if (now.st_uid, now.st_gid) != (uid, gid) {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchown(file, Some(uid), Some(gid))?;
    }
    fchmod(file, Mode::from_raw_mode(permissions(stat).into()))?;
    xattr::write(xattr::Owner::Open(file), attributes)?;
    futimens(file, &times(stat))
}

fn times(stat: &Stat) -> rustix::fs::Timestamps {
    let modified = Stamp::of(stat).modified;
    data::modified(modified.seconds, modified.nanoseconds)
}

pub(crate) fn source(action: &'static str, path: &BStr, error: Errno) -> ExportError {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => {
            ExportError::SourceChanged { path: path.into() }
        }
        error => ExportError::Source {
            action,
            path: path.into(),
            source: error.into(),
        },
    }
}

fn target(action: &'static str, path: &BStr, error: Errno) -> ExportError {
    ExportError::Target {
        action,
        path: path.into(),
        source: error.into(),
    }
}
