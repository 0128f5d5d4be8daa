// SPDX-License-Identifier: Apache-2.0
//! The stay of a step with its build user: what is moved, made and given away for it, and how all of it is undone.
//!
//! What has to be undone is written into the user's lock file *before* it is done. Whoever holds the lock next can undo it: this process at
//! the step's end, another one when this was killed, or the next step that gets the user. Undoing twice is fine.

use super::Account;
use super::links::{self, Made};
use super::place::{self, Brought};
use crate::sandbox::{Command, Mount, MountSource, Rootfs};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is to be undone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Stay {
    account: Account,
    tree: Brought,
    /// Trees that the step may write to beside its own.
    caches: Vec<Brought>,
    made: Vec<Made>,
}

impl Stay {
    /// Brings the step's tree and all that it needs to the user, and gives them to it. The lock file must be empty.
    pub(super) fn begin(
        account: &Account,
        rootfs: &Rootfs,
        command: &Command,
        secrets: &[Vec<u8>],
        lock: &OwnedFd,
    ) -> Result<Self, Failure> {
        let Rootfs::Directory(tree) = rootfs else {
            return Err(no_overlay());
        };
        let mut stay = Self {
            account: account.clone(),
            tree: Brought::plan(tree, &account.home)
                .trying(|| format!("open {}", tree.display()))?,
            caches: Vec::new(),
            made: Vec::new(),
        };
        match stay.prepare(command, secrets, lock) {
            Ok(()) => Ok(stay),
            Err(failure) => {
                // The first failure says what is wrong.
                let _ = stay.end(lock);
                Err(failure)
            }
        }
    }

    fn prepare(
        &mut self,
        command: &Command,
        secrets: &[Vec<u8>],
        lock: &OwnedFd,
    ) -> Result<(), Failure> {
        self.record(lock)
            .trying(|| "note what the step's end has to undo")?;
        self.tree.bring(&self.account)?;
        let home = place::open(&self.account.home).trying(|| "open the home directory")?;
        let owner = self.owner();
        links::make_directories(home.as_fd(), &command.workdir, owner)
            .trying(|| format!("make the working directory {}", command.workdir))?;
        if command.mounts.is_empty() && secrets.is_empty() {
            return Ok(());
        }
        // What one who was killed has left is another step's.
        self.remove_private();
        for path in [self.private(), self.memory()] {
            make_directory(&path, 0o711, (0, 0))
                .trying(|| format!("make the directory {}", path.display()))?;
        }
        let mut links = Vec::new();
        for (index, mount) in command.mounts.iter().enumerate() {
            links.push((&mount.target, self.mount(mount, index, lock)?));
        }
        for (index, (secret, value)) in command.secrets.iter().zip(secrets).enumerate() {
            let path = self.memory().join(format!("secret-{index}"));
            write_secret(&path, value, owner)
                .trying(|| format!("write the secret for {}", secret.target))?;
            links.push((&secret.target, path));
        }
        for (target, path) in links {
            links::show(home.as_fd(), target, &path, owner, &mut |made| {
                self.made.push(made);
                self.record(lock)
            })
            .trying(|| format!("show {target} in the tree"))?;
        }
        Ok(())
    }

    /// Brings what a mount shows, and returns where it is.
    fn mount(&mut self, mount: &Mount, index: usize, lock: &OwnedFd) -> Result<PathBuf, Failure> {
        match &mount.source {
            MountSource::Tree(Rootfs::Overlay(_)) => Err(no_overlay()),
            // It stays whose it is: the user can read what everybody can.
            MountSource::Tree(Rootfs::Directory(path)) if mount.readonly => Ok(path.clone()),
            MountSource::Tree(Rootfs::Directory(path)) => {
                let to = self.private().join(format!("cache-{index}"));
                let brought =
                    Brought::plan(path, &to).trying(|| format!("open {}", path.display()))?;
                self.caches.push(brought.clone());
                self.record(lock)
                    .trying(|| "note what the step's end has to undo")?;
                brought.bring(&self.account)?;
                Ok(to)
            }
            MountSource::Tmpfs { .. } => {
                let path = self.memory().join(format!("scratch-{index}"));
                make_directory(&path, 0o700, self.owner())
                    .trying(|| format!("make the directory {}", path.display()))?;
                Ok(path)
            }
        }
    }

    /// Undoes everything; no process of the user may be alive. Goes on after a failure and returns the first.
    pub(super) fn end(&self, lock: &OwnedFd) -> Result<(), Failure> {
        if let Ok(home) = place::open(self.tree.at()) {
            links::remove(home.as_fd(), &self.made);
        }
        let mut result = Ok(());
        for cache in &self.caches {
            result = result.and(cache.take_back(&self.account));
        }
        self.remove_private();
        result = result.and(self.tree.take_back(&self.account));
        // Only now: what is noted can be undone again.
        result.and(rustix::fs::ftruncate(lock, 0).trying(|| "note that all is undone"))
    }

    /// Returns what a lock file says is still to be undone.
    pub(super) fn left(lock: &OwnedFd) -> io::Result<Option<Self>> {
        let mut content = vec![0; usize::try_from(rustix::fs::fstat(lock)?.st_size).unwrap_or(0)];
        let length = rustix::io::pread(lock, &mut content, 0)?;
        if length == 0 {
            return Ok(None);
        }
        // A longer one may have been there before.
        let mut notes = serde_json::Deserializer::from_slice(&content[..length]).into_iter();
        notes.next().transpose().map_err(io::Error::other)
    }

    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    fn record(&self, lock: &OwnedFd) -> io::Result<()> {
        let content = serde_json::to_vec(self).map_err(io::Error::other)?;
        // Written over the older one and then cut, so that there is always a whole one.
        let mut done = 0;
        while done < content.len() {
            done += rustix::io::pwrite(lock, &content[done..], done as u64)?;
        }
        Ok(rustix::fs::ftruncate(lock, content.len() as u64)?)
    }

    fn owner(&self) -> (u32, u32) {
        (self.account.uid, self.account.gid)
    }

    /// The directory beside the home for what is no part of it.
    fn private(&self) -> PathBuf {
        let mut name = self.account.home.clone().into_os_string();
        name.push(".obuild");
        name.into()
    }

    /// The directory for what should touch no disk: in memory where there is such a place, else beside the home.
    fn memory(&self) -> PathBuf {
        let shared = Path::new("/dev/shm");
        if cfg!(target_os = "linux") && shared.is_dir() {
            return shared.join(format!("obuild-{}", self.account.uid));
        }
        self.private().join("memory")
    }

    fn remove_private(&self) {
        for path in [self.memory(), self.private()] {
            // Mostly it is not there.
            let _ = fs_err::remove_dir_all(path);
        }
    }
}

fn no_overlay() -> Failure {
    Failure::NotByUser(
        "it has no mounts, so it needs a store that gives whole directories: btrfs, xfs or rsync"
            .to_owned(),
    )
}

fn make_directory(path: &Path, mode: u32, owner: (u32, u32)) -> io::Result<()> {
    // Never one that somebody else made: /dev/shm is everybody's.
    rustix::fs::mkdir(path, Mode::RWXU)?;
    let directory = place::open(path)?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(&directory, place::mode(mode))?)
}

fn write_secret(path: &Path, value: &[u8], owner: (u32, u32)) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::RUSR)?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    std::fs::File::from(file).write_all(value)
}
