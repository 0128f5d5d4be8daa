// SPDX-License-Identifier: Apache-2.0
//! An archive on its way in: a file beside the cache, hashed while it is written, gone when dropped.

use super::hashes::{Hasher, Hashes, hash_reader};
use super::{Cache, CacheError};
use crate::Algorithm;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of unfinished files begin; those of finished ones begin with their sha512.
const PART: &str = "part-";

/// A file that is removed unless it is told to stay.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Whatever cannot be removed now is removed at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// An archive that is being received.
pub struct Incoming {
    file: fs::File,
    hasher: Hasher,
    temporary: Temporary,
}

impl Incoming {
    /// Returns how many bytes have been received.
    pub fn size(&self) -> u64 {
        self.hasher.size()
    }

    /// Returns the file that is being written.
    pub(super) fn file(&self) -> &fs::File {
        &self.file
    }

    /// Adds bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<(), CacheError> {
        self.file.write_all(data).map_err(CacheError::Write)?;
        self.hasher.update(data);
        Ok(())
    }

    /// Forgets what was received.
    pub fn restart(&mut self) -> Result<(), CacheError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(CacheError::Write)?;
        self.hasher.reset();
        Ok(())
    }

    /// Ends the archive. Nothing is in the cache yet: the hashes are to be judged first.
    pub fn finish(self) -> Result<Finished, CacheError> {
        // Nobody has a reason to write into it ever again.
        self.file
            .set_permissions(std::fs::Permissions::from_mode(0o444))
            .map_err(CacheError::Write)?;
        Ok(Finished {
            hashes: self.hasher.finish(),
            temporary: self.temporary,
        })
    }
}

/// A complete archive that is not in the cache yet. Removed when dropped.
#[derive(Debug)]
pub struct Finished {
    pub(crate) hashes: Hashes,
    pub(crate) temporary: Temporary,
}

impl Finished {
    /// Returns what it is.
    pub fn hashes(&self) -> &Hashes {
        &self.hashes
    }

    /// Names the file by its hash, so that the next start finds it if this process does not come to put it into the cache.
    pub(crate) fn keep(&mut self) -> Result<(), CacheError> {
        // Two may have received the same bytes: each keeps its own file.
        let kept = self.temporary.path.with_file_name(format!(
            "{}-{}",
            self.hashes.strongest().digest(),
            unique()
        ));
        fs::rename(&self.temporary.path, &kept).map_err(CacheError::Write)?;
        self.temporary.path = kept;
        Ok(())
    }
}

impl Cache {
    /// Returns a path for a file on its way in.
    pub(crate) fn temporary(&self) -> Temporary {
        Temporary {
            path: self.incoming.join(format!("{PART}{}", unique())),
        }
    }

    /// Begins to receive an archive.
    pub fn receive(&self, sha384: bool) -> Result<Incoming, CacheError> {
        let temporary = self.temporary();
        let file = fs::OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o644)
            .open(temporary.path())
            .map_err(CacheError::Write)?;
        Ok(Incoming {
            file,
            hasher: Hasher::new(sha384),
            temporary,
        })
    }

    /// Puts in what an earlier process had complete when it died, and removes what it had not. Needs the [lock](super::Lock).
    pub fn recover(&self) -> Result<usize, CacheError> {
        let mut complete = Vec::new();
        for entry in fs::read_dir(&self.incoming).map_err(CacheError::Directory)? {
            let entry = entry.map_err(CacheError::Directory)?;
            let temporary = Temporary { path: entry.path() };
            let name = entry.file_name();
            let Some(digest) = name
                .to_str()
                .and_then(|name| name.get(..Algorithm::Sha512.digits()))
            else {
                continue;
            };
            let mut file = match fs::File::open(temporary.path()) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(CacheError::Read(error)),
            };
            let hashes = hash_reader(&mut file, false).map_err(CacheError::Read)?;
            if digest == hashes.strongest().digest() {
                complete.push(Finished { hashes, temporary });
            }
        }
        let found = complete.len();
        for added in self.add(complete) {
            match added {
                // The process that died is not quite dead, and has put it in itself.
                Err(CacheError::Link { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                added => drop(added?),
            }
        }
        Ok(found)
    }
}

/// Returns a name that nobody else has in this directory.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{next}", std::process::id())
}
