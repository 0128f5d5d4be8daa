// SPDX-License-Identifier: Apache-2.0
//! Locks that the kernel drops when their owner dies: one for each step being built, one for what a build uses.
//!
//! * `locks/ID` is held (`flock(2)`) by whoever builds the step; others follow its log and try again.
//! * `leases/UNIQUE` is held by a build and lists the snapshots that it counts on. `gc.lock` orders the two sides:
//!   a build adds to its lease under the shared lock, a removal looks at all leases and removes under the exclusive
//!   one. A lease whose lock can be taken belongs to a dead build and is deleted.

use crate::Error;
use obuild_stores::SnapshotId;
use rustix::fs::{FlockOperation, flock, fstat, stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// How long to wait for a file system that takes its time over the removal of a file: a hundred times what has been seen.
const PATIENCE: Duration = Duration::from_secs(5);

fn open(path: &Path) -> Result<File, Error> {
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    let patience = Instant::now() + PATIENCE;
    loop {
        match options.open(path) {
            // zfs-fuse does not find, and does not make, a file whose removal it has begun and not finished.
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && path.parent().is_some_and(Path::is_dir)
                    && Instant::now() < patience =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result.map_err(io("open", path)),
        }
    }
}

/// The right to build one step, held until dropped or until the process ends.
#[derive(Debug)]
pub(crate) struct StepLock {
    path: PathBuf,
    _file: File,
}

impl StepLock {
    /// Takes the lock, or returns `None` while another build holds it.
    pub(crate) fn try_acquire(directory: &Path, id: SnapshotId) -> Result<Option<Self>, Error> {
        let path = directory.join(id.to_string());
        loop {
            let file = open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(io("lock", &path)(error.into())),
            }
            // The holder before us removes the file as it lets go; a lock on a removed file guards nothing.
            if has_name(&file, &path) {
                return Ok(Some(Self { path, _file: file }));
            }
        }
    }
}

impl StepLock {
    /// Removes the files that dead builds left.
    pub(crate) fn sweep(directory: &Path) -> Result<(), Error> {
        for entry in fs_err::read_dir(directory).map_err(io("list", directory))? {
            let name = entry.map_err(io("list", directory))?.file_name();
            // A lock that can be taken is nobody's, and goes as it is dropped.
            if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                Self::try_acquire(directory, id)?;
            }
        }
        Ok(())
    }
}

