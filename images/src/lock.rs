// SPDX-License-Identifier: Apache-2.0
//! Holds a snapshot that is being imported, against other threads and processes.
//!
//! Two builds may need images that share a layer. The engine locks whole steps, which does not cover the layers in
//! between; [`obuild_stores::Store::prepare`] asks that an id is not prepared twice at once. The kernel drops the
//! lock when its owner dies.

use crate::Error;
use obuild_stores::SnapshotId;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, stat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock that another holds is tried.
const PATIENCE: Duration = Duration::from_millis(50);

/// A lock, released on drop.
pub(crate) struct ImportLock {
    path: PathBuf,
    _file: OwnedFd,
}

impl ImportLock {
    /// Waits until nobody else imports this snapshot.
    pub(crate) fn acquire(
        state: &Path,
        id: SnapshotId,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let directory = state.join("imports");
        fs_err::create_dir_all(&directory)
            .map_err(|source| Error::io("create", &directory, source))?;
        let path = directory.join(format!("{id}.lock"));
        let mut attempts = 100;
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = match open(&path, flags, Mode::from_raw_mode(0o600)) {
                // zfs-fuse says so for a moment of a file that another has removed. The directory was there just now.
                Err(Errno::NOENT) if attempts > 0 => {
                    attempts -= 1;
                    std::thread::sleep(PATIENCE);
                    continue;
                }
                result => result.map_err(|source| Error::io("create", &path, source))?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let own = fstat(&file).map_err(|source| Error::io("read", &path, source))?;
                    // The last holder may have removed the file between the open and the lock.
                    if stat(&path)
                        .is_ok_and(|there| (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino))
                    {
                        return Ok(Self { path, _file: file });
                    }
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    if cancelled() {
                        return Err(Error::Cancelled);
                    }
                    std::thread::sleep(PATIENCE);
                }
                Err(source) => return Err(Error::io("lock", &path, source)),
            }
        }
    }
}

impl Drop for ImportLock {
    fn drop(&mut self) {
        // Still locked, so nobody else can have taken it; a file left behind would do no harm either.
        let _ = fs_err::remove_file(&self.path);
    }
}
