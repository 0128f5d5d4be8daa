// SPDX-License-Identifier: Apache-2.0
//! Complete archives get their names.
//!
//! One `syncfs` a batch and not one `fsync` a file: the journal is written once, and while it is written the next batch
//! gathers by itself.

use super::hashes::{Hashes, hash_reader};
use super::incoming::Finished;
use super::{BLOCK, Cache, CacheError, FileId};
use crate::Checksum;
use fs_err as fs;
use rustix::fs::{AtFlags, CWD};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

/// What became of an archive that was put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// What it is.
    pub hashes: Hashes,
    /// Whether its bytes are new here.
    pub new: bool,
    /// Names that belong to another archive, which is what it says too: two files with one md5.
    pub collisions: Vec<Checksum>,
}

impl Cache {
    /// Puts archives in and gives them all their names. They are on the disk before they have one.
    pub fn add(&self, files: Vec<Finished>) -> Vec<Result<Added, CacheError>> {
        if files.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.sync() {
            let kind = error.io().map_or(io::ErrorKind::Other, io::Error::kind);
            let again = || CacheError::Write(io::Error::new(kind, "the disk was not written"));
            let others = files.iter().skip(1).map(|_| Err(again()));
            return std::iter::once(Err(error)).chain(others).collect();
        }
        files
            .into_iter()
            .map(|file| self.name(file.temporary.path(), file.hashes.clone()))
            .collect()
    }

    /// Gives a file, whose hashes these are, all its names.
    pub(super) fn name(&self, file: &Path, hashes: Hashes) -> Result<Added, CacheError> {
        let strongest = self.path(hashes.strongest());
        let mut new = true;
        if !link(file, &strongest)? {
            if same_content(file, &strongest)? {
                new = false;
            } else {
                // sha512 is not known to collide: what is there is damaged.
                self.quarantine(hashes.strongest())?;
                link(file, &strongest)?;
            }
        }
        let this = id(&strongest)?;
        let mut collisions = Vec::new();
        for checksum in &hashes.all()[1..] {
            let name = self.path(checksum);
            if link(&strongest, &name)? || id(&name)? == this {
                continue;
            }
            match self.hash(checksum, false)? {
                Some(other) if other.strongest() == hashes.strongest() => {
                    // A copy, as after an rsync that did not keep hard links.
                    let temporary = self.temporary();
                    link(&strongest, temporary.path())?;
                    fs::rename(temporary.path(), &name).map_err(CacheError::Write)?;
                }
                Some(other) if other.all().contains(checksum) => collisions.push(checksum.clone()),
                _ => {
                    self.quarantine(checksum)?;
                    link(&strongest, &name)?;
                }
            }
        }
        Ok(Added {
            hashes,
            new,
            collisions,
        })
    }

    /// Makes sure that an archive that is here under one name is what these checksums say, and has all names.
    ///
    /// Returns nothing if there is no such file, or if it is damaged and was put into quarantine.
    pub fn adopt(&self, name: &Checksum, sha384: bool) -> Result<Option<Added>, CacheError> {
        let path = self.path(name);
        let Ok(metadata) = fs::metadata(&path) else {
            return Ok(None);
        };
        if !metadata.is_file() {
            return Ok(None);
        }
        let mut file = fs::File::open(&path).map_err(CacheError::Read)?;
        let hashes = hash_reader(&mut file, sha384).map_err(CacheError::Read)?;
        if !hashes.mismatches(std::slice::from_ref(name)).is_empty() {
            self.quarantine(name)?;
            return Ok(None);
        }
        self.name(&path, hashes).map(Some)
    }
}

