// SPDX-License-Identifier: Apache-2.0
//! `obuild archive verify`: read every archive again and compare it with its checksums.

use super::meter::run_blocking;
use super::{existing, processors};
use crate::cli::{ArchiveVerify, Format};
use crate::commands::{print, print_json};
use crate::failure::Negative;
use crate::values::{counted, size};
use anyhow::Result;
use obuild_archive::cache::{Cache, Lock, Verified};
use obuild_archive::state::State;
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(crate) fn run(options: &ArchiveVerify) -> Result<()> {
    existing(&options.directory)?;
    let threads = processors(options.readers.jobs);
    let directory = options.directory.clone();
    let verified = run_blocking(
        options.output.progress,
        "verified",
        move |counters, stop| Cache::open(&directory)?.verify(threads, counters, stop),
    )?;
    if !verified.damaged.is_empty() {
        // The next sync is to look for what is gone.
        let _lock = Lock::take(&options.directory, || true)?;
        let mut state = State::read(&options.directory)?;
        state.recheck = true;
        state.write(&options.directory, None)?;
    }
    match options.output.format {
        Format::Json => print_json(&to_json(&verified))?,
        Format::Text => print(to_text(&verified))?,
    }
    if verified.damaged.is_empty() {
        Ok(())
    } else {
        Err(Negative.into())
    }
}

fn to_json(verified: &Verified) -> Value {
    let damaged: Vec<Value> = verified
        .damaged
        .iter()
        .map(|damaged| {
            json!({
                "name": damaged.name.to_string(),
                "found": damaged.found.as_ref().map(ToString::to_string),
                "error": damaged.error,
            })
        })
        .collect();
    let names = |checksums: &[obuild_archive::Checksum]| -> Vec<String> {
        checksums.iter().map(ToString::to_string).collect()
    };
    json!({
        "archives": verified.archives,
        "bytes": verified.bytes,
        "damaged": damaged,
        "repaired": names(&verified.repaired),
        "collisions": names(&verified.collisions),
    })
}

// Writing to a string cannot fail.
fn to_text(verified: &Verified) -> String {
    let mut out = String::new();
    for damaged in &verified.damaged {
        let _ = match (&damaged.found, &damaged.error) {
            (Some(found), _) => writeln!(out, "damaged  {}: it is {found}", damaged.name),
            (None, Some(error)) => writeln!(out, "damaged  {}: {error}", damaged.name),
            (None, None) => writeln!(out, "damaged  {}", damaged.name),
        };
    }
    for name in &verified.repaired {
        let _ = writeln!(out, "name put back  {name}");
    }
    for name in &verified.collisions {
        let _ = writeln!(out, "{name} belongs to two archives");
    }
    let _ = writeln!(
        out,
        "{} read, {}; {} damaged and in quarantine",
        counted(verified.archives, "archive"),
        size(verified.bytes),
        counted(verified.damaged.len(), "name")
    );
    out
}
