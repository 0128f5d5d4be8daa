// SPDX-License-Identifier: Apache-2.0
//! Jobs are done, many at once.

use super::job::Job;
use super::{Report, SyncError};
use crate::Checksum;
use crate::cache::{Added, Cache, CacheError, Committer, Counters};
use crate::fetch::{FetchError, Fetched, Fetcher, host};
use crate::state::{Attempt, FailureKind, State};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// So many jobs of one host are under way: more than its requests, since one that has come still has to get onto the disk.
const PER_HOST: usize = 32;

/// Failures are written down this often while a sync goes on.
const SAVE: Duration = Duration::from_secs(20);

/// What every job needs.
pub(super) struct Context {
    pub(super) cache: Cache,
    pub(super) committer: Committer,
    pub(super) fetcher: Fetcher,
    pub(super) upstream_caches: Vec<String>,
    pub(super) cache_first: bool,
    pub(super) locks: Locks,
    pub(super) counters: Arc<Counters>,
}

/// What became of a job.
pub(super) enum Outcome {
    /// It was here, under another name or in an older run's leftovers.
    Here(Vec<Checksum>),
    /// It came.
    Fetched {
        /// How long it is.
        bytes: u64,
        /// Names that another archive has.
        collisions: Vec<Checksum>,
    },
    /// It did not.
    Failed {
        /// How.
        kind: FailureKind,
        /// What each URL gave.
        attempts: Vec<Attempt>,
        /// How long a server wants to be left alone.
        asked: Option<Duration>,
    },
}

/// One at a time may work on a name: who comes second finds what the first one brought.
#[derive(Default)]
pub(super) struct Locks {
    names: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    async fn take(&self, name: String) -> OwnedMutexGuard<()> {
        let lock = {
            let mut names = self.names.lock().expect("nobody panics with it");
            Arc::clone(names.entry(name).or_default())
        };
        lock.lock_owned().await
    }
}

