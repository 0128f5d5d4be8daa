// SPDX-License-Identifier: Apache-2.0
//! `obuild push ID NAME`: push a step's result to a registry.

use super::run::{tools, watch_signals};
use super::{open_engine, runtime};
use crate::attest::Attachments;
use crate::cli::{Global, OutputOptions, Push};
use crate::config::Config;
use crate::outputs::Outputs;
use anyhow::Result;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &Global, options: &Push) -> Result<()> {
    let wanted = OutputOptions {
        output: Vec::new(),
        tag: options.names.clone(),
        push: true,
        image: options.image.clone(),
    };
    let outputs = Outputs::parse(&wanted, None, options.quiet)?;
    let attach = Attachments::parse(&options.image, true, false, false)?;
    let config = Config::read(global)?;
    let engine = open_engine(global)?;
    let client = tools(&config, engine.store()).registry;
    runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        watch_signals(&cancel)?;
        let id = engine.find(&options.id).await?;
        let pushed = outputs.write(&engine, client.clone(), id, &cancel).await?;
        attach
            .attach(&engine, client, id, pushed, None, &cancel)
            .await
    })
}
