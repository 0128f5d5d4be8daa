// SPDX-License-Identifier: Apache-2.0
//! The one way in which tasks start other programs.
//!
//! Every child is announced on stderr, has its own process group, nothing on its standard input, and ends with us.

use crate::reaper::{Guard, Item};
use crate::workspace;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A command that is to run to its end.
#[must_use]
pub(crate) struct Cmd {
    command: Command,
    shown: String,
    quiet: bool,
    deadline: Option<Duration>,
}

impl Cmd {
    /// Prepares `program`, which is looked up on the search path with the system directories.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let found = program
            .to_str()
            .filter(|name| !name.contains('/'))
            .and_then(workspace::find_program)
            .map_or_else(|| program.to_owned(), OsString::from);
        let mut command = Command::new(found);
        command
            .env("PATH", workspace::search_path())
            .current_dir(workspace::root())
            .stdin(Stdio::null())
            .process_group(0);
        let shown = Path::new(program)
            .file_name()
            .unwrap_or(program)
            .to_string_lossy()
            .into_owned();
        Self {
            command,
            shown,
            quiet: false,
            deadline: None,
        }
    }

    /// Prepares the cargo that runs us, without what it tells us of our own package: some build scripts (ring's) run anew when that differs, so
    /// that a person's `cargo build` and ours would each undo the other's work.
    pub(crate) fn cargo() -> Self {
        let mut cargo = Self::new(workspace::cargo());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.command.env_remove(&name);
            }
        }
        cargo
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        let argument = argument.as_ref();
        let text = argument.to_string_lossy();
        let plain = !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_alphanumeric() || "-_=/.,:+@%".contains(c));
        if plain {
            write!(self.shown, " {text}").expect("a string takes everything");
        } else {
            write!(self.shown, " '{}'", text.replace('\'', "'\\''"))
                .expect("a string takes everything");
        }
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(self, arguments: impl IntoIterator<Item = A>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        let value = value.as_ref();
        self.shown = format!("{name}={} {}", value.to_string_lossy(), self.shown);
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Does not announce the command.
    pub(crate) fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// Kills the command when it takes longer.
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Runs it with our output streams.
    ///
    /// # Errors
    ///
    /// When it cannot be started, takes too long or fails.
    pub(crate) fn run(mut self) -> Result<()> {
        let shown = self.shown.clone();
        let status = self.wait()?.status;
        check(&shown, status)
    }

    /// Runs it and returns its standard output; its standard error is shown only when it fails.
    pub(crate) fn output(mut self) -> Result<String> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = self.shown.clone();
        let output = self.wait()?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            for text in [&stdout, &stderr] {
                for line in tail(text, 20) {
                    eprintln!("  {line}");
                }
            }
        }
        check(&shown, output.status)?;
        Ok(stdout.into_owned())
    }

    /// Runs it with our standard error and returns its standard output.
    pub(crate) fn stdout(mut self) -> Result<String> {
        self.command.stdout(Stdio::piped());
        let shown = self.shown.clone();
        let output = self.wait()?;
        check(&shown, output.status)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it, shows nothing, and returns whether it succeeded.
    pub(crate) fn try_quietly(mut self) -> bool {
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        self.wait().is_ok_and(|output| output.status.success())
    }

    fn wait(&mut self) -> Result<Output> {
        if !self.quiet {
            eprintln!("$ {}", self.shown);
        }
        let child = self
            .command
            .spawn()
            .with_context(|| format!("start `{}`", self.shown))?;
        let pid = i32::try_from(child.id()).context("a process id fits")?;
        let guard = Guard::new(Item::Group(pid))?;
        let (done, waiting) = mpsc::channel::<()>();
        let watchdog = self.deadline.map(|deadline| {
            std::thread::spawn(move || {
                let late = waiting.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout);
                if late {
                    killpg(Pid::from_raw(pid), Signal::SIGKILL).ok();
                }
                late
            })
        });
        let output = child.wait_with_output();
        drop(done);
        let late = watchdog.is_some_and(|watchdog| watchdog.join().unwrap_or(false));
        guard.release()?;
        if late {
            bail!("`{}` took too long and was killed", self.shown);
        }
        output.with_context(|| format!("wait for `{}`", self.shown))
    }
}

/// Does what a network's hiccup or another program's lock may make fail; twice more, with pauses, if it does.
pub(crate) fn again<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 0..2 {
        match work() {
            Ok(done) => return Ok(done),
            Err(error) => eprintln!("{error:#}; once more in half a minute"),
        }
        std::thread::sleep(Duration::from_secs(30));
    }
    work()
}

/// A program that runs beside us until this is dropped.
pub(crate) struct Background {
    child: std::process::Child,
    guard: Option<Guard>,
}

impl Background {
    /// Starts the command with its output in the file `log`.
    pub(crate) fn start(mut command: Cmd, log: &Path) -> Result<Self> {
        eprintln!("$ {} &", command.shown);
        let file = fs_err::File::create(log)?.into_parts().0;
        command.command.stderr(file.try_clone()?).stdout(file);
        let child = command
            .command
            .spawn()
            .with_context(|| format!("start `{}`", command.shown))?;
        let pid = i32::try_from(child.id()).context("a process id fits")?;
        let guard = Some(Guard::new(Item::Group(pid))?);
        Ok(Self { child, guard })
    }

    /// Returns its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The child becomes a zombie before its group is gone: reap it while the guard waits for the group.
        let guard = self.guard.take();
        let pid = i32::try_from(self.child.id()).unwrap_or(0);
        killpg(Pid::from_raw(pid), Signal::SIGTERM).ok();
        for _ in 0..500 {
            if !self.is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(guard);
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn check(shown: &str, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{shown}` failed: {status}")
}

fn tail(text: &str, count: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_failure() {
        assert_eq!(Cmd::new("printf").arg("a b").output().unwrap(), "a b");
        let error = Cmd::new("false").run().unwrap_err().to_string();
        assert!(error.starts_with("`false` failed"), "{error}");
    }

    #[test]
    fn a_deadline_ends_the_whole_group() {
        let error = Cmd::new("sh")
            .args(["-c", "sleep 60 | sleep 60"])
            .deadline(Duration::from_millis(100))
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("took too long"), "{error}");
    }
}
