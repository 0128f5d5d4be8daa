// SPDX-License-Identifier: Apache-2.0
//! `obuild diff ID1 ID2`: what differs between two results.

use super::{open_engine, print, print_json, runtime};
use crate::cli::{Diff, Format, Global};
use crate::differences::{json, text};
use crate::failure::Negative;
use anyhow::Result;
use obuild_images::{Times, differences};

pub(crate) fn run(global: &Global, options: &Diff) -> Result<()> {
    let engine = open_engine(global)?;
    let (one, other) = runtime()?.block_on(async {
        let one = engine.find(&options.one).await?;
        anyhow::Ok((one, engine.find(&options.other).await?))
    })?;
    let times = if options.ignore_times {
        Times::default()
    } else {
        Times::Latest(i64::MAX)
    };
    let store = engine.store();
    let found = differences((store, one), (store, other), times, &|| false)?;
    match options.format {
        Format::Text => print(found.iter().map(text).collect::<String>())?,
        Format::Json => print_json(&found.iter().map(json).collect())?,
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Negative.into())
    }
}
