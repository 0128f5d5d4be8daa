// SPDX-License-Identifier: Apache-2.0
//! `obuild archive gc`: remove archives that no package has named for a while.

use super::existing;
use crate::cli::{ArchiveGc, Format};
use crate::commands::{print, print_json};
use crate::failure::Failure;
use crate::values::{age, counted, size};
use anyhow::Result;
use obuild_archive::cache::{Cache, Collected, Garbage, Lock};
use obuild_archive::state::{State, now};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

pub(crate) fn run(options: &ArchiveGc) -> Result<()> {
    existing(&options.directory)?;
    let _lock = Lock::take(&options.directory, || true)?;
    let mut state = State::read(&options.directory)?;
    let table = state.read_table(&options.directory);
    // Without the table everything would be garbage.
    let Some(table) = table.filter(|_| state.commit.is_some()) else {
        return Err(Failure::usage("nobody knows which archives packages name")
            .hint("run `obuild archive sync` first")
            .into());
    };
    let cache = Cache::open(&options.directory)?;
    let collected = cache.gc(
        &table.named(),
        &mut state.unnamed,
        options.grace,
        now(),
        options.dry_run,
    )?;
    if !options.dry_run {
        state.write(&options.directory, None)?;
    }
    match options.format {
        Format::Json => print_json(&to_json(&collected, options.dry_run)),
        Format::Text => print(to_text(&collected, options)),
    }
}

fn to_json(collected: &Collected, dry_run: bool) -> Value {
    let list = |garbage: &[Garbage]| -> Vec<Value> {
        let one = |garbage: &Garbage| {
            json!({
                "name": garbage.name.to_string(),
                "size": garbage.size,
                "since": garbage.since,
            })
        };
        garbage.iter().map(one).collect()
    };
    json!({
        "dry_run": dry_run,
        "removed": list(&collected.removed),
        "waiting": list(&collected.waiting),
        "kept": collected.kept,
        "quarantine": collected.quarantine,
    })
}

// Writing to a string cannot fail.
fn to_text(collected: &Collected, options: &ArchiveGc) -> String {
    let mut out = String::new();
    let since = |garbage: &Garbage| match now().saturating_sub(garbage.since) {
        0..60 => "less than a minute".to_owned(),
        seconds => age(Duration::from_secs(seconds)),
    };
    for garbage in &collected.removed {
        let (name, bytes) = (&garbage.name, size(garbage.size));
        let _ = writeln!(out, "{bytes:>8}  {name}, not named for {}", since(garbage));
    }
    let bytes = collected.removed.iter().map(|garbage| garbage.size).sum();
    let verb = if options.dry_run {
        "would remove"
    } else {
        "removed"
    };
    let _ = write!(
        out,
        "{verb} {}, {}; kept {}",
        counted(collected.removed.len(), "archive"),
        size(bytes),
        collected.kept
    );
    if !collected.waiting.is_empty() {
        let _ = write!(
            out,
            "; {} are named by no package, but not for {} yet",
            collected.waiting.len(),
            age(options.grace)
        );
    }
    if collected.quarantine > 0 {
        let _ = write!(
            out,
            "; {} of the quarantine",
            counted(collected.quarantine, "file")
        );
    }
    out.push('\n');
    out
}
