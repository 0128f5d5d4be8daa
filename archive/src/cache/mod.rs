// SPDX-License-Identifier: Apache-2.0
//! The archives on disk: opam's cache layout, `cache/KIND/2D/2DIGITSANDTHEREST`, one file an archive.
//!
//! The file is named by its strongest checksum; its other names are hard links, so that any web server, rsync or opam itself
//! can use the directory as it is. What this promises:
//!
//! - A name appears only when the bytes under it are complete, hashed and on the disk. `kill -9` and power loss leave a
//!   name out, never a wrong file in.
//! - Nothing that is there is ever replaced by something else, except a file that was just proved to be damaged: that goes
//!   to the quarantine. Only [`gc`](Cache::gc) removes archives.
//! - Beside `cache/` stands `.obuild/`, which is ours: files on their way in, the quarantine, the state, the lock.

mod add;
mod error;
mod gc;
mod hashes;
mod import;
mod incoming;
mod lock;
mod verify;
mod walk;

pub use add::{Added, Committer};
pub use error::CacheError;
pub use gc::{Collected, Garbage};
pub use hashes::{Hashes, Mismatch};
pub use import::{Import, Imported, Refused};
pub use incoming::{Finished, Incoming};
pub use lock::Lock;
pub use verify::{Damaged, Verified};
pub(crate) use walk::Entry;

use crate::Checksum;
use fs_err as fs;
use hashes::BLOCK;
use incoming::Beginnings;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The directory of an archive.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
    incoming: PathBuf,
    quarantine: PathBuf,
    beginnings: Arc<Beginnings>,
}

/// Which file a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// What a long operation has done so far, for whoever shows it; read at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Archives to look at, as far as is known.
    pub total: AtomicU64,
    /// Archives done with.
    pub done: AtomicU64,
    /// Those of them that failed.
    pub failed: AtomicU64,
    /// Bytes to look at; 0 while nobody knows.
    pub bytes_total: AtomicU64,
    /// Bytes read or received.
    pub bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

impl Cache {
    /// Opens the archive in a directory, which is made if it is not there.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        let private = private(directory);
        let cache = Self {
            directory: directory.join("cache"),
            incoming: private.join("incoming"),
            quarantine: private.join("quarantine"),
            beginnings: Arc::default(),
        };
        for path in [&cache.directory, &cache.incoming, &cache.quarantine] {
            fs::create_dir_all(path).map_err(CacheError::Directory)?;
        }
        Ok(cache)
    }

    /// Returns where the archive with this checksum is, or would be.
    pub fn path(&self, checksum: &Checksum) -> PathBuf {
        self.directory.join(checksum.path())
    }

    /// Returns the file that this checksum names.
    pub fn find(&self, checksum: &Checksum) -> Option<FileId> {
        let metadata = fs::metadata(self.path(checksum)).ok()?;
        metadata.is_file().then(|| FileId::of(&metadata))
    }

    /// Returns whether all of these checksums name one file.
    pub fn has_all(&self, checksums: &[Checksum]) -> bool {
        let mut files = checksums.iter().map(|checksum| self.find(checksum));
        match files.next() {
            Some(Some(first)) => files.all(|file| file == Some(first)),
            _ => false,
        }
    }

    /// Hashes the archive that this checksum names; nothing if there is none.
    pub fn hash(&self, checksum: &Checksum, sha384: bool) -> Result<Option<Hashes>, CacheError> {
        match fs::File::open(self.path(checksum)) {
            Ok(mut file) => hashes::hash_reader(&mut file, sha384)
                .map(Some)
                .map_err(CacheError::Read),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::Read(error)),
        }
    }

    /// Takes the name of a file that is not what its name says away; the file is kept for people to look at.
    pub fn quarantine(&self, checksum: &Checksum) -> Result<(), CacheError> {
        let kept = self.quarantine.join(format!(
            "{}-{}",
            checksum.algorithm().name(),
            checksum.digest()
        ));
        match fs::rename(self.path(checksum), kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::Write(error)),
            // A rename onto another name of the same file does nothing (rename(2)), so take the name away.
            _ => match fs::remove_file(self.path(checksum)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(CacheError::Write(error))
                }
                _ => Ok(()),
            },
        }
    }

    /// Writes everything that was changed to the disk.
    pub fn sync(&self) -> Result<(), CacheError> {
        let directory = fs::File::open(&self.directory).map_err(CacheError::Directory)?;
        rustix::fs::syncfs(&directory).map_err(|error| CacheError::Write(error.into()))
    }
}

/// Returns what belongs to us alone in an archive's directory.
pub(crate) fn private(directory: &Path) -> PathBuf {
    directory.join(".obuild")
}
