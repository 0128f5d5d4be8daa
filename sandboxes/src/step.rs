// SPDX-License-Identifier: Apache-2.0
//! The caller's side of one step: hands it to the helper, passes its output on, ends it in time.

use crate::Cancel;
use crate::sandbox::{Command, Error, Exit, Network, Rootfs, Stdio};
use crate::terminal::Terminal;
use crate::user::Account;
use crate::wire::{self, Failure, Received, Reply, Request, Runtime, Streams};
use crate::zygote::{Helper, Idle, Kept, gone};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the step's init process may take to end everything and to tidy the tree before it is killed itself.
const GRACE: Duration = Duration::from_millis(600);

const OUTPUT_BYTES: usize = 16 * 1024;

/// More than a pipe holds in all: pipe(7), `/proc/sys/fs/pipe-max-size` is 1 MiB.
const OUTPUT_READS: usize = 65;

/// What a step needs from its backend beside the command.
pub(crate) struct Surroundings {
    /// `cgroup.procs` files that the command has to enter.
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) runtime: Option<Runtime>,
    /// The build user, with its lock.
    pub(crate) account: Option<(Account, OwnedFd)>,
}

/// Runs a step to its end.
pub(crate) fn run(
    helper: &dyn Helper,
    command: &Command,
    rootfs: &Rootfs,
    stdio: Stdio<'_>,
    cancel: &Cancel,
    surroundings: Surroundings,
) -> Result<Exit, Error> {
    check(command)?;
    if command.variation.is_some() && surroundings.runtime.is_some() {
        return Err(refused(
            "surroundings that only the native sandbox can make",
        ));
    }
    if cancel.is_cancelled() {
        return Ok(Exit::Cancelled);
    }
    begin(helper, command, rootfs, stdio, surroundings)
        .and_then(|step| step.wait(command.limits.timeout, cancel))
}

/// Refuses what no kernel call can express.
pub(crate) fn check(command: &Command) -> Result<(), Error> {
    let refuse = |what: &str| Err(refused(what));
    if command.argv.is_empty() {
        return refuse("no program");
    }
    let zero = |bytes: &[u8]| bytes.contains(&0);
    if command.argv.iter().any(|argument| zero(argument)) {
        return refuse("a zero byte in an argument");
    }
    for (name, value) in &command.env {
        if zero(name) || zero(value) || name.contains(&b'=') || name.is_empty() {
            return refuse(&format!("the variable {name:?}"));
        }
    }
    let targets = command.mounts.iter().map(|mount| &mount.target);
    let secrets = command.secrets.iter().map(|secret| &secret.target);
    for path in targets.chain(secrets).chain([&command.workdir]) {
        if zero(path) || !path.starts_with(b"/") {
            return refuse(&format!("the path {path:?}, which is not absolute"));
        }
    }
    // A second file system on these would hide what protects the host.
    for mount in &command.mounts {
        let first = mount
            .target
            .split(|&byte| byte == b'/')
            .find(|name| !matches!(*name, b"" | b"."));
        if matches!(first, None | Some(b"proc" | b"sys" | b"..")) {
            return refuse(&format!("a mount on {:?}", mount.target));
        }
    }
    Ok(())
}

fn refused(what: &str) -> Error {
    Error::Setup {
        action: format!("run a command with {what}"),
        source: io::ErrorKind::InvalidInput.into(),
    }
}

/// A step that was handed to the helper, or to a process 1 that was kept.
struct Step<'h, 'a> {
    /// Where its process 1 may be kept.
    kept: Option<&'h Kept>,
    socket: Option<OwnedFd>,
    /// The step's init process.
    process: Option<OwnedFd>,
    outcome: Option<Reply>,
    /// Whether the init process has said that it waits for another step.
    idle: bool,
    output: Output<'a>,
}

