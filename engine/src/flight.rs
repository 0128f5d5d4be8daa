// SPDX-License-Identifier: Apache-2.0
//! A step in flight, shared by all builds of the process that want it, and through its lock with other processes.
//!
//! The first build that wants a step starts its flight; the others join. The flight goes on while anybody wants it
//! and is cancelled when the last one has left. Between processes the step's lock decides who runs it: the others
//! follow the log that the holder writes, and look again when the lock is free.

use crate::database::LAYER;
use crate::job::{Job, Work};
use crate::lock::StepLock;
use crate::log::{POLL, Position, Writer};
use crate::{Engine, Error, Outcome, StepRecord, blocking};
use obuild_sandboxes::Cancel;
use obuild_specs::StepId;
use obuild_stores::SnapshotId;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{SetOnce, watch};
use tokio_util::sync::CancellationToken;

/// A running step.
pub(crate) struct Flight {
    users: AtomicUsize,
    /// For the blocked thread that runs the step.
    cancel: Cancel,
    /// For waiting tasks.
    token: CancellationToken,
    /// How much of the log there is.
    pub(crate) log: watch::Sender<Position>,
    /// Whether another process runs the step.
    pub(crate) foreign: watch::Sender<bool>,
    /// How far a base import is.
    pub(crate) progress: watch::Sender<Option<(u64, Option<u64>)>>,
    /// How it ended.
    pub(crate) done: SetOnce<Result<Outcome, Arc<Error>>>,
}

/// One build's interest in a flight. Dropping it leaves; the last one to leave cancels.
pub(crate) struct Ticket {
    pub(crate) flight: Arc<Flight>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.flight.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.flight.token.cancel();
            self.flight.cancel.cancel();
        }
    }
}

/// Joins the step's flight, or starts it.
pub(crate) fn join(engine: &Arc<Engine>, job: Job) -> Result<Ticket, Error> {
    let mut flights = engine
        .flights
        .lock()
        .expect("no holder of this lock panics");
    if let Some(flight) = flights.get(&job.id)
        && flight
            .users
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |users| {
                (users > 0).then(|| users + 1)
            })
            .is_ok()
    {
        return Ok(Ticket {
            flight: Arc::clone(flight),
        });
    }
    // One that everybody has left is on its way down; the new flight waits for its lock.
    let flight = Arc::new(Flight {
        users: AtomicUsize::new(1),
        cancel: Cancel::new().map_err(|source| Error::Io {
            action: "make an eventfd for",
            path: engine.state().to_owned(),
            source,
        })?,
        token: CancellationToken::new(),
        log: watch::Sender::new(Position::default()),
        foreign: watch::Sender::new(false),
        progress: watch::Sender::new(None),
        done: SetOnce::new(),
    });
    flights.insert(job.id, Arc::clone(&flight));
    drop(flights);
    tokio::spawn(lead(Arc::clone(engine), job, Arc::clone(&flight)));
    Ok(Ticket { flight })
}

async fn lead(engine: Arc<Engine>, job: Job, flight: Arc<Flight>) {
    let id = job.id;
    let result = fly(&engine, job, &flight).await;
    {
        let mut flights = engine
            .flights
            .lock()
            .expect("no holder of this lock panics");
        if flights
            .get(&id)
            .is_some_and(|current| Arc::ptr_eq(current, &flight))
        {
            flights.remove(&id);
        }
    }
    // Set once, here only.
    let _ = flight.done.set(result.map_err(Arc::new));
}

