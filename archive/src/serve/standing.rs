// SPDX-License-Identifier: Apache-2.0
//! How the archive stands, for the page and for programs: read beside the serving, and again when a sync has written something new.

use crate::cache;
use crate::state::{State, Status};
use bytes::Bytes;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What was read is read again after this time even if the state looks the same: the cache may have changed without it.
const STALE: Duration = Duration::from_mins(10);

/// What was last read.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) status: Status,
    /// The same as JSON.
    pub(super) json: Bytes,
}

/// How the archive stands; nothing for a directory that no sync has made.
pub(super) struct Standing {
    directory: PathBuf,
    current: RwLock<Option<Arc<Reading>>>,
}

/// What tells one state from another: inode, size, time; and when the repository was last looked at.
type Stamp = (u64, u64, i64, i64, Option<u64>);

impl Standing {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            current: RwLock::default(),
        }
    }

    pub(super) fn current(&self) -> Option<Arc<Reading>> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps what is read up to date, for ever.
    pub(super) async fn follow(&self, interval: Duration) {
        let mut last: Option<(Stamp, Instant)> = None;
        let mut ticks = tokio::time::interval(interval);
        loop {
            ticks.tick().await;
            let stamp = stamp(&self.directory);
            match (&last, &stamp) {
                (Some((had, at)), Some(stamp)) if had == stamp && at.elapsed() < STALE => continue,
                (None, None) => continue,
                _ => {}
            }
            let directory = self.directory.clone();
            let reading = stamp.map(|_| tokio::task::spawn_blocking(move || read(&directory)));
            let reading = match reading {
                Some(reading) => reading.await.ok().flatten(),
                None => None,
            };
            last = stamp.map(|stamp| (stamp, Instant::now()));
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = reading.map(Arc::new);
        }
    }
}

fn stamp(directory: &Path) -> Option<Stamp> {
    let state = cache::private(directory).join("state.json");
    let metadata = fs_err::metadata(state).ok()?;
    Some((
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        State::touched(directory),
    ))
}

fn read(directory: &Path) -> Option<Reading> {
    let status = Status::read(directory)
        .inspect_err(|error| tracing::error!(%error, "cannot tell how the archive stands"))
        .ok()?;
    let json = serde_json::to_vec(&status).ok()?;
    Some(Reading {
        status,
        json: json.into(),
    })
}
