// SPDX-License-Identifier: Apache-2.0
//! `obuild archive import`: take over archives that are on this machine already.

use super::meter::run_blocking;
use super::processors;
use crate::cli::{ArchiveImport, Format};
use crate::commands::{print, print_json};
use crate::failure::{Failure, Negative};
use crate::values::{counted, size};
use anyhow::Result;
use obuild_archive::cache::{Cache, Import, Imported, Lock};
use obuild_archive::state::State;
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(crate) fn run(options: &ArchiveImport) -> Result<()> {
    if !options.source.exists() {
        return Err(Failure::usage(format!("there is no {}", options.source.display())).into());
    }
    let lock = Lock::take(&options.to, || true)?;
    let state = State::read(&options.to)?;
    let named = state.read_table(&options.to).unwrap_or_default().named();
    let threads = processors(options.readers.jobs);
    let (source, to) = (options.source.clone(), options.to.clone());
    let (all, copy) = (options.all, options.copy);
    let imported = run_blocking(
        options.output.progress,
        "imported",
        move |counters, stop| {
            let _lock = lock;
            let cache = Cache::open(&to)?;
            cache.recover()?;
            let import = Import {
                source: &source,
                named: &named,
                all,
                copy,
                threads,
            };
            cache.import(&import, counters, stop)
        },
    )?;
    match options.output.format {
        Format::Json => print_json(&to_json(&imported))?,
        Format::Text => print(to_text(&imported))?,
    }
    if imported.refused.is_empty() {
        Ok(())
    } else {
        Err(Negative.into())
    }
}

fn to_json(imported: &Imported) -> Value {
    let refused: Vec<Value> = imported
        .refused
        .iter()
        .map(|refused| {
            let mismatch = refused.mismatch.as_ref();
            json!({
                "path": refused.path.to_string_lossy(),
                "called": mismatch.map(|mismatch| mismatch.declared.to_string()),
                "found": mismatch.and_then(|mismatch| Some(mismatch.found.as_ref()?.to_string())),
                "error": refused.error,
            })
        })
        .collect();
    let collisions = imported.collisions.iter().map(ToString::to_string);
    json!({
        "archives": imported.archives,
        "bytes": imported.bytes,
        "present": imported.present,
        "others": imported.others,
        "refused": refused,
        "collisions": collisions.collect::<Vec<_>>(),
    })
}

// Writing to a string cannot fail.
fn to_text(imported: &Imported) -> String {
    let mut out = String::new();
    for refused in &imported.refused {
        let why = match (&refused.mismatch, &refused.error) {
            (Some(mismatch), _) => mismatch.to_string(),
            (None, error) => error.clone().unwrap_or_default(),
        };
        let _ = writeln!(out, "refused  {}: {why}", refused.path.display());
    }
    for collision in &imported.collisions {
        let _ = writeln!(
            out,
            "{collision} belongs to two archives; the first one keeps it"
        );
    }
    let _ = write!(
        out,
        "imported {}, {}; {} there before",
        counted(imported.archives, "archive"),
        size(imported.bytes),
        imported.present
    );
    if imported.others > 0 {
        let _ = write!(out, "; {} left out", counted(imported.others, "other file"));
    }
    if !imported.refused.is_empty() {
        let _ = write!(out, "; {} refused", imported.refused.len());
    }
    out.push('\n');
    out
}
