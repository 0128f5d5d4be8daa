// SPDX-License-Identifier: Apache-2.0
//! `obuild archive sync`: fetch what a repository's packages declare, as far as it changed.

use super::meter::shown;
use super::package;
use crate::cli::{ArchiveSync, Format};
use crate::commands::run::watch_signals;
use crate::commands::{print, print_json, runtime};
use crate::failure::{Failure, Negative};
use crate::values::{counted, size, time};
use anyhow::Result;
use obuild_archive::fetch::FetchOptions;
use obuild_archive::index::Fields;
use obuild_archive::sync::{Progress, Report, SyncOptions, sync};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(options: &ArchiveSync) -> Result<()> {
    let report = perform(options)?;
    match options.output.format {
        Format::Json => print_json(&to_json(&report))?,
        Format::Text => print(to_text(&report, options))?,
    }
    if !report.failed.is_empty() {
        return Err(Negative.into());
    }
    Ok(())
}

/// Syncs, and shows how far it is.
pub(super) fn perform(options: &ArchiveSync) -> Result<Report> {
    let wanted = sync_options(options)?;
    runtime()?.block_on(async {
        let stop = CancellationToken::new();
        watch_signals(&stop)?;
        let progress = Arc::new(Progress::default());
        let work = sync(&wanted, &progress, &stop);
        Ok(shown(options.output.progress, &progress, "fetched", work).await?)
    })
}

fn sync_options(options: &ArchiveSync) -> Result<SyncOptions> {
    // The same directory by another name is no other repository.
    let local = Path::new(&options.repository).is_dir();
    let repository = match fs_err::canonicalize(&options.repository) {
        Ok(path) if local => path.to_string_lossy().into_owned(),
        _ => options.repository.clone(),
    };
    Ok(SyncOptions {
        repository,
        revision: options.branch.clone().or_else(|| options.commit.clone()),
        directory: options.to.clone(),
        fetch: FetchOptions {
            jobs: options.jobs as usize,
            per_host: options.per_host as usize,
            attempts: options.attempts,
            connect_timeout: options.connect_timeout,
            stall_timeout: options.stall_timeout,
            largest: options.largest,
            proxy: options.proxy.clone(),
            files: local || options.file_urls,
            ..FetchOptions::default()
        },
        upstream_caches: options.upstream_cache.clone(),
        cache_first: options.cache_first,
        retry: options.retry,
        wait: !options.no_wait,
        git: super::index::git(),
        index: fields(options)?,
    })
}

/// Returns what the `repo` file of the index says, if there is to be an index.
fn fields(options: &ArchiveSync) -> Result<Option<Fields>> {
    if options.no_index {
        return Ok(None);
    }
    let mut fields = Fields::default();
    fields.set("archive-mirrors", &options.archive_mirror);
    if let Some(path) = &options.fields {
        let text = fs_err::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read the fields: {error}")))?;
        fields.merge(&text)?;
    }
    Ok(Some(fields))
}

pub(super) fn to_json(report: &Report) -> Value {
    let problems: Vec<Value> = report
        .problems
        .iter()
        .map(|problem| {
            json!({
                "path": problem.path,
                "line": problem.note.line,
                "code": problem.note.code,
                "message": problem.note.message,
            })
        })
        .collect();
    let collisions = report.collisions.iter().map(ToString::to_string);
    json!({
        "nothing_new": report.nothing,
        "from": report.record.from,
        "to": report.record.to,
        "packages": {"read": report.record.packages_read, "removed": report.record.packages_removed},
        "archives": {
            "present": report.present,
            "fetched": report.fetched,
            "bytes": report.fetched_bytes,
            "failed": report.failed.len(),
            "missing": report.missing,
        },
        "index": report.index.as_ref().map(|index| json!({
            "bytes": index.bytes,
            "segments": index.segments,
            "compressed": index.compressed,
        })),
        "failed": report.failed,
        "problems": problems,
        "collisions": collisions.collect::<Vec<_>>(),
        "milliseconds": u64::try_from(report.time.as_millis()).unwrap_or(u64::MAX),
    })
}

/// So many problems are shown; `status --problems` has them all.
const SHOWN: usize = 20;

// Writing to a string cannot fail.
pub(super) fn to_text(report: &Report, options: &ArchiveSync) -> String {
    let mut out = String::new();
    for problem in report.problems.iter().take(SHOWN) {
        let (path, note) = (&problem.path, &problem.note);
        let _ = writeln!(out, "{path}:{}: {}", note.line, note.message);
    }
    if report.problems.len() > SHOWN {
        let _ = writeln!(
            out,
            "… {} more; `obuild archive status --problems {}` has them all",
            report.problems.len() - SHOWN,
            options.to.display()
        );
    }
    for failure in report.failed.iter().take(SHOWN) {
        let names: Vec<&str> = failure.packages.iter().map(|path| package(path)).collect();
        let _ = writeln!(out, "{}: {}", failure.kind.name(), names.join(", "));
        for attempt in &failure.attempts {
            let _ = writeln!(out, "  {}: {}", attempt.url, attempt.reason);
        }
    }
    if report.failed.len() > SHOWN {
        let _ = writeln!(
            out,
            "… {} more; `obuild archive status {}` has them all",
            report.failed.len() - SHOWN,
            options.to.display()
        );
    }
    for collision in &report.collisions {
        let _ = writeln!(
            out,
            "{collision} belongs to two archives; the first one keeps it"
        );
    }
    let commit = report.record.to.get(..12).unwrap_or(&report.record.to);
    if report.nothing {
        let _ = write!(out, "nothing new since {commit}");
    } else {
        let _ = write!(
            out,
            "at {commit}: {} read, {} removed; {} fetched ({}), {} there before",
            counted(report.record.packages_read, "package"),
            report.record.packages_removed,
            counted(report.fetched, "archive"),
            size(report.fetched_bytes),
            report.present,
        );
    }
    if report.missing > 0 {
        let _ = write!(out, "; {} missing", report.missing);
    }
    if let Some(index) = &report.index {
        let _ = write!(out, "; index {}", size(index.bytes));
    }
    let _ = writeln!(out, "; {}", time(report.time));
    out
}
