// SPDX-License-Identifier: Apache-2.0
//! What a client keeps on the disk, for those who make room.

use rustix::fs::{FlockOperation, flock};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Below this size a blob is a manifest or a configuration: worth nothing on the disk, and needed to use an image without its registry.
const DOCUMENT: u64 = 64 << 10;

/// A blob that was fetched, whole or in part. It can be fetched again.
#[derive(Clone, Debug)]
pub struct KeptBlob {
    /// Its file.
    path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was fetched.
    pub fetched: SystemTime,
}

impl KeptBlob {
    /// Returns whether it is a small document of an image.
    pub fn is_document(&self) -> bool {
        self.bytes < DOCUMENT
    }

    /// Removes it, unless it is just being fetched. Returns whether it is gone.
    pub fn remove(&self) -> bool {
        let free = fs_err::File::open(&self.path)
            .is_ok_and(|file| flock(file.file(), FlockOperation::NonBlockingLockExclusive).is_ok());
        free && fs_err::remove_file(&self.path).is_ok()
    }
}

/// Lists the blobs that clients keep in a directory (see [`super::ClientOptions::state_dir`]), the oldest first.
pub fn kept_blobs(directory: &Path) -> io::Result<Vec<KeptBlob>> {
    let mut blobs = Vec::new();
    for name in ["blobs/sha256", "partial"] {
        let entries = match fs_err::read_dir(directory.join(name)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            // One that is gone meanwhile needs no room.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            blobs.push(KeptBlob {
                path: entry.path(),
                bytes: metadata.len(),
                fetched: metadata.modified()?,
            });
        }
    }
    blobs.sort_by_key(|blob| blob.fetched);
    Ok(blobs)
}
