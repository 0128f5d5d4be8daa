// SPDX-License-Identifier: Apache-2.0
//! `obuild store copy FROM TO`: move results between stores of any kinds.

use super::shown;
use crate::cli::{Format, Global, SandboxOptions, StoreCopy};
use crate::commands::run::watch_signals;
use crate::commands::{open_sandbox, print, print_json, runtime};
use crate::config::{Config, parse_store};
use crate::failure::{Failure, Negative};
use crate::values::{counted, size};
use anyhow::Result;
use obuild_engine::{CopyOptions, CopyReport, Engine, Progress};
use obuild_stores::{Kind, StoreUrl};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &Global, options: &StoreCopy) -> Result<()> {
    let config = Config::read(global)?;
    let (from, to) = (parse_store(&options.from)?, parse_store(&options.to)?);
    if from == to {
        return Err(Failure::usage("the two stores are the same").into());
    }
    // Opening a store makes it where there is none: right for the new one only.
    if from.path.is_absolute() && !from.path.exists() {
        return Err(Failure::usage(format!("there is no store {from}")).into());
    }
    let from = open(&from, global, &config)?;
    let to = open(&to, global, &config)?;
    let report = runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        watch_signals(&cancel)?;
        let mut ids = Vec::new();
        for text in &options.ids {
            ids.push(from.find(text).await?);
        }
        let wanted = CopyOptions {
            ids: (!options.all).then_some(ids),
            caches: options.caches,
            threads: options.jobs,
        };
        let progress = Arc::new(Progress::default());
        let work = from.copy_to(&to, wanted, Arc::clone(&progress), &cancel);
        anyhow::Ok(shown("copied", &progress, work).await?)
    })?;
    match options.format {
        Format::Json => print_json(&to_json(&report))?,
        Format::Text => print(to_text(&report))?,
    }
    if !report.failed.is_empty() {
        return Err(Negative.into());
    }
    Ok(())
}

fn open(url: &StoreUrl, global: &Global, config: &Config) -> Result<Arc<Engine>> {
    let mut how = config.store_options(global, url)?;
    // A mode is meant for whichever of the two has one.
    how.rsync_mode = how.rsync_mode.filter(|_| url.kind == Kind::Rsync);
    let store = obuild_stores::open(url, &how)?;
    let sandbox = open_sandbox(global, &SandboxOptions::default(), config, &*store)?;
    Ok(Engine::open(store, sandbox, 1)?)
}

fn to_json(report: &CopyReport) -> Value {
    let failed: Vec<Value> = report
        .failed
        .iter()
        .map(|(id, why)| json!({"id": id.to_string(), "message": why}))
        .collect();
    json!({
        "copied": report.copied,
        "present": report.present,
        "bytes": report.bytes,
        "caches": report.caches,
        "failed": failed,
    })
}

fn to_text(report: &CopyReport) -> String {
    let mut out = String::new();
    for (id, why) in &report.failed {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "failed  {}  {why}", &id.to_string()[..12]);
    }
    let _ = write!(
        out,
        "copied {}, {}; {} there before",
        counted(report.copied, "snapshot"),
        size(report.bytes),
        report.present
    );
    if report.caches > 0 {
        let _ = write!(out, "; {}", counted(report.caches, "cache"));
    }
    if !report.failed.is_empty() {
        let _ = write!(
            out,
            "; {} failed, and what stands on them was left out",
            report.failed.len()
        );
    }
    let _ = writeln!(out);
    out
}
