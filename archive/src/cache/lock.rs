// SPDX-License-Identifier: Apache-2.0
//! One writer at a time: a lock that the kernel drops when its owner dies.

use super::{CacheError, private};
use fs_err as fs;
use rustix::fs::{FlockOperation, flock};
use std::path::Path;
use std::time::Duration;

/// The right to change the state of an archive, and to remove from it.
#[derive(Debug)]
pub struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Takes the lock. While somebody else has it `wait` is asked ten times a second whether to go on waiting for them.
    pub fn take(directory: &Path, mut wait: impl FnMut() -> bool) -> Result<Self, CacheError> {
        let private = private(directory);
        fs::create_dir_all(&private).map_err(CacheError::Directory)?;
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(private.join("lock"))
            .map_err(CacheError::Directory)?;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(CacheError::Directory(error.into())),
            }
            if !wait() {
                return Err(CacheError::Locked);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_second_waits_or_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Lock::take(directory.path(), || unreachable!()).expect("nobody has it");
        assert!(matches!(
            Lock::take(directory.path(), || false),
            Err(CacheError::Locked)
        ));
        let (waits, waiting) = mpsc::channel();
        let (path, done) = (directory.path().to_owned(), mpsc::channel());
        let second = std::thread::spawn(move || {
            let lock = Lock::take(&path, || {
                // It is asked again and again; one answer was listened to.
                let _ = waits.send(());
                true
            });
            let lock = lock.expect("in the end");
            done.0.send(()).expect("somebody waits");
            drop(lock);
        });
        waiting.recv().expect("it says that it waits");
        assert!(done.1.try_recv().is_err(), "not yet");
        drop(first);
        done.1.recv().expect("then it goes on");
        second.join().expect("no panic");
    }
}
