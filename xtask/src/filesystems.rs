// SPDX-License-Identifier: Apache-2.0
//! File systems to test on: a scratch directory, and images in it that are mounted through loop devices.

use crate::cmd::Cmd;
use crate::reaper::{Guard, Item, mounts_below};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A directory of our own on a real disk, deleted with everything in it.
pub(crate) struct Scratch {
    path: PathBuf,
    mounts: Vec<Guard>,
    guard: Option<Guard>,
}

impl Scratch {
    /// Makes a fresh directory below `parent` with a name that no other run uses.
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        fs_err::create_dir_all(parent)?;
        let pid = std::process::id();
        for attempt in 0..1000 {
            let path = parent.join(format!("obuild-xtask-{pid}-{attempt}"));
            match fs_err::create_dir(&path) {
                Ok(()) => {
                    let guard = Some(Guard::new(Item::Remove(path.clone()))?);
                    return Ok(Self {
                        path,
                        mounts: Vec::new(),
                        guard,
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!(
            "no free name for a scratch directory in {}",
            parent.display()
        )
    }

    /// Returns the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory in it.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs_err::create_dir_all(&path)?;
        Ok(path)
    }

    /// Makes a btrfs image and mounts it.
    ///
    /// With noatime, since relatime dirties every fresh snapshot by reading it.
    pub(crate) fn btrfs(&mut self, size_bytes: u64) -> Result<PathBuf> {
        self.image("btrfs", size_bytes, &["mkfs.btrfs", "-q"], "loop,noatime")
    }

    /// Makes an XFS image with reflinks and mounts it.
    pub(crate) fn xfs(&mut self, size_bytes: u64) -> Result<PathBuf> {
        let mkfs = ["mkfs.xfs", "-q", "-m", "reflink=1"];
        self.image("xfs", size_bytes, &mkfs, "loop,noatime")
    }

    /// Makes an ext4 image and mounts it: what Debian installs itself on.
    pub(crate) fn ext4(&mut self, size_bytes: u64) -> Result<PathBuf> {
        self.image("ext4", size_bytes, &["mkfs.ext4", "-q"], "loop,noatime")
    }

    fn image(
        &mut self,
        kind: &str,
        size_bytes: u64,
        mkfs: &[&str],
        options: &str,
    ) -> Result<PathBuf> {
        let image = self.path.join(format!("{kind}.img"));
        // Sparse: it takes only what is written to it.
        fs_err::File::create(&image)?.set_len(size_bytes)?;
        Cmd::new(mkfs[0])
            .args(&mkfs[1..])
            .arg(&image)
            .deadline(Duration::from_mins(1))
            .output()?;
        let point = self.directory(kind)?;
        let guard = Guard::new(Item::Mount(point.clone()))?;
        // `mount` marks the loop device for auto-clear, so that umount frees it (mount(8), "loop").
        Cmd::new("mount")
            .args(["-t", kind, "-o", options])
            .arg(&image)
            .arg(&point)
            .deadline(Duration::from_mins(1))
            .output()?;
        self.mounts.push(guard);
        Ok(point)
    }

    /// Takes everything down and reports what could not be, or was left behind by others.
    pub(crate) fn close(mut self) -> Result<()> {
        let own = self.mounts.len();
        let found = mounts_below(&self.path);
        let mut problem = None;
        if found.len() > own {
            let list: Vec<_> = found
                .iter()
                .map(|point| point.display().to_string())
                .collect();
            problem = Some(anyhow::anyhow!(
                "something was left mounted, these were found: {}",
                list.join(" ")
            ));
            self.detach_strangers();
        }
        while let Some(mount) = self.mounts.pop() {
            if let Err(error) = mount.close() {
                problem.get_or_insert(error);
            }
        }
        if let Some(guard) = self.guard.take()
            && let Err(error) = guard.close()
        {
            problem.get_or_insert(error);
        }
        problem.map_or(Ok(()), Err)
    }

    fn detach_strangers(&self) {
        for point in mounts_below(&self.path).iter().rev() {
            if point.parent() != Some(&self.path) {
                Cmd::new("umount").arg("-l").arg(point).output().ok();
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Mounts before the directory that holds them, the newest first.
        while let Some(mount) = self.mounts.pop() {
            drop(mount);
        }
        drop(self.guard.take());
    }
}
