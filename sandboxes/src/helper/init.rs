// SPDX-License-Identifier: Apache-2.0
//! Process 1 of a step: prepares the surroundings, starts the command, reaps whatever it leaves behind, ends everything.
//!
//! The kernel kills a pid namespace with its process 1, so this process is also what ties the step to the caller: it ends when the helper
//! dies (by a death signal), when the caller's end of the step socket closes, or when the caller asks. One that is as it was before the step
//! may be kept for another: see `kept`.

use super::clock::Clock;
use super::dev::Dev;
use super::kept::Pristine;
use super::template::Template;
use super::{Prepared, native, runtime, take_signals};
use crate::sys;
use crate::wire::{self, Failure, Parcel, Reply, Request, Streams, Trying};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use std::collections::HashMap;
use std::io;

/// A step's standard streams.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) input: OwnedFd,
    pub(crate) output: OwnedFd,
    pub(crate) error: OwnedFd,
    /// Whether one of them is a terminal, to be the step's controlling one.
    pub(crate) terminal: bool,
}

impl Stdio {
    /// Makes them the standard streams of this process, in a session of its own.
    pub(crate) fn install(&self) -> Result<(), Failure> {
        let action = || "set up the standard streams";
        rustix::process::setsid().trying(action)?;
        rustix::stdio::dup2_stdin(&self.input).trying(action)?;
        rustix::stdio::dup2_stdout(&self.output).trying(action)?;
        rustix::stdio::dup2_stderr(&self.error).trying(action)?;
        if self.terminal {
            let streams = [&self.input, &self.output, &self.error];
            let terminal = streams
                .into_iter()
                .find(|stream| rustix::termios::isatty(stream));
            if let Some(terminal) = terminal {
                rustix::process::ioctl_tiocsctty(terminal).trying(action)?;
            }
        }
        Ok(())
    }
}

/// Runs one step, and others as long as the caller has some and the process is fit for them, and ends the process.
pub(super) fn run(parcel: Parcel, prepared: &Prepared) -> ! {
    // Without a socket there is nobody to tell.
    if let Ok((request, mut descriptors)) = parcel.open()
        && !descriptors.is_empty()
    {
        let socket = descriptors.remove(0);
        let result = begin(&socket).and_then(|signals| {
            let pristine = request.keep.then(Pristine::now);
            let mut init = Init {
                prepared,
                socket: &socket,
                signals,
                template: None,
                pristine: pristine.flatten(),
            };
            init.serve(request, descriptors)
        });
        if let Err(failure) = result {
            let _ = wire::send_reply(socket.as_fd(), &Reply::Failed(failure), &[]);
        }
    }
    sys::exit_now(0)
}

/// Tells the caller of the process, and watches for the ends of its children.
fn begin(socket: &OwnedFd) -> Result<OwnedFd, Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .trying(|| "ask to die with the helper")?;
    let own = rustix::process::pidfd_open(Pid::INIT, PidfdFlags::empty())
        .trying(|| "open the step's own process")?;
    wire::send_reply(socket.as_fd(), &Reply::Started, &[own.as_fd()])
        .trying(|| "tell the caller of the step")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::child_signals().trying(|| "watch for ending processes")
}

/// Process 1, with what it has for all its steps.
pub(super) struct Init<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) socket: &'a OwnedFd,
    signals: OwnedFd,
    /// There once a step has made it.
    pub(super) template: Option<(Template, Dev)>,
    /// If the process may be kept.
    pristine: Option<Pristine>,
}

