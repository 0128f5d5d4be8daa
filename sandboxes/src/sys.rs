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

/// Forks; the child has its own copy of everything. Only in a process with one thread.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: the caller has one thread, so no lock is held by a thread that the child lacks.
    Ok(forked(check(unsafe { libc::fork() }.into())?))
}

/// The child's stack in [`spawn`]: small enough to come from the heap as it is, without a mapping of its own.
const STACK_BYTES: usize = 96 * 1024;

/// Starts a process that runs `child` and exits with its result, and waits until it has exited or executed a program. Only in a process
/// with one thread.
///
/// The child shares the memory of the caller, which saves copying it for a process that soon gets another.
pub(crate) fn spawn(child: &dyn Fn() -> i32) -> io::Result<Pid> {
    extern "C" fn enter(argument: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `spawn` passes a pointer to its own reference, and is stopped while this runs.
        let child = unsafe { *argument.cast::<&dyn Fn() -> i32>() };
        child()
    }
    let mut stack = Vec::<u8>::with_capacity(STACK_BYTES);
    // SAFETY: the end of the allocation is one past its last byte. Stacks grow down on all machines that Linux calls so.
    let top = unsafe { stack.as_mut_ptr().add(STACK_BYTES & !15) };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let argument = (&raw const child).cast_mut().cast();
    // SAFETY: CLONE_VFORK stops this process, which has one thread, until the child has left the shared memory: nothing runs
    // concurrently, and the stack and the argument outlive the child's use.
    let pid = unsafe { libc::clone(enter, top.cast(), flags, argument) };
    match forked(check(pid.into())?) {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => unreachable!("clone returns in the caller only"),
    }
}

/// Ends the process at once, without destructors: those belong to the process it was forked from.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Replaces the process's program; returns only with the reason why it could not.
pub(crate) fn execve(program: &CString, argv: &Strings, env: &Strings) -> io::Error {
    let (argv, env) = (argv.pointers.as_ptr(), env.pointers.as_ptr());
    // SAFETY: both lists end with a null pointer and, like the strings in them, outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv, env) };
    io::Error::last_os_error()
}

/// Strings as a new program gets them, with what leads to them: made before a process shares its parent's memory, where nobody would free
/// what it leaves behind.
pub(crate) struct Strings {
    _strings: Vec<CString>,
    /// Of each string, which stays where it is however its owner moves, and a null pointer at the end.
    pointers: Vec<*const libc::c_char>,
}

impl From<Vec<CString>> for Strings {
    fn from(strings: Vec<CString>) -> Self {
        let ends = [std::ptr::null()];
        Self {
            pointers: strings
                .iter()
                .map(|string| string.as_ptr())
                .chain(ends)
                .collect(),
            _strings: strings,
        }
    }
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
    let blocked = unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
    check(blocked.into())?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = check(unsafe { libc::signalfd(-1, set.as_ptr(), flags) }.into())?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: signalfd just returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals that a terminal or a service manager sends to whole groups, and the one that std ignores.
const IGNORED: &[libc::c_int] = &[
    libc::SIGPIPE,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGTSTP,
    libc::SIGTTOU,
    libc::SIGTTIN,
];

fn act_on(signals: impl IntoIterator<Item = libc::c_int>, action: libc::sighandler_t) {
    for signal in signals {
        // SAFETY: the action is SIG_DFL or SIG_IGN, which run no code of ours. For KILL, STOP and libc's own two it fails, which is
        // right.
        unsafe { libc::signal(signal, action) };
    }
}

/// Gives the helper its signals: whatever the caller was started with is forgotten, and what is sent to groups is ignored.
pub(crate) fn helper_signals() {
    act_on(1..=64, libc::SIG_DFL);
    act_on(IGNORED.iter().copied(), libc::SIG_IGN);
}

/// Sets every signal of a process that was forked from the helper to its default action, and unblocks all.
pub(crate) fn default_signals() {
    act_on(IGNORED.iter().copied(), libc::SIG_DFL);
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set is initialised; the null pointer means that the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
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

/// Sets and clears attributes (`MOUNT_ATTR_*`) of the mount at `mount`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, clear: u64) -> io::Result<()> {
    change_mount(mount, 0, set, clear, 0)
}

/// Sets attributes of the mount at `mount` and of all below it.
pub(crate) fn mount_setattr_below(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    change_mount(mount, libc::AT_RECURSIVE, set, 0, 0)
}

/// Keeps what is mounted at `mount` and below from the mounts that these are copies of; what is mounted there still comes here.
pub(crate) fn keep_mounts(mount: BorrowedFd<'_>) -> io::Result<()> {
    change_mount(mount, libc::AT_RECURSIVE, 0, 0, libc::MS_SLAVE)
}

fn change_mount(
    mount: BorrowedFd<'_>,
    flags: libc::c_int,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | flags;
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

/// Gives the process a session keyring of its own, as OCI runtimes do. Kernels without keyrings have nothing to keep apart.
pub(crate) fn own_session_keyring() {
    // linux v6.18 include/uapi/linux/keyctl.h.
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let unnamed = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for a new keyring without one.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, unnamed) };
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

/// The registers of a process.
#[cfg(target_arch = "x86_64")]
pub(crate) type Registers = libc::user_regs_struct;

fn ptrace(request: libc::c_uint, pid: Pid, address: usize, data: usize) -> io::Result<()> {
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: the callers pass for `data` what the request wants: a number, or the address of what it reads or fills.
    check(unsafe { libc::ptrace(request, pid, address, data) }).map(drop)
}

/// Traces a child with everything that it will start; all are killed when this process ends.
pub(crate) fn trace(pid: Pid) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SEIZE, pid, 0, options.cast_unsigned() as usize)
}

/// Lets a stopped tracee go on, with a signal unless it is 0.
pub(crate) fn go_on(pid: Pid, signal: i32) -> io::Result<()> {
    ptrace(libc::PTRACE_CONT, pid, 0, signal.cast_unsigned() as usize)
}

/// Leaves a tracee stopped until a signal continues it.
pub(crate) fn stay_stopped(pid: Pid) -> io::Result<()> {
    ptrace(libc::PTRACE_LISTEN, pid, 0, 0)
}

/// Returns the registers of a stopped tracee.
#[cfg(target_arch = "x86_64")]
pub(crate) fn registers(pid: Pid) -> io::Result<Registers> {
    let mut registers = std::mem::MaybeUninit::<Registers>::zeroed();
    ptrace(
        libc::PTRACE_GETREGS,
        pid,
        0,
        registers.as_mut_ptr() as usize,
    )?;
    // SAFETY: all zeros is a value of it, and the call has filled it.
    Ok(unsafe { registers.assume_init() })
}

/// Gives a stopped tracee other registers.
#[cfg(target_arch = "x86_64")]
pub(crate) fn set_registers(pid: Pid, registers: &Registers) -> io::Result<()> {
    ptrace(
        libc::PTRACE_SETREGS,
        pid,
        0,
        std::ptr::from_ref(registers) as usize,
    )
}
