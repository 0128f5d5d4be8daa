// SPDX-License-Identifier: Apache-2.0
//! The net below every task: undoes what a task set up, however the task ends.
//!
//! A small second process holds the reading end of a pipe whose only writer is the task. The task tells it what
//! exists (process groups, mounts, directories) and what is gone again. When the task ends, be it by Ctrl-C or
//! `kill -9`, the pipe closes, and the second process takes down whatever is left. It sits in its own process
//! group, so that a terminal's Ctrl-C does not reach it. No signal handler is needed.

use crate::workspace;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The hidden task under which the second process runs.
pub(crate) const VERB: &str = "__reaper";

/// How long a process group may take to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();

/// Something that has to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A process group to end.
    Group(i32),
    /// A cgroup (v1 hierarchy) to remove.
    Cgroup(PathBuf),
    /// The directory of a docker daemon, which has ended: containers and mounts to end.
    Docker(PathBuf),
    /// A mount to take down.
    Mount(PathBuf),
    /// A ZFS pool to destroy.
    Pool(String),
    /// A directory tree to delete.
    Remove(PathBuf),
    /// A user account to delete.
    User(String),
}

impl Item {
    fn encode(&self) -> String {
        match self {
            Self::Group(pid) => format!("group {pid}"),
            Self::Cgroup(path) => format!("cgroup {}", path.display()),
            Self::Docker(path) => format!("docker {}", path.display()),
            Self::Mount(path) => format!("mount {}", path.display()),
            Self::Pool(name) => format!("pool {name}"),
            Self::Remove(path) => format!("remove {}", path.display()),
            Self::User(name) => format!("user {name}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(' ')?;
        match kind {
            "group" => rest.parse().ok().map(Self::Group),
            "cgroup" => Some(Self::Cgroup(rest.into())),
            "docker" => Some(Self::Docker(rest.into())),
            "mount" => Some(Self::Mount(rest.into())),
            "pool" => Some(Self::Pool(rest.to_owned())),
            "remove" => Some(Self::Remove(rest.into())),
            "user" => Some(Self::User(rest.to_owned())),
            _ => None,
        }
    }

    /// Undoes it. Undoing twice is fine.
    fn undo(&self) -> Result<()> {
        match self {
            Self::Group(pid) => {
                end_group(*pid);
                Ok(())
            }
            Self::Cgroup(path) => remove_cgroup(path),
            Self::Docker(path) => crate::dockerd::clear(path),
            Self::Mount(path) => unmount(path),
            Self::Pool(name) => crate::zfs::destroy(name),
            Self::Remove(path) => remove_tree(path),
            Self::User(name) => remove_user(name),
        }
    }
}

/// Holds something that is undone when this is dropped, or by the net if we die.
#[derive(Debug)]
#[must_use]
pub(crate) struct Guard {
    item: Item,
    armed: bool,
}

impl Guard {
    /// Registers `item`. Do so just before (a path) or just after (a process) it comes into being.
    pub(crate) fn new(item: Item) -> Result<Self> {
        tell('+', &item)?;
        Ok(Self { item, armed: true })
    }

    /// Undoes it now and reports a failure.
    pub(crate) fn close(mut self) -> Result<()> {
        self.finish()
    }

    /// Forgets it: it is gone already, or is meant to stay.
    pub(crate) fn release(mut self) -> Result<()> {
        self.armed = false;
        tell('-', &self.item)
    }

    fn finish(&mut self) -> Result<()> {
        if !self.armed {
            return Ok(());
        }
        self.armed = false;
        self.item.undo()?;
        tell('-', &self.item)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("xtask: cleaning up: {error:#}");
        }
    }
}

fn tell(sign: char, item: &Item) -> Result<()> {
    if cfg!(test) {
        // A unit test's program is not ours to start again; `tests/reaper.rs` tests the real one.
        return Ok(());
    }
    if PIPE.get().is_none() {
        let stdin = spawn().context("start the clean-up process")?;
        // Should two threads race here, the loser's process sees its pipe close with nothing to do.
        PIPE.set(Mutex::new(stdin)).ok();
    }
    let pipe = PIPE
        .get()
        .context("the clean-up process was just started")?;
    let mut pipe = pipe.lock().unwrap_or_else(PoisonError::into_inner);
    pipe.write_all(format!("{sign}{}\n", item.encode()).as_bytes())
        .context("the clean-up process is gone")
}

fn spawn() -> Result<ChildStdin> {
    let program = std::env::current_exe().context("find our own program")?;
    let mut child = Command::new(program)
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    child.stdin.take().context("its standard input is a pipe")
}

/// Is the second process: listens until the pipe closes, then undoes what is left, the newest first.
pub(crate) fn serve() {
    let mut items: Vec<Item> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let (sign, text) = line.split_at_checked(1).unwrap_or_default();
        match (sign, Item::decode(text)) {
            ("+", Some(item)) => items.push(item),
            ("-", Some(item)) => {
                if let Some(position) = items.iter().rposition(|other| *other == item) {
                    items.remove(position);
                }
            }
            _ => eprintln!("xtask: clean-up: cannot read {line:?}"),
        }
    }
    if items.is_empty() {
        return;
    }
    eprintln!("xtask: interrupted: taking down what was set up");
    // Processes first: they hold the mounts.
    items.sort_by_key(|item| matches!(item, Item::Group(_)));
    for item in items.iter().rev() {
        if let Err(error) = item.undo() {
            eprintln!("xtask: cleaning up: {error:#}");
        }
    }
}