impl Init<'_> {
    fn serve(
        &mut self,
        mut request: Request,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let tell = |reply| {
            wire::send_reply(self.socket.as_fd(), &reply, &[])
                .trying(|| "tell the caller of the command's end")
        };
        loop {
            let status = self.step(&request, descriptors)?.as_raw();
            if !request.keep || !self.restore() {
                return tell(Reply::Ended(status));
            }
            tell(Reply::Kept(status))?;
            let next = wire::receive_request(self.socket.as_fd());
            let Some(parcel) = next.trying(|| "wait for another step")? else {
                return Ok(());
            };
            (request, descriptors) = parcel.open().trying(|| "read the step's request")?;
        }
    }

    /// Lets go of the step's mounts and makes the process ready for another one. Returns whether it is.
    fn restore(&mut self) -> bool {
        let (Some((template, dev)), Some(pristine)) = (&self.template, &self.pristine) else {
            return false;
        };
        take_signals(&self.signals);
        let restored = template.leave().is_ok() && pristine.restore();
        if !dev.is_as_made() {
            // The next step makes another.
            self.template = None;
        }
        restored
    }

    fn step(
        &mut self,
        request: &Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<WaitStatus, Failure> {
        let mut descriptors = descriptors.into_iter();
        let stdio = stdio(&request.streams, &mut descriptors)?;
        let secrets = match request.secret_sizes.len() {
            0 => Vec::new(),
            _ => secrets(&request.secret_sizes, descriptors.next())?,
        };
        // Filled as soon as there is a tree: whatever fails then, it has to be tidied.
        let mut tree = None;
        let clock = request.command.variation.map(|varied| Clock {
            ahead: varied.clock_ahead,
        });
        let result = match &request.runtime {
            None => native::start(request, stdio, &secrets, self, &mut tree)
                .and_then(|child| self.supervise(child, None, clock.as_ref())),
            Some(runtime) => runtime::start(request, runtime, stdio, &secrets, &mut tree)
                .and_then(|child| self.supervise(child.process, Some(&child), None)),
        };
        end_all();
        let tidied = match tree {
            Some(tree) => tree
                .remove_points()
                .trying(|| "remove the step's mount points"),
            None => Ok(()),
        };
        let status = result?;
        if status.exit_status() == Some(0) {
            tidied?;
        }
        // The tree of a step that failed is thrown away. What failed is its command, also where a full disk (of zfs, btrfs) lets nobody
        // remove anything after it.
        Ok(status)
    }

    /// Waits for the command, reaping all others, until it ends or the caller wants it to.
    fn supervise(
        &self,
        child: Pid,
        mut runtime: Option<&runtime::Child<'_>>,
        clock: Option<&Clock>,
    ) -> Result<WaitStatus, Failure> {
        let action = || "wait for the command";
        let mut command = child;
        // A command that a runtime starts may end before the runtime does, which says who it is.
        let mut others = HashMap::new();
        let mut killed = false;
        loop {
            while let Some((pid, status)) =
                reap(WaitOptions::NOHANG | WaitOptions::UNTRACED).trying(action)?
            {
                if status.stopped() {
                    if clock.is_some_and(|clock| !clock.stopped(pid, status)) {
                        continue;
                    }
                    // Stopping the command would leave nobody to continue it.
                    if pid == command {
                        let _ = rustix::process::kill_process(pid, Signal::CONT);
                    }
                    continue;
                }
                let mut ended = (pid == command).then_some(status);
                if let (Some(status), Some(child)) = (ended, runtime) {
                    runtime = None;
                    if let Some(pid) = child.command(status)? {
                        command = pid;
                        ended = others.remove(&pid);
                    }
                } else if runtime.is_some() {
                    others.insert(pid, status);
                }
                if let Some(status) = ended {
                    return Ok(status);
                }
            }
            let mut waited = vec![PollFd::new(&self.signals, PollFlags::IN)];
            if !killed {
                waited.push(PollFd::new(self.socket, PollFlags::IN));
            }
            match poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).trying(action),
            }
            let ask = waited
                .get(1)
                .is_some_and(|socket| !socket.revents().is_empty());
            take_signals(&self.signals);
            // A packet asks for the end; a closed socket means that the caller is gone. Either way there is only one thing to do.
            if ask {
                sys::kill_namespace();
                killed = true;
            }
        }
    }
}

/// Takes a step's streams from its descriptors.
pub(crate) fn stdio(
    streams: &Streams,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> Result<Stdio, Failure> {
    let mut next = || {
        descriptors
            .next()
            .ok_or_else(|| Failure::Helper("a request without its streams".to_owned()))
    };
    match streams {
        Streams::Capture => {
            let output = next()?;
            // A pipe without a writer reads as empty.
            let (input, _) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .trying(|| "make the empty standard input")?;
            let error = output
                .try_clone()
                .trying(|| "copy the output's descriptor")?;
            Ok(Stdio {
                input,
                output,
                error,
                terminal: false,
            })
        }
        Streams::Inherit { terminal } => Ok(Stdio {
            input: next()?,
            output: next()?,
            error: next()?,
            terminal: terminal.is_some(),
        }),
    }
}

/// Takes the secrets' values from their memory file.
pub(crate) fn secrets(sizes: &[usize], file: Option<OwnedFd>) -> Result<Vec<Vec<u8>>, Failure> {
    let missing = || Failure::Helper("a request without its secrets".to_owned());
    let content = wire::read_all(file.ok_or_else(missing)?).trying(|| "read the secrets")?;
    let mut rest = content.as_slice();
    sizes
        .iter()
        .map(|&size| {
            let (secret, others) = rest.split_at_checked(size).ok_or_else(missing)?;
            rest = others;
            Ok(secret.to_vec())
        })
        .collect()
}

fn reap(options: WaitOptions) -> io::Result<Option<(Pid, WaitStatus)>> {
    match rustix::io::retry_on_intr(|| rustix::process::wait(options)) {
        Err(rustix::io::Errno::CHILD) => Ok(None),
        result => result.map_err(io::Error::from),
    }
}

/// Ends every process of the step but this one.
fn end_all() {
    sys::kill_namespace();
    // Orphans come to process 1, so when it has no child left nothing is left.
    while let Ok(Some(_)) = reap(WaitOptions::empty()) {}
}
