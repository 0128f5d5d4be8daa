// SPDX-License-Identifier: Apache-2.0
//! The calls of POSIX that neither std, nix nor rustix offers safely everywhere. All but what stands behind a `cfg` is in every Unix.
#![expect(
    unsafe_code,
    reason = "fork, signal handlers and setgroups have no safe wrapper that every Unix has"
)]

use crate::sys::Fork;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::FdFlags;
use rustix::process::Pid;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// Forks. Only in a process with one thread, where a child may run ordinary Rust.
pub(super) fn fork() -> io::Result<Fork> {
    // SAFETY: the caller has one thread, so no lock is held by a thread that the child lacks.
    let pid = unsafe { libc::fork() };
    match pid {
        ..0 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Makes a pipe whose ends no program inherits.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    // pipe2 is not everywhere; with one thread nothing can come between.
    let (read, write) = rustix::pipe::pipe()?;
    rustix::io::fcntl_setfd(&read, FdFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&write, FdFlags::CLOEXEC)?;
    Ok((read, write))
}

/// Where the signal handler writes to.
static ENDED: AtomicI32 = AtomicI32::new(-1);

extern "C" fn child_ended(_signal: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let fd = ENDED.load(Ordering::Relaxed);
    // SAFETY: write is async-signal-safe, and reads one byte that lives as long as the program. A full pipe says the same.
    unsafe { libc::write(fd, c"".as_ptr().cast(), 1) };
    nix::errno::Errno::set_raw(errno);
}

/// Returns a descriptor that is readable when a child of this process has ended or stopped. To be emptied by reading.
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    let (read, write) = pipe()?;
    rustix::io::ioctl_fionbio(&read, true)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    ENDED.store(write.as_raw_fd(), Ordering::Relaxed);
    // The handler uses it as long as the process lives.
    std::mem::forget(write);
    // SAFETY: sigaction is plain data, for which all zeros is a value: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = child_ended as *const () as libc::sighandler_t;
    // SAFETY: the handler makes only calls that are async-signal-safe; the null pointer means that the old one is not wanted.
    let result = unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(read)
}

/// Lets `SIGCHLD` do nothing again, as a program expects to find it.
pub(super) fn no_child_signals() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Becomes a user for good, with its own group and no other.
pub(super) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    if uid == 0 {
        return Err(io::Error::other("a step may not run as root"));
    }
    // SAFETY: the pointer leads to one group. The count's type differs between systems, 1 fits all.
    if unsafe { libc::setgroups(1, &raw const gid) } < 0 {
        return Err(io::Error::last_os_error());
    }
    nix::unistd::setgid(gid.into())?;
    // As root, this sets the real, the effective and the saved id: setuid(2), POSIX.
    nix::unistd::setuid(uid.into())?;
    let now = (nix::unistd::getuid(), nix::unistd::geteuid());
    if now != (uid.into(), uid.into()) {
        return Err(io::Error::other("the user could not be changed"));
    }
    Ok(())
}

/// Kills every process that this one may kill, but not itself. Only in a process that has become a build user: root's would be all.
pub(super) fn kill_all(uid: u32) -> io::Result<()> {
    let own = nix::unistd::getuid() == uid.into() && nix::unistd::geteuid() == uid.into();
    if uid == 0 || !own {
        return Err(io::Error::other("this is not the build user"));
    }
    // SAFETY: kill has no preconditions.
    match unsafe { libc::kill(-1, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A kind of System V object.
#[cfg(target_os = "linux")]
#[derive(Clone, Copy)]
pub(super) enum SystemV {
    Memory,
    Semaphores,
    Queue,
}

/// Removes a System V object by its id.
#[cfg(target_os = "linux")]
pub(super) fn remove_system_v(kind: SystemV, id: i32) -> io::Result<()> {
    let none = std::ptr::null_mut();
    let result = match kind {
        // SAFETY: IPC_RMID reads nothing through the pointer.
        SystemV::Memory => unsafe { libc::shmctl(id, libc::IPC_RMID, none) },
        // SAFETY: IPC_RMID takes no fourth argument.
        SystemV::Semaphores => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
        // SAFETY: IPC_RMID reads nothing through the pointer.
        SystemV::Queue => unsafe { libc::msgctl(id, libc::IPC_RMID, none.cast()) },
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
