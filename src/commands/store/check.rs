// SPDX-License-Identifier: Apache-2.0
//! `obuild store check`: verify every snapshot, and put the books right.

use super::shown;
use crate::cli::{Format, Global, StoreCheck};
use crate::commands::run::watch_signals;
use crate::commands::{open_engine, print, print_json, runtime};
use crate::failure::Negative;
use crate::values::{counted, size};
use anyhow::Result;
use obuild_engine::{CheckOptions, CheckReport, FindingKind, Progress};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &Global, options: &StoreCheck) -> Result<()> {
    let engine = open_engine(global)?;
    let wanted = CheckOptions {
        quick: options.quick,
        repair: options.repair,
        dry_run: options.dry_run,
        threads: options.jobs,
    };
    let report = runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        watch_signals(&cancel)?;
        let progress = Arc::new(Progress::default());
        let work = engine.check(wanted, Arc::clone(&progress), &cancel);
        anyhow::Ok(shown("checked", &progress, work).await?)
    })?;
    let url = engine.store().url();
    match options.format {
        Format::Json => print_json(&to_json(&url, &report))?,
        Format::Text => print(to_text(&url, options, &report))?,
    }
    if report.damage() > 0 {
        return Err(Negative.into());
    }
    Ok(())
}

fn kind(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Damage => "damage",
        FindingKind::Books => "books",
    }
}

fn to_json(url: &str, report: &CheckReport) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "kind": kind(finding.kind),
                "id": finding.snapshot.map(|id| id.to_string()),
                "message": finding.message,
                "mended": finding.mended,
            })
        })
        .collect();
    let ids = |ids: &[obuild_stores::SnapshotId]| -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    };
    json!({
        "store": url,
        "healthy": report.damage() == 0,
        "snapshots": report.snapshots,
        "verified": report.verified,
        "recorded": report.recorded,
        "bytes": report.bytes,
        "findings": findings,
        "unusable": ids(&report.unusable),
        "removed": ids(&report.removed),
        "logs_of_nothing": report.logs_of_nothing,
    })
}

fn to_text(url: &str, options: &StoreCheck, report: &CheckReport) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        let id = finding
            .snapshot
            .map_or("-".to_owned(), |id| id.to_string()[..12].to_owned());
        let mended = match (finding.mended, finding.kind) {
            (false, _) => "",
            (true, FindingKind::Books) => " (put right)",
            (true, FindingKind::Damage) => " (removed)",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<6}  {id:<12}  {}{mended}",
            kind(finding.kind),
            finding.message
        );
    }
    let _ = write!(out, "{url}: {}", counted(report.snapshots, "snapshot"));
    if !options.quick {
        let _ = write!(
            out,
            ", {} verified, {} recorded for the first time, {} read",
            report.verified,
            report.recorded,
            size(report.bytes)
        );
    }
    let _ = writeln!(out);
    let left = report.unusable.len() - report.removed.len();
    if !report.removed.is_empty() {
        let _ = writeln!(
            out,
            "removed {}; the next build makes them again",
            counted(report.removed.len(), "snapshot")
        );
    }
    if left > 0 {
        let _ = writeln!(
            out,
            "{} cannot be used, those that stand on damaged ones included; `obuild store check --repair` \
             removes them, and the next build makes them again",
            counted(left, "snapshot")
        );
    }
    let _ = match (report.damage(), report.books()) {
        (0, 0) => writeln!(out, "healthy"),
        (0, books) => writeln!(
            out,
            "healthy, but for {} in the books",
            counted(books, "thing")
        ),
        (damage, _) => writeln!(out, "damaged: {}", counted(damage, "problem")),
    };
    out
}
