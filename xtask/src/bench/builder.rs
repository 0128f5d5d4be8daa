// SPDX-License-Identifier: Apache-2.0
//! What every contestant of the benchmark does: prepare a base once, then build jobs.

use super::measure::{Meter, Sample};
use anyhow::Result;
use std::path::PathBuf;
use std::time::Duration;

/// No single command may take longer.
pub(crate) const DEADLINE: Duration = Duration::from_mins(10);

/// What is built, on the Debian base.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// A chain of so many `true`.
    Steps(u32),
    /// So many independent builds of `sleep 1`, and a last one that copies a file from each.
    Parallel(u32),
    /// One copy of a directory tree.
    Copy(PathBuf),
    /// One command.
    Command(String),
}

/// One build.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What to do.
    pub(crate) work: Work,
    /// Changes every step's identity: a new token makes the same work cold again.
    pub(crate) token: String,
    /// Whether the token is new. For builders whose cache is switched off by a flag.
    pub(crate) cold: bool,
}

/// A directory `files` and a file `new` to be put into `/archive` one after the other, and the image to be pushed.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    /// Where they are.
    pub(crate) context: PathBuf,
    /// What to push it as, without TLS.
    pub(crate) name: String,
}

/// A contestant.
pub(crate) trait Builder {
    /// Returns its name in the table.
    fn label(&self) -> String;

    /// Imports the base and starts what it needs; not measured.
    fn prepare(&mut self, meter: &Meter) -> Result<()>;

    /// Builds the job and measures the whole command, or returns `None` if it has no way to do such work.
    fn build(&mut self, meter: &Meter, job: &Job) -> Result<Option<Sample>>;

    /// Builds and pushes and measures both together, or returns `None` if it does not take part.
    fn publish(&mut self, meter: &Meter, job: &Publish) -> Result<Option<Sample>> {
        let _ = (meter, job);
        Ok(None)
    }
}

/// Returns the Dockerfile for a job, with its context being the copied tree or anything.
pub(crate) fn dockerfile(base: &str, job: &Job) -> String {
    let head = format!("FROM {base}\n");
    match &job.work {
        Work::Steps(count) => head + &"RUN true\n".repeat(*count as usize),
        Work::Command(command) => format!("{head}RUN {command}\n"),
        Work::Copy(_) => format!("{head}COPY . /copied/\n"),
        Work::Parallel(count) => {
            let build = |index| {
                format!("FROM {base} AS b{index}\nRUN sleep 1; echo {index} > /out{index}\n")
            };
            let copy = |index| format!("COPY --from=b{index} /out{index} /out/\n");
            let builds: String = (0..*count).map(build).collect();
            let copies: String = (0..*count).map(copy).collect();
            builds + &head + &copies
        }
    }
}