enum Output<'a> {
    /// Standard output and error come through a pipe.
    Pipe {
        pipe: OwnedFd,
        /// Held open, so that the pipe's end is not one more event: the step's end is told by its socket.
        _writer: OwnedFd,
        sink: &'a mut (dyn FnMut(&[u8]) + Send),
        buffer: Vec<u8>,
    },
    /// The command has the caller's streams, or a terminal between.
    Streams(Option<Terminal>),
}

fn begin<'h, 'a>(
    helper: &'h dyn Helper,
    command: &Command,
    rootfs: &Rootfs,
    stdio: Stdio<'a>,
    surroundings: Surroundings,
) -> Result<Step<'h, 'a>, Error> {
    let failed = |action: &str| {
        let action = action.to_owned();
        move |error: rustix::io::Errno| Error::Setup {
            action,
            source: error.into(),
        }
    };
    let kept = helper
        .kept()
        .filter(|_| may_be_kept(command, &stdio, &surroundings));
    // What is sent beside the socket; kept open until it is sent.
    let mut sent: Vec<OwnedFd> = Vec::new();
    let (streams, output) = match stdio {
        Stdio::Capture(sink) => {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
                .map_err(failed("make the output pipe"))?;
            rustix::io::ioctl_fionbio(&read, true).map_err(failed("set up the output pipe"))?;
            sent.push(write.try_clone().map_err(|source| Error::Setup {
                action: "make the output pipe".to_owned(),
                source,
            })?);
            let output = Output::Pipe {
                pipe: read,
                _writer: write,
                sink,
                buffer: Vec::new(),
            };
            (Streams::Capture, output)
        }
        Stdio::Inherit => {
            let (terminal, streams) = Terminal::open()?;
            sent.extend(streams);
            let path = terminal.as_ref().map(|terminal| terminal.path().to_owned());
            (
                Streams::Inherit { terminal: path },
                Output::Streams(terminal),
            )
        }
    };
    let secret_sizes = command
        .secrets
        .iter()
        .map(|secret| secret.value.len())
        .collect();
    if !command.secrets.is_empty() {
        let values: Vec<&[u8]> = command
            .secrets
            .iter()
            .map(|secret| &*secret.value)
            .collect();
        let file = wire::memory_file("obuild-secrets", &values).map_err(|source| Error::Setup {
            action: "keep the secrets in memory".to_owned(),
            source,
        })?;
        sent.push(file);
    }
    let account = surroundings.account.map(|(account, lock)| {
        sent.push(lock);
        account
    });
    let request = Request {
        command: command.clone(),
        rootfs: rootfs.clone(),
        secret_sizes,
        streams,
        cgroups: surroundings.cgroups,
        runtime: surroundings.runtime,
        account,
        keep: kept.is_some(),
    };
    let mut descriptors: Vec<BorrowedFd<'_>> = sent.iter().map(AsFd::as_fd).collect();
    let step = |socket, process| Step {
        kept,
        socket: Some(socket),
        process,
        outcome: None,
        idle: false,
        output,
    };
    while let Some(idle) = kept.and_then(Kept::take) {
        match wire::send_request(idle.socket.as_fd(), &request, &descriptors) {
            Ok(()) => return Ok(step(idle.socket, Some(idle.process))),
            // It was killed since.
            Err(error) if gone(&error) => {}
            Err(source) => {
                return Err(Error::Setup {
                    action: "send the step to its process".to_owned(),
                    source,
                });
            }
        }
    }
    let flags = SocketFlags::CLOEXEC;
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(failed("make the step's socket"))?;
    descriptors.insert(0, theirs.as_fd());
    helper.send(&request, &descriptors)?;
    Ok(step(socket, None))
}

