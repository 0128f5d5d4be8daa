// SPDX-License-Identifier: Apache-2.0
//! Ends what a build user runs, and removes what it left outside of its tree: nothing flows from one build to the next.

use super::Account;
use super::sys;
use crate::sys::Fork;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use std::ffi::CStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the killing may take. Only what the kernel cannot kill lasts longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Directories that everybody may write to, where systems have them.
const SHARED: &[&str] = &["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/var/lock"];

/// Exit statuses of the process that kills.
const KILLED: i32 = 0;
const NOBODY: i32 = 3;
const FAILED: i32 = 4;

/// Kills every process of the user, and waits until none is left.
///
/// A process that has become the user asks the kernel to kill all that it may kill. Being the user's it can itself be stopped or killed by
/// what it is to kill; then another one is sent. `adopted` says that all are descendants of this process, which adopts orphans.
///
/// # Errors
///
/// When processes are left.
pub(super) fn end_processes(account: &Account, adopted: bool) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match send_killer(account)? {
            Some(NOBODY) => {
                // On these systems the kernel said so; children that ended are still to be reaped.
                reap(WaitOptions::NOHANG);
                return Ok(());
            }
            Some(KILLED) if cfg!(target_os = "linux") => {
                // linux v6.18 kernel/signal.c kill_something_info: all at once, and no fork gets by. Orphans come to this process (see
                // `adopt_orphans`), so nothing runs any more when it has no child.
                reap(WaitOptions::empty());
                // Those of a process that was killed itself may be somebody else's children.
                if !adopted && !processes(account)?.is_empty() {
                    std::thread::sleep(Duration::from_millis(1));
                    continue_until(deadline, account)?;
                    continue;
                }
                return Ok(());
            }
            Some(FAILED) => return Err(io::Error::other("the build user could not be changed to")),
            _ => {}
        }
        continue_until(deadline, account)?;
        // Killed, but perhaps not gone: ask again until there is nobody.
        reap(WaitOptions::NOHANG);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn continue_until(deadline: Instant, account: &Account) -> io::Result<()> {
    if Instant::now() > deadline {
        let message = format!("processes of {} cannot be killed", account.name);
        return Err(io::Error::other(message));
    }
    Ok(())
}

/// Returns the ids of the processes that a user runs.
#[cfg(target_os = "linux")]
pub(super) fn processes(account: &Account) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        // It may have ended meanwhile.
        let Ok(status) = fs_err::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)
        };
        let own = field("Uid:").and_then(|uid| uid.parse().ok()) == Some(account.uid);
        if own && !matches!(field("State:"), Some("Z" | "X")) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Returns the ids of the processes that a user runs: POSIX ps.
#[cfg(not(target_os = "linux"))]
pub(super) fn processes(account: &Account) -> io::Result<Vec<u32>> {
    let output = std::process::Command::new("ps")
        .args(["-U", &account.name, "-o", "pid="])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}

/// Makes orphans of this process's descendants its children, where the system can.
pub(super) fn adopt_orphans() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

/// Sends one process that kills; `None` when it did not live to tell.
fn send_killer(account: &Account) -> io::Result<Option<i32>> {
    let pid = match sys::fork()? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            let status = match sys::become_user(account.uid, account.gid) {
                Err(_) => FAILED,
                Ok(()) => match sys::kill_all(account.uid) {
                    Ok(()) => KILLED,
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => NOBODY,
                    Err(_) => FAILED,
                },
            };
            crate::sys::exit_now(status)
        }
    };
    loop {
        let status = wait_for(pid)?;
        if status.stopped() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            continue;
        }
        return Ok(status.exit_status());
    }
}

fn wait_for(pid: Pid) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::UNTRACED) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn reap(options: WaitOptions) {
    while let Ok(Some(_)) = rustix::io::retry_on_intr(|| rustix::process::wait(options)) {}
}

/// Removes what the user owns in the places that everybody may write to.
pub(super) fn remove_files(uid: u32) {
    for place in SHARED {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(directory) = rustix::fs::open(*place, flags, Mode::empty()) {
            // What cannot be removed is not there for others to read either: it is this user's alone to open up.
            let _ = sweep(&directory, Path::new(place), uid, true);
        }
    }
    remove_system_v(uid);
}

/// Removes what the user owns in a directory, and one level down where everybody may write too.
fn sweep(directory: &OwnedFd, path: &Path, uid: u32, further: bool) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let inner = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        if stat.st_uid == uid {
            // Nobody of this user is alive to put something else in its place, and others cannot in a sticky directory.
            let _ = if is_directory {
                fs_err::remove_dir_all(inner)
            } else {
                rustix::fs::unlinkat(directory, name, AtFlags::empty()).map_err(io::Error::from)
            };
        } else if is_directory && further && stat.st_mode & 0o002 != 0 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(below) = rustix::fs::openat(directory.as_fd(), name, flags, Mode::empty()) {
                let _ = sweep(&below, &inner, uid, false);
            }
        }
    }
    Ok(())
}

/// Removes the user's System V shared memory, semaphores and queues.
#[cfg(target_os = "linux")]
fn remove_system_v(uid: u32) {
    use super::sys::SystemV;
    for (file, kind) in [
        ("shm", SystemV::Memory),
        ("sem", SystemV::Semaphores),
        ("msg", SystemV::Queue),
    ] {
        let Ok(table) = fs_err::read_to_string(format!("/proc/sysvipc/{file}")) else {
            continue;
        };
        for id in system_v_of(&table, uid) {
            let _ = sys::remove_system_v(kind, id);
        }
    }
}

/// Returns the ids of a user's objects from a table with named columns: proc(5), `/proc/sysvipc`.
#[cfg(target_os = "linux")]
fn system_v_of(table: &str, uid: u32) -> Vec<i32> {
    let mut lines = table.lines();
    let heading: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let column = |name: &str| heading.iter().position(|title| *title == name);
    let (Some(owner), Some(creator)) = (column("uid"), column("cuid")) else {
        return Vec::new();
    };
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is = |index: usize| {
                fields
                    .get(index)?
                    .parse()
                    .ok()
                    .map(|found: u32| found == uid)
            };
            // The id is the second column in all three.
            (is(owner)? || is(creator)?).then(|| fields.get(1)?.parse().ok())?
        })
        .collect()
}

/// Removes the user's System V shared memory, semaphores and queues, with the programs that POSIX has for that.
#[cfg(not(target_os = "linux"))]
fn remove_system_v(uid: u32) {
    use std::process::Command;
    let Ok(Some(user)) = nix::unistd::User::from_uid(uid.into()) else {
        return;
    };
    let Ok(output) = Command::new("ipcs").output() else {
        return;
    };
    // POSIX ipcs: T ID KEY MODE OWNER GROUP, where T is q, m or s.
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [kind @ ("q" | "m" | "s"), id, _, _, owner, ..] = fields[..]
            && owner == user.name
        {
            let _ = Command::new("ipcrm")
                .arg(format!("-{kind}"))
                .arg(id)
                .output();
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn a_users_objects_are_found() {
        let table = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n\
                     0          3   600                  4096  1  1      0  990   990   990   990          0          0          0 0 0\n\
                     0          4   600                  4096  1  1      0    0     0     0     0          0          0          0 0 0\n\
                     0          5   600                  4096  1  1      0    0     0   990   990          0          0          0 0 0\n";
        assert_eq!(super::system_v_of(table, 990), [3, 5]);
    }
}
