// SPDX-License-Identifier: Apache-2.0
//! `obuild pull IMAGE`: fetch a base image into the store, as the first step of a build would.

use super::run::{build, progress_kind, pull, tools, watch_signals};
use super::{engine_with, print, runtime};
use crate::cli::{Global, Pull};
use crate::config::Config;
use crate::progress;
use anyhow::{Context, Result};
use obuild_engine::{Engine, NoCache, Settings};
use obuild_images::Tools;
use obuild_sandboxes::Limits;
use obuild_specs::{Node, Operation, Plan, StepId};
use obuild_stores::SnapshotId;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub(crate) fn run(global: &Global, options: &Pull) -> Result<()> {
    let (_, id) = fetch(global, options)?;
    print(format!("{id}\n"))
}

/// Sees to it that an image is in the store, and returns which snapshot it is.
pub(crate) fn fetch(global: &Global, options: &Pull) -> Result<(Arc<Engine>, SnapshotId)> {
    let config = Config::read(global)?;
    let kind = progress_kind(options.quiet, options.progress, &config);
    let engine = engine_with(global, &config)?;
    let tools = Tools {
        pull: pull(options.when),
        platform: options.platform.clone(),
        ..tools(&config, engine.store())
    };
    let directory =
        std::env::current_dir().context("the current directory is not there any more")?;
    let result = runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        watch_signals(&cancel)?;
        let resolved = engine
            .resolve(&options.image, &directory, tools, &cancel)
            .await?;
        let base = Node {
            operation: Operation::Base {
                reference: options.image.clone(),
                id: StepId::from_digest(*resolved.id.as_bytes()),
            },
            heading: format!("(from {})", options.image),
            preamble: Vec::new(),
            build: Vec::new(),
            span: 0..0,
        };
        let plan = Plan {
            nodes: vec![base],
            target: 0,
            names: Vec::new(),
            surroundings: HashMap::new(),
        };
        let settings = Settings {
            context: directory,
            secrets: HashMap::new(),
            limits: Limits::default(),
            fast_sync: true,
            no_new_privs: false,
            elsewhere: false,
            keep_failed: false,
            no_cache: NoCache::Never,
            imports: Vec::new(),
            replay: false,
        };
        let bases = HashMap::from([(options.image.clone(), Arc::new(resolved))]);
        let colour = progress::colour(global.color);
        build(&engine, plan, bases, settings, kind, colour, cancel).await
    })?;
    Ok((engine, result.snapshot))
}
