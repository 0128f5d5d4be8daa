// SPDX-License-Identifier: Apache-2.0
//! `obuild store`: looking after stores.

mod check;
mod copy;
mod info;

use crate::cli::{Global, StoreCommand};
use crate::values::size;
use anyhow::Result;
use obuild_engine::Progress;
use std::io::{IsTerminal, Write, stderr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) fn run(global: &Global, command: &StoreCommand) -> Result<()> {
    match command {
        StoreCommand::Info(options) => info::run(global, options),
        StoreCommand::Check(options) => check::run(global, options),
        StoreCommand::Copy(options) => copy::run(global, options),
    }
}

/// Shows how far something is while `work` goes on: a line that changes on a terminal, else one line now and then.
async fn shown<T>(verb: &str, progress: &Arc<Progress>, work: impl Future<Output = T>) -> T {
    let terminal = stderr().is_terminal();
    let mut ticks = tokio::time::interval(if terminal {
        Duration::from_millis(200)
    } else {
        Duration::from_secs(10)
    });
    // The first tick comes at once.
    ticks.tick().await;
    tokio::pin!(work);
    let mut written = false;
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => {
                let line = format!(
                    "{verb} {} of {} snapshots, {}",
                    progress.done.load(Ordering::Relaxed),
                    progress.total.load(Ordering::Relaxed),
                    size(progress.bytes.load(Ordering::Relaxed)),
                );
                // Nobody reads standard error: the work goes on.
                let _ = if terminal {
                    write!(stderr(), "\r\x1b[K{line}")
                } else {
                    writeln!(stderr(), "{line}")
                };
                written = true;
            }
        }
    };
    if terminal && written {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    result
}
