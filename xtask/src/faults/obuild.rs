// SPDX-License-Identifier: Apache-2.0
//! The binary under test, running: its events as they come, its end, and everything that descends from it.

use super::processes;
use crate::reaper::{Guard, Item};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// After this a run counts as hanging. Generous: the machine may be busy.
const DEADLINE: Duration = Duration::from_mins(10);

/// One store and one sandbox as `obuild` gets them, with directories of its own for everything else.
#[derive(Debug)]
pub(super) struct Obuild {
    binary: PathBuf,
    pub(super) store: String,
    pub(super) sandbox: String,
    /// Where the store's directory is.
    place: PathBuf,
    /// Spec, context, `$TMPDIR` and `$HOME`; never on the store's file system.
    directory: PathBuf,
    pub(super) docker_host: Option<String>,
    /// Flags of every `run`.
    pub(super) flags: Vec<String>,
    /// Every process id that was started, to know its traces by.
    started: RefCell<Vec<u32>>,
}

/// How one run ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) events: Vec<Value>,
    /// Standard error without the events.
    pub(super) stderr: Vec<String>,
}

/// A run that has not ended.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    guard: Option<Guard>,
    lines: Receiver<String>,
    seen: Vec<String>,
    stdout: Option<std::thread::JoinHandle<String>>,
    began: Instant,
}

impl Obuild {
    pub(super) fn new(
        binary: &Path,
        store: String,
        place: PathBuf,
        sandbox: &str,
        directory: &Path,
        configuration: &str,
    ) -> Result<Self> {
        for name in ["tmp", "home"] {
            fs_err::create_dir_all(directory.join(name))?;
        }
        // What a new rsync store needs; other kinds take no notice.
        let configuration = format!("rsync-mode = \"hardlink\"\n{configuration}");
        fs_err::write(directory.join("config.toml"), configuration)?;
        fs_err::write(
            directory.join(super::recipe::SECRET),
            super::recipe::SECRET_VALUE,
        )?;
        Ok(Self {
            binary: binary.to_owned(),
            store,
            sandbox: sandbox.to_owned(),
            place,
            directory: directory.to_owned(),
            docker_host: None,
            flags: Vec::new(),
            started: RefCell::default(),
        })
    }

    /// Returns the store's directory.
    pub(super) fn store_directory(&self) -> &Path {
        &self.place
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the ids of all processes that were started.
    pub(super) fn started(&self) -> Vec<u32> {
        self.started.borrow().clone()
    }

    /// Starts a command.
    pub(super) fn start(&self, arguments: &[&str]) -> Result<Running> {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", crate::workspace::search_path())
            .env("TMPDIR", self.directory.join("tmp"))
            .env("HOME", self.directory.join("home"))
            .env("OBUILD_STORE", &self.store)
            .env("OBUILD_SANDBOX", &self.sandbox)
            .env("OBUILD_CONFIG", self.directory.join("config.toml"))
            .envs(self.docker_host.as_ref().map(|host| ("DOCKER_HOST", host)))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().context("start obuild")?;
        let guard = Some(Guard::new(Item::Group(id(&child)))?);
        self.started.borrow_mut().push(child.id());
        let (sender, lines) = channel();
        let stderr = child.stderr.take().context("it is a pipe")?;
        // Ends when the last process that holds the pipe does, or when nobody listens any more.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut pipe = child.stdout.take().context("it is a pipe")?;
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What cannot be read is not there.
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Ok(Running {
            child,
            guard,
            lines,
            seen: Vec::new(),
            stdout: Some(stdout),
            began: Instant::now(),
        })
    }

    /// Runs a command to its end.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<Ran> {
        self.start(arguments)?.finish()
    }

    /// Runs a command that must succeed and returns what it printed.
    pub(super) fn ok(&self, arguments: &[&str]) -> Result<String> {
        let ran = self.run(arguments)?;
        if !ran.status.success() {
            bail!("`obuild {}` failed: {}", arguments.join(" "), ran.told());
        }
        Ok(ran.stdout)
    }

