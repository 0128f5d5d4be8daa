// SPDX-License-Identifier: Apache-2.0
//! How far a command on an archive is: a line that changes on a terminal, a line now and then elsewhere, or JSON.

use crate::cli::ProgressKind;
use crate::commands::run::watch_signals;
use crate::commands::runtime;
use crate::progress::choose;
use crate::values::size;
use anyhow::Result;
use obuild_archive::cache::{CacheError, Counters};
use obuild_archive::sync::{Progress, Stage};
use serde_json::json;
use std::fmt::Write as _;
use std::io::{Write as _, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Shows how far something is while it goes on.
pub(super) async fn shown<T>(
    kind: ProgressKind,
    progress: &Arc<Progress>,
    verb: &str,
    work: impl Future<Output = T>,
) -> T {
    let kind = choose(kind);
    let mut ticks = tokio::time::interval(match kind {
        ProgressKind::Tty => Duration::from_millis(150),
        ProgressKind::Json => Duration::from_secs(1),
        _ => Duration::from_secs(10),
    });
    // The first tick comes at once.
    ticks.tick().await;
    tokio::pin!(work);
    let begun = Instant::now();
    let mut written = false;
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            _ = ticks.tick() => {
                let line = match kind {
                    ProgressKind::Quiet => continue,
                    ProgressKind::Json => format!("{}\n", as_json(progress, verb)),
                    ProgressKind::Tty => format!("\r\x1b[K{}", as_text(progress, verb, begun)),
                    _ => format!("{}\n", as_text(progress, verb, begun)),
                };
                // Nobody reads standard error: the work goes on.
                let _ = stderr().write_all(line.as_bytes());
                written = true;
            }
        }
    };
    if kind == ProgressKind::Tty && written {
        let _ = stderr().write_all(b"\r\x1b[K");
    }
    result
}

/// Runs something that blocks, and shows its counters.
pub(super) fn run_blocking<T: Send + 'static>(
    kind: ProgressKind,
    verb: &str,
    work: impl FnOnce(&Counters, &CancellationToken) -> Result<T, CacheError> + Send + 'static,
) -> Result<T> {
    runtime()?.block_on(async {
        let stop = CancellationToken::new();
        watch_signals(&stop)?;
        let progress = Arc::new(Progress::default());
        let counters = Arc::clone(&progress.counters);
        let work = tokio::task::spawn_blocking(move || work(&counters, &stop));
        match shown(kind, &progress, verb, work).await {
            Ok(result) => Ok(result?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    })
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Starting => "starting",
        Stage::Waiting => "waiting",
        Stage::Looking => "looking",
        Stage::Reading => "reading",
        Stage::Fetching => "fetching",
        Stage::Writing => "writing",
    }
}

fn as_json(progress: &Progress, verb: &str) -> serde_json::Value {
    let counters = &progress.counters;
    json!({
        "type": "progress",
        "command": verb,
        "stage": stage_name(progress.now().0),
        "archives": {"total": read(&counters.total), "done": read(&counters.done), "failed": read(&counters.failed)},
        "bytes": {"total": read(&counters.bytes_total), "done": read(&counters.bytes)},
    })
}

// Writing to a string cannot fail.
fn as_text(progress: &Progress, verb: &str, begun: Instant) -> String {
    let (stage, said) = progress.now();
    match stage {
        Stage::Waiting => {
            return "waiting for another obuild that works on this archive".to_owned();
        }
        Stage::Looking if said.is_empty() => return "looking at the repository".to_owned(),
        Stage::Looking => return format!("looking at the repository: {said}"),
        Stage::Reading => return "reading opam files".to_owned(),
        Stage::Writing => return "writing".to_owned(),
        Stage::Starting | Stage::Fetching => {}
    }
    let counters = &progress.counters;
    let (total, done) = (read(&counters.total), read(&counters.done));
    let (bytes, bytes_total) = (read(&counters.bytes), read(&counters.bytes_total));
    let per_second = bytes.saturating_mul(1000)
        / u64::try_from(begun.elapsed().as_millis())
            .unwrap_or(1)
            .max(1);
    let mut line = format!("{verb} {done} of {total} archives, {}", size(bytes));
    if bytes_total > 0 {
        let _ = write!(line, " of {}", size(bytes_total));
    }
    let _ = write!(line, ", {}/s", size(per_second));
    let failed = read(&counters.failed);
    if failed > 0 {
        let _ = write!(line, ", {failed} failed");
    }
    line
}
