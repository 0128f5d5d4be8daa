// SPDX-License-Identifier: Apache-2.0
//! The calls that neither std nor rustix offers safely. Each is one operation; who may call it when is said on it.
//!
//! The forking calls are for the helper process alone, which has one thread: there a child may run ordinary Rust.
#![expect(
    unsafe_code,
    reason = "clone, execve, seccomp and a few ioctls have no safe wrapper"
)]

use crate::seccomp::Program;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::mem::size_of;

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The parent, with the child's process id.
    Parent(Pid),
    /// The child.
    Child,
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn forked(pid: libc::c_long) -> Fork {
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(pid) => Fork::Parent(pid),
        None => Fork::Child,
    }
}

/// Forks; the child is process 1 of a new pid namespace. Only in a process with one thread.
pub(crate) fn fork_init() -> io::Result<Fork> {
    let flags = libc::c_ulong::from(libc::CLONE_NEWPID.cast_unsigned())
        | libc::c_ulong::from(libc::SIGCHLD.cast_unsigned());
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM the child has its own copy of everything, as after fork(2); the null stack means the
    // copied one. The caller has one thread, so no lock is held by a thread that the child lacks.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    Ok(forked(check(pid)?))
}

/// Forks. Only in a process with one thread.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the caller has one thread, so the child may run any code.
    let pid = unsafe { libc::fork() };
    Ok(forked(check(pid.into())?))
}

/// Ends the process at once, without destructors: those belong to the process it was forked from.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Replaces the process's program; returns only with the reason why it could not.
pub(crate) fn execve(program: &CString, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both lists end with a null pointer and, like the strings in them, outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Leaves namespaces. `flags` may hold only namespace flags.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the unsafe part of unshare is CLONE_FILES, which no caller passes.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Blocks `SIGCHLD` and returns a descriptor that is readable when one waits.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before sigaddset reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
    }
    // SAFETY: the set is initialised; the null pointer means that the old mask is not wanted.
    check(
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) }.into(),
    )?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = check(unsafe { libc::signalfd(-1, set.as_ptr(), flags) }.into())?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: signalfd just returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets every signal to its default action and unblocks all. std ignores `SIGPIPE`, which a command must not inherit.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL runs no code of ours. KILL, STOP and libc's own two fail, which is right.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set is initialised; the null pointer means that the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
}

/// Ignores the signals that a terminal or a service manager sends to whole groups.
pub(crate) fn ignore_group_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGTSTP,
        libc::SIGTTOU,
        libc::SIGTTIN,
    ] {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Kills every other process of the pid namespace of which the caller is process 1; does nothing in any other process.
pub(crate) fn kill_namespace() {
    if std::process::id() == 1 {
        // SAFETY: kill has no preconditions; process 1 of a namespace reaches only that namespace with -1.
        unsafe { libc::kill(-1, libc::SIGKILL) };
    }
}

/// Marks every descriptor from `first` up to be closed by exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: with this flag nothing is closed now, so no owner loses its descriptor.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Closes every descriptor from `first` up. Only before the process has opened any of its own.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the caller has opened nothing yet: what is closed was inherited and has no owner here.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Sets and clears attributes (`MOUNT_ATTR_*`) of the mount at `mount`, with all below it when `recursive`, and makes it private
/// when `private`.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    private: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: if private { libc::MS_PRIVATE } else { 0 },
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the structure has the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Sets the loopback interface of the current network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which the pointer leads to.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
        .map(drop)
}

/// Installs a filter for this thread and what it becomes.
pub(crate) fn install_filter(program: &Program) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let header = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the header names `length` instructions, which outlive the call; the kernel only reads them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const header,
        )
    })
    .map(drop)
}

/// Turns a value that cannot exist into any other, for functions that only return with an error.
pub(crate) fn never(infallible: Infallible) -> ! {
    match infallible {}
}
