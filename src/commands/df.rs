// SPDX-License-Identifier: Apache-2.0
//! `obuild df`: what the store holds.

use super::{open_engine, print, print_json, runtime};
use crate::cli::{Df, Format, Global};
use crate::values::size;
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Write as _;

pub(crate) fn run(global: &Global, options: &Df) -> Result<()> {
    let engine = open_engine(global)?;
    let usage = runtime()?.block_on(engine.usage())?;
    let caches_bytes: u64 = usage.caches.iter().map(|(_, bytes)| bytes).sum();
    if options.format == Format::Json {
        let caches: Vec<Value> = usage
            .caches
            .iter()
            .map(|(name, bytes)| json!({"name": String::from_utf8_lossy(name), "size": bytes}))
            .collect();
        return print_json(&json!({
            "store": engine.store().url(),
            "steps": {"count": usage.steps, "size": usage.steps_bytes},
            "caches": caches,
            "fetched": {"count": usage.blobs, "size": usage.blobs_bytes},
            "logs": {"size": usage.logs_bytes},
            "space": {"total": usage.space.total, "available": usage.space.available},
        }));
    }
    let mut out = format!("{}\n", engine.store().url());
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{:<8} {:>6}  {:>9}", "", "COUNT", "SIZE");
    let _ = writeln!(
        out,
        "{:<8} {:>6}  {:>9}",
        "steps",
        usage.steps,
        size(usage.steps_bytes)
    );
    let _ = writeln!(
        out,
        "{:<8} {:>6}  {:>9}",
        "caches",
        usage.caches.len(),
        size(caches_bytes)
    );
    let _ = writeln!(
        out,
        "{:<8} {:>6}  {:>9}",
        "fetched",
        usage.blobs,
        size(usage.blobs_bytes)
    );
    let _ = writeln!(
        out,
        "{:<8} {:>6}  {:>9}",
        "logs",
        "",
        size(usage.logs_bytes)
    );
    let _ = writeln!(
        out,
        "the file system has {} of {} available",
        size(usage.space.available),
        size(usage.space.total)
    );
    print(out)
}
