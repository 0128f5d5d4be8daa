// SPDX-License-Identifier: Apache-2.0
//! A plain directory as a repository. What was in its files is remembered with their size, times and inode, so that only files
//! that were touched are read; a state is named by a SHA-256 over all paths and contents.
//!
//! The listings of the last states are kept. A directory has no history: a state is compared with one of those, or not at all.

use super::names::{self, Reason, Skipped, Verdict};
use super::{Change, Commit, Error, Limits, Options};
use crate::replace::replace;
use bstr::{BString, ByteSlice};
use rustix::fs::{Mode, OFlags};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How many states are remembered: the newest for each of the parts that follow a repository, and some.
const LISTINGS: usize = 4;

/// The first line of a listing.
const FORMAT: &[u8] = b"obuild directory listing 1\n";

/// What is remembered of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    stamp: Stamp,
    executable: bool,
    digest: [u8; 32],
}

/// What changes when a file does (stat(2)). The change time cannot be set by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    /// Returns whether the file was touched so lately that it could be again within the same tick of the clock.
    fn is_fresh(&self, now: i64) -> bool {
        self.changed.0 >= now - 1
    }
}

type Listing = BTreeMap<BString, File>;

/// A directory and the place of its listings.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    work: PathBuf,
    /// What was left out when it was looked at last.
    skipped: Vec<Skipped>,
}

impl Directory {
    pub(super) fn new(root: &Path, work: &Path) -> Self {
        Self {
            root: root.to_owned(),
            work: work.join("listings"),
            skipped: Vec::new(),
        }
    }

    /// See [`super::Repository::head`].
    pub(super) fn head(&mut self, options: &Options) -> Result<Commit, Error> {
        fs_err::create_dir_all(&self.work).map_err(Error::io("make", &self.work))?;
        let before = self.newest()?;
        let mut walk = Walk {
            root: &self.root,
            before: before.as_ref().map(|(_, listing)| listing),
            listing: Listing::new(),
            skipped: Vec::new(),
            options,
            now: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(i64::MAX, |now| {
                    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
                }),
        };
        walk.directory(b"", &[&b"packages"[..], b"repo", b"version"])?;
        let Walk {
            listing, skipped, ..
        } = walk;
        self.skipped = skipped;
        let commit = name(&listing)?;
        // Also when only stamps differ: they save reading.
        if before.is_none_or(|(old, known)| old != commit || known != listing) {
            self.write(&commit, &listing)?;
        }
        Ok(commit)
    }

    /// See [`super::Repository::changes`].
    pub(super) fn changes<E: From<Error>>(
        &self,
        from: Option<&Commit>,
        to: &Commit,
        options: &Options,
        visit: &mut dyn FnMut(Change) -> Result<(), E>,
    ) -> Result<Vec<Skipped>, E> {
        let load = |commit: &Commit| {
            let listing = self.read(commit)?;
            listing.ok_or_else(|| Error::NoSuchCommit {
                commit: commit.to_string(),
            })
        };
        let old = from.map(load).transpose()?.unwrap_or_default();
        let new = load(to)?;
        let same = |path: &BString, file: &File| {
            old.get(path).is_some_and(|before| {
                before.digest == file.digest && before.executable == file.executable
            })
        };
        let paths = new
            .iter()
            .filter(|(path, file)| !same(path, file))
            .map(|(path, _)| path);
        let mut paths: Vec<&BString> = paths
            .chain(old.keys().filter(|path| !new.contains_key(*path)))
            .collect();
        paths.sort_unstable();
        for path in paths {
            if options.cancel.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            let mut change = Change {
                path: path.clone(),
                content: None,
                executable: false,
            };
            if let Some(file) = new.get(path) {
                let place = self.root.join(path.to_path_lossy());
                let content = read(&self.root, path, &options.limits)?
                    .filter(|content| <[u8; 32]>::from(Sha256::digest(content)) == file.digest);
                change.content = Some(content.ok_or(Error::Changing { path: place })?);
                change.executable = file.executable;
            }
            visit(change)?;
        }
        Ok(self.skipped.clone())
    }

