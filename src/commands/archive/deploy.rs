// SPDX-License-Identifier: Apache-2.0
//! `obuild archive deploy`: from merge to live, one stage after the other, each doing what is left to do.
//!
//! No stage needs to be told that the one before it was done by an earlier run: what is synced, packed and pushed is remembered by the
//! archive. Only for which image the command has succeeded is remembered here.

use super::image::{Made, Pushed, Work, summary};
use super::sync;
use crate::cli::{ArchiveDeploy, Format, Global};
use crate::commands::{print, print_json};
use crate::failure::{Failure, Negative};
use anyhow::Result;
use obuild_archive::sync::Report;
use obuild_engine::Kind;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the stages did.
struct Done {
    sync: Report,
    /// What the image is, in a line.
    image: String,
    planning: Duration,
    made: Made,
    /// Whether the command was run; nothing if there is none.
    command: Option<bool>,
    then: Duration,
}

pub(crate) fn run(global: &Global, options: &ArchiveDeploy) -> Result<()> {
    if options.image.push.is_empty() {
        return Err(Failure::usage("nobody gets the image")
            .hint("name a registry with --push")
            .into());
    }
    let sync = sync::perform(&options.sync)?;
    let begun = Instant::now();
    let work = Work::plan(global, &options.sync.to, &options.image, false)?;
    let image = summary(&work.planned, work.will.0);
    let planning = begun.elapsed();
    let made = work.make(options.sync.output.progress, None)?;
    let begun = Instant::now();
    let command = then(options, &made.digest, &sync.record.to)?;
    let done = Done {
        sync,
        image,
        planning,
        made,
        command,
        then: begun.elapsed(),
    };
    match options.sync.output.format {
        Format::Json => print_json(&done.to_json())?,
        Format::Text => {
            print(sync::to_text(&done.sync, &options.sync) + &done.to_text())?;
        }
    }
    if done.sync.failed.is_empty() {
        Ok(())
    } else {
        Err(Negative.into())
    }
}

/// Runs the command, unless it has succeeded for this image before.
fn then(options: &ArchiveDeploy, digest: &str, commit: &str) -> Result<Option<bool>> {
    let Some(command) = &options.then else {
        return Ok(None);
    };
    let path: PathBuf = options.sync.to.join(".obuild/deployed");
    let wanted = format!("{digest}\n{command}\n");
    if fs_err::read_to_string(&path).is_ok_and(|done| done == wanted) {
        return Ok(Some(false));
    }
    let place = options.image.push.first().map_or("", String::as_str);
    // A name with a tag and a digest is one that any tool takes.
    let status = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .env("OBUILD_IMAGE", format!("{place}@{digest}"))
        .env("OBUILD_COMMIT", commit)
        .status()
        .map_err(|error| Failure::host(format!("cannot run the command: {error}")))?;
    if !status.success() {
        return Err(Failure {
            kind: Kind::Build,
            message: format!("the image is pushed, but the command failed: {status}"),
            hint: Some("the next deployment runs it again".to_owned()),
        }
        .into());
    }
    fs_err::write(&path, wanted)
        .map_err(|error| Failure::host(format!("cannot remember the deployment: {error}")))?;
    Ok(Some(true))
}

impl Done {
    /// Returns whether there was nothing to do: the deployment of before stands.
    fn skipped(&self) -> bool {
        let pushed = self
            .made
            .pushed
            .iter()
            .any(|pushed| pushed.report.is_some());
        self.sync.nothing && !pushed && self.command != Some(true)
    }

    fn making(&self) -> Duration {
        self.planning + self.made.making
    }

    fn to_json(&self) -> Value {
        let pushed: Vec<Value> = self.made.pushed.iter().map(Pushed::to_json).collect();
        let mut value = json!({
            "skipped": self.skipped(),
            "sync": sync::to_json(&self.sync),
            "image": {
                "digest": self.made.digest,
                "pushed": pushed,
                "seconds": self.making().as_secs_f64(),
            },
            "push": {"seconds": self.made.pushing.as_secs_f64()},
        });
        if let Some(ran) = self.command {
            value["command"] = json!({"ran": ran, "seconds": self.then.as_secs_f64()});
        }
        value
    }

    // Writing to a string cannot fail.
    fn to_text(&self) -> String {
        let mut out = format!("image: {}", self.image);
        for pushed in &self.made.pushed {
            out.push_str(&pushed.to_text());
        }
        match self.command {
            Some(true) => out.push_str("command: done\n"),
            Some(false) => out.push_str("command: skipped, it was done for this image\n"),
            None => {}
        }
        if self.skipped() {
            out.push_str("nothing has changed: the last deployment stands\n");
        }
        let _ = write!(
            out,
            "seconds: sync {:.1}, image {:.1}, push {:.1}",
            self.sync.time.as_secs_f64(),
            self.making().as_secs_f64(),
            self.made.pushing.as_secs_f64()
        );
        if self.command == Some(true) {
            let _ = write!(out, ", command {:.1}", self.then.as_secs_f64());
        }
        let _ = writeln!(out, "\n{}", self.made.digest);
        out
    }
}
