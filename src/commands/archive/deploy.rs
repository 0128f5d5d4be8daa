// SPDX-License-Identifier: Apache-2.0
//! `obuild archive deploy`: from merge to live, one stage after the other, each doing what is left to do.
//!
//! No stage needs to be told that the one before it was done by an earlier run: what is synced, packed and pushed is remembered by the
//! archive. Only for which image the command has succeeded is remembered here.

use super::image::{Pushed, Work};
use super::sync;
use crate::cli::{ArchiveDeploy, Format, Global};
use crate::commands::{print, print_json};
use crate::failure::{Failure, Negative};
use crate::values::size;
use anyhow::Result;
use obuild_engine::Kind;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the stages after the sync did.
struct Done {
    digest: String,
    pushed: Vec<Pushed>,
    /// Whether the command was run; nothing if there is none.
    command: Option<bool>,
    image: Duration,
    then: Duration,
}

pub(crate) fn run(global: &Global, options: &ArchiveDeploy) -> Result<()> {
    if options.image.push.is_empty() {
        return Err(Failure::usage("nobody gets the image")
            .hint("name a registry with --push")
            .into());
    }
    let report = sync::perform(&options.sync)?;
    let begun = Instant::now();
    let work = Work::plan(global, &options.sync.to, &options.image)?;
    let (digest, pushed) = work.make(options.sync.progress, None)?;
    let image = begun.elapsed();
    let begun = Instant::now();
    let command = then(options, &digest, &report.record.to)?;
    let done = Done {
        digest,
        pushed,
        command,
        image,
        then: begun.elapsed(),
    };
    match options.sync.format {
        Format::Json => {
            let mut value = json!({"sync": sync::to_json(&report)});
            add(&mut value, &done);
            print_json(&value)?;
        }
        Format::Text => {
            print(sync::to_text(&report, &options.sync))?;
            print(to_text(&done))?;
        }
    }
    if report.failed.is_empty() {
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

fn add(value: &mut Value, done: &Done) {
    let pushed: Vec<Value> = done.pushed.iter().map(Pushed::to_json).collect();
    value["image"] =
        json!({"digest": done.digest, "pushed": pushed, "seconds": done.image.as_secs_f64()});
    if let Some(ran) = done.command {
        value["command"] = json!({"ran": ran, "seconds": done.then.as_secs_f64()});
    }
}

// Writing to a string cannot fail.
fn to_text(done: &Done) -> String {
    let mut out = String::new();
    for pushed in &done.pushed {
        let _ = match &pushed.report {
            Some(report) => writeln!(
                out,
                "{}: sent {}, spared {}, in {:.1} s",
                pushed.name,
                size(report.sent_bytes),
                size(report.spared_bytes),
                done.image.as_secs_f64()
            ),
            None => writeln!(out, "{}: skipped, it has this image already", pushed.name),
        };
    }
    match done.command {
        Some(true) => {
            let _ = writeln!(out, "command: done in {:.1} s", done.then.as_secs_f64());
        }
        Some(false) => out.push_str("command: skipped, it was done for this image\n"),
        None => {}
    }
    let _ = writeln!(out, "{}", done.digest);
    out
}
