// SPDX-License-Identifier: Apache-2.0
//! Processes: who descends from whom, and who is left.

use anyhow::{Result, bail};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What `/proc/PID/stat` tells of a process.
#[derive(Clone, Debug)]
struct Process {
    parent: i32,
    state: char,
}

fn all() -> BTreeMap<i32, Process> {
    let mut all = BTreeMap::new();
    for entry in fs_err::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // One that has ended since is none.
        let Ok(stat) = fs_err::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // proc_pid_stat(5): the second field may hold blanks and parentheses.
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let mut fields = rest.split(' ');
        let state = fields.next().and_then(|state| state.chars().next());
        let parent = fields.next().and_then(|parent| parent.parse().ok());
        if let (Some(state), Some(parent)) = (state, parent) {
            all.insert(pid, Process { parent, state });
        }
    }
    all
}

/// Returns all that descend from a process, without itself, nearest first.
pub(crate) fn descendants(pid: u32) -> Vec<Pid> {
    let all = all();
    let mut found = vec![i32::try_from(pid).expect("Linux's process ids fit")];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let children = all.iter().filter(|(_, process)| process.parent == parent);
        found.extend(children.map(|(pid, _)| *pid));
    }
    found.drain(1..).map(Pid::from_raw).collect()
}

/// Returns whether it is one of a step's own processes, as the step's first process in its namespace is not, but any of a build user's is.
pub(super) fn is_of_a_step(pid: Pid, users: &[u32]) -> bool {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if owner(&status).is_some_and(|owner| users.contains(&owner)) {
        return true;
    }
    // proc_pid_status(5): its number in each namespace from ours down to its own.
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let numbers: Vec<&str> = numbers.unwrap_or_default().split_whitespace().collect();
    numbers.len() > 1 && numbers.last() != Some(&"1")
}

/// Returns the real user id that `/proc/PID/status` tells.
fn owner(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the processes of these users.
pub(super) fn of_users(users: &[u32]) -> Vec<i32> {
    let mut found: Vec<i32> = all().into_keys().collect();
    found.retain(|pid| {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| owner(&status).is_some_and(|owner| users.contains(&owner)))
    });
    found
}

/// Returns a line for each process that descends from this one, and itself.
pub(super) fn describe(pid: u32) -> String {
    let own = Pid::from_raw(i32::try_from(pid).expect("Linux's process ids fit"));
    let mut text = String::new();
    for pid in std::iter::once(own).chain(descendants(pid)) {
        let read = |name: &str| fs_err::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let waits = String::from_utf8_lossy(&read("wchan")).into_owned();
        text = format!("{text}{pid} {line} (waits in {waits})\n");
    }
    text
}

/// Our own children at a quiet moment. Orphans of what we start become children of ours, so that nothing gets lost.
#[derive(Debug)]
pub(super) struct Family(RefCell<BTreeSet<i32>>);

impl Family {
    /// Adopts all future orphans and notes who is there.
    pub(super) fn adopt() -> Result<Self> {
        // PR_SET_CHILD_SUBREAPER(2const).
        nix::sys::prctl::set_child_subreaper(true)?;
        let here = children().keys().copied().collect();
        Ok(Self(RefCell::new(here)))
    }

    /// Counts another as there from the beginning.
    pub(super) fn admit(&self, pid: u32) {
        self.0.borrow_mut().insert(pid.cast_signed());
    }

    /// Returns all that descend from orphans, which are a container's shims.
    pub(super) fn below_orphans(&self, but: u32) -> Vec<Pid> {
        let here = self.0.borrow();
        children()
            .keys()
            .filter(|pid| !here.contains(pid) && **pid != but.cast_signed())
            .flat_map(|pid| descendants(pid.unsigned_abs()))
            .collect()
    }

    /// Waits until nobody is left who was not there at the beginning. No [`std::process::Child`] may be under way.
    ///
    /// # Errors
    ///
    /// When somebody stays.
    pub(super) fn wait_until_alone(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_mins(2);
        loop {
            let mut strangers = Vec::new();
            for (pid, process) in children() {
                if self.0.borrow().contains(&pid) {
                    continue;
                }
                if process.state == 'Z' {
                    waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).ok();
                } else {
                    strangers.push(pid);
                }
            }
            if strangers.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let told: Vec<String> = strangers
                    .iter()
                    .map(|pid| describe(pid.unsigned_abs()))
                    .collect();
                for pid in strangers {
                    for pid in descendants(pid.unsigned_abs()) {
                        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
                    }
                    nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                        .ok();
                }
                bail!("processes are left:\n{}", told.concat());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn children() -> BTreeMap<i32, Process> {
    let own = nix::unistd::getpid().as_raw();
    let mut all = all();
    all.retain(|_, process| process.parent == own);
    all
}
