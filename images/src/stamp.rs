// SPDX-License-Identifier: Apache-2.0
//! The digests of large files, remembered by what changes when the file does.

use crate::Error;
use crate::digest::{Digest, digest_of};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What identifies a file's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// The file system's device number.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last modification: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Time of the last change of the inode; programs cannot set it.
    pub ctime: (i64, i64),
}

impl FileStamp {
    /// Takes the stamp from a file's metadata.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns whether a write that follows would certainly change the stamp.
    ///
    /// A file written twice within one tick of its file system's clock (two seconds at worst, FAT's) may have the same stamp after both.
    fn is_settled(&self) -> bool {
        let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else {
            return false;
        };
        let limit = now.saturating_sub(Duration::from_secs(2)).as_secs();
        let newest = self.mtime.0.max(self.ctime.0);
        i64::try_from(limit).is_ok_and(|limit| newest < limit)
    }
}

/// Remembers digests of files between runs. Forgetting is harmless; making one up is not.
pub trait FileDigests {
    /// Returns the digest of the file with this stamp, if it is known.
    fn get(&self, stamp: &FileStamp) -> Option<[u8; 32]>;

    /// Remembers a digest.
    fn put(&self, stamp: &FileStamp, digest: [u8; 32]);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDigests;

impl FileDigests for NoDigests {
    fn get(&self, _: &FileStamp) -> Option<[u8; 32]> {
        None
    }

    fn put(&self, _: &FileStamp, _: [u8; 32]) {}
}

/// Returns the file's digest and stamp, reading it only when its digest is not remembered.
pub(crate) fn file_digest(
    path: &Path,
    file: &File,
    memory: &dyn FileDigests,
    cancelled: &dyn Fn() -> bool,
) -> Result<Digest, Error> {
    let stamp = || {
        let metadata = file
            .metadata()
            .map_err(|source| Error::io("read", path, source))?;
        Ok::<_, Error>(FileStamp::of(&metadata))
    };
    let before = stamp()?;
    if let Some(digest) = memory.get(&before) {
        return Ok(Digest(digest));
    }
    let digest = digest_of(file, cancelled).map_err(|source| Error::io("read", path, source))?;
    let digest = digest.ok_or(Error::Cancelled)?;
    if stamp()? != before {
        return Err(Error::NotUsable {
            path: path.to_owned(),
            wanted: "a stable file",
            reason: "it was changed while it was read".into(),
        });
    }
    if before.is_settled() {
        memory.put(&before, digest.0);
    }
    Ok(digest)
}
