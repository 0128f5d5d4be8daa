// SPDX-License-Identifier: Apache-2.0
//! `docker build` against a daemon of our own: private socket and data, no bridge, no firewall rules.

use super::builder::{Builder, DEADLINE, Job, Publish, Work, dockerfile};
use super::measure::{Meter, Sample};
use crate::cmd::Cmd;
use crate::dockerd::Daemon;
use anyhow::Result;
use std::path::{Path, PathBuf};

const BASE: &str = "obuild-bench-base:latest";

/// The daemon and its command.
pub(crate) struct Docker {
    root: PathBuf,
    base: PathBuf,
    daemon: Option<Daemon>,
}

impl Docker {
    /// `root` is an empty directory, `base` the Debian tar.
    pub(crate) fn new(root: &Path, base: &Path) -> Self {
        Self {
            root: root.to_owned(),
            base: base.to_owned(),
            daemon: None,
        }
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        [
            (
                "DOCKER_HOST",
                format!("unix://{}/docker.sock", self.root.display()),
            ),
            (
                "DOCKER_CONFIG",
                self.root.join("config").display().to_string(),
            ),
            // What this command line does without the separate buildx plugin.
            ("DOCKER_BUILDKIT", "0".to_owned()),
        ]
    }

    fn docker(&self) -> Cmd {
        let environment = self.environment();
        environment
            .iter()
            .fold(Cmd::new("docker"), |command, (name, value)| {
                command.env(name, value)
            })
    }
}

impl Builder for Docker {
    fn label(&self) -> String {
        "docker build".to_owned()
    }

    fn prepare(&mut self, meter: &Meter) -> Result<()> {
        let group = format!("--cgroup-parent=/{}", meter.group().name);
        let mut daemon = Daemon::start(&self.root, &[group])?;
        if let Some(id) = daemon.id() {
            meter.group().adopt(id)?;
        }
        daemon.wait()?;
        self.daemon = Some(daemon);
        self.docker()
            .arg("import")
            .arg(&self.base)
            .arg(BASE)
            .output()
            .map(drop)
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
        let mut command: Vec<String> = ["docker", "build", "--network", "none", "-f"]
            .map(str::to_owned)
            .into();
        command.push(file.display().to_string());
        if job.cold {
            command.push("--no-cache".to_owned());
        }
        command.push(context.display().to_string());
        meter.run(&command, &self.environment(), DEADLINE).map(Some)
    }

    fn publish(&mut self, meter: &Meter, job: &Publish) -> Result<Option<Sample>> {
        let file = self.root.join("Dockerfile.publish");
        let text = format!("FROM {BASE}\nCOPY files /archive/\nCOPY new /archive/\n");
        fs_err::write(&file, text)?;
        let script = "docker build -t \"$1\" -f \"$2\" \"$3\" && docker push \"$1\"";
        let command = [
            "sh",
            "-c",
            script,
            "sh",
            &job.name,
            &file.display().to_string(),
            &job.context.display().to_string(),
        ];
        let command = command.map(str::to_owned);
        meter.run(&command, &self.environment(), DEADLINE).map(Some)
    }
}
