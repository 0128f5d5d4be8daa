// SPDX-License-Identifier: Apache-2.0
//! Making the process root of a user namespace of its own.
//!
//! The process moves itself, so that it stays one process: nobody has to pass signals, the terminal or an exit status on. Only the
//! ids of others need somebody outside: a child that is forked before, waits, and has newuidmap(1) and newgidmap(1) write the maps.

use crate::mapping::{Extent, Mapping, set_current};
use crate::{subid, sys};
use rustix::mount::MountPropagationFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why an ordinary user cannot be root of a namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program has the rights of another user than the one who started it.
    #[error("obuild must not be installed set-uid or set-gid")]
    SetUid,
    /// The kernel does not let this user make a user namespace.
    #[error("cannot make a user namespace, without which only root can build{}", hindrance(.reason.as_ref()))]
    Refused {
        /// The setting that forbids it, if one was found.
        reason: Option<String>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The maps of ids could not be written.
    #[error("cannot map user ids: {0}")]
    Map(String),
    /// Something else failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn hindrance(reason: Option<&String>) -> String {
    reason.map_or_else(String::new, |reason| format!(" ({reason})"))
}

/// How ids will be mapped.
enum Plan {
    /// By the two programs.
    Ranges {
        programs: [PathBuf; 2],
        maps: [Vec<Extent>; 2],
    },
    /// The user's own id only, and why.
    Single(String),
}

/// Makes an ordinary user's process root of a user namespace with a mount namespace of its own. Does nothing for root.
///
/// To be called while the process has one thread, and before anybody asks for [`current`](crate::current).
///
/// # Errors
///
/// When the kernel or the host's set-up does not allow it; the process may be in a namespace without ids then, and can only end.
pub fn enter() -> Result<(), Error> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return Ok(());
    }
    if (uid, gid) != (getuid(), getgid()) {
        return Err(Error::SetUid);
    }
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    let why_single = match plan(uid, gid) {
        Plan::Ranges { programs, maps } => {
            with_ranges(&programs, &maps)?;
            None
        }
        Plan::Single(why) => {
            sys::unshare_user_and_mounts().map_err(refused)?;
            map_single(uid, gid).map_err(refused)?;
            Some(why)
        }
    };
    // A new mount namespace of a new user namespace gets the host's mounts and gives nothing back: mount_namespaces(7). Saying so once
    // more finds out whether the namespace's root may do anything at all: AppArmor can forbid that.
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation).map_err(|error| refused(error.into()))?;
    let mut mapping = Mapping::read().map_err(|source| Error::Io {
        action: "read the maps of ids",
        source,
    })?;
    mapping.why_single = why_single;
    set_current(mapping);
    Ok(())
}

fn plan(uid: u32, gid: u32) -> Plan {
    // Neither PATH nor any other variable has a say in which programs run here.
    let find = |name: &str| {
        ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"]
            .iter()
            .map(|place| Path::new(place).join(name))
            .find(|path| {
                fs_err::metadata(path)
                    .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
            })
    };
    let (Some(users), Some(groups)) = (find("newuidmap"), find("newgidmap")) else {
        return Plan::Single(
            "the programs newuidmap and newgidmap are not installed (Debian: apt install uidmap)"
                .to_owned(),
        );
    };
    if rustix::thread::no_new_privs().unwrap_or(false) {
        return Plan::Single(
            "no_new_privs is set, which keeps newuidmap from its privileges".to_owned(),
        );
    }
    let name = sys::user_name(uid);
    let map = |file: &str, own: u32| {
        let text = fs_err::read_to_string(file).unwrap_or_default();
        subid::map(&text, name.as_deref(), uid, own).ok_or_else(|| {
            let who = name.clone().unwrap_or_else(|| uid.to_string());
            format!("{file} has no range for {who} (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who})")
        })
    };
    match (map("/etc/subuid", uid), map("/etc/subgid", gid)) {
        (Ok(user_map), Ok(group_map)) => Plan::Ranges {
            programs: [users, groups],
            maps: [user_map, group_map],
        },
        (Err(why), _) | (_, Err(why)) => Plan::Single(why),
    }
}

