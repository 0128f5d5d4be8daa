// SPDX-License-Identifier: Apache-2.0
//! The helper process: one thread, little memory, and nothing to do but to fork a step's init process when asked.
//!
//! The calling program is large and threaded and must not fork. It starts its own executable once more with a hidden argument, and that
//! calls [`main`] before anything else. See `docs/decisions/0002-sandbox-helper.md`.

mod accounts;
mod clock;
mod container;
mod dev;
pub(crate) mod exec;
pub(crate) mod init;
mod kept;
mod mounts;
mod namespaces;
mod native;
mod networks;
mod private;
pub(crate) mod programs;
mod runtime;
mod runtime_config;
mod template;

#[cfg(feature = "docker")]
pub(crate) use container::SOCKET as CONTAINER_SOCKET;
pub(crate) use runtime::is_program as is_runtime;

use crate::{seccomp, sys, wire};
use bstr::ByteSlice;
use networks::Networks;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitOptions, wait};
use rustix::thread::CapabilitySet;
use std::collections::HashMap;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Serves steps until the program that started this process ends.
///
/// To be called first thing in `main` when the hidden argument is there. Standard input is the socket to the caller; if it is no socket,
/// this is the helper of a container, which finds the socket at a place of its own.
pub fn main() -> ExitCode {
    let user = std::env::args_os()
        .next_back()
        .is_some_and(|argument| argument == crate::user::HELPER);
    let served = if user { crate::user::serve() } else { serve() };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What the helper prepares once for all its steps.
struct Prepared {
    filter: seccomp::Program,
    filter_fast_sync: seccomp::Program,
    protected: mounts::Protected,
    /// If there is none the steps tell why.
    template: Result<template::Template, wire::Failure>,
    /// The bounding set of a step before it is narrowed to the step's own.
    bounding: CapabilitySet,
}

fn serve() -> io::Result<()> {
    if fs_err::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the sandbox helper must have one thread"));
    }
    sys::close_from(3)?;
    sys::helper_signals();
    // A step's root is not the host's root to the kernel, but both are uid 0: nothing of ours may be looked into.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"obuild-helper")?;
    rustix::process::chdir("/")?;
    // Standard input is the socket. Only one copy may be open: a step that held one would keep it from ending with the helper.
    let socket = if container::is_inside()? {
        container::enter()?
    } else {
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?
    };
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    let mut prepared = Prepared {
        filter: seccomp::program(false, false),
        filter_fast_sync: seccomp::program(true, false),
        protected: mounts::Protected::probe(),
        template: Err(wire::Failure::Helper("no step was expected".to_owned())),
        bounding: CapabilitySet::all(),
    };
    warm_up();
    // A process in a user namespace could not go back to the host's network: its steps make their networks themselves.
    let rootless = obuild_rootless::current().is_some();
    let signals = sys::child_signals()?;
    // The step socket of each init process, held until it is reaped: for the caller, the end of the socket is the end of the step.
    let mut steps: HashMap<Pid, (OwnedFd, Option<OwnedFd>)> = HashMap::new();
    let mut networks = Networks::new()?;
    loop {
        let mut waited = [
            PollFd::new(&socket, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        match poll(&mut waited, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (asked, ended) = (waited[0].revents(), waited[1].revents());
        if !ended.is_empty() {
            take_signals(&signals);
            while let Ok(Some((pid, _))) = wait(WaitOptions::NOHANG) {
                if let Some((socket, network)) = steps.remove(&pid) {
                    drop(socket);
                    if let Some(network) = network {
                        networks.give_back(network);
                    }
                }
            }
        }
        if !asked.is_empty() {
            let Some(parcel) = wire::receive_request(socket.as_fd())? else {
                // The end of the socket is the end of the caller.
                return see_off(&signals, steps.len());
            };
            // A runtime needs the whole set, but a helper has one kind of steps.
            if !parcel.is_for_runtime() && prepared.bounding == CapabilitySet::all() {
                prepared.template = template::Template::make();
                prepared.bounding = exec::lower_bounding()?;
            }
            let step = parcel.socket();
            // When this or the fork fails, the end of the dropped socket tells the caller.
            let network = (parcel.own_network() && !rootless).then(|| networks.enter());
            let network = network.transpose();
            let Ok(network) = network else { continue };
            match sys::fork_init() {
                Ok(sys::Fork::Child) => {
                    drop((socket, signals, steps, step, networks, network));
                    init::run(parcel, &prepared);
                }
                Ok(sys::Fork::Parent(pid)) => {
                    if network.is_some() {
                        networks.leave()?;
                    }
                    steps.extend(step.ok().map(|step| (pid, (step, network))));
                }
                Err(_) => networks.leave()?,
            }
        }
    }
}

/// Waits until the steps have noticed the caller's end too and tidied up. What is left after a while dies with this process: all init
/// processes have asked the kernel for that.
fn see_off(signals: &OwnedFd, mut steps: usize) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    while steps > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let left = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&left))?;
        take_signals(signals);
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {
            steps = steps.saturating_sub(1);
        }
    }
    Ok(())
}

/// Does what would otherwise be done once in every init process: asking the processor what it can costs 60 µs on a virtual machine.
fn warm_up() {
    let line = b"a line of more than sixteen bytes, with a needle";
    std::hint::black_box((line.find(b"needle"), line.find_byte(b'x')));
}

/// Empties a signal descriptor of a signal that does not queue. One that comes meanwhile makes it ready again.
fn take_signals(signals: &OwnedFd) {
    let mut buffer = [0_u8; 1024];
    let _ = rustix::io::read(signals, &mut buffer);
}
