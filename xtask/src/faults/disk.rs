// SPDX-License-Identifier: Apache-2.0
//! File systems in files, to be filled, cut off and brought back.

use super::case::StoreKind;
use super::users::Users;
use crate::cmd::Cmd;
use crate::dockerd::Daemon;
use crate::reaper::{Guard, Item};
use crate::zfs::Pool;
use anyhow::{Context, Result, bail};
use nix::fcntl::{FallocateFlags, fallocate};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file system in a file, mounted.
pub(super) struct Disk {
    pub(super) kind: &'static str,
    image: PathBuf,
    point: PathBuf,
    bytes: u64,
    guard: Option<Guard>,
    /// Of zfs, whose pools are mounted by themselves.
    pool: Option<Pool>,
    users: Option<Users>,
    /// A docker daemon that has its data here.
    daemon: Option<Daemon>,
    /// The disk that the image is on, where that has to be copied at once.
    outer: Option<Box<Disk>>,
}

/// The smallest that the tools make and that holds a store with a few builds.
pub(super) fn small_bytes(store: StoreKind) -> u64 {
    if store.kind == "docker" {
        // The daemon's own files are there too.
        return 160 << 20;
    }
    match store.file_system {
        // mkfs.xfs(8): 300 MB at least.
        "xfs" => 320 << 20,
        "btrfs" => 256 << 20,
        "zfs" => 128 << 20,
        _ => 64 << 20,
    }
}

impl Disk {
    /// Makes one in `directory`, which has to exist.
    pub(super) fn create(
        directory: &Path,
        name: &str,
        kind: &'static str,
        bytes: u64,
    ) -> Result<Self> {
        let image = directory.join(format!("{name}.img"));
        let point = directory.join(name);
        if kind == "zfs" {
            fs_err::create_dir_all(&point)?;
            let pool = Some(Pool::in_file(directory, name, bytes)?);
            return Ok(Self {
                kind,
                image,
                point,
                bytes,
                guard: None,
                pool,
                users: None,
                daemon: None,
                outer: None,
            });
        }
        // Sparse: it takes only what is written to it.
        fs_err::File::create(&image)?.set_len(bytes)?;
        let flags: &[&str] = match kind {
            "xfs" => &["-q", "-m", "reflink=1"],
            _ => &["-q"],
        };
        Cmd::new(format!("mkfs.{kind}"))
            .args(flags)
            .arg(&image)
            .quiet()
            .deadline(Duration::from_mins(1))
            .output()?;
        fs_err::create_dir_all(&point)?;
        let mut disk = Self {
            kind,
            image,
            point,
            bytes,
            guard: None,
            pool: None,
            users: None,
            daemon: None,
            outer: None,
        };
        disk.mount()?;
        Ok(disk)
    }

    /// Makes one that can be cut off, in `directory`.
    ///
    /// btrfs has no call for that. Its image lies on an XFS, which can copy a file in a moment while it is written to: the copy
    /// is the disk as a power cut leaves it.
    pub(super) fn create_fragile(
        directory: &Path,
        name: &str,
        kind: &'static str,
        bytes: u64,
    ) -> Result<Self> {
        if kind != "btrfs" {
            return Self::create(directory, name, kind, bytes);
        }
        let outer = Self::create(directory, &format!("{name}-below"), "xfs", 4 * bytes)?;
        let mut disk = Self::create(outer.path(), name, kind, bytes)?;
        disk.outer = Some(Box::new(outer));
        Ok(disk)
    }

    /// Has build users with homes on it.
    pub(super) fn with_users(&mut self, prefix: &str) -> Result<()> {
        if self.users.is_none() {
            self.users = Some(Users::create(&self.point, prefix)?);
        }
        Ok(())
    }

    pub(super) fn users(&self) -> Option<&Users> {
        self.users.as_ref()
    }

    /// Returns the ids of its build users.
    pub(super) fn user_ids(&self) -> &[u32] {
        self.users.as_ref().map_or(&[], Users::ids)
    }

