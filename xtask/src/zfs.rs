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
    /// Makes a pool with its file and its mount point in the directory `scratch`.
    pub(crate) fn create(scratch: &Path, size_bytes: u64) -> Result<Self> {
        let mut pool = Self {
            name: format!("obuild-xtask-{}", std::process::id()),
            made: None,
            mounts: None,
            daemon: None,
        };
        if !answers() {
            // In the foreground, so that it is of our process group. Without the option it keeps no extended attributes.
            let daemon = Cmd::new("zfs-fuse").args(["-n", "--no-kstat-mount", "--enable-xattr"]);
            pool.daemon = Some(Background::start(daemon, &scratch.join("zfs-fuse.log"))?);
            pool.wait_for_daemon()?;
        }
        let image = scratch.join("zfs.img");
        fs_err::File::create(&image)?.set_len(size_bytes)?;
        let point = scratch.join("zfs");
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

    fn wait_for_daemon(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        while !answers() {
            let runs = self.daemon.as_mut().is_some_and(Background::is_running);
            if !runs || Instant::now() > end {
                bail!("zfs-fuse does not answer; it needs /dev/fuse");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
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
