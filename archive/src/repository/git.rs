// SPDX-License-Identifier: Apache-2.0
//! Runs git so that nothing but the arguments decides what it does: no configuration of the user or the system, no hooks, no
//! questions, only the transports that are meant. Ended with all its children when the work is cancelled.

use super::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a waiting call looks whether it is cancelled.
const TICK: Duration = Duration::from_millis(50);

/// How long git may say nothing. Its progress comes every second while data flows; a large server may think for long before.
const SILENCE: Duration = Duration::from_mins(5);

/// How much of what git writes is kept.
const OUTPUT_BYTES: usize = 4 << 20;

/// How git is run.
#[derive(Clone, Debug)]
pub struct Git {
    /// The program.
    pub program: PathBuf,
    /// All of its environment but what this module sets: `PATH`, and what reaching a server may need (`HOME` for
    /// ssh, `SSH_AUTH_SOCK`, `https_proxy` and its kin).
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Git {
    fn default() -> Self {
        Self {
            program: "git".into(),
            environment: Vec::new(),
        }
    }
}

impl Git {
    /// Returns where the program is. With a path and not a name the process is made without a copy of ours, which a search along a `PATH`
    /// other than our own would need (the standard library's `posix_spawn`); that costs a millisecond.
    fn path(&self) -> PathBuf {
        let search = self.environment.iter().find(|(name, _)| name == "PATH");
        let Some((_, search)) = search.filter(|_| self.program.components().count() == 1) else {
            return self.program.clone();
        };
        let runs = |path: &PathBuf| {
            // What is no program is passed over, as execvp(3) does.
            path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
        };
        let mut places = std::env::split_paths(search).map(|place| place.join(&self.program));
        places.find(runs).unwrap_or_else(|| self.program.clone())
    }

    /// Returns git on this repository.
    pub(super) fn command(&self, directory: &Path) -> Command {
        let mut command = Command::new(self.path());
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            // git(1), "Environment variables"; git-config(1).
            .env("GIT_DIR", directory)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "true")
            .env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
            .env("GIT_ALLOW_PROTOCOL", "https:http:git:ssh:file")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("LC_ALL", "C");
        for setting in [
            "safe.directory=*",
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "http.lowSpeedLimit=1",
            "http.lowSpeedTime=120",
            // Upkeep happens while we hold the lock, and ends with us.
            "gc.autoDetach=false",
            "maintenance.autoDetach=false",
        ] {
            command.args(["-c", setting]);
        }
        command.process_group(0);
        command
    }

    /// Starts a prepared command.
    pub(super) fn spawn(&self, command: &mut Command) -> Result<Child, Error> {
        command.spawn().map_err(|source| Error::Start {
            program: self.program.clone(),
            source,
        })
    }

    /// Runs git to its end and returns what it wrote. `lock` becomes its standard input: whoever holds the lock's open
    /// file holds the lock, so that a git that outlives us keeps others out.
    pub(super) fn run(
        &self,
        name: &'static str,
        mut command: Command,
        lock: Option<&File>,
        cancel: &CancellationToken,
        heard: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<u8>, Error> {
        let input = match lock {
            Some(lock) => lock
                .try_clone()
                .map_err(Error::io("share the lock of", Path::new("a repository")))?
                .into(),
            None => Stdio::null(),
        };
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.spawn(&mut command)?;
        let result = listen(name, &mut child, cancel, heard);
        if result.is_err() {
            end(&mut child);
        }
        let (output, said) = result?;
        let status = child.wait().map_err(Error::io("wait for", &self.program))?;
        if status.success() {
            return Ok(output);
        }
        Err(Error::Git {
            command: name,
            said: if said.is_empty() {
                status.to_string()
            } else {
                said
            },
        })
    }
}

/// Reads both outputs until they are closed. Returns the standard output and the last lines of the other.
fn listen(
    name: &'static str,
    child: &mut Child,
    cancel: &CancellationToken,
    heard: &mut dyn FnMut(&[u8]),
) -> Result<(Vec<u8>, String), Error> {
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let (mut output, mut said) = (Vec::new(), Vec::new());
    let mut last = Instant::now();
    let mut buffer = vec![0; 16 << 10];
    let broken = |what: &str| Error::Broken {
        what: format!("`git {name}` {what}"),
    };
    while stdout.is_some() || stderr.is_some() {
        let silent = last.elapsed();
        if silent > SILENCE {
            return Err(Error::Silent {
                command: name,
                seconds: SILENCE.as_secs(),
            });
        }
        let mut fds = Vec::with_capacity(2);
        fds.extend(stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        wait(&mut fds, cancel)?;
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        if stdout.is_some() && ready.next() == Some(true) {
            last = Instant::now();
            let count = read(stdout.as_mut().expect("just seen"), &mut buffer)
                .map_err(|_| broken("could not be read"))?;
            if count == 0 {
                stdout = None;
            } else if output.len() + count > OUTPUT_BYTES {
                return Err(broken("says too much"));
            }
            output.extend_from_slice(&buffer[..count]);
        }
        if stderr.is_some() && ready.next() == Some(true) {
            last = Instant::now();
            let count = read(stderr.as_mut().expect("just seen"), &mut buffer)
                .map_err(|_| broken("could not be read"))?;
            if count == 0 {
                stderr = None;
            }
            heard(&buffer[..count]);
            said.extend_from_slice(&buffer[..count]);
            // Only the end is of use; a fetch shows its progress for hours.
            let surplus = said.len().saturating_sub(4096);
            said.drain(..surplus);
        }
    }
    Ok((output, last_lines(&said)))
}

/// Returns the last lines that say something, on one line.
fn last_lines(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

/// Waits until something can be read, or the work is cancelled.
pub(super) fn wait(fds: &mut [PollFd<'_>], cancel: &CancellationToken) -> Result<(), Error> {
    let tick = Timespec::try_from(TICK).expect("a short time fits");
    loop {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        match poll(fds, Some(&tick)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => {
                return Err(Error::Broken {
                    what: format!("cannot wait for git: {error}"),
                });
            }
        }
    }
}

/// Reads what is there from a pipe that [`wait`] found ready.
pub(super) fn read(pipe: &mut (impl Read + AsFd), buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match pipe.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Ends a git and its children: politely, so that it removes its temporary files, then not.
pub(super) fn end(child: &mut Child) {
    let group = Pid::from_child(child);
    // It may be gone already.
    let _ = kill_process_group(group, Signal::TERM);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(500) {
        if !matches!(child.try_wait(), Ok(None)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.wait();
}
