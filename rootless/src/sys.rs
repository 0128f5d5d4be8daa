// SPDX-License-Identifier: Apache-2.0
//! The calls that neither std nor rustix offers safely, one a function.
#![expect(
    unsafe_code,
    reason = "fork, unshare and getpwuid_r have no safe wrapper"
)]

use rustix::process::Pid;
use std::ffi::CStr;
use std::io;

/// Which side of a fork this is.
pub(crate) enum Fork {
    Parent(Pid),
    Child,
}

/// Forks a process that has one thread; of another it refuses to.
pub(crate) fn fork() -> io::Result<Fork> {
    if fs_err::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the process has several threads"));
    }
    // SAFETY: there is one thread, this one, so the child's copy of the memory has no lock that nobody gives back, and it may run
    // ordinary Rust.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Ends the process at once, without destructors: those belong to the process it was forked from.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Moves the process into a new user namespace and a new mount namespace of it.
pub(crate) fn unshare_user_and_mounts() -> io::Result<()> {
    // SAFETY: the flags leave memory and descriptors as they are. The kernel refuses when there is another thread.
    match unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the name of a user: `getpwuid_r(3)`, which asks all the databases that the system has.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    let mut buffer = vec![0 as libc::c_char; 16 << 10];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: the entry and the buffer with its true length outlive the call, which fills them and points `found` at the entry or at
    // nothing.
    let result = unsafe {
        libc::getpwuid_r(
            uid,
            entry.as_mut_ptr(),
            buffer.as_mut_ptr(),
            buffer.len(),
            &raw mut found,
        )
    };
    if result != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the call found an entry, whose name is a string that ends with a zero byte, in the buffer.
    let name = unsafe { CStr::from_ptr((*found).pw_name) };
    name.to_str().ok().map(ToOwned::to_owned)
}
