// SPDX-License-Identifier: Apache-2.0
//! The build users: who they are, whether they may be used, and which one a step gets.
//!
//! A user is claimed by a lock (`flock`) on a file of its own. Every process that has a hand in the step holds the same lock: when the last
//! of them has ended, the kernel drops it. Any number of obuild processes share the users that way.

use super::{Account, leftovers};
use crate::Cancel;
use crate::sandbox::Error;
use nix::unistd::{Group, User};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Below are the system's own accounts: Debian policy 9.2.2, and the same on the BSDs and macOS.
const LEAST_UID: u32 = 100;

/// Accounts that belong to nobody in particular, and so to everybody: Linux, the BSDs, macOS.
const NOBODY: [u32; 3] = [65534, 32767, u32::MAX - 1];

/// Groups whose members are as good as root, or read what is not theirs.
const PRIVILEGED: &[&str] = &[
    "root", "wheel", "sudo", "admin", "docker", "podman", "lxd", "incus", "libvirt", "disk",
    "kmem", "mem", "shadow", "operator",
];

/// Where systems keep what they run later for a user.
const CRONTABS: &[&str] = &[
    "/var/spool/cron/crontabs",
    "/var/spool/cron",
    "/var/cron/tabs",
    "/usr/lib/cron/tabs",
];
const AT_JOBS: &[&str] = &[
    "/var/spool/cron/atjobs",
    "/var/spool/at",
    "/var/at/jobs",
    "/usr/lib/cron/jobs",
];

/// How often another process's users are looked at while all are busy.
const PAUSE: Duration = Duration::from_millis(5);

/// Reads the accounts of a list of names; an empty list means the members of `group`.
pub(super) fn accounts(names: &[String], group: &str) -> Result<Vec<Account>, Error> {
    let members;
    let names = if names.is_empty() {
        let found = Group::from_name(group).map_err(|error| {
            unavailable(format!("the group {group} cannot be looked up: {error}"))
        })?;
        members = found.map_or_else(Vec::new, |group| group.mem);
        if members.is_empty() {
            return Err(unavailable(format!(
                "it has no build users; make some, and a group {group} with them as its members, or name them with \
                 --build-users NAME,NAME (see \"Build users\" in the guide)"
            )));
        }
        &members
    } else {
        names
    };
    let mut seen = HashSet::new();
    names
        .iter()
        .map(|name| {
            let account = account(name)?;
            if !seen.insert(account.uid) {
                return Err(refused(&account, "another build user has the same uid"));
            }
            check_account(&account)?;
            Ok(account)
        })
        .collect()
}

fn account(name: &str) -> Result<Account, Error> {
    let user = User::from_name(name)
        .map_err(|error| unavailable(format!("the user {name} cannot be looked up: {error}")))?
        .ok_or_else(|| unavailable(format!("there is no build user {name} on this host")))?;
    Ok(Account {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        home: user.dir,
    })
}

fn unavailable(reason: String) -> Error {
    Error::Unavailable {
        sandbox: super::NAME,
        reason,
    }
}

fn refused(account: &Account, reason: &str) -> Error {
    unavailable(format!("{} is no build user: {reason}", account.name))
}

/// Refuses an account that is somebody's.
fn check_account(account: &Account) -> Result<(), Error> {
    let refuse = |reason: &str| Err(refused(account, reason));
    if account.uid == 0 {
        return refuse("it is root");
    }
    if account.uid < LEAST_UID || NOBODY.contains(&account.uid) {
        return refuse(&format!("uid {} is the system's", account.uid));
    }
    for name in PRIVILEGED {
        if let Ok(Some(group)) = Group::from_name(name)
            && (group.gid.as_raw() == account.gid || group.mem.contains(&account.name))
        {
            return refuse(&format!("it is in the group {name}"));
        }
    }
    if account.gid == 0 {
        return refuse("its group is root's");
    }
    check_home(account)
}

/// Refuses a home that somebody else could put something in place of.
fn check_home(account: &Account) -> Result<(), Error> {
    let home = account.home.display();
    let refuse = |reason: String| Err(refused(account, &reason));
    let normal = account.home.components().all(|part| {
        !matches!(
            part,
            std::path::Component::ParentDir | std::path::Component::CurDir
        )
    });
    let Some(parent) = account
        .home
        .parent()
        .filter(|_| account.home.is_absolute() && normal)
    else {
        return refuse(format!(
            "its home directory {home} is no absolute path below /"
        ));
    };
    for directory in parent.ancestors() {
        let metadata = match fs_err::symlink_metadata(directory) {
            Ok(metadata) => metadata,
            Err(error) => {
                return refuse(format!("its home directory {home} has no place: {error}"));
            }
        };
        // On some systems /home is a link of the system's own. In a sticky directory what is root's stays.
        let open = metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
        if metadata.uid() != 0 || (open && !metadata.file_type().is_symlink()) {
            return refuse(format!(
                "{} above its home directory can be written to by others than root",
                directory.display()
            ));
        }
    }
    Ok(())
}