/// Does all jobs. Ends early only when the disk fails or somebody wants it to.
pub(super) async fn run(
    context: &Arc<Context>,
    jobs: Vec<Job>,
    state: &mut State,
    report: &mut Report,
    directory: &Path,
    stop: &CancellationToken,
) -> Result<(), SyncError> {
    Counters::add(&context.counters.total, jobs.len() as u64);
    // A queue for each host, so that a slow one holds up nobody else.
    let mut queues: HashMap<String, VecDeque<Job>> = HashMap::new();
    for job in jobs {
        let first = context.candidates(&job).into_iter().next();
        let host = first
            .map(|candidate| host(&candidate.url))
            .unwrap_or_default();
        queues.entry(host).or_default().push_back(job);
    }
    let (sender, mut outcomes) = mpsc::channel(64);
    let mut workers = JoinSet::new();
    for queue in queues.into_values() {
        let count = queue.len().min(PER_HOST);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..count {
            let (context, sender, queue) =
                (Arc::clone(context), sender.clone(), Arc::clone(&queue));
            workers.spawn(async move {
                loop {
                    let next = queue.lock().expect("nobody panics with it").pop_front();
                    let Some(job) = next else { return };
                    let outcome = context.work(&job).await;
                    if sender.send((job, outcome)).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    drop(sender);
    let mut saved = Instant::now();
    loop {
        let (job, outcome) = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(SyncError::Interrupted),
            next = outcomes.recv() => match next {
                Some(next) => next,
                None => break,
            },
        };
        let outcome = outcome?;
        Counters::add(&context.counters.done, 1);
        if matches!(outcome, Outcome::Failed { .. }) {
            Counters::add(&context.counters.failed, 1);
        }
        report.note(&job, outcome, state);
        if saved.elapsed() > SAVE {
            state.write(directory, None)?;
            saved = Instant::now();
        }
    }
    // Nobody is left; if one died of a bug it is to be seen.
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    Ok(())
}

/// Somewhere to fetch an archive from.
struct Candidate {
    url: String,
    /// Another mirror's cache, which need not have it, and which our own user named.
    cache: bool,
}

impl Context {
    /// Returns where to look for an archive, in order.
    fn candidates(&self, job: &Job) -> Vec<Candidate> {
        let caches = self.upstream_caches.iter().flat_map(|base| {
            // `opam admin cache` 2.1 has only one of the names, so each is asked for.
            job.checksums.iter().map(move |checksum| Candidate {
                url: format!(
                    "{}/{}",
                    base.trim_end_matches('/'),
                    checksum.path().display()
                ),
                cache: true,
            })
        });
        let own = job.urls.iter().map(|url| Candidate {
            url: url.clone(),
            cache: false,
        });
        if self.cache_first {
            caches.chain(own).collect()
        } else {
            own.chain(caches).collect()
        }
    }

    async fn work(&self, job: &Job) -> Result<Outcome, SyncError> {
        // Always in this order, so nobody waits for one who waits for him.
        let first = job.urls.first().cloned().unwrap_or_default();
        let _url = self.locks.take(first).await;
        let _name = self.locks.take(job.checksums[0].to_string()).await;
        if let Some(outcome) = self.look(job).await? {
            return Ok(outcome);
        }
        let sha384 = wants_sha384(&job.checksums);
        let mut attempts = Vec::new();
        let (mut kind, mut asked) = (FailureKind::Unreachable, None::<Duration>);
        for Candidate { url, cache } in self.candidates(job) {
            let fetch = || self.fetcher.fetch(&url, cache, &self.cache, sha384);
            let mut fetched = fetch().await;
            let wrong = |fetched: &Fetched| {
                fetched.resumed && !fetched.file.hashes().mismatches(&job.checksums).is_empty()
            };
            if fetched.as_ref().is_ok_and(wrong) {
                // What an earlier run left need not be what it received, after a power failure.
                fetched = fetch().await;
            }
            let reason = match fetched {
                Ok(fetched) => {
                    let mismatches = fetched.file.hashes().mismatches(&job.checksums);
                    if mismatches.is_empty() {
                        let bytes = fetched.file.hashes().size();
                        let added = self.committer.add(fetched.file).await?;
                        return Ok(Outcome::Fetched {
                            bytes,
                            collisions: added.collisions,
                        });
                    }
                    kind = FailureKind::Mismatch;
                    let mismatches = mismatches.iter().map(ToString::to_string);
                    let mut reason = mismatches.collect::<Vec<_>>().join("; ");
                    if fetched.html {
                        reason.push_str("; the server sent a page of HTML");
                    }
                    reason
                }
                Err(FetchError::Cache(error)) => return Err(error.into()),
                Err(error) => {
                    asked = asked.max(error.retry_after());
                    error.to_string()
                }
            };
            attempts.push(Attempt { url, reason });
        }
        Ok(Outcome::Failed {
            kind,
            attempts,
            asked,
        })
    }

    /// Looks whether the archive is here under one of its names, and gives it the others.
    async fn look(&self, job: &Job) -> Result<Option<Outcome>, SyncError> {
        let (cache, checksums) = (self.cache.clone(), job.checksums.clone());
        let look = move || -> Result<Option<Outcome>, CacheError> {
            if cache.has_all(&checksums) {
                return Ok(Some(Outcome::Here(Vec::new())));
            }
            for name in &checksums {
                let Some(added) = cache.adopt(name, wants_sha384(&checksums))? else {
                    continue;
                };
                if let Some(outcome) = judge(name, &checksums, added) {
                    return Ok(Some(outcome));
                }
            }
            Ok(None)
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(result) => Ok(result?),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

/// Tells what an archive that is here under `name` means for one who wants all of `checksums`; nothing if it means nothing.
fn judge(name: &Checksum, checksums: &[Checksum], here: Added) -> Option<Outcome> {
    let mismatches = here.hashes.mismatches(checksums);
    if mismatches.is_empty() {
        return Some(Outcome::Here(here.collisions));
    }
    // Two files can have one md5. Nobody has made two with one sha256: then it is the declaration that is wrong, and no server
    // can have what it asks for.
    if name.algorithm() == crate::Algorithm::Md5 {
        return None;
    }
    let reason = mismatches.iter().map(ToString::to_string);
    Some(Outcome::Failed {
        kind: FailureKind::Mismatch,
        attempts: vec![Attempt {
            url: "cache".to_owned(),
            reason: reason.collect::<Vec<_>>().join("; "),
        }],
        asked: None,
    })
}

fn wants_sha384(checksums: &[Checksum]) -> bool {
    let mut kinds = checksums.iter().map(Checksum::algorithm);
    kinds.any(|kind| kind == crate::Algorithm::Sha384)
}