    /// Starts to build a spec; `name` is its file's, so that several can be built at once.
    pub(super) fn build(&self, name: &str, text: &str) -> Result<Running> {
        let file = self.directory.join(format!("{name}.spec"));
        fs_err::write(&file, text)?;
        let secret = format!(
            "id={0},src={1}",
            super::recipe::SECRET,
            self.directory.join(super::recipe::SECRET).display()
        );
        let file = file.display().to_string();
        let mut arguments = vec!["run", &file, "context", "--progress", "json"];
        arguments.extend(["--secret", &secret]);
        arguments.extend(self.flags.iter().map(String::as_str));
        self.start(&arguments)
    }
}

fn id(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("Linux's process ids fit")
}

impl Running {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `count` events have come or it has ended, and then `after` more.
    pub(super) fn wait_for_events(&mut self, count: usize, after: Duration) {
        let mut seen = self.seen.len();
        while seen < count {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) => {
                    self.seen.push(line);
                    seen += 1;
                }
                Err(_) => break,
            }
        }
        std::thread::sleep(after);
    }

    /// Returns whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Kills it, and it alone.
    pub(super) fn kill(&self) {
        // One that has ended by itself is a zombie still, so the number is nobody else's.
        kill(Pid::from_raw(id(&self.child)), Signal::SIGKILL).ok();
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it takes far too long; then it is killed with all its descendants.
    pub(super) fn finish(mut self) -> Result<Ran> {
        let mut hung = false;
        loop {
            let left = DEADLINE.saturating_sub(self.began.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                // All that could write to it are gone.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    hung = true;
                    let tree = processes::describe(self.child.id());
                    self.seen.push(format!("hangs; its processes:\n{tree}"));
                    for pid in processes::descendants(self.child.id()) {
                        kill(pid, Signal::SIGKILL).ok();
                    }
                    killpg(Pid::from_raw(id(&self.child)), Signal::SIGKILL).ok();
                    break;
                }
            }
        }
        let status = self.child.wait()?;
        let stdout = self.stdout.take().context("it is taken once")?;
        let stdout = stdout.join().unwrap_or_default();
        if let Some(guard) = self.guard.take() {
            guard.release()?;
        }
        let (mut events, mut stderr) = (Vec::new(), Vec::new());
        for line in self.seen.drain(..) {
            match serde_json::from_str(&line) {
                Ok(event) if line.starts_with('{') => events.push(event),
                _ => stderr.push(line),
            }
        }
        let ran = Ran {
            status,
            stdout: stdout.trim_end().to_owned(),
            events,
            stderr,
        };
        if hung {
            bail!("it hung: {}", ran.told());
        }
        Ok(ran)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.kill();
            self.child.wait().ok();
        }
    }
}

impl Ran {
    /// Returns how it ended, for people.
    pub(super) fn told(&self) -> String {
        let mut text = self.status.to_string();
        for event in &self.events {
            if event["event"] == "step_failed" {
                text = format!("{text}\n{event}");
            }
        }
        for line in &self.stderr {
            text = format!("{text}\n{line}");
        }
        text
    }

    pub(super) fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    /// Returns the ids of steps that ended with one of these outcomes.
    pub(super) fn finished(&self, outcomes: &[&str]) -> BTreeSet<String> {
        self.events
            .iter()
            .filter(|event| event["event"] == "step_finished")
            .filter(|event| outcomes.contains(&event["outcome"].as_str().unwrap_or_default()))
            .filter_map(|event| event["id"].as_str().map(str::to_owned))
            .collect()
    }

    /// Returns what the steps said, by their headings; only of those that ended.
    pub(super) fn logs(&self) -> Vec<(String, String)> {
        let mut steps: BTreeMap<u64, (String, String)> = BTreeMap::new();
        let mut ended = Vec::new();
        for event in &self.events {
            let Some(step) = event["step"].as_u64() else {
                continue;
            };
            match event["event"].as_str() {
                Some("step_started") => {
                    let heading = event["heading"].as_str().unwrap_or_default().to_owned();
                    steps.insert(step, (heading, String::new()));
                }
                Some("step_output") => {
                    if let Some((_, said)) = steps.get_mut(&step) {
                        said.push_str(event["data"].as_str().unwrap_or_default());
                    }
                }
                Some("step_finished") => ended.extend(steps.remove(&step)),
                _ => {}
            }
        }
        ended
    }
}