/// Refuses a user who owns or runs something that is not ours.
fn check_unused(account: &Account) -> Result<(), Error> {
    let refuse = |reason: String| Err(refused(account, &reason));
    match fs_err::symlink_metadata(&account.home) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return refuse(format!("its home directory cannot be looked at: {error}")),
        Ok(metadata) => {
            let empty = metadata.is_dir()
                && fs_err::read_dir(&account.home)
                    .is_ok_and(|mut entries| entries.next().is_none());
            if !empty {
                return refuse(format!(
                    "its home directory {} is not empty; a build user may own nothing",
                    account.home.display()
                ));
            }
        }
    }
    for place in CRONTABS {
        let table = Path::new(place).join(&account.name);
        if table.is_file() {
            return refuse(format!("it has a crontab, {}", table.display()));
        }
    }
    for place in AT_JOBS {
        let jobs = fs_err::read_dir(place).into_iter().flatten().flatten();
        for job in jobs {
            if job
                .metadata()
                .is_ok_and(|metadata| metadata.uid() == account.uid)
            {
                return refuse(format!("it has a job for later, {}", job.path().display()));
            }
        }
    }
    let running = leftovers::processes(account).map_err(|source| Error::Setup {
        action: format!("look at the processes of {}", account.name),
        source,
    })?;
    match running.first() {
        None => Ok(()),
        Some(pid) => refuse(format!("it runs processes of its own, for example {pid}")),
    }
}

/// The users, and which of them this process has looked at.
#[derive(Debug)]
pub(super) struct Pool {
    accounts: Vec<Account>,
    state_dir: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Those that were found unused.
    checked: HashSet<u32>,
}

/// A claimed user.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) account: &'a Account,
    /// The open lock file; what it holds is what has to be undone. See `stay`.
    lock: Option<OwnedFd>,
    pool: &'a Pool,
}

impl Claim<'_> {
    /// Returns the same lock once more, for a process that takes part.
    pub(super) fn lock(&self) -> std::io::Result<OwnedFd> {
        let lock = self.lock.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        lock.try_clone()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.lock = None;
        self.pool.returned.notify_all();
    }
}

impl Pool {
    pub(super) fn new(accounts: Vec<Account>, state_dir: PathBuf) -> Self {
        Self {
            accounts,
            state_dir,
            state: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    pub(super) fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// Claims a user, the first that is free, or with `backwards` the last; waits while all are busy. `None` when cancelled or out of time. `waiting` is called once when
    /// the wait gets long.
    pub(super) fn claim(
        &self,
        backwards: bool,
        until: Option<Instant>,
        cancel: &Cancel,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Option<Claim<'_>>, Error> {
        let began = Instant::now();
        let mut told = false;
        let mut order: Vec<&Account> = self.accounts.iter().collect();
        if backwards {
            order.reverse();
        }
        loop {
            for &account in &order {
                if let Some(lock) = self.try_lock(account)? {
                    self.look_at(account, &lock)?;
                    return Ok(Some(Claim {
                        account,
                        lock: Some(lock),
                        pool: self,
                    }));
                }
            }
            if !told && began.elapsed() > Duration::from_secs(1) {
                told = true;
                waiting(&format!(
                    "all {} build users are busy: waiting for one\n",
                    self.accounts.len()
                ));
            }
            if cancel.is_cancelled() || until.is_some_and(|until| until <= Instant::now()) {
                return Ok(None);
            }
            self.pause();
        }
    }

    /// Waits a little: until a step of this process may have ended, or for the next look at those of others.
    fn pause(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.returned.wait_timeout(state, PAUSE));
    }

    fn try_lock(&self, account: &Account) -> Result<Option<OwnedFd>, Error> {
        let path = self.state_dir.join(format!("{}.lock", account.uid));
        let failed = |error: rustix::io::Errno| Error::Setup {
            action: format!("lock the build user {} by {}", account.name, path.display()),
            source: error.into(),
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Looks at a user once. When a record says that a step of ours did not come to its end, what is found is ours.
    fn look_at(&self, account: &Account, lock: &OwnedFd) -> Result<(), Error> {
        let ours = rustix::fs::fstat(lock).is_ok_and(|stat| stat.st_size > 0);
        let seen = |state: &Mutex<State>| {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.checked.contains(&account.uid)
        };
        if ours || seen(&self.state) {
            return Ok(());
        }
        check_unused(account)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.checked.insert(account.uid);
        Ok(())
    }
}

/// Makes the directory of the lock files, root's alone.
pub(super) fn make_state_dir(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Setup {
            action: format!("make the directory {}", path.display()),
            source,
        })
}
