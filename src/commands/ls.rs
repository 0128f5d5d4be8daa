// SPDX-License-Identifier: Apache-2.0
//! `obuild ls`: list the steps in the store.

use super::{open_engine, print, print_json, runtime};
use crate::cli::{Format, Global, Ls};
use crate::values::{age, one_line, time};
use anyhow::Result;
use obuild_engine::StepRecord;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn run(global: &Global, options: &Ls) -> Result<()> {
    let engine = open_engine(global)?;
    let steps = runtime()?.block_on(engine.steps())?;
    if options.format == Format::Json {
        return print_json(&Value::Array(steps.iter().map(to_json).collect()));
    }
    let mut out = String::new();
    if !options.quiet {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:<12}  {:<7}  {:>8}  {:>8}  STEP",
            "ID", "KIND", "USED", "TOOK"
        );
    }
    for step in &steps {
        let id = step.id.to_string();
        if options.quiet {
            let _ = writeln!(out, "{id}");
        } else {
            let heading = one_line(&step.heading);
            let used = if step.used == UNIX_EPOCH {
                "?".to_owned()
            } else {
                age(since(step.used))
            };
            let _ = writeln!(
                out,
                "{}  {:<7}  {used:>8}  {:>8}  {heading}",
                &id[..12],
                step.kind,
                time(step.duration)
            );
        }
    }
    print(out)
}

pub(crate) fn since(time: SystemTime) -> std::time::Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}

/// Returns a step as `ls --format json` and `inspect` show it; times in RFC 3339.
pub(crate) fn to_json(step: &StepRecord) -> Value {
    let time = |time: SystemTime| {
        if time == UNIX_EPOCH {
            return Value::Null;
        }
        jiff::Timestamp::try_from(time).map_or(Value::Null, |time| Value::String(time.to_string()))
    };
    json!({
        "id": step.id.to_string(),
        "step": step.step.to_string(),
        "parent": step.parent.map(|id| id.to_string()),
        "kind": step.kind,
        "heading": step.heading,
        "created": time(step.created),
        "used": time(step.used),
        "seconds": step.duration.as_secs_f64(),
        "size": step.size_bytes,
    })
}
