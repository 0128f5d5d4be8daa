// SPDX-License-Identifier: Apache-2.0
//! File systems in files, to be filled, cut off and brought back.

use crate::cmd::Cmd;
use crate::reaper::{Guard, Item};
use anyhow::{Context, Result, bail};
use nix::fcntl::{FallocateFlags, fallocate};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file system in a file, mounted.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) kind: &'static str,
    image: PathBuf,
    point: PathBuf,
    bytes: u64,
    guard: Option<Guard>,
}

/// The smallest that the tools make and that holds a store with a few builds.
pub(super) fn small_bytes(kind: &str) -> u64 {
    match kind {
        // mkfs.xfs(8): 300 MB at least.
        "xfs" => 320 << 20,
        "btrfs" => 256 << 20,
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
        let point = directory.join(name);
        fs_err::create_dir_all(&point)?;
        let mut disk = Self {
            kind,
            image,
            point,
            bytes,
            guard: None,
        };
        disk.mount()?;
        Ok(disk)
    }

    /// Returns where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.point
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
        for _ in 0..100 {
            if let Some(guard) = self.guard.take() {
                guard.close()?;
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
        // xfs_io(8), `shutdown`: without -f the log is not written out. ext4 has the same ioctl.
        Cmd::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(&self.point)
            .quiet()
            .try_quietly()
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
        if let Some(guard) = self.guard.take() {
            guard.close()?;
        }
        fs_err::remove_file(&self.image)?;
        Ok(fs_err::remove_dir(&self.point)?)
    }
}

/// A file that takes up room until this is dropped.
#[derive(Debug)]
pub(super) struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs_err::remove_file(&self.0).ok();
    }
}