    fn path(&self, commit: &Commit) -> PathBuf {
        self.work.join(commit.as_str())
    }

    /// Returns the names of the listings, the newest first.
    fn listings(&self) -> Result<Vec<Commit>, Error> {
        let mut found = Vec::new();
        for entry in fs_err::read_dir(&self.work).map_err(Error::io("list", &self.work))? {
            let entry = entry.map_err(Error::io("list", &self.work))?;
            let commit = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (Some(commit), Ok(metadata)) = (commit, entry.metadata()) {
                found.push(((metadata.mtime(), metadata.mtime_nsec()), commit));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        Ok(found.into_iter().map(|(_, commit)| commit).collect())
    }

    fn newest(&self) -> Result<Option<(Commit, Listing)>, Error> {
        for commit in self.listings()? {
            if let Some(listing) = self.read(&commit)? {
                return Ok(Some((commit, listing)));
            }
        }
        Ok(None)
    }

    /// Reads a listing; what is damaged is as good as not there.
    fn read(&self, commit: &Commit) -> Result<Option<Listing>, Error> {
        let path = self.path(commit);
        let text = match fs_err::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let listing = parse(&text);
        Ok(match listing {
            Some(listing) if name(&listing)? == *commit => Some(listing),
            _ => None,
        })
    }

    fn write(&self, commit: &Commit, listing: &Listing) -> Result<(), Error> {
        let path = self.path(commit);
        replace(&path, &print(listing)).map_err(Error::io("write", &path))?;
        for old in self.listings()?.into_iter().skip(LISTINGS) {
            let path = self.path(&old);
            // Another process may have been faster.
            let _ = fs_err::remove_file(path);
        }
        Ok(())
    }
}

/// One look at a directory.
struct Walk<'a> {
    root: &'a Path,
    before: Option<&'a Listing>,
    listing: Listing,
    skipped: Vec<Skipped>,
    options: &'a Options,
    /// Seconds since 1970.
    now: i64,
}

impl Walk<'_> {
    /// Looks at a directory; `only` these names of it, if any are given.
    fn directory(&mut self, prefix: &[u8], only: &[&[u8]]) -> Result<(), Error> {
        if self.options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let path = self.root.join(prefix.to_path_lossy());
        let mut names = Vec::new();
        for entry in fs_err::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?;
            let name = entry.file_name().as_bytes().to_owned();
            if only.is_empty() || only.contains(&name.as_slice()) {
                names.push((name, entry));
            }
        }
        let mut kept = Vec::new();
        for (name, entry) in &names {
            let reason = match names::judge(prefix, name) {
                Verdict::Ignore => continue,
                Verdict::Skip(reason) => Some(reason),
                Verdict::Keep => self.entry(prefix, name, entry)?,
            };
            match reason {
                Some(reason) => self.skip(prefix, name, reason),
                None => kept.push(name.as_slice()),
            }
        }
        for name in names::case_twins(kept.into_iter()) {
            self.skip(prefix, name, Reason::Case);
        }
        Ok(())
    }

    fn skip(&mut self, prefix: &[u8], name: &[u8], reason: Reason) {
        self.skipped.push(Skipped {
            path: [prefix, name].concat().into(),
            reason,
        });
    }

    /// Looks at an entry and returns why it is left out, if it is.
    fn entry(
        &mut self,
        prefix: &[u8],
        name: &[u8],
        entry: &fs_err::DirEntry,
    ) -> Result<Option<Reason>, Error> {
        let place = entry.path();
        let path = [prefix, name].concat();
        let metadata = entry.metadata().map_err(Error::io("look at", &place))?;
        let kind = metadata.file_type();
        if kind.is_symlink() {
            return Ok(Some(Reason::Link));
        }
        let belongs = !prefix.is_empty() || (name == b"packages") == kind.is_dir();
        if !(kind.is_file() || kind.is_dir()) || !belongs {
            return Ok(Some(Reason::Special));
        }
        if kind.is_dir() {
            self.directory(&[&path, &b"/"[..]].concat(), &[])?;
            return Ok(None);
        }
        let bytes = metadata.size();
        if bytes > self.options.limits.file_bytes {
            return Ok(Some(Reason::Large { bytes }));
        }
        if self.listing.len() >= self.options.limits.files {
            return Err(Error::TooMany {
                limit: self.options.limits.files,
            });
        }
        let path = BString::from(path);
        let stamp = Stamp::of(&metadata);
        let known = self.before.and_then(|before| before.get(&path));
        let digest = match known {
            Some(known) if known.stamp == stamp && !stamp.is_fresh(self.now) => known.digest,
            _ => {
                let content = read(self.root, &path, &self.options.limits)?;
                Sha256::digest(content.ok_or(Error::Changing { path: place })?).into()
            }
        };
        let executable = metadata.permissions().mode() & 0o100 != 0;
        self.listing.insert(
            path,
            File {
                stamp,
                executable,
                digest,
            },
        );
        Ok(None)
    }
}

