// SPDX-License-Identifier: Apache-2.0
//! A ZFS pool in a file to test on, and the daemon of zfs-fuse where nothing else answers to `zpool`.

use crate::cmd::{Background, Cmd};
use crate::reaper::{Guard, Item};
use anyhow::{Result, bail};
use std::path::Path;
use std::time::{Duration, Instant};

/// A pool of our own. Dropped, it is destroyed and the daemon stopped.
pub(crate) struct Pool {
    name: String,
    // In the order in which they have to go.
    made: Option<Guard>,
    mounts: Option<Guard>,
    daemon: Option<Background>,
}

impl Pool {
    /// Makes a pool with its file and its mount point in the directory `scratch`, and a daemon if there is none.
    pub(crate) fn create(scratch: &Path, size_bytes: u64) -> Result<Self> {
        let daemon = daemon(scratch)?;
        let mut pool = Self::in_file(scratch, "zfs", size_bytes)?;
        pool.daemon = daemon;
        Ok(pool)
    }

    /// Makes one in `scratch/NAME.img`, mounted at `scratch/NAME`. There is a daemon.
    pub(crate) fn in_file(scratch: &Path, name: &str, size_bytes: u64) -> Result<Self> {
        let process = std::process::id();
        let mut pool = Self {
            name: match name {
                "zfs" => format!("obuild-xtask-{process}"),
                name => format!("obuild-xtask-{process}-{name}"),
            },
            made: None,
            mounts: None,
            daemon: None,
        };
        let image = scratch.join(format!("{name}.img"));
        fs_err::File::create(&image)?.set_len(size_bytes)?;
        let point = scratch.join(name);
        pool.mounts = Some(Guard::new(Item::Mount(point.clone()))?);
        pool.made = Some(Guard::new(Item::Pool(pool.name.clone()))?);
        // No cache file: else a daemon that starts later would look for the pool.
        Cmd::new("zpool")
            .args(["create", "-o", "cachefile=none", "-m"])
            .arg(&point)
            .arg(&pool.name)
            .arg(&image)
            .deadline(Duration::from_mins(1))
            .output()?;
        Ok(pool)
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes it down and reports what could not be.
    pub(crate) fn close(mut self) -> Result<()> {
        let pool = self.made.take().map_or(Ok(()), Guard::close);
        drop(self.daemon.take());
        let mounts = self.mounts.take().map_or(Ok(()), Guard::close);
        pool.and(mounts)
    }
}

/// Starts the daemon of zfs-fuse, if nothing else answers to `zpool`.
pub(crate) fn daemon(scratch: &Path) -> Result<Option<Background>> {
    if answers() {
        return Ok(None);
    }
    // In the foreground, so that it is of our process group. Without the option it keeps no extended attributes.
    let command = Cmd::new("zfs-fuse").args(["-n", "--no-kstat-mount", "--enable-xattr"]);
    let mut daemon = Background::start(command, &scratch.join("zfs-fuse.log"))?;
    let end = Instant::now() + Duration::from_secs(10);
    while !answers() {
        if !daemon.is_running() || Instant::now() > end {
            bail!("zfs-fuse does not answer; it needs /dev/fuse");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(daemon))
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.made.take());
        drop(self.daemon.take());
        drop(self.mounts.take());
    }
}

/// Returns whether there is somebody to ask: the kernel's module, or a daemon.
fn answers() -> bool {
    Cmd::new("zpool")
        .arg("list")
        .quiet()
        .deadline(Duration::from_secs(10))
        .try_quietly()
}

/// Destroys a pool, if it is there.
pub(crate) fn destroy(name: &str) -> Result<()> {
    let zpool = |arguments: &[&str]| {
        Cmd::new("zpool")
            .args(arguments)
            .quiet()
            .deadline(Duration::from_secs(30))
    };
    if !zpool(&["list", name]).try_quietly() {
        // Never made, or its daemon is gone, and with it all but the file.
        return Ok(());
    }
    // The daemon takes a moment over the last unmounts, and calls the pool busy until then.
    for _ in 0..20 {
        if zpool(&["destroy", "-f", name]).try_quietly() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    zpool(&["destroy", "-f", name]).output().map(drop)
}
