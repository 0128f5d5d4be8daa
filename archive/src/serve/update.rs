// SPDX-License-Identifier: Apache-2.0
//! Updates of the archive that the server sets off: one at a time, at intervals and when a hook says so.

use super::metrics::Metrics;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// What set an update off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A hook with a good signature.
    Hook,
    /// The poll interval, and the start.
    Poll,
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Hook => "hook",
            Self::Poll => "poll",
        })
    }
}

/// Brings the archive up to date; the error is for people. Dropped when the server stops.
pub type Update =
    Box<dyn Fn(Cause) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// How an update went.
#[derive(Clone, Debug)]
pub(super) struct Ran {
    pub(super) cause: Cause,
    /// Seconds since 1970.
    pub(super) began: u64,
    pub(super) took: Duration,
    pub(super) error: Option<String>,
}

/// Sets updates off and remembers how they went.
#[derive(Default)]
pub(super) struct Updates {
    wanted: Notify,
    running: AtomicBool,
    last_success: AtomicU64,
    /// The latest last, a few of them.
    history: Mutex<Vec<Ran>>,
}

/// How many updates are remembered for the status page.
const REMEMBERED: usize = 10;

impl Updates {
    /// Asks for an update. While one runs, any number of calls make one more after it.
    pub(super) fn ask(&self) {
        self.wanted.notify_one();
    }

    pub(super) fn running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Returns when an update last succeeded, in seconds since 1970.
    pub(super) fn last_success(&self) -> u64 {
        self.last_success.load(Ordering::Relaxed)
    }

    /// Returns the last updates, the latest first.
    pub(super) fn history(&self) -> Vec<Ran> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.iter().rev().cloned().collect()
    }

    /// Runs updates for ever: at once and then every `interval` if there is one, and when asked.
    pub(super) async fn run(
        self: Arc<Self>,
        update: Update,
        interval: Option<Duration>,
        metrics: &Metrics,
    ) {
        let mut cause = Cause::Poll;
        if interval.is_none() {
            self.wanted.notified().await;
            cause = Cause::Hook;
        }
        loop {
            self.running.store(true, Ordering::Relaxed);
            let began = SystemTime::now();
            let result = update(cause).await;
            self.running.store(false, Ordering::Relaxed);
            Metrics::add(&metrics.updates, 1);
            match &result {
                Ok(()) => self
                    .last_success
                    .store(super::clock::seconds(), Ordering::Relaxed),
                Err(error) => {
                    Metrics::add(&metrics.updates_failed, 1);
                    tracing::error!(%cause, error, "the update failed");
                }
            }
            self.remember(Ran {
                cause,
                began: began
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs()),
                took: began.elapsed().unwrap_or_default(),
                error: result.err(),
            });
            let asked = self.wanted.notified();
            let Some(interval) = interval else {
                asked.await;
                cause = Cause::Hook;
                continue;
            };
            cause = match tokio::time::timeout(interval, asked).await {
                Ok(()) => Cause::Hook,
                Err(_) => Cause::Poll,
            };
        }
    }

    fn remember(&self, ran: Ran) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.len() == REMEMBERED {
            history.remove(0);
        }
        history.push(ran);
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Updates};
    use crate::serve::metrics::Metrics;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Runs updates of two seconds (of a clock that jumps) while `drive` goes on; returns how many there were.
    async fn updates(interval: Option<Duration>, drive: impl AsyncFnOnce(&Updates)) -> usize {
        let updates = Arc::new(Updates::default());
        let (count, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&count);
        let update = Box::new(move |_: Cause| {
            let (count, at_once) = (Arc::clone(&counted), Arc::clone(&at_once));
            let work = async move {
                assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                tokio::time::sleep(Duration::from_secs(2)).await;
                at_once.fetch_sub(1, Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                Err("as expected".to_owned())
            };
            Box::pin(work) as _
        });
        let metrics = Metrics::default();
        tokio::select! {
            () = Arc::clone(&updates).run(update, interval, &metrics) => {}
            () = drive(&updates) => {}
        }
        let count = count.load(Ordering::SeqCst);
        assert_eq!(updates.history().len(), count.min(super::REMEMBERED));
        assert_eq!(updates.last_success(), 0);
        count
    }

    #[tokio::test(start_paused = true)]
    async fn hooks_while_one_runs_make_one_more() {
        let count = updates(None, async |updates| {
            for _ in 0..5 {
                updates.ask();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            tokio::time::sleep(Duration::from_mins(1)).await;
        });
        assert_eq!(count.await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_comes_at_its_interval_and_a_hook_between() {
        let count = updates(Some(Duration::from_secs(58)), async |updates| {
            tokio::time::sleep(Duration::from_secs(90)).await;
            updates.ask();
            tokio::time::sleep(Duration::from_secs(50)).await;
        });
        // At 0, 60 and, by the hook, 90.
        assert_eq!(count.await, 3);
    }
}