impl Drop for StepLock {
    fn drop(&mut self) {
        // Left behind, it would be an empty file that the next build of the step takes over.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// How long a build may take from making a lock file to locking it.
const TAKING: Duration = Duration::from_millis(200);

/// Counts the files in the locks' directory that nobody holds; removes them if asked to.
pub(crate) fn stale(directory: &Path, remove: bool) -> Result<usize, Error> {
    let mut free = Vec::new();
    for entry in fs_err::read_dir(directory).map_err(io("list", directory))? {
        let path = entry.map_err(io("list", directory))?.path();
        // One that is gone by now was given back.
        let Ok(file) = fs_err::File::open(&path) else {
            continue;
        };
        let (file, path) = file.into_parts();
        if take(&file, &path) {
            // It is nobody's, or that of a build that is about to lock it.
            let _ = flock(&file, FlockOperation::Unlock);
            free.push((path, file));
        }
    }
    if free.is_empty() {
        return Ok(0);
    }
    std::thread::sleep(TAKING);
    free.retain(|(path, file)| take(file, path));
    if remove {
        for (path, _) in &free {
            // Whoever has opened it meanwhile sees that it is gone, and makes another.
            let _ = fs_err::remove_file(path);
        }
    }
    Ok(free.len())
}

/// Locks a file that nobody holds and that still has this name: under it there may be another by now, which is held.
fn take(file: &File, path: &Path) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() && has_name(file, path)
}

fn has_name(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (fstat(file), stat(path)) else {
        return false;
    };
    (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
}

/// The snapshots that a build counts on; nothing removes them while it lives.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    file: File,
    gc: PathBuf,
}

impl Lease {
    /// Begins a lease that holds nothing yet.
    pub(crate) fn create(state: &Path) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let gc = state.join("gc.lock");
        let directory = state.join("leases");
        loop {
            let unique = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("{}-{unique}", std::process::id()));
            let file = open(&path)?;
            // A file of this name can be left from a dead process of the same number; then it is ours now. One that
            // is locked belongs to a process of another pid namespace.
            if take(&file, &path) {
                file.set_len(0).map_err(io("truncate", &path))?;
                return Ok(Self { path, file, gc });
            }
        }
    }

    /// Adds snapshots, whether they exist yet or not. Waits while a removal is going on.
    pub(crate) fn add(&mut self, ids: impl IntoIterator<Item = SnapshotId>) -> Result<(), Error> {
        let mut lines = String::new();
        for id in ids {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{id}");
        }
        let gc = open(&self.gc)?;
        flock(&gc, FlockOperation::LockShared)
            .map_err(|error| io("lock", &self.gc)(error.into()))?;
        self.file
            .write_all(lines.as_bytes())
            .map_err(io("write", &self.path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Left behind, it is recognised as dead by its lock.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// The right to remove snapshots, with what live builds count on.
#[derive(Debug)]
pub(crate) struct Removal {
    _gc: File,
    /// Snapshots that must stay.
    pub(crate) in_use: HashSet<SnapshotId>,
}

impl Removal {
    /// Waits until no build is adding to its lease, and keeps them waiting until dropped.
    pub(crate) fn begin(state: &Path) -> Result<Self, Error> {
        let path = state.join("gc.lock");
        let gc = open(&path)?;
        flock(&gc, FlockOperation::LockExclusive)
            .map_err(|error| io("lock", &path)(error.into()))?;
        let directory = state.join("leases");
        let mut in_use = HashSet::new();
        let entries = fs_err::read_dir(&directory).map_err(io("list", &directory))?;
        for entry in entries {
            let path = entry.map_err(io("list", &directory))?.path();
            let Ok(file) = open(&path) else { continue };
            if take(&file, &path) {
                let _ = fs_err::remove_file(&path);
                continue;
            }
            let text = fs_err::read_to_string(&path).unwrap_or_default();
            in_use.extend(
                text.lines()
                    .filter_map(|line| line.parse::<SnapshotId>().ok()),
            );
        }
        Ok(Self { _gc: gc, in_use })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> tempfile::TempDir {
        let state = tempfile::tempdir().expect("a temporary directory can be made");
        fs_err::create_dir(state.path().join("locks")).expect("a directory can be made");
        fs_err::create_dir(state.path().join("leases")).expect("a directory can be made");
        state
    }

    #[test]
    fn a_step_has_one_builder_at_a_time() {
        let state = state();
        let locks = state.path().join("locks");
        let id = SnapshotId::from_digest([7; 32]);
        let first = StepLock::try_acquire(&locks, id)
            .unwrap()
            .expect("nobody holds it");
        assert!(StepLock::try_acquire(&locks, id).unwrap().is_none());
        drop(first);
        assert!(StepLock::try_acquire(&locks, id).unwrap().is_some());
        assert_eq!(
            fs_err::read_dir(&locks).unwrap().count(),
            0,
            "no lock file is left"
        );
    }

    #[test]
    fn locks_of_the_dead_are_swept() {
        let state = state();
        let locks = state.path().join("locks");
        let (held, dead) = (
            SnapshotId::from_digest([1; 32]),
            SnapshotId::from_digest([2; 32]),
        );
        let _held = StepLock::try_acquire(&locks, held).unwrap();
        fs_err::write(locks.join(dead.to_string()), "").unwrap();
        StepLock::sweep(&locks).unwrap();
        let left: Vec<_> = fs_err::read_dir(&locks)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, [held.to_string()]);
    }

    #[test]
    fn a_lock_that_is_being_taken_is_not_stale() {
        let state = state();
        let locks = state.path().join("locks");
        let id = SnapshotId::from_digest([3; 32]);
        let path = locks.join(id.to_string());
        let made = open(&path).unwrap();
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| stale(&locks, true));
            std::thread::sleep(TAKING / 4);
            flock(&made, FlockOperation::NonBlockingLockExclusive).unwrap();
            assert_eq!(looking.join().unwrap().unwrap(), 0);
        });
        assert!(path.exists());
        drop(made);
        assert_eq!(stale(&locks, false).unwrap(), 1);
        assert!(path.exists());
        assert_eq!(stale(&locks, true).unwrap(), 1);
        assert!(!path.exists());
        let other = open(&path).unwrap();
        fs_err::remove_file(&path).unwrap();
        let _held = StepLock::try_acquire(&locks, id).unwrap().unwrap();
        assert!(!take(&other, &path), "the name has become another's");
    }

    #[test]
    fn only_live_leases_hold_snapshots() {
        let state = state();
        let (kept, dead) = (
            SnapshotId::from_digest([1; 32]),
            SnapshotId::from_digest([2; 32]),
        );
        let mut lease = Lease::create(state.path()).unwrap();
        lease.add([kept]).unwrap();
        fs_err::write(state.path().join("leases/1-0"), format!("{dead}\n")).unwrap();
        let removal = Removal::begin(state.path()).unwrap();
        assert_eq!(removal.in_use, HashSet::from([kept]));
        drop(removal);
        drop(lease);
        assert!(Removal::begin(state.path()).unwrap().in_use.is_empty());
        assert_eq!(
            fs_err::read_dir(state.path().join("leases"))
                .unwrap()
                .count(),
            0
        );
    }
}
