// SPDX-License-Identifier: Apache-2.0
//! Blobs that were fetched, kept once for all images: below the store's state directory, named by their digests.
//!
//! A blob is written beside and renamed when its digest was right, so what has a blob's name was whole. A crash of the machine may damage it
//! all the same; who reads it checks the digest, and throws it away if it is wrong. What was cut off stays under `partial`, and the next
//! download goes on from there.

use super::Error;
use crate::digest::Digest;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The directory of blobs. Cheap to make; directories appear when something is written.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
}

/// A blob that is being fetched, held against other threads and processes.
#[derive(Debug)]
pub(super) struct Partial {
    /// The file; reading and writing at positions of one's own choice.
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl Blobs {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory, which is built as an OCI image layout's `blobs` is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the file of a blob, whether it is there or not.
    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.digits())
    }

    /// Returns whether the blob is there, with this many bytes.
    pub(super) fn has(&self, digest: Digest, size: u64) -> bool {
        fs_err::metadata(self.path(digest))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
    }

    /// Throws a damaged blob away.
    pub(crate) fn remove(&self, digest: Digest) {
        // If it cannot be removed, the next reader finds the damage again.
        let _ = fs_err::remove_file(self.path(digest));
    }

    /// Keeps a small blob whose digest was checked.
    pub(super) fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(digest);
        // What a kill leaves there goes when room is made.
        let directory = self.partial()?;
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            file.write_all(bytes)?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|error| Error::io("write", path.clone(), error))
    }

    /// Returns the directory of blobs that are not whole, which is there then, as is the one of those that are.
    fn partial(&self) -> Result<PathBuf, Error> {
        for name in ["partial", "blobs/sha256"] {
            let directory = self.root.join(name);
            fs_err::create_dir_all(&directory)
                .map_err(|error| Error::io("create", &directory, error))?;
        }
        Ok(self.root.join("partial"))
    }

    /// Opens the file of a blob that is to be fetched, with what an earlier attempt has left in it; `None` while another holds it.
    pub(super) fn try_begin(&self, digest: Digest) -> Result<Option<Partial>, Error> {
        let path = self.partial()?.join(digest.digits());
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = open(&path, flags, Mode::from_raw_mode(0o600))
                .map_err(|error| Error::io("create", &path, error))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
                Err(error) => return Err(Error::io("lock", &path, error)),
            }
            let own = fstat(&file).map_err(|error| Error::io("read", &path, error))?;
            // The last holder may have renamed the file between the open and the lock.
            if stat(&path)
                .is_ok_and(|there| (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino))
            {
                let file = File::from(file);
                return Ok(Some(Partial { file, path }));
            }
        }
    }

    /// Gives a whole blob its name. The lock goes with the file's last descriptor.
    pub(super) fn finish(&self, digest: Digest, partial: &Partial) -> Result<(), Error> {
        let path = self.path(digest);
        fs_err::rename(&partial.path, &path).map_err(|error| Error::io("write", path, error))
    }
}
