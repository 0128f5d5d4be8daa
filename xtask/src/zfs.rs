// SPDX-License-Identifier: Apache-2.0
//! A ZFS pool in a file to test on, and the daemon of zfs-fuse where nothing else answers to `zpool`.

use crate::cmd::{Background, Cmd};
use crate::faults;
use crate::reaper::{Guard, Item};
use anyhow::{Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a daemon that works may take to answer a request: an unmount has it write out the disks of the whole machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// How many daemons of ours have stopped answering, or died.
static LOST: AtomicU32 = AtomicU32::new(0);

/// A pool of our own. Dropped, it is destroyed and the daemon stopped.
pub(crate) struct Pool {
    name: String,
    // In the order in which they have to go.
    made: Option<Guard>,
    mounts: Option<Guard>,
    daemon: Option<Daemon>,
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

/// Does something on zfs, and once more if the daemon of zfs-fuse was lost meanwhile: it hangs now and then, and that is no fault of ours. Any
/// other failure stays one, and so does a second loss.
pub(crate) fn patiently(mut action: impl FnMut() -> Result<()>) -> Result<()> {
    let before = LOST.load(Ordering::Relaxed);
    let result = action();
    match &result {
        Err(error) if LOST.load(Ordering::Relaxed) != before => {
            eprintln!("AGAIN, as zfs-fuse was lost: all of this is run once more ({error:#})");
            action()
        }
        _ => result,
    }
}

/// The daemon of zfs-fuse, watched: when it stops answering it is killed, which frees all who wait for it. Dropped, it ends.
pub(crate) struct Daemon {
    process: Option<Background>,
    /// The group to kill, while it is the daemon's.
    group: Arc<Mutex<Option<Pid>>>,
    watch: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Starts the daemon of zfs-fuse, if nothing else answers to `zpool`.
pub(crate) fn daemon(scratch: &Path) -> Result<Option<Daemon>> {
    if answers() {
        return Ok(None);
    }
    // In the foreground, so that it is of our process group. Without the option it keeps no extended attributes.
    let command = Cmd::new("zfs-fuse").args(["-n", "--no-kstat-mount", "--enable-xattr"]);
    let mut process = Background::start(command, &scratch.join("zfs-fuse.log"))?;
    let end = Instant::now() + PATIENCE;
    while !answers() {
        if !process.is_running() || Instant::now() > end {
            bail!("zfs-fuse does not answer; it needs /dev/fuse");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let group = Arc::new(Mutex::new(Some(Pid::from_raw(process.id().cast_signed()))));
    let (stop, stopped) = channel();
    let watched = Arc::clone(&group);
    let watch = std::thread::spawn(move || {
        let mut stuck = BTreeMap::new();
        while stopped.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
            stuck = still_stuck(&stuck);
            let long = stuck.iter().find(|(_, since)| since.elapsed() > PATIENCE);
            let group = watched.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(((thread, _), _)), Some(pid)) = (long, *group) {
                eprintln!(
                    "\nzfs-fuse HANGS: it has not answered thread {thread} for {PATIENCE:?}. It is killed.\n"
                );
                LOST.fetch_add(1, Ordering::Relaxed);
                killpg(pid, Signal::SIGKILL).ok();
                break;
            }
        }
    });
    Ok(Some(Daemon {
        process: Some(process),
        group,
        watch: Some((stop, watch)),
    }))
}

impl Daemon {
    /// Returns its process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().map_or(0, Background::id)
    }

    /// Returns whether it has died, was killed by the watch, or does not answer.
    pub(crate) fn is_lost(&mut self) -> bool {
        !self.process.as_mut().is_some_and(Background::is_running) || !answers()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let well = !self.is_lost();
        // Its number may soon be another's.
        let group = self
            .group
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let (false, Some(pid)) = (well, group) {
            eprintln!("\nzfs-fuse is LOST: it has died, or does not answer `zpool`.\n");
            LOST.fetch_add(1, Ordering::Relaxed);
            killpg(pid, Signal::SIGKILL).ok();
        }
        drop(self.process.take());
        if let Some((stop, watch)) = self.watch.take() {
            drop(stop);
            watch.join().ok();
        }
    }
}

/// A thread, and how often it has slept.
type Sleep = (i32, String);

/// Returns the threads of ours that wait for the daemon, and since when they have not been woken: in a call on its mounts (linux v6.18
/// fs/fuse/dev.c), or as one of its commands.
fn still_stuck(before: &BTreeMap<Sleep, Instant>) -> BTreeMap<Sleep, Instant> {
    let own = std::process::id();
    let mut found = BTreeMap::new();
    let processes = faults::descendants(own);
    for pid in processes.into_iter().chain([Pid::this()]) {
        let threads = fs_err::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let read = |name| fs_err::read_to_string(thread.path().join(name));
            let command = read("comm").unwrap_or_default();
            let waits = ["zfs", "zpool"].contains(&command.trim())
                || read("wchan").is_ok_and(|place| place == "request_wait_answer");
            if waits
                && let Ok(status) = read("status")
                && let Some(slept) = status
                    .lines()
                    .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
                && let Some(Ok(number)) = thread.file_name().to_str().map(str::parse)
            {
                let sleep = (number, slept.trim().to_owned());
                let since = before.get(&sleep).copied().unwrap_or_else(Instant::now);
                found.insert(sleep, since);
            }
        }
    }
    found
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
    let zpool = |arguments: &[&str]| Cmd::new("zpool").args(arguments).quiet().deadline(PATIENCE);
    if !zpool(&["list", name]).try_quietly() {
        // Never made, or its daemon is gone, and with it all but the file.
        return Ok(());
    }
    // The daemon takes a moment over the last unmounts, and calls the pool busy until then.
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if zpool(&["destroy", "-f", name]).try_quietly() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    zpool(&["destroy", "-f", name]).output().map(drop)
}
