// SPDX-License-Identifier: Apache-2.0
//! The helper process of the user sandbox: forks one supervisor a step, and another one to tidy up when a supervisor is killed.
//!
//! ```text
//! obuild ── helper ── supervisor (root) ── the command (build user) ── …
//! ```
//!
//! A supervisor ends its step when the command ends, when the caller asks, and when the caller or the helper has gone: it holds a socket to
//! the one and a pipe to the other, and the kernel closes both whatever happened.

use super::launch::Launch;
use super::leftovers;
use super::stay::Stay;
use super::{Account, sys};
use crate::helper::init;
use crate::sys::Fork;
use crate::wire::{self, Failure, Parcel, Reply, Request, Trying};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Resource, Signal, WaitOptions, WaitStatus};
use std::io;

/// A step that is running.
struct Running {
    supervisor: Pid,
    /// Its other end is open as long as the supervisor lives.
    alive: OwnedFd,
    /// Held until the step is over. For the caller the end of the socket in it is the end of the step; the lock in it holds the user.
    parcel: Parcel,
    /// Whether this one tidies up after a supervisor that was killed.
    second: bool,
}

/// Serves steps until the program that started this process ends. Standard input is the socket to it.
pub(crate) fn serve() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        if fs_err::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("the sandbox helper must have one thread"));
        }
        crate::sys::close_from(3)?;
        rustix::thread::set_name(c"obuild-helper")?;
    }
    crate::sys::helper_signals();
    rustix::process::chdir("/")?;
    // One descriptor is held for each level of a tree.
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    // Nothing is ever written to it: supervisors see its end.
    let (life, living) = sys::pipe()?;
    let mut helper = Helper {
        socket: Some(socket),
        life,
        living: Some(living),
        steps: Vec::new(),
    };
    while helper.turn()? {}
    Ok(())
}

/// What the helper holds.
struct Helper {
    /// `None` in supervisors, as the next.
    socket: Option<OwnedFd>,
    life: OwnedFd,
    /// The writing end of `life`.
    living: Option<OwnedFd>,
    steps: Vec<Running>,
}

