// SPDX-License-Identifier: Apache-2.0
//! Locks that the kernel drops when their owner dies: one for each step being built, one for what a build uses.
//!
//! * A byte of `steps.lock` is held by whoever builds the step; others follow its log and try again. The file stays empty, as locks may lie
//!   beyond its end, and has no name for each step, which every step would make and remove. The lock belongs to an open file description
//!   (`F_OFD_SETLK`, `fcntl_locking(2)`), so that builds in one process keep each other out too.
//! * `leases/UNIQUE` is held by a build and lists the snapshots that it counts on. `gc.lock` orders the two sides:
//!   a build adds to its lease under the shared lock, a removal looks at all leases and removes under the exclusive
//!   one. A lease whose lock can be taken belongs to a dead build and is deleted.

use crate::Error;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use obuild_stores::SnapshotId;
use rustix::fs::{FlockOperation, flock, fstat, stat};
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
pub(crate) struct StepLock(#[expect(dead_code, reason = "closing it gives the lock back")] File);

impl StepLock {
    /// Takes the lock, or returns `None` while another build holds it.
    pub(crate) fn try_acquire(state: &Path, id: SnapshotId) -> Result<Option<Self>, Error> {
        let path = state.join("steps.lock");
        let file = open(&path)?;
        #[expect(clippy::cast_possible_truncation, reason = "1 and 0")]
        let lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: place(id),
            l_len: 1,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => Ok(Some(Self(file))),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(None),
            Err(error) => Err(io("lock", &path)(error.into())),
        }
    }
}

/// Returns which byte stands for a step: of 2^62, so that two steps never share one.
fn place(id: SnapshotId) -> libc::off_t {
    let [first, ..] = id.as_bytes().as_chunks().0 else {
        unreachable!("a digest has eight bytes")
    };
    (u64::from_be_bytes(*first) >> 2).cast_signed()
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
        fs_err::create_dir(state.path().join("leases")).expect("a directory can be made");
        state
    }

    /// Returns whether the lock can be taken, now or soon: another test may fork just now, and until its child executes something, that has
    /// the lock too.
    fn is_free(state: &Path, id: SnapshotId) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if StepLock::try_acquire(state, id).unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    #[test]
    fn a_step_has_one_builder_at_a_time() {
        let state = state();
        let (id, other) = (
            SnapshotId::from_digest([7; 32]),
            SnapshotId::from_digest([0xff; 32]),
        );
        let take = |id| StepLock::try_acquire(state.path(), id).unwrap();
        let first = take(id).expect("nobody holds it");
        assert!(take(id).is_none());
        let _other = take(other).expect("it is another step's");
        drop(first);
        assert!(is_free(state.path(), id));
        assert!(take(other).is_none(), "another's end is not its own");
    }

    #[test]
    fn a_fork_that_executes_a_program_holds_no_lock() {
        let state = state();
        let id = SnapshotId::from_digest([1; 32]);
        let lock = StepLock::try_acquire(state.path(), id).unwrap().unwrap();
        let mut sleeping = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        drop(lock);
        assert!(is_free(state.path(), id), "the child holds it");
        sleeping.kill().unwrap();
        sleeping.wait().unwrap();
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