/// Makes a hard link, and the directory for it; returns whether it is new.
fn link(file: &Path, name: &Path) -> Result<bool, CacheError> {
    let mut made = false;
    loop {
        // A name that is a symbolic link, as `opam admin cache` 2.3 makes them, stands for its file.
        match rustix::fs::linkat(CWD, file, CWD, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::EXIST) => {
                if fs::metadata(name).is_ok() {
                    return Ok(false);
                }
                // A symbolic link that leads nowhere.
                fs::remove_file(name).map_err(CacheError::Write)?;
            }
            Err(rustix::io::Errno::NOENT) if !made => {
                let parent = name.parent().expect("a name in the cache has a directory");
                fs::create_dir_all(parent).map_err(CacheError::Write)?;
                made = true;
            }
            Err(error) => {
                return Err(CacheError::Link {
                    path: name.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
}

fn id(path: &Path) -> Result<FileId, CacheError> {
    fs::metadata(path)
        .map(|metadata| FileId::of(&metadata))
        .map_err(CacheError::Read)
}

fn same_content(one: &Path, other: &Path) -> Result<bool, CacheError> {
    let (mut one, mut other) = (
        fs::File::open(one).map_err(CacheError::Read)?,
        fs::File::open(other).map_err(CacheError::Read)?,
    );
    let (first, second) = (
        one.metadata().map_err(CacheError::Read)?,
        other.metadata().map_err(CacheError::Read)?,
    );
    if FileId::of(&first) == FileId::of(&second) {
        return Ok(true);
    }
    if first.size() != second.size() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let (a_length, b_length) = (fill(&mut one, &mut a)?, fill(&mut other, &mut b)?);
        if a[..a_length] != b[..b_length] {
            return Ok(false);
        }
        if a_length == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut fs::File, buffer: &mut [u8]) -> Result<usize, CacheError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CacheError::Read(error)),
        }
    }
    Ok(filled)
}

type Handed = (Finished, oneshot::Sender<Result<Added, CacheError>>);

/// Puts archives in, many at a time, on a thread of its own.
#[derive(Clone, Debug)]
pub struct Committer {
    sender: mpsc::Sender<Handed>,
}

/// More than this are never put in at once.
const BATCH: usize = 256;