impl Helper {
    /// Waits for something to happen and does what has to be done then; `false` when the caller has gone.
    fn turn(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else {
            return Ok(false);
        };
        let mut waited = vec![PollFd::new(socket, PollFlags::IN)];
        let lives = self
            .steps
            .iter()
            .map(|step| PollFd::new(&step.alive, PollFlags::IN));
        waited.extend(lives);
        match poll(&mut waited, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waited.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(waited);
        let parcel = if ready[0] {
            // The end of the socket is the end of the caller. The supervisors see it by themselves.
            let Some(parcel) = wire::receive_request(socket.as_fd())? else {
                return Ok(false);
            };
            Some(parcel)
        } else {
            None
        };
        for index in (0..self.steps.len())
            .rev()
            .filter(|&index| ready[index + 1])
        {
            let step = self.steps.swap_remove(index);
            let status = wait_for(step.supervisor)?;
            if status.exit_status() == Some(0) || step.second {
                step.parcel.close();
            } else {
                self.fork(step.parcel, true)?;
            }
        }
        if let Some(parcel) = parcel {
            // When this fails, the end of the dropped socket tells the caller.
            let _ = self.fork(parcel, false);
        }
        Ok(true)
    }

    fn fork(&mut self, parcel: Parcel, second: bool) -> io::Result<()> {
        let (alive, living) = sys::pipe()?;
        match sys::fork()? {
            Fork::Parent(supervisor) => self.steps.push(Running {
                supervisor,
                alive,
                parcel,
                second,
            }),
            Fork::Child => {
                // What belongs to other steps must not live as long as this one.
                self.steps.clear();
                self.living = None;
                self.socket = None;
                drop(alive);
                let done = if second {
                    tidy(&parcel)
                } else {
                    supervise(&parcel, &self.life)
                };
                drop(living);
                crate::sys::exit_now(i32::from(done.is_err()))
            }
        }
        Ok(())
    }
}

fn wait_for(pid: Pid) -> io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Undoes what a killed supervisor has left.
fn tidy(parcel: &Parcel) -> io::Result<()> {
    let (request, mut descriptors) = parcel.open_copy()?;
    let (Some(account), Some(lock)) = (request.account, descriptors.pop()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    leftovers::end_processes(&account, false)?;
    recover(&account, &lock).map_err(|_| io::ErrorKind::Other)?;
    leftovers::remove_files(account.uid);
    Ok(())
}

/// Undoes what the lock file says, if it says something. No process of the user may be alive.
fn recover(account: &Account, lock: &OwnedFd) -> Result<(), Failure> {
    let left = Stay::left(lock).trying(|| "read the build user's lock file")?;
    match left {
        Some(stay) if stay.account().uid == account.uid => stay.end(lock),
        Some(_) => Err(Failure::Helper(
            "the lock file is another user's".to_owned(),
        )),
        None => Ok(()),
    }
}

/// Runs one step in the supervisor's process.
fn supervise(parcel: &Parcel, life: &OwnedFd) -> io::Result<()> {
    let (mut request, mut descriptors) = parcel.open_copy()?;
    let (Some(account), Some(lock)) = (request.account.take(), descriptors.pop()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if descriptors.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let socket = descriptors.remove(0);
    let reply = match step(&request, &account, descriptors, &socket, &lock, life) {
        Ok(status) => Reply::Ended(status.as_raw()),
        Err(failure) => Reply::Failed(failure),
    };
    // Nobody may be there to hear it.
    let _ = wire::send_reply(socket.as_fd(), &reply, &[]);
    Ok(())
}

fn step(
    request: &Request,
    account: &Account,
    descriptors: Vec<OwnedFd>,
    socket: &OwnedFd,
    lock: &OwnedFd,
    life: &OwnedFd,
) -> Result<WaitStatus, Failure> {
    started(socket)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut descriptors = descriptors.into_iter();
    let stdio = init::stdio(&request.streams, &mut descriptors)?;
    let secrets = match request.secret_sizes.len() {
        0 => Vec::new(),
        _ => init::secrets(&request.secret_sizes, descriptors.next())?,
    };
    leftovers::adopt_orphans().trying(|| "watch for orphans")?;
    let signals = sys::child_signals().trying(|| "watch for ending processes")?;
    let unfinished = rustix::fs::fstat(lock).is_ok_and(|stat| stat.st_size > 0);
    if unfinished {
        leftovers::end_processes(account, false)
            .trying(|| format!("end what an earlier step of {} left", account.name))?;
        recover(account, lock)?;
        leftovers::remove_files(account.uid);
    }
    let stay = Stay::begin(account, &request.rootfs, &request.command, &secrets, lock)?;
    drop(secrets);
    let launch = Launch {
        command: &request.command,
        account,
        stdio,
    };
    let result =
        start(&launch, socket).and_then(|child| wait_for_end(child, &signals, socket, life));
    drop(launch);
    // What still runs must not lose its user to another step: on a failure the lock file keeps its note.
    leftovers::end_processes(account, true)
        .trying(|| format!("end the processes of {}", account.name))?;
    leftovers::remove_files(account.uid);
    let tidied = stay.end(lock);
    let status = result?;
    tidied.map(|()| status)
}

/// Tells the caller that the supervisor lives; where there are descriptors of processes, with its own.
fn started(socket: &OwnedFd) -> Result<(), Failure> {
    let action = || "tell the caller of the step";
    #[cfg(target_os = "linux")]
    {
        use rustix::process::PidfdFlags;
        let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .trying(|| "open the step's own process")?;
        wire::send_reply(socket.as_fd(), &Reply::Started, &[own.as_fd()]).trying(action)
    }
    #[cfg(not(target_os = "linux"))]
    wire::send_reply(socket.as_fd(), &Reply::Started, &[]).trying(action)
}

fn start(launch: &Launch<'_>, socket: &OwnedFd) -> Result<Pid, Failure> {
    let child = || {
        let failure = launch.exec();
        let _ = wire::send_reply(socket.as_fd(), &Reply::Failed(failure), &[]);
        127
    };
    let action = || "start a process for the command";
    #[cfg(target_os = "linux")]
    {
        crate::sys::spawn(&child).trying(action)
    }
    #[cfg(not(target_os = "linux"))]
    match sys::fork().trying(action)? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => crate::sys::exit_now(child()),
    }
}

/// Waits for the command, reaping others, until it ends or somebody wants it to.
fn wait_for_end(
    command: Pid,
    signals: &OwnedFd,
    socket: &OwnedFd,
    life: &OwnedFd,
) -> Result<WaitStatus, Failure> {
    let action = || "wait for the command";
    loop {
        loop {
            let options = WaitOptions::NOHANG | WaitOptions::UNTRACED;
            match rustix::io::retry_on_intr(|| rustix::process::wait(options)) {
                // Stopping the command would leave nobody to continue it.
                Ok(Some((pid, status))) if status.stopped() => {
                    if pid == command {
                        let _ = rustix::process::kill_process(pid, Signal::CONT);
                    }
                }
                Ok(Some((pid, status))) if pid == command => return Ok(status),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Err(error).trying(action),
            }
        }
        let mut waited = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(life, PollFlags::IN),
        ];
        match poll(&mut waited, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).trying(action),
        }
        let (asked, alone) = (
            !waited[1].revents().is_empty(),
            !waited[2].revents().is_empty(),
        );
        let mut buffer = [0; 64];
        while rustix::io::read(signals, &mut buffer).is_ok_and(|length| length > 0) {}
        if alone {
            return Err(Failure::Helper("it was killed from outside".to_owned()));
        }
        // A packet asks for the end; a closed socket means that the caller is gone. Either way there is only one thing to do. The caller knows
        // why, so it does not matter what is said of the command.
        if asked {
            return Err(Failure::Helper("the step was to end".to_owned()));
        }
    }
}
