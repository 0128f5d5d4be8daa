// SPDX-License-Identifier: Apache-2.0
//! `buildah build` with its layer cache, on storage of our own.

use super::builder::{Builder, DEADLINE, Job, Work, dockerfile};
use super::measure::{Meter, Sample};
use crate::cmd::Cmd;
use anyhow::Result;
use std::path::{Path, PathBuf};

const BASE: &str = "localhost/obuild-bench-base";

/// The command and its storage.
pub(crate) struct Buildah {
    root: PathBuf,
    base: PathBuf,
}

impl Buildah {
    /// `root` is an empty directory, `base` the Debian tar.
    pub(crate) fn new(root: &Path, base: &Path) -> Self {
        Self {
            root: root.to_owned(),
            base: base.to_owned(),
        }
    }

    fn command(&self) -> Vec<String> {
        let at = |name: &str| self.root.join(name).display().to_string();
        let flags = ["buildah", "--root", &at("storage"), "--runroot", &at("run")];
        let mut command: Vec<String> = flags.map(str::to_owned).into();
        command.extend(["--storage-driver", "overlay"].map(str::to_owned));
        command
    }

    fn tool(&self, arguments: &[&str]) -> Result<()> {
        let command = self.command();
        let (name, value) = self.environment()?;
        Cmd::new(&command[0])
            .args(&command[1..])
            .args(arguments)
            .env(name, value)
            .output()
            .map(drop)
    }

    /// Its temporary files go where they are deleted with the rest.
    fn environment(&self) -> Result<(&'static str, String)> {
        let tmp = self.root.join("tmp");
        fs_err::create_dir_all(&tmp)?;
        Ok(("TMPDIR", tmp.display().to_string()))
    }

    /// Everything is accepted: the images are our own.
    fn policy(&self) -> Result<String> {
        let path = self.root.join("policy.json");
        fs_err::write(&path, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        Ok(format!("--signature-policy={}", path.display()))
    }
}

impl Builder for Buildah {
    fn label(&self) -> String {
        "buildah build".to_owned()
    }

    fn prepare(&mut self, _meter: &Meter) -> Result<()> {
        let policy = self.policy()?;
        self.tool(&["from", "--name", "base", "scratch"])?;
        self.tool(&["add", "base", &self.base.display().to_string(), "/"])?;
        self.tool(&["commit", &policy, "--disable-compression", "base", BASE])?;
        self.tool(&["rm", "base"])
    }

    fn build(&mut self, meter: &Meter, job: &Job) -> Result<Option<Sample>> {
        let empty = self.root.join("empty");
        fs_err::create_dir_all(&empty)?;
        let context = match &job.work {
            Work::Copy(context) => context,
            _ => &empty,
        };
        let file = self.root.join("Dockerfile");
        fs_err::write(&file, dockerfile(BASE, job))?;
        let mut command = self.command();
        command.extend(["bud".to_owned(), self.policy()?]);
        let flags = [
            "--layers",
            "--pull-never",
            "--network",
            "none",
            "--isolation",
            "oci",
        ];
        command.extend(flags.map(str::to_owned));
        if job.cold {
            command.push("--no-cache".to_owned());
        }
        if let Work::Parallel(count) = job.work {
            command.push(format!("--jobs={count}"));
        }
        command.extend([
            "-t".to_owned(),
            "localhost/obuild-bench".to_owned(),
            "-f".to_owned(),
        ]);
        command.push(file.display().to_string());
        command.push(context.display().to_string());
        let environment = [self.environment()?];
        meter.run(&command, &environment, DEADLINE).map(Some)
    }
}
