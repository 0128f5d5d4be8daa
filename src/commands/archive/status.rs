// SPDX-License-Identifier: Apache-2.0
//! `obuild archive status`: what is there, what is missing and why.

use super::existing;
use crate::cli::{ArchiveStatus, Format};
use crate::commands::{print, print_json};
use crate::values::{age, counted, size, time};
use anyhow::Result;
use obuild_archive::state::{Status, now};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

pub(crate) fn run(options: &ArchiveStatus) -> Result<()> {
    existing(&options.directory)?;
    let status = Status::read(&options.directory)?;
    match options.format {
        Format::Json => print_json(&serde_json::to_value(&status)?),
        Format::Text => print(to_text(&status, options.problems)),
    }
}

// Writing to a string cannot fail.
fn to_text(status: &Status, problems: bool) -> String {
    let now = now();
    let ago = |then: u64| match age(Duration::from_secs(now.saturating_sub(then))).as_str() {
        "now" => "just now".to_owned(),
        age => format!("{age} ago"),
    };
    let mut out = String::new();
    let _ = match &status.commit {
        Some(commit) => writeln!(out, "{} at {commit}", status.repository),
        None => writeln!(out, "not synced yet"),
    };
    if let Some(checked) = status.checked {
        let _ = writeln!(out, "looked at {}", ago(checked));
    }
    let _ = writeln!(
        out,
        "{} declared by {}; here: {}, {}",
        counted(status.declared, "archive"),
        counted(status.packages, "package"),
        status.archives,
        size(status.bytes)
    );
    if status.unnamed > 0 {
        let _ = writeln!(
            out,
            "{} of them are named by no package any more",
            status.unnamed
        );
    }
    if !status.missing.is_empty() {
        let _ = writeln!(out, "\n{} missing:", status.missing.len());
    }
    for missing in &status.missing {
        let next = match missing.next.saturating_sub(now) {
            0 => "with the next sync".to_owned(),
            wait => format!("in {}", age(Duration::from_secs(wait.max(60)))),
        };
        let _ = writeln!(
            out,
            "  {}: {} since {}, tried {} times, the last time {}, again {next}",
            missing.packages.join(", "),
            missing.kind,
            ago(missing.since).trim_end_matches(" ago"),
            missing.times,
            ago(missing.tried),
        );
        for attempt in &missing.attempts {
            let _ = writeln!(out, "    {}: {}", attempt.url, attempt.reason);
        }
    }
    if !status.notes.is_empty() || !status.skipped.is_empty() {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for note in &status.notes {
            *counts.entry(&note.code).or_default() += 1;
        }
        if !status.skipped.is_empty() {
            counts.insert("not-passed-on", status.skipped.len());
        }
        let counts = counts
            .into_iter()
            .map(|(code, count)| format!("{count} {code}"));
        let _ = writeln!(out, "\nproblems: {}", counts.collect::<Vec<_>>().join(", "));
    }
    if problems {
        for note in &status.notes {
            let _ = writeln!(out, "  {}:{}: {}", note.path, note.line, note.message);
        }
        for (path, reason) in &status.skipped {
            let _ = writeln!(out, "  {path}: {reason}");
        }
    }
    if !status.syncs.is_empty() {
        let _ = writeln!(out, "\nlast syncs:");
    }
    for sync in status.syncs.iter().take(10) {
        let _ = writeln!(
            out,
            "  {} at {}: {} read, {} removed, {} fetched ({}), {} failed, {}",
            ago(sync.started),
            sync.to.get(..12).unwrap_or(&sync.to),
            counted(sync.packages_read, "package"),
            sync.packages_removed,
            counted(sync.fetched, "archive"),
            size(sync.fetched_bytes),
            sync.failed,
            time(Duration::from_millis(sync.milliseconds)),
        );
    }
    out
}
