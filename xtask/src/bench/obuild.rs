// SPDX-License-Identifier: Apache-2.0
//! Our own contestant: the release build of `obuild`, with one store and one sandbox.

use super::builder::{Builder, DEADLINE, Job, Publish, Work};
use super::measure::{Meter, Sample};
use crate::workspace;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// `obuild` on one store.
pub(crate) struct Obuild {
    store: String,
    sandbox: &'static str,
    base: PathBuf,
    scratch: PathBuf,
    /// The daemon of a store or sandbox of docker's.
    pub(super) docker_host: Option<String>,
}

impl Obuild {
    /// `store` is a store URL; `base` the Debian tar; `scratch` takes spec files.
    pub(crate) fn new(store: String, sandbox: &'static str, base: &Path, scratch: &Path) -> Self {
        Self {
            store,
            sandbox,
            base: base.to_owned(),
            scratch: scratch.to_owned(),
            docker_host: None,
        }
    }

    /// Returns the same with another base.
    pub(crate) fn with_base(&self, base: &Path) -> Self {
        Self::new(self.store.clone(), self.sandbox, base, &self.scratch)
    }

    pub(super) fn command(&self, job: &Job) -> Result<Vec<String>> {
        let spec = self.scratch.join("bench.spec");
        fs_err::write(&spec, self.spec(job))?;
        let mut command = vec![
            workspace::target()
                .join("release/obuild")
                .display()
                .to_string(),
            "run".to_owned(),
            spec.display().to_string(),
        ];
        if let Work::Copy(context) = &job.work {
            command.push(context.display().to_string());
        }
        let flags = [
            "--store",
            &self.store,
            "--sandbox",
            self.sandbox,
            "--progress",
            "plain",
        ];
        command.extend(flags.map(str::to_owned));
        if self.store.starts_with("rsync:") {
            command.extend(["--rsync-mode", "hardlink"].map(str::to_owned));
        }
        if let Some(host) = &self.docker_host {
            command.extend(["--docker-host".to_owned(), host.clone()]);
        }
        if let Work::Parallel(count) = job.work {
            command.extend(["--jobs".to_owned(), count.to_string()]);
        }
        Ok(command)
    }

    fn spec(&self, job: &Job) -> String {
        let from = format!("(from tar:{})", self.base.display());
        let head = format!("(shell /bin/sh -c) (env BENCH {:?})", job.token);
        match &job.work {
            Work::Steps(count) => {
                let steps = "\n (run (shell true))".repeat(*count as usize);
                format!("({from} {head}{steps})\n")
            }
            Work::Command(command) => format!("({from} {head} (run (shell {command:?})))\n"),
            Work::Pull(image) => format!("((from {image}) {head} (run (shell true)))\n"),
            Work::Copy(_) => format!(
                "({from} {head} (copy (src .) (dst /copied/{}/)))\n",
                job.token
            ),
            Work::Parallel(count) => {
                let build = |index| {
                    let command = format!("sleep 1; echo {index} > /out{index}");
                    format!("(build b{index} ({from} {head} (run (shell {command:?}))))\n ")
                };
                let copy = |index| {
                    format!("\n (copy (from (build b{index})) (src /out{index}) (dst /out/))")
                };
                let builds: String = (0..*count).map(build).collect();
                let copies: String = (0..*count).map(copy).collect();
                format!("({builds}{from} {head}{copies})\n")
            }
        }
    }
}

impl Builder for Obuild {
    fn label(&self) -> String {
        let kind = self.store.split(':').next().unwrap_or_default();
        format!("obuild {kind}+{}", self.sandbox)
    }

    fn prepare(&mut self, meter: &Meter) -> Result<()> {
        let job = Job {
            work: Work::Steps(1),
            token: "prepare".to_owned(),
            cold: true,
        };
        self.build(meter, &job)?;
        // A program that does nothing would win.
        let (kind, store) = self.store.split_once(':').unwrap_or_default();
        anyhow::ensure!(
            kind == "zfs" || Path::new(store).exists(),
            "obuild has built nothing: there is no {store}"
        );
        Ok(())
    }

    fn build(&mut self, meter: &Meter, job: &Job) -> Result<Option<Sample>> {
        if matches!(job.work, Work::Pull(_)) {
            // Nothing of it may be there: a store of its own each time.
            let fresh = Self::new(
                format!("{}-{}", self.store, job.token),
                self.sandbox,
                &self.base,
                &self.scratch,
            );
            let sample = meter.run(&fresh.command(job)?, &[], DEADLINE)?;
            let (_, directory) = fresh.store.split_once(':').unwrap_or_default();
            fs_err::remove_dir_all(directory)?;
            return Ok(Some(sample));
        }
        meter.run(&self.command(job)?, &[], DEADLINE).map(Some)
    }

    fn publish(&mut self, meter: &Meter, job: &Publish) -> Result<Option<Sample>> {
        let spec = self.scratch.join("publish.spec");
        let text = format!(
            "((from tar:{}) (copy (src files) (dst /archive/)) (copy (src new) (dst /archive/)))\n",
            self.base.display()
        );
        fs_err::write(&spec, text)?;
        let program = workspace::target().join("release/obuild");
        let command = [
            &program.display().to_string(),
            "run",
            &spec.display().to_string(),
            &job.context.display().to_string(),
            "--store",
            &self.store,
            "--sandbox",
            self.sandbox,
            "-q",
            "--push",
            "-t",
            &job.name,
        ];
        let command = command.map(str::to_owned);
        meter.run(&command, &[], DEADLINE).map(Some)
    }
}