impl Committer {
    /// Starts the thread; it ends when the last copy of the committer is gone.
    pub fn start(cache: Cache) -> Self {
        let (sender, mut receiver) = mpsc::channel::<Handed>(BATCH);
        std::thread::spawn(move || {
            while let Some(first) = receiver.blocking_recv() {
                let mut batch = vec![first];
                while batch.len() < BATCH
                    && let Ok(next) = receiver.try_recv()
                {
                    batch.push(next);
                }
                let (files, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                for (added, answer) in cache.add(files).into_iter().zip(answers) {
                    // Who has gone does not want to know.
                    let _ = answer.send(added);
                }
            }
        });
        Self { sender }
    }

    /// Puts an archive in that was found to be what it should.
    ///
    /// # Cancel safety
    ///
    /// Once it was handed over the archive gets in all the same, or at the next start.
    pub async fn add(&self, mut file: Finished) -> Result<Added, CacheError> {
        file.keep()?;
        let (answer, answered) = oneshot::channel();
        let gone = || CacheError::Write(io::Error::other("the thread that writes archives died"));
        self.sender.send((file, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Algorithm;
    use std::os::unix::fs::MetadataExt;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(directory.path()).expect("it can be made");
        (directory, cache)
    }

    fn put(cache: &Cache, data: &[u8]) -> Added {
        let mut incoming = cache.receive(false).expect("a file");
        incoming.write(data).expect("room");
        let mut added = cache.add(vec![incoming.finish().expect("a file")]);
        added.remove(0).expect("it gets in")
    }

    #[test]
    fn one_file_has_all_names_and_is_kept_once() {
        let (directory, cache) = cache();
        let added = put(&cache, b"an archive");
        assert!(added.new);
        for algorithm in [Algorithm::Md5, Algorithm::Sha256, Algorithm::Sha512] {
            let path = cache.path(added.hashes.get(algorithm).expect("computed"));
            let metadata = fs::metadata(&path).expect("it is there");
            assert_eq!(metadata.nlink(), 3, "{}", path.display());
            assert_eq!(metadata.mode() & 0o777, 0o444);
        }
        assert!(!put(&cache, b"an archive").new);
        assert!(cache.has_all(added.hashes.all()));
        let left = fs::read_dir(directory.path().join(".obuild/incoming")).expect("it is there");
        assert_eq!(left.count(), 0, "nothing is left behind");
    }

    #[test]
    fn copies_become_links_and_damage_is_replaced() {
        let (_directory, cache) = cache();
        let added = put(&cache, b"an archive");
        let md5 = added.hashes.get(Algorithm::Md5).expect("computed");
        let sha256 = added.hashes.get(Algorithm::Sha256).expect("computed");
        // An rsync without -H makes a copy, and a disk rots.
        fs::remove_file(cache.path(md5)).expect("it is there");
        fs::write(cache.path(md5), b"an archive").expect("room");
        fs::remove_file(cache.path(sha256)).expect("it is there");
        fs::write(cache.path(sha256), b"an archivf").expect("room");
        assert!(!cache.has_all(added.hashes.all()));
        let again = put(&cache, b"an archive");
        assert_eq!((again.new, &again.collisions[..]), (false, &[][..]));
        assert!(cache.has_all(added.hashes.all()));

        // The good file itself is damaged.
        fs::remove_file(cache.path(added.hashes.strongest())).expect("it is there");
        fs::write(cache.path(added.hashes.strongest()), b"rot").expect("room");
        put(&cache, b"an archive");
        assert!(cache.has_all(added.hashes.all()));
        assert_eq!(
            fs::read(cache.path(added.hashes.strongest())).expect("it is there"),
            b"an archive"
        );
    }

    #[test]
    fn two_files_with_one_md5_are_both_kept() {
        // The shortest known pair: Marc Stevens, "Single-block collision attack on MD5" (2012), one 64-byte block.
        let one = hex::decode("4dc968ff0ee35c209572d4777b721587d36fa7b21bdc56b74a3dc0783e7b9518afbfa200a8284bf36e8e4b55b35f427593d849676da0d1555d8360fb5f07fea2").expect("digits");
        let other = hex::decode("4dc968ff0ee35c209572d4777b721587d36fa7b21bdc56b74a3dc0783e7b9518afbfa202a8284bf36e8e4b55b35f427593d849676da0d1d55d8360fb5f07fea2").expect("digits");
        let (_directory, cache) = cache();
        let first = put(&cache, &one);
        let second = put(&cache, &other);
        let md5 = first.hashes.get(Algorithm::Md5).expect("computed");
        assert_eq!(second.hashes.get(Algorithm::Md5), Some(md5), "they collide");
        assert_eq!(second.collisions, std::slice::from_ref(md5));
        assert_eq!(
            fs::read(cache.path(md5)).expect("there"),
            one,
            "the first stays"
        );
        assert_eq!(
            fs::read(cache.path(second.hashes.strongest())).expect("there"),
            other
        );
    }

    #[test]
    fn what_was_complete_when_the_process_died_gets_in() {
        let (directory, cache) = cache();
        let mut incoming = cache.receive(false).expect("a file");
        incoming.write(b"complete").expect("room");
        let mut finished = incoming.finish().expect("a file");
        finished.keep().expect("it can be renamed");
        let hashes = finished.hashes.clone();
        let mut part = cache.receive(false).expect("a file");
        part.write(b"not comp").expect("room");
        // As if killed: no destructor runs.
        std::mem::forget(finished);
        std::mem::forget(part);
        let wrong = directory
            .path()
            .join(".obuild/incoming")
            .join("0".repeat(128));
        fs::write(wrong, "something else").expect("room");

        assert_eq!(cache.recover().expect("it can be read"), 1);
        assert!(cache.has_all(hashes.all()));
        let left = fs::read_dir(directory.path().join(".obuild/incoming")).expect("it is there");
        assert_eq!(left.count(), 0, "nothing is left behind");
    }

    #[test]
    fn an_adopted_file_gets_its_other_names_or_goes_away() {
        let (_directory, cache) = cache();
        let hashes = hash_reader(&mut &b"adopted"[..], false).expect("memory");
        let sha256 = hashes.get(Algorithm::Sha256).expect("computed");
        let path = cache.path(sha256);
        fs::create_dir_all(path.parent().expect("one")).expect("room");
        fs::write(&path, "adopted").expect("room");
        let added = cache.adopt(sha256, false).expect("readable");
        assert_eq!(added.map(|added| added.hashes), Some(hashes.clone()));
        assert!(cache.has_all(hashes.all()));

        let rotten: Checksum = format!("md5={}", "1".repeat(32)).parse().expect("one");
        let path = cache.path(&rotten);
        fs::create_dir_all(path.parent().expect("one")).expect("room");
        fs::write(&path, "not that").expect("room");
        assert_eq!(cache.adopt(&rotten, false).expect("readable"), None);
        assert!(cache.find(&rotten).is_none());
    }
}