/// Returns whether a step's process 1 may serve another step afterwards. One that knew a secret does not, nor one with more of the step's than
/// its output. In a user namespace a step makes its network itself: see `helper/native.rs`. On the host's network a step can hand descriptors of its `/proc`
/// and `/dev` to others that run at the time (unix(7), abstract sockets), which would have them when the next step is there.
fn may_be_kept(command: &Command, stdio: &Stdio<'_>, surroundings: &Surroundings) -> bool {
    matches!(stdio, Stdio::Capture(_))
        && command.network == Network::None
        && command.secrets.is_empty()
        && command.variation.is_none()
        && surroundings.runtime.is_none()
        && surroundings.account.is_none()
        && obuild_rootless::current().is_none()
}

fn exit_of(status: i32) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    let status = std::process::ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(code),
        (None, Some(signal)) => Exit::Signal(signal),
        // Only ended processes are reported.
        (None, None) => Exit::Signal(libc::SIGKILL),
    }
}

impl Step<'_, '_> {
    fn wait(mut self, timeout: Option<Duration>, cancel: &Cancel) -> Result<Exit, Error> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        // Why the step has to end, and when it is killed if it has not.
        let mut ending: Option<(Exit, Instant)> = None;
        loop {
            let now = Instant::now();
            let next = match &ending {
                None => deadline,
                Some((_, kill)) => Some(*kill),
            };
            if next.is_some_and(|next| next <= now) {
                if ending.is_none() {
                    ending = Some((Exit::TimedOut, now + GRACE));
                    self.ask_to_end();
                } else {
                    self.receive()?;
                    self.kill();
                    // Only a process that the kernel cannot kill lasts longer; there is nothing left to do but to wait.
                    ending = ending.map(|(exit, _)| (exit, now + Duration::from_hours(1)));
                }
                continue;
            }
            let ready = self.poll(ending.is_none().then_some(cancel), next)?;
            if ready.socket {
                self.receive()?;
            }
            if ready.output {
                self.output.pass();
            }
            if ready.cancelled && ending.is_none() {
                ending = Some((Exit::Cancelled, now + GRACE));
                self.ask_to_end();
            }
            let gone = self.socket.is_none() && self.process.is_none();
            if ready.process || self.idle || gone {
                break;
            }
        }
        // All processes are gone, so what they wrote is in the pipe and nothing follows.
        self.output.pass();
        let exit = ending.map(|(exit, _)| exit);
        if exit.is_none() && self.idle {
            self.keep();
        }
        match (self.outcome.take(), exit) {
            (_, Some(exit)) => Ok(exit),
            (Some(Reply::Ended(status) | Reply::Kept(status)), None) => Ok(exit_of(status)),
            (Some(Reply::Failed(failure)), None) => Err(failure.into()),
            (Some(Reply::Started) | None, None) => {
                Err(Failure::Helper("the step's process was killed from outside".to_owned()).into())
            }
        }
    }

    fn poll(&self, cancel: Option<&Cancel>, until: Option<Instant>) -> Result<Ready, Error> {
        let mut waited: Vec<Waited<'_>> = Vec::with_capacity(6);
        // Replies are read when the socket ends, which is when the helper has reaped the step's init process, unless that is kept.
        let waiting = if self.kept.is_some() {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        if let Some(socket) = &self.socket {
            waited.push((PollFd::new(socket, waiting), |ready| ready.socket = true));
        } else if let Some(process) = &self.process {
            waited.push((PollFd::new(process, PollFlags::IN), |ready| {
                ready.process = true;
            }));
        }
        if let Some(cancel) = cancel {
            waited.push((PollFd::new(cancel, PollFlags::IN), |ready| {
                ready.cancelled = true;
            }));
        }
        for fd in self.output.waited() {
            waited.push((fd, |ready| ready.output = true));
        }
        let mut wait = until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(most) = self.output.at_most() {
            wait = Some(wait.map_or(most, |wait| wait.min(most)));
        }
        let wait = wait.map(|wait| Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut fds: Vec<PollFd<'_>> = waited.iter().map(|(fd, _)| fd.clone()).collect();
        match poll(&mut fds, wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Error::Setup {
                    action: "wait for the step".to_owned(),
                    source: error.into(),
                });
            }
        }
        let mut ready = Ready {
            // Without an event the output is looked at all the same: a terminal follows changes of size that way.
            output: self.output.at_most().is_some(),
            ..Ready::default()
        };
        for (fd, (_, mark)) in fds.iter().zip(&waited) {
            if !fd.revents().is_empty() {
                mark(&mut ready);
            }
        }
        Ok(ready)
    }

    /// Takes all replies that are there.
    fn receive(&mut self) -> Result<(), Error> {
        while let Some(socket) = &self.socket {
            let received = wire::receive_reply(socket.as_fd()).map_err(|source| Error::Setup {
                action: "hear from the sandbox helper".to_owned(),
                source,
            })?;
            match received {
                Received::Nothing => return Ok(()),
                Received::Closed => self.socket = None,
                Received::Reply(Reply::Started, process) => self.process = process,
                // The command's own process may say why it could not start before its parent says that it ended.
                Received::Reply(reply, _) => {
                    self.idle = matches!(reply, Reply::Kept(_));
                    self.outcome.get_or_insert(reply);
                }
            }
        }
        Ok(())
    }

    /// Has the step's init process, which waits, serve others.
    fn keep(&mut self) {
        if let (Some(kept), Some(socket), Some(process)) =
            (self.kept, self.socket.take(), self.process.take())
        {
            kept.put(Idle { socket, process });
        }
    }

    fn ask_to_end(&self) {
        if let Some(socket) = &self.socket {
            // Any packet means that. When it cannot be sent, the deadline that follows kills.
            let _ = rustix::net::send(socket, &[0], rustix::net::SendFlags::NOSIGNAL);
        }
    }

    fn kill(&self) {
        if let Some(process) = &self.process {
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
        }
    }
}