/// Maps the user's own id to root's. `user_namespaces(7)`: without privileges setgroups(2) must be given up first.
fn map_single(uid: u32, gid: u32) -> io::Result<()> {
    let write = |name: &str, text: String| {
        // The kernel takes a map by one write only.
        fs_err::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/{name}"))?
            .write_all(text.as_bytes())
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1\n"))?;
    write("gid_map", format!("0 {gid} 1\n"))
}

fn with_ranges(programs: &[PathBuf; 2], maps: &[Vec<Extent>; 2]) -> Result<(), Error> {
    let failed = |action| move |source| Error::Io { action, source };
    let action = "start newuidmap";
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    let (wait, go) = pipe().map_err(failed(action))?;
    let (said, say) = pipe().map_err(failed(action))?;
    let process = std::process::id();
    let child = match sys::fork().map_err(failed(action))? {
        sys::Fork::Child => {
            drop((go, said));
            sys::exit_now(write_maps(process, programs, maps, wait, &say));
        }
        sys::Fork::Parent(child) => child,
    };
    drop((wait, say));
    if let Err(error) = sys::unshare_user_and_mounts() {
        // The end of the pipe ends the child.
        drop(go);
        let _ = reap(child);
        return Err(refused(error));
    }
    let mut text = String::new();
    let told = rustix::io::write(&go, b"!").map_err(io::Error::from);
    drop(go);
    let heard = told.and_then(|_| File::from(said).read_to_string(&mut text));
    let succeeded = reap(child).map_err(failed(action))?;
    heard.map_err(failed(action))?;
    if succeeded {
        return Ok(());
    }
    let text = text.trim().replace('\n', "; ");
    Err(Error::Map(if text.is_empty() {
        "newuidmap or newgidmap failed without a word".to_owned()
    } else {
        text
    }))
}

fn reap(child: Pid) -> io::Result<bool> {
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))?;
    Ok(status.is_some_and(|(_, status)| status.exit_status() == Some(0)))
}

/// What the child does: waits until its parent is in the namespace, and writes the maps. Returns its exit status.
fn write_maps(
    process: u32,
    programs: &[PathBuf; 2],
    maps: &[Vec<Extent>; 2],
    wait: OwnedFd,
    say: &OwnedFd,
) -> i32 {
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let mut go = [0];
    if !matches!(File::from(wait).read(&mut go), Ok(1)) {
        return 1;
    }
    let start = |program: &PathBuf, map: &Vec<Extent>| {
        let mut command = Command::new(program);
        command.arg(process.to_string()).env_clear();
        for extent in map {
            for number in [extent.inside, extent.outside, extent.count] {
                command.arg(number.to_string());
            }
        }
        let (output, error) = (say.try_clone()?, say.try_clone()?);
        command.stdin(Stdio::null()).stdout(output).stderr(error);
        command.spawn()
    };
    // Both at once: they cost more than all the rest.
    let started: Vec<_> = programs
        .iter()
        .zip(maps)
        .map(|(p, m)| start(p, m))
        .collect();
    let mut status = 0;
    for child in started {
        match child.and_then(|mut child| child.wait()) {
            Ok(ended) if ended.success() => {}
            Ok(_) => status = 1,
            Err(error) => {
                let _ = rustix::io::write(say, error.to_string().as_bytes());
                status = 1;
            }
        }
    }
    status
}

/// Names the setting of the host that forbids user namespaces, if there is one.
fn refused(source: io::Error) -> Error {
    let setting = |path: &str| {
        let text = fs_err::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let reason = if setting("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        Some("the host forbids them: sysctl kernel.unprivileged_userns_clone=1")
    } else if setting("/proc/sys/user/max_user_namespaces") == Some(0) {
        Some("the host forbids them: sysctl user.max_user_namespaces=10000")
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        Some(
            "AppArmor forbids them: give obuild a profile with `userns,`, \
             or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    } else if source.raw_os_error() == Some(libc::EPERM) {
        Some("a container or a security policy may forbid it")
    } else {
        None
    };
    Error::Refused {
        reason: reason.map(ToOwned::to_owned),
        source,
    }
}