/// Reads a file without following a link in its place; nothing if it is not a file that may be read any more.
fn read(root: &Path, path: &BString, limits: &Limits) -> Result<Option<Vec<u8>>, Error> {
    let place = root.join(path.to_path_lossy());
    let failed = |error: rustix::io::Errno| Error::io("read", &place)(error.into());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&place, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !file
        .metadata()
        .map_err(Error::io("read", &place))?
        .is_file()
    {
        return Ok(None);
    }
    let mut content = Vec::new();
    let mut limited = file.take(limits.file_bytes + 1);
    limited
        .read_to_end(&mut content)
        .map_err(Error::io("read", &place))?;
    Ok((content.len() as u64 <= limits.file_bytes).then_some(content))
}

/// Names a state.
fn name(listing: &Listing) -> Result<Commit, Error> {
    let mut hash = Sha256::new();
    for (path, file) in listing {
        hash.update((path.len() as u64).to_le_bytes());
        hash.update(path);
        hash.update([u8::from(file.executable)]);
        hash.update(file.digest);
    }
    hex::encode(hash.finalize()).parse()
}

fn print(listing: &Listing) -> Vec<u8> {
    let mut text = FORMAT.to_vec();
    for (path, file) in listing {
        let Stamp {
            size,
            modified,
            changed,
            inode,
        } = file.stamp;
        let line = format!(
            "{} {} {size} {}.{} {}.{} {inode} ",
            hex::encode(file.digest),
            u8::from(file.executable),
            modified.0,
            modified.1,
            changed.0,
            changed.1,
        );
        text.extend_from_slice(line.as_bytes());
        // Names with a line break in them are no names.
        text.extend_from_slice(path);
        text.push(b'\n');
    }
    text
}

fn parse(text: &[u8]) -> Option<Listing> {
    let mut listing = Listing::new();
    for line in text.strip_prefix(FORMAT)?.lines() {
        let mut words = line.splitn(7, |byte| *byte == b' ');
        let mut word = || words.next();
        let digest = hex::decode(word()?).ok()?.try_into().ok()?;
        let executable = word()? == b"1";
        let number = |word: &[u8]| word.to_str().ok()?.parse::<u64>().ok();
        let time = |word: &[u8]| {
            let (seconds, nanoseconds) = word.to_str().ok()?.split_once('.')?;
            Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
        };
        let stamp = Stamp {
            size: number(word()?)?,
            modified: time(word()?)?,
            changed: time(word()?)?,
            inode: number(word()?)?,
        };
        let file = File {
            stamp,
            executable,
            digest,
        };
        listing.insert(word()?.into(), file);
    }
    Some(listing)
}
