// SPDX-License-Identifier: Apache-2.0
//! Measures one command: wall time, processor time, peak memory.
//!
//! The measuring is done by a second, small process of ours per command, because the kernel's figures for "waited-for
//! children" (getrusage(2), `RUSAGE_CHILDREN`) never go down again and a child's peak memory begins with its parent's.
//! Where there is a cpuacct cgroup (v1), processor time is taken from it too: it also knows processes that
//! nobody waits for, and daemons that work on the command's behalf. The larger of both counts.

use crate::cmd::Cmd;
use crate::reaper::{Guard, Item};
use anyhow::{Context, Result, bail};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The hidden task under which the measuring process runs.
pub(crate) const VERB: &str = "__measure";

/// What one run of a command took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Wall time from just before the start to the end.
    pub(crate) wall: Duration,
    /// User and system time of the command and all that worked for it.
    pub(crate) cpu: Duration,
    /// Resident memory of its largest process, in KiB.
    pub(crate) peak_kib: u64,
}

/// Runs commands and measures them.
pub(crate) struct Meter {
    /// Where commands' output goes, for the error message.
    log: PathBuf,
    group: Group,
}

/// A cgroup of our own in every v1 hierarchy, or none.
pub(crate) struct Group {
    /// Its path below each hierarchy, for what takes a cgroup parent.
    pub(crate) name: String,
    /// Its directory in the cpuacct hierarchy. This process is in it, and so is whatever it starts: to move each command into it would make the
    /// kernel take the slow way at every fork for a while after, in the command too.
    cpuacct: Option<PathBuf>,
    _guards: Vec<Guard>,
}

impl Group {
    fn create() -> Result<Self> {
        let name = format!("obuild-bench-{}", std::process::id());
        let mut guards = Vec::new();
        let mut cpuacct = None;
        if let Ok(hierarchies) = fs_err::read_dir("/sys/fs/cgroup") {
            for hierarchy in hierarchies.flatten() {
                let directory = hierarchy.path().join(&name);
                if hierarchy.path().join("cgroup.procs").exists() {
                    // The container runtimes make it where we do not.
                    guards.push(Guard::new(Item::Cgroup(directory.clone()))?);
                }
                // Only v1: in v2 the sandboxes sit in cgroups of their own.
                let usage = hierarchy.path().join("cpuacct.usage");
                if usage.exists() && cpuacct.is_none() && fs_err::create_dir(&directory).is_ok() {
                    fs_err::write(directory.join("cgroup.procs"), "0")?;
                    cpuacct = Some(directory);
                }
            }
        }
        Ok(Self {
            name,
            cpuacct,
            _guards: guards,
        })
    }

    /// Moves a daemon into the group, so that its work is counted.
    pub(crate) fn adopt(&self, pid: u32) -> Result<()> {
        if let Some(directory) = &self.cpuacct {
            fs_err::write(directory.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Out of it, so that it can be removed.
        if let Some(hierarchy) = self.cpuacct.as_ref().and_then(|group| group.parent()) {
            let _ = fs_err::write(hierarchy.join("cgroup.procs"), "0");
        }
    }
}

impl Meter {
    /// Prepares to measure; `scratch` takes the output of the commands.
    pub(crate) fn create(scratch: &Path) -> Result<Self> {
        Ok(Self {
            log: scratch.join("command.log"),
            group: Group::create()?,
        })
    }

    /// Returns the cgroup that measured commands run in.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Says where processor times come from.
    pub(crate) fn source(&self) -> &'static str {
        match self.group.cpuacct {
            Some(_) => "cpuacct cgroup, or getrusage of the children where that is more",
            None => "getrusage of the children (daemons are not seen)",
        }
    }

    /// Runs `command` to its end.
    ///
    /// # Errors
    ///
    /// When it fails or takes longer than `deadline`; the end of its output is shown.
    pub(crate) fn run(
        &self,
        command: &[String],
        environment: &[(&str, String)],
        deadline: Duration,
    ) -> Result<Sample> {
        let own = std::env::current_exe().context("find our own program")?;
        let mut measure = Cmd::new(own).quiet().arg(VERB).arg(&self.log);
        measure = match &self.group.cpuacct {
            Some(directory) => measure.arg(directory),
            None => measure.arg(""),
        };
        for (name, value) in environment {
            measure = measure.env(name, value);
        }
        let line = measure
            .args(command)
            .deadline(deadline)
            .stdout()
            .inspect_err(|_| {
                let text = fs_err::read(&self.log).unwrap_or_default();
                let text =
                    String::from_utf8_lossy(&text[text.len().saturating_sub(4000)..]).into_owned();
                eprintln!("$ {}\n{text}", command.join(" "));
            })?;
        parse(&line).with_context(|| format!("read {line:?}"))
    }
}

/// Is the measuring process: `LOG CGROUP PROGRAM ARGUMENT…`.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    let [log, cgroup, program, rest @ ..] = arguments else {
        bail!("usage: {VERB} LOG CGROUP PROGRAM ARGUMENT…");
    };
    let log = fs_err::File::create(log)?.into_parts().0;
    let mut command = Command::new(program);
    command
        .args(rest)
        .stdin(Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log);
    let before = group_usage(cgroup);
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("start {program}"))?;
    let wall = start.elapsed();
    let after = group_usage(cgroup);
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = processor_time(&usage).max(after.saturating_sub(before));
    let peak_kib = usage.max_rss();
    println!("{} {} {peak_kib}", wall.as_nanos(), cpu.as_nanos());
    Ok(())
}

fn processor_time(usage: &Usage) -> Duration {
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn group_usage(cgroup: &str) -> Duration {
    let path = Path::new(cgroup).join("cpuacct.usage");
    let text = fs_err::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.trim().parse().unwrap_or(0))
}

fn parse(line: &str) -> Option<Sample> {
    let mut words = line.split_whitespace().map(|word| word.parse::<u64>().ok());
    Some(Sample {
        wall: Duration::from_nanos(words.next()??),
        cpu: Duration::from_nanos(words.next()??),
        peak_kib: words.next()??,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_sample() {
        let sample = Sample {
            wall: Duration::from_millis(2),
            cpu: Duration::from_micros(1),
            peak_kib: 77,
        };
        assert_eq!(parse("2000000 1000 77\n"), Some(sample));
        assert_eq!(parse("2000000 1000"), None);
    }
}
