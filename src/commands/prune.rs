// SPDX-License-Identifier: Apache-2.0
//! `obuild prune`: remove the steps that were not used for longest.

use super::ls::since;
use super::{open_engine, print, runtime};
use crate::cli::{Global, Prune};
use crate::values::{age, counted, one_line, size};
use anyhow::Result;
use obuild_engine::PruneOptions;
use std::time::UNIX_EPOCH;

pub(crate) fn run(global: &Global, options: &Prune) -> Result<()> {
    let engine = open_engine(global)?;
    let dry_run = options.dry_run;
    let verb = if dry_run { "would remove" } else { "removed" };
    let what = PruneOptions {
        older_than: options.older_than,
        keep_storage_bytes: options.keep_storage,
        free_bytes: options.free,
        dry_run,
    };
    let pruned = runtime()?.block_on(engine.prune(what, move |step, bytes| {
        let heading = one_line(&step.heading);
        let used = if step.used == UNIX_EPOCH {
            "use unknown".to_owned()
        } else {
            match age(since(step.used)).as_str() {
                "now" => "used just now".to_owned(),
                age => format!("used {age} ago"),
            }
        };
        let id = step.id.to_string();
        // When nobody reads any more, it is time to stop.
        print(format!(
            "{}  {:>8}  {used:<15}  {heading}\n",
            &id[..12],
            size(bytes)
        ))
        .is_ok()
    }))?;
    if pruned.layers > 0 {
        print(format!(
            "{verb} {} of images, {}\n",
            counted(pruned.layers, "fetched file"),
            size(pruned.layers_bytes)
        ))?;
    }
    print(format!(
        "{verb} {}, {}\n",
        counted(pruned.steps.len(), "step"),
        size(pruned.bytes)
    ))
}