fn end_group(pid: i32) {
    let group = Pid::from_raw(pid);
    if killpg(group, Signal::SIGTERM).is_err() {
        return;
    }
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline {
        sleep(Duration::from_millis(20));
        if killpg(group, None).is_err() {
            return;
        }
    }
    killpg(group, Signal::SIGKILL).ok();
}

fn remove_cgroup(path: &Path) -> Result<()> {
    // Children first; a cgroup goes by rmdir, its files cannot be deleted. Dead members may linger a moment.
    if let Ok(entries) = fs_err::read_dir(path) {
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                remove_cgroup(&entry.path())?;
            }
        }
    }
    retry(|| match fs_err::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    })
}

/// Takes down a mount, after those that others have made below it.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    let done = retry(|| {
        for point in mounts_below(path).iter().rev() {
            umount(point, &[])?;
        }
        Ok(())
    });
    if done.is_err() {
        // Something still holds it: detach it at least, the kernel ends it with its last user.
        for point in mounts_below(path).iter().rev() {
            umount(point, &["-l"])?;
        }
    }
    done
}

fn umount(path: &Path, flags: &[&str]) -> Result<()> {
    let output = Command::new("umount")
        .env("PATH", workspace::search_path())
        .args(flags)
        .arg(path)
        .output()
        .context("run umount")?;
    anyhow::ensure!(
        output.status.success() || !is_mounted(path),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    retry(|| {
        if !path.exists() {
            return Ok(());
        }
        // `--one-file-system`: should a mount be left below, its files are not ours to delete.
        let output = Command::new("rm")
            .args(["-rf", "--one-file-system", "--"])
            .arg(path)
            .output()
            .context("run rm")?;
        anyhow::ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    })
}

/// Removes a user with its subordinate ids; one that is not there is no error.
fn remove_user(name: &str) -> Result<()> {
    // userdel(8): 6 is "specified user doesn't exist". What was just killed may still be the user's.
    retry(|| {
        let output = Command::new("userdel")
            .env("PATH", workspace::search_path())
            .arg(name)
            .output()
            .context("run userdel")?;
        anyhow::ensure!(
            output.status.success() || output.status.code() == Some(6),
            "{}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    })
}

/// Tries for about three seconds: what has just been killed may hold a file a moment longer.
fn retry(mut action: impl FnMut() -> Result<()>) -> Result<()> {
    let mut pause = Duration::from_millis(10);
    loop {
        match action() {
            Err(_) if pause < Duration::from_secs(2) => sleep(pause),
            result => return result,
        }
        pause *= 2;
    }
}

/// Returns the mount points at or below `path`, innermost last.
pub(crate) fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs_err::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        // proc_pid_mountinfo(5): the fifth field is the mount point.
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(path))
        .collect()
}

fn is_mounted(path: &Path) -> bool {
    mounts_below(path).iter().any(|point| point == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_survive_the_pipe() {
        for item in [
            Item::Group(42),
            Item::Mount("/a b/c".into()),
            Item::Remove("/x".into()),
            Item::Docker("/y".into()),
            Item::Pool("tank".to_owned()),
            Item::Cgroup("/sys/fs/cgroup/x".into()),
            Item::User("name".to_owned()),
        ] {
            assert_eq!(Item::decode(&item.encode()), Some(item));
        }
        assert_eq!(Item::decode("nonsense"), None);
    }
}