async fn fly(engine: &Arc<Engine>, mut job: Job, flight: &Arc<Flight>) -> Result<Outcome, Error> {
    let log_path = engine.log_path(job.id);
    // Another process that takes the step over begins the log anew, in another file.
    let mut followed = None;
    let mut follow = || {
        if let Ok(metadata) = fs_err::metadata(&log_path) {
            let before = followed.replace(metadata.ino());
            let anew = before.is_some_and(|inode| inode != metadata.ino());
            let position = Position {
                attempt: flight.log.borrow().attempt.max(1) + u32::from(anew),
                length: metadata.len(),
            };
            flight
                .log
                .send_if_modified(|old| std::mem::replace(old, position) != position);
        }
    };
    let lock = loop {
        if flight.token.is_cancelled() {
            return Err(Error::Cancelled);
        }
        // Two system calls on an empty file: not worth a thread.
        if let Some(lock) = StepLock::try_acquire(engine.state(), job.id)? {
            break lock;
        }
        flight
            .foreign
            .send_if_modified(|foreign| !std::mem::replace(foreign, true));
        follow();
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = flight.token.cancelled() => {}
        }
    };
    if engine.store().get(job.id).map_err(Error::Store)?.is_some() {
        follow();
        return Ok(Outcome::Shared);
    }
    flight
        .foreign
        .send_if_modified(|foreign| std::mem::replace(foreign, false));
    // The layer comes while what it is to be put upon is not there yet.
    let fetching = match &job.work {
        Work::Fetch(fetch) => Some(fetch.start()?),
        _ => None,
    };
    if let Some(ready) = job.ready.take() {
        tokio::select! {
            ready = ready => ready?,
            () = flight.token.cancelled() => return Err(Error::Cancelled),
        }
    }
    let fetches = fetching.is_some();
    let _permit = tokio::select! {
        // To fetch is to wait: for the network, or for a step below that has the last permit.
        permit = engine.jobs.acquire(), if !fetches => {
            Some(permit.map_err(|error| Error::Bug(error.to_string()))?)
        }
        () = std::future::ready(()), if fetches => None,
        () = flight.token.cancelled() => return Err(Error::Cancelled),
    };
    let worker = Arc::clone(engine);
    let shared = Arc::clone(flight);
    blocking(move || {
        let created = SystemTime::now();
        let began = Instant::now();
        let secrets = match &job.work {
            Work::Run { run, .. } => run
                .secrets
                .iter()
                .filter_map(|secret| job.settings.secrets.get(&secret.id).cloned())
                .collect(),
            _ => Vec::new(),
        };
        let mut log = Writer::create(&log_path, &shared.log, secrets)?;
        let mut progress = |done, total| {
            shared.progress.send_replace(Some((done, total)));
        };
        let result = job.execute(&worker, fetching, &mut log, &shared.cancel, &mut progress);
        let logged = log.finish();
        let failed = matches!(result, Err(Error::StepFailed { .. })) && job.settings.keep_failed;
        if result.is_ok() || failed {
            let (made, took) = match &job.work {
                Work::Fetch(fetch) => fetch.made(),
                _ => (created, began.elapsed()),
            };
            let mut record = StepRecord {
                id: if failed {
                    crate::ids::failed(job.id)
                } else {
                    job.id
                },
                step: job.step,
                parent: job.parent(),
                kind: if failed { "failed" } else { job.kind() }.to_owned(),
                heading: job.heading.clone(),
                created: made,
                used: created,
                duration: took,
                size_bytes: None,
                config: match &job.work {
                    Work::Run { run, .. } => crate::images::config_around(run),
                    _ => None,
                },
            };
            let layers = match &job.work {
                Work::Base(_) => layers_below(&worker, &mut record),
                _ => Vec::new(),
            };
            worker
                .finished
                .lock()
                .expect("no holder of this lock panics")
                .extend(layers.into_iter().chain([record]));
        }
        // Only now: whoever takes the lock next must find the snapshot and the whole log.
        drop(lock);
        result?;
        // The result stands even if the disk had no room for its log.
        if let Err(error) = logged {
            tracing::warn!(%error, "the step's log is incomplete");
        }
        Ok(if fetches {
            Outcome::Fetched
        } else {
            Outcome::Built
        })
    })
    .await
}

/// Returns records of the snapshots that an image's lower layers are, and gives that of the image the one that it stands on.
fn layers_below(engine: &Engine, image: &mut StepRecord) -> Vec<StepRecord> {
    let parent = |id| Some(engine.store().get(id).ok()??.parent);
    image.parent = parent(image.id).flatten();
    let below = std::iter::successors(image.parent, |id| parent(*id).flatten());
    let below: Vec<SnapshotId> = below.collect();
    let count = below.len() + 1;
    let parents = below.iter().skip(1).copied().map(Some).chain([None]);
    below
        .iter()
        .zip(parents)
        .enumerate()
        .map(|(above, (id, parent))| StepRecord {
            id: *id,
            step: StepId::from_digest(*id.as_bytes()),
            parent,
            kind: LAYER.to_owned(),
            heading: format!("{}: layer {} of {count}", image.heading, count - 1 - above),
            duration: Duration::ZERO,
            ..image.clone()
        })
        .collect()
}

/// Keeps what a build in the background still has to do, so that the build can wait for it.
#[derive(Default)]
pub(crate) struct Landing(Mutex<Vec<Arc<Flight>>>);

impl Landing {
    /// Notes a flight that the build took part in.
    pub(crate) fn add(&self, flight: &Arc<Flight>) {
        let mut flights = self.0.lock().expect("no holder of this lock panics");
        // Each holds an open file: a long build must not keep those that have landed.
        flights.retain(|flight| !flight.done.initialized());
        flights.push(Arc::clone(flight));
    }

    /// Waits for those flights that nobody wants any more, so that nothing is left running or half-written.
    pub(crate) async fn wait(&self) {
        let flights = std::mem::take(&mut *self.0.lock().expect("no holder of this lock panics"));
        for flight in flights {
            if flight.users.load(Ordering::SeqCst) == 0 {
                flight.done.wait().await;
            }
        }
    }
}