    /// Starts a docker daemon that keeps its data on it, and what goes with a boot beside it.
    pub(super) fn with_daemon(&mut self) -> Result<()> {
        let root = self.image.with_extension("docker");
        fs_err::create_dir_all(&root)?;
        let data = self.point.join("docker").display().to_string();
        let mut daemon = Daemon::start(&root, &["--data-root".to_owned(), data])?;
        daemon.wait()?;
        self.daemon = Some(daemon);
        Ok(())
    }

    pub(super) fn daemon(&mut self) -> Option<&mut Daemon> {
        self.daemon.as_mut()
    }

    /// Returns where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.point
    }

    /// Returns how the store `name` on it is named in a URL of its kind.
    pub(super) fn place(&self, name: &str) -> String {
        match &self.pool {
            Some(pool) => format!("{}/{name}", pool.name()),
            None => self.point.join(name).display().to_string(),
        }
    }

    /// Returns the datasets and snapshots of the store `name`, without those that each store has.
    pub(super) fn datasets(&self, name: &str) -> Result<Vec<String>> {
        let Some(pool) = &self.pool else {
            return Ok(Vec::new());
        };
        let home = format!("{}/{name}", pool.name());
        let list = zfs(&["list", "-H", "-r", "-t", "all", "-o", "name", &home]).output()?;
        let usual = ["", "/trees", "/cache-trees"].map(|usual| format!("{home}{usual}"));
        let names = list
            .lines()
            .filter(|name| !usual.iter().any(|usual| usual == name));
        Ok(names.map(str::to_owned).collect())
    }

    /// Removes the store `name` with all that it has.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let Some(pool) = &self.pool else {
            return super::case::remove_tree(&self.point.join(name));
        };
        let home = format!("{}/{name}", pool.name());
        let gone = || !zfs(&["list", "-H", &home]).try_quietly();
        // A mount namespace that somebody made meanwhile has it mounted until it ends.
        for _ in 0..300 {
            if gone() || zfs(&["destroy", "-R", "-f", &home]).try_quietly() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("{home} cannot be destroyed")
    }

    /// Returns its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Waits until space that was given back can be used again.
    pub(super) fn settle(&self) {
        if self.kind == "btrfs" {
            // btrfs-subvolume(8), `sync`: waits for deleted subvolumes to be gone for good. btrfs-balance(8): chunks that
            // hold data no more are given back to be used for metadata, as the kernel does by and by.
            let commands: [&[&str]; 3] = [
                &["subvolume", "sync"],
                &["filesystem", "sync"],
                &["balance", "start", "-dusage=0"],
            ];
            for command in commands {
                Cmd::new("btrfs")
                    .args(command)
                    .arg(&self.point)
                    .quiet()
                    .try_quietly();
            }
        }
    }

    fn mount(&mut self) -> Result<()> {
        self.guard = Some(Guard::new(Item::Mount(self.point.clone()))?);
        // relatime would dirty every fresh btrfs snapshot by reading it. With a short commit interval btrfs gives
        // the space of deleted subvolumes back soon.
        let options = match self.kind {
            "btrfs" => "loop,noatime,commit=1",
            _ => "loop,noatime",
        };
        Cmd::new("mount")
            .args(["-t", self.kind, "-o", options])
            .arg(&self.image)
            .arg(&self.point)
            .quiet()
            .deadline(Duration::from_mins(1))
            .output()?;
        Ok(())
    }

    /// Takes it down and mounts it again, as a boot would.
    pub(super) fn revive(&mut self) -> Result<()> {
        self.mount_again()?;
        self.daemon.as_mut().map_or(Ok(()), Daemon::start_again)
    }

    fn mount_again(&mut self) -> Result<()> {
        for _ in 0..100 {
            if let Some(guard) = self.guard.take() {
                guard.close()?;
            }
            if self.copy().exists() {
                // What the unmounting has written never happened.
                fs_err::rename(self.copy(), &self.image)?;
            }
            self.mount()?;
            let probe = self.point.join("probe");
            if fs_err::write(&probe, "").is_ok() {
                return Ok(fs_err::remove_file(&probe)?);
            }
            // Another mount namespace of this machine still has the old one, and so do we.
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("{} does not come back", self.point.display())
    }

    /// Forgets everything that is not on the disk yet and answers all calls with errors, as when the power or the cable goes.
    /// Returns `false` where the file system does not know how to.
    pub(super) fn cut_off(&self) -> bool {
        if self.outer.is_some() {
            let copy = Cmd::new("cp").arg("--reflink=always").arg(&self.image);
            return copy.arg(self.copy()).quiet().try_quietly();
        }
        // xfs_io(8), `shutdown`: without -f the log is not written out. ext4 has the same ioctl.
        Cmd::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(&self.point)
            .quiet()
            .try_quietly()
    }

    /// Returns where the copy of the image is.
    fn copy(&self) -> PathBuf {
        self.image.with_extension("cut")
    }

    /// Makes it read-only, or writable again. Returns `false` if it is busy being written to.
    pub(super) fn set_read_only(&self, read_only: bool) -> bool {
        let option = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        Cmd::new("mount")
            .args(["-o", option])
            .arg(&self.point)
            .quiet()
            .try_quietly()
    }

    /// Fills it up to `left` bytes, as far as the file system can be told to.
    pub(super) fn fill(&self, left: u64) -> Result<Filler> {
        let path = self.point.join("filler");
        let file = fs_err::File::create(&path)?;
        let filler = Filler(path);
        if self.pool.is_some() {
            fill_by_writing(file, left)?;
            return Ok(filler);
        }
        let mut at = 0;
        let mut piece = 32 << 20;
        // Ever smaller pieces: free space is not one piece.
        while piece >= 4096 {
            match fallocate(&file, FallocateFlags::empty(), at, piece) {
                Ok(()) => at += piece,
                Err(nix::errno::Errno::ENOSPC) => piece /= 2,
                Err(errno) => bail!("cannot fill {}: {errno}", self.point.display()),
            }
        }
        let left = i64::try_from(left).context("a size fits")?;
        let kept = u64::try_from((at - left).max(0)).context("it is not below zero")?;
        file.set_len(kept)?;
        Ok(filler)
    }

    /// Takes it down for good.
    pub(super) fn close(mut self) -> Result<()> {
        if let Some(daemon) = self.daemon.take() {
            daemon.close()?;
            fs_err::remove_dir_all(self.image.with_extension("docker"))?;
        }
        if let Some(users) = self.users.take() {
            users.close()?;
        }
        if let Some(guard) = self.guard.take() {
            guard.close()?;
        }
        if let Some(pool) = self.pool.take() {
            pool.close()?;
        }
        fs_err::remove_file(&self.image)?;
        // zfs removes the mount point itself.
        match fs_err::remove_dir(&self.point) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => self.outer.take().map_or(Ok(()), |outer| outer.close()),
        }
    }
}

/// The command, in turn with obuild's own: see `takes_turns` in the store.
fn zfs(arguments: &[&str]) -> Cmd {
    Cmd::new("flock")
        .args(["/usr/sbin/zfs", "zfs"])
        .args(arguments)
        .quiet()
        .deadline(Duration::from_mins(2))
}

/// For a file system that does not know how to allocate.
fn fill_by_writing(mut file: fs_err::File, left: u64) -> Result<()> {
    let piece = vec![0x5a; 256 << 10];
    let mut written = 0;
    loop {
        match file.write(&piece) {
            Ok(count) => written += count as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(written.saturating_sub(left))?;
    Ok(file.sync_all()?)
}

/// A file that takes up room until this is dropped.
#[derive(Debug)]
pub(super) struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs_err::remove_file(&self.0).ok();
    }
}
