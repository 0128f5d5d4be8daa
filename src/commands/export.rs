// SPDX-License-Identifier: Apache-2.0
//! `obuild export ID --output …`: write a step's result as an image, or its tree.

use super::run::{tools, watch_signals};
use super::{engine_with, runtime};
use crate::attest::Attachments;
use crate::cli::{Export, Global};
use crate::config::Config;
use crate::failure::Failure;
use crate::outputs::Outputs;
use anyhow::Result;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &Global, options: &Export) -> Result<()> {
    let outputs = Outputs::parse(&options.outputs, options.to.as_deref(), false)?;
    if outputs.is_empty() {
        return Err(Failure::usage("where to?")
            .hint("obuild export ID --output type=oci,dest=FILE.tar, or --to dir:PATH")
            .into());
    }
    let attach = Attachments::parse(&options.outputs.image, outputs.pushes(), false, false)?;
    write(global, &options.id, outputs, attach)
}

/// Writes a step's result wherever it is wanted, with what is to be attached to what was pushed.
pub(super) fn write(
    global: &Global,
    id: &str,
    outputs: Outputs,
    attach: Attachments,
) -> Result<()> {
    let config = Config::read(global)?;
    let engine = engine_with(global, &config)?;
    let client = tools(&config, engine.store()).registry;
    runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        watch_signals(&cancel)?;
        let id = engine.find(id).await?;
        let pushed = outputs.write(&engine, client.clone(), id, &cancel).await?;
        attach
            .attach(&engine, client, id, pushed, None, &cancel)
            .await
    })
}
