// SPDX-License-Identifier: Apache-2.0
//! Manners: so many requests to one host at once, and none while it asks to be left alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The hosts that were asked so far.
#[derive(Debug)]
pub(super) struct Hosts {
    per_host: usize,
    known: Mutex<HashMap<String, Arc<Host>>>,
}

#[derive(Debug)]
pub(super) struct Host {
    slots: Arc<Semaphore>,
    not_before: Mutex<Option<Instant>>,
}

impl Hosts {
    pub(super) fn new(per_host: usize) -> Self {
        Self {
            per_host: per_host.max(1),
            known: Mutex::default(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Arc<Host> {
        let mut known = self.known.lock().expect("nobody panics with it");
        let host = known.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Host {
                slots: Arc::new(Semaphore::new(self.per_host)),
                not_before: Mutex::default(),
            })
        });
        Arc::clone(host)
    }
}

impl Host {
    /// Waits for the right to ask this host.
    pub(super) async fn enter(&self) -> OwnedSemaphorePermit {
        loop {
            let permit = Arc::clone(&self.slots)
                .acquire_owned()
                .await
                .expect("it is never closed");
            let until = *self.not_before.lock().expect("nobody panics with it");
            match until {
                Some(until) if until > Instant::now() => {
                    drop(permit);
                    tokio::time::sleep_until(until).await;
                }
                _ => return permit,
            }
        }
    }

    /// Leaves the host alone for so long.
    pub(super) fn hold(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut not_before = self.not_before.lock().expect("nobody panics with it");
        if not_before.is_none_or(|known| known < until) {
            *not_before = Some(until);
        }
    }
}
