// SPDX-License-Identifier: Apache-2.0
//! `obuild delete ID`: remove steps, or caches, from the store.

use super::{open_engine, print, runtime};
use crate::cli::{Delete, Global};
use anyhow::Result;

pub(crate) fn run(global: &Global, options: &Delete) -> Result<()> {
    let engine = open_engine(global)?;
    let runtime = runtime()?;
    for text in &options.ids {
        let removed = runtime.block_on(async {
            let id = engine.find(text).await?;
            engine.delete(id, options.recursive).await
        })?;
        for id in removed {
            print(format!("{id}\n"))?;
        }
    }
    for name in &options.cache {
        engine.store().delete_cache(name.as_bytes())?;
    }
    Ok(())
}