impl Drop for Step<'_, '_> {
    /// Ends the step if it was left early, by an error or a panic in the caller's sink: what the trait promises holds then too.
    fn drop(&mut self) {
        if self.process.is_none() {
            // It may have been told only now. If it was not, closing the socket ends the step.
            let _ = self.receive();
        }
        if let Some(process) = &self.process {
            let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
            let mut waited = [PollFd::new(process, PollFlags::IN)];
            let most = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let _ = poll(&mut waited, Some(&most));
        }
    }
}

/// Something to wait for, and how to say that it came.
type Waited<'a> = (PollFd<'a>, fn(&mut Ready));

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "four independent events")]
struct Ready {
    socket: bool,
    process: bool,
    output: bool,
    cancelled: bool,
}

impl Output<'_> {
    fn waited(&self) -> Vec<PollFd<'_>> {
        match self {
            Self::Pipe { pipe, .. } => vec![PollFd::new(pipe, PollFlags::IN)],
            Self::Streams(terminal) => terminal.as_ref().map_or_else(Vec::new, Terminal::waited),
        }
    }

    /// Returns how long to wait at most before looking again.
    fn at_most(&self) -> Option<Duration> {
        match self {
            Self::Streams(Some(_)) => Some(Duration::from_millis(250)),
            _ => None,
        }
    }

    /// Passes on what is there; some of it only, when it comes faster than it can be passed.
    fn pass(&mut self) {
        match self {
            Self::Pipe {
                pipe, sink, buffer, ..
            } => {
                buffer.resize(OUTPUT_BYTES, 0);
                // A command that writes without end must not keep us from its deadline.
                for _ in 0..OUTPUT_READS {
                    match rustix::io::read(&*pipe, &mut *buffer) {
                        Ok(length) if length > 0 => sink(&buffer[..length]),
                        Err(rustix::io::Errno::INTR) => {}
                        _ => break,
                    }
                }
            }
            Self::Streams(terminal) => {
                if let Some(terminal) = terminal {
                    terminal.pass();
                }
            }
        }
    }
}
