// SPDX-License-Identifier: Apache-2.0
//! Another time of day for a command: the wall clock of all its processes is ahead of the host's.
//!
//! The kernel shifts only the other clocks for a namespace (`time_namespaces(7)`), and a library that the command loads would need one C
//! library and miss static programs. So process 1 traces the command with everything that it starts. At each exec it strikes the kernel's own
//! library from the new program's auxiliary vector (vdso(7)), in which the time is told without a system call; and the filter stops
//! the calls that tell the time, or take one to wait until, and `answers` has what they get. ptrace(2) says how a tracer must treat its
//! tracees: signals are passed on as they came, and a stopped process stays stopped.
//!
//! Not shifted: the times that the kernel gives files, and what programs other than those for x86-64 see.

#[cfg(target_arch = "x86_64")]
mod answers;

use crate::sys::{self, Fork};
use rustix::fd::OwnedFd;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitStatus};
use std::io;
use std::time::Duration;

/// The wall clock of a traced command.
pub(super) struct Clock {
    /// How much later than it is it says.
    pub(super) ahead: Duration,
}

/// Starts a process that is traced from its first instruction, as [`sys::spawn`] starts others.
pub(super) fn spawn(child: &dyn Fn() -> i32) -> io::Result<Pid> {
    let (traced, tell): (OwnedFd, OwnedFd) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Fork::Child => {
            drop(tell);
            // The end without a byte means that tracing failed.
            let go = matches!(rustix::io::read(&traced, &mut [0_u8]), Ok(1));
            sys::exit_now(if go { child() } else { 127 })
        }
        Fork::Parent(pid) => {
            sys::trace(pid)?;
            rustix::io::write(&tell, &[0])?;
            Ok(pid)
        }
    }
}

impl Clock {
    /// Lets a tracee go on that has stopped. Returns whether it was really stopped, by a signal that stops.
    pub(super) fn stopped(&self, pid: Pid, status: WaitStatus) -> bool {
        let signal = status.stopping_signal().unwrap_or(0);
        let event = status.as_raw() >> 16;
        let mut deliver = 0;
        match event {
            0 => deliver = signal,
            libc::PTRACE_EVENT_STOP if signal != libc::SIGTRAP => {
                let _ = sys::stay_stopped(pid);
                return true;
            }
            // A tracee that is killed meanwhile is gone: there is nothing to answer then.
            #[cfg(target_arch = "x86_64")]
            libc::PTRACE_EVENT_EXEC => drop(answers::hide_library(pid)),
            #[cfg(target_arch = "x86_64")]
            libc::PTRACE_EVENT_SECCOMP => drop(answers::answer(pid, self.ahead)),
            _ => {}
        }
        let _ = sys::go_on(pid, deliver);
        false
    }
}
