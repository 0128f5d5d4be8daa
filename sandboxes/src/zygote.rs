// SPDX-License-Identifier: Apache-2.0
//! The caller's end of the helper process: starts it when it is first needed, hands it steps, starts it again when it died.

use crate::sandbox::Error;
use crate::wire::{self, Request};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// How to start the helper: a program that calls [`crate::helper::main`] when it gets these arguments.
#[derive(Clone, Debug)]
pub struct HelperCommand {
    /// The program; `/proc/self/exe` for the calling program itself.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// Something that takes steps.
pub(crate) trait Helper {
    /// Hands a step over. The first descriptor is the socket of its process 1.
    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error>;

    /// Returns where processes 1 wait for another step, if any do.
    fn kept(&self) -> Option<&Kept> {
        None
    }
}

/// Processes 1 that wait for another step, each in its own pid and network namespace, without the host's network.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Idle>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) socket: OwnedFd,
    /// Its pidfd.
    pub(crate) process: OwnedFd,
}

/// More steps at once than this have more processes, which go with their steps.
const KEPT: usize = 16;

impl Kept {
    /// Takes the one that has waited least.
    pub(crate) fn take(&self) -> Option<Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps one. A closed socket ends it.
    pub(crate) fn put(&self, one: Idle) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(one);
        }
    }
}

/// A helper process that is there when needed.
#[derive(Debug)]
pub(crate) struct Zygote {
    command: HelperCommand,
    /// Dropped first: the helper waits for all that it has started.
    kept: Kept,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    socket: Option<OwnedFd>,
    process: Child,
}

impl Zygote {
    pub(crate) fn new(command: HelperCommand) -> Self {
        Self {
            command,
            kept: Kept::default(),
            running: Mutex::new(None),
        }
    }

    /// Starts the helper unless it runs.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = Some(self.start()?);
        }
        Ok(())
    }

    /// Returns the helper's process id, if it runs.
    pub(crate) fn process_id(&self) -> Option<u32> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|running| running.process.id())
    }

    fn start(&self) -> Result<Running, Error> {
        let failed = |error: io::Error| Error::Setup {
            action: format!(
                "start the sandbox helper {}",
                self.command.program.display()
            ),
            source: error,
        };
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|error| failed(error.into()))?;
        let process = Command::new(&self.command.program)
            .args(&self.command.args)
            .env_clear()
            .stdin(theirs)
            .stdout(Stdio::null())
            // A group of its own keeps the terminal's Ctrl-C away: the caller decides what ends.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        tracing::debug!(pid = process.id(), "started the sandbox helper");
        Ok(Running {
            socket: Some(ours),
            process,
        })
    }
}

impl Helper for Zygote {
    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Setup {
            action: "send the step to the sandbox helper".to_owned(),
            source: error,
        };
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(helper) = running.as_ref() {
            match helper.send(request, descriptors) {
                // It was killed since. A new one serves as well.
                Err(error) if gone(&error) => *running = None,
                result => return result.map_err(failed),
            }
        }
        let helper = self.start()?;
        let result = helper.send(request, descriptors);
        *running = Some(helper);
        result.map_err(|error| {
            if gone(&error) {
                return Error::Helper("it was killed from outside as it started".to_owned());
            }
            failed(error)
        })
    }

    fn kept(&self) -> Option<&Kept> {
        Some(&self.kept)
    }
}

/// Returns whether an error means that the helper has ended.
pub(crate) fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected
    )
}

impl Running {
    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        wire::send_request(socket.as_fd(), request, descriptors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The helper ends when its socket does.
        self.socket = None;
        let _ = self.process.wait();
    }
}
