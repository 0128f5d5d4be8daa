// SPDX-License-Identifier: Apache-2.0
//! `obuild archive sync`: a repository's new commit is read as far as it differs from the last one, what it declares is
//! fetched, and then the index names it.
//!
//! The order is what makes it safe to die anywhere: archives get into the cache one by one; the index is written when they are
//! there; the state, with the new commit, comes last. Whoever begins again finds what was there and goes on.

mod error;
mod job;
mod progress;
mod read;
mod report;
mod run;

pub use error::SyncError;
pub use progress::{Progress, Stage};
pub use report::{Problem, Report};

use crate::cache::{Cache, Committer, Lock};
use crate::fetch::{FetchOptions, Fetcher};
use crate::index::{Fields, Index};
use crate::repository::{self, Commit, Git, Repository};
use crate::state::{State, SyncRecord, now};
use job::Jobs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is synced, and how.
#[derive(Clone, Debug)]
pub struct SyncOptions {
    /// A git URL, a local git repository or a plain directory.
    pub repository: String,
    /// A branch, tag or commit; the repository's own choice without.
    pub revision: Option<String>,
    /// The directory of the archive.
    pub directory: PathBuf,
    /// How archives are fetched.
    pub fetch: FetchOptions,
    /// Caches of other mirrors: `URL/KIND/2D/DIGEST`.
    pub upstream_caches: Vec<String>,
    /// Asks the caches before the URLs that packages declare, not after them.
    pub cache_first: bool,
    /// Tries everything that is missing now, whenever its turn is.
    pub retry: bool,
    /// Waits when another process works on the archive.
    pub wait: bool,
    /// How git is run.
    pub git: Git,
    /// What the `repo` file says, if there is to be an index: `index.tar.gz` and `repo` beside the cache.
    pub index: Option<Fields>,
}

impl SyncOptions {
    /// Returns how the index is to be made, to see when that changes.
    fn index_wanted(&self) -> String {
        format!("{:?}", self.index)
    }

    /// Tells whether the index is there that the last sync made.
    fn index_made(&self, state: &State) -> bool {
        let there = |name: &str| self.directory.join(name).exists();
        state.index == self.index_wanted()
            && (self.index.is_none() || there("index.tar.gz") && there("repo"))
    }
}

/// Brings the archive up to date with the repository.
///
/// # Cancel safety
///
/// What was complete stays; ask `stop` to end it in good order.
pub async fn sync(
    options: &SyncOptions,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<Report, SyncError> {
    let (started, clock) = (now(), Instant::now());
    let _lock = lock(options, progress, stop).await?;
    let (cache, mut state) = {
        let directory = options.directory.clone();
        blocking(move || {
            let cache = Cache::open(&directory)?;
            cache.recover()?;
            Ok((cache, State::read(&directory)?))
        })
        .await?
    };

    progress.enter(Stage::Looking);
    let (repository, head) = look(options, progress, stop).await?;
    let moved = state.repository != options.repository || state.revision != options.revision;
    let read_before = state.commit.as_deref() == Some(head.as_str());
    let due = options.retry
        || state
            .failures
            .values()
            .any(|failure| failure.next <= started);
    let missing_due = due && !state.failures.is_empty();
    let index_made = options.index_made(&state);
    if read_before && !moved && !state.recheck && !missing_due && index_made {
        State::touch(&options.directory)?;
        return Ok(Report::nothing(&state, clock.elapsed()));
    }

    progress.enter(Stage::Reading);
    let (read, mut state) = {
        let (directory, head) = (options.directory.clone(), head.clone());
        // Another repository has nothing in common with this one that a comparison of commits could tell.
        let same = state.repository == options.repository;
        blocking(move || {
            let table = state.read_table(&directory);
            let from = state.commit.as_deref().filter(|_| same && table.is_some());
            let from = from.and_then(|commit| commit.parse::<Commit>().ok());
            let table = table.unwrap_or_default();
            let read = read::read(repository, from.as_ref(), &head, table, &mut state)?;
            Ok((read, state))
        })
        .await?
    };
    // A file may have been taken away under the old commit's names, so with `recheck` everything is looked at.
    let everything = read.whole || state.recheck;
    let jobs = {
        let retry = options.retry;
        let (cache, state, table) = (cache.clone(), state.clone(), read.table);
        let touched = read.touched.clone();
        let choose = move || {
            let jobs = Jobs::choose(&cache, &table, &state, |path, failure| {
                everything
                    || touched.contains(path)
                    || failure.is_some_and(|failure| retry || failure.next <= started)
            });
            Ok((jobs, table))
        };
        blocking(choose).await?
    };
    let (jobs, table) = jobs;
    state.failures.retain(|key, _| jobs.declared.contains(key));

    progress.enter(Stage::Fetching);
    let fetcher = Fetcher::new(options.fetch.clone(), Arc::clone(&progress.counters))?;
    let context = Arc::new(run::Context {
        committer: Committer::start(cache.clone()),
        cache: cache.clone(),
        fetcher,
        upstream_caches: options.upstream_caches.clone(),
        cache_first: options.cache_first,
        locks: run::Locks::default(),
        counters: Arc::clone(&progress.counters),
    });
    let mut record = SyncRecord {
        started,
        from: state.commit.clone(),
        to: head.to_string(),
        packages_read: read.packages,
        packages_removed: read.removed,
        ..SyncRecord::default()
    };
    let mut report = Report::new(&jobs, &read.touched, &table);
    let ran = run::run(
        &context,
        jobs.missing,
        &mut state,
        &mut report,
        &options.directory,
        stop,
    )
    .await;
    // What failed so far is not to be tried again at once, even if the rest was not reached.
    if let Err(error) = ran {
        let _ = state.write(&options.directory, None);
        return Err(error);
    }

    progress.enter(Stage::Writing);
    record.fetched = report.fetched;
    record.fetched_bytes = report.fetched_bytes;
    record.failed = report.failed.len() as u64;
    record.milliseconds = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
    report.record = record.clone();
    state.repository.clone_from(&options.repository);
    state.revision.clone_from(&options.revision);
    state.commit = Some(head.to_string());
    state.recheck = false;
    state.syncs.push(record);
    report.missing = state.failures.len() as u64;
    state.index = options.index_wanted();
    let (directory, fields, stop) = (
        options.directory.clone(),
        options.index.clone(),
        stop.clone(),
    );
    let mut repository = read.repository;
    let write = move || {
        // The names of the archives are on the disk before anything says that they are there.
        cache.sync()?;
        let made = match fields {
            Some(fields) => {
                let work = crate::cache::private(&directory).join("index");
                let (index, made) =
                    Index::update(&work, &mut repository, &head, &fields, None, &stop)?;
                index.publish(&directory)?;
                Some(made)
            }
            None => None,
        };
        state.committed = repository.committed(&head)?;
        state.write(&directory, Some(&table))?;
        State::touch(&directory)?;
        Ok(made)
    };
    report.index = blocking(write).await?;
    report.time = clock.elapsed();
    Ok(report)
}

async fn lock(
    options: &SyncOptions,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<Lock, SyncError> {
    let (directory, wait) = (options.directory.clone(), options.wait);
    let (progress, stop) = (Arc::clone(progress), stop.clone());
    blocking(move || {
        let taken = Lock::take(&directory, || {
            if wait {
                progress.enter(Stage::Waiting);
            }
            wait && !stop.is_cancelled()
        });
        match taken {
            Err(_) if stop.is_cancelled() => Err(SyncError::Interrupted),
            taken => Ok(taken?),
        }
    })
    .await
}

/// Looks where the branch is. One question to the server, and a fetch if it has moved.
async fn look(
    options: &SyncOptions,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<(Repository, Commit), SyncError> {
    let said = Arc::clone(progress);
    let open = repository::Options {
        revision: options.revision.clone(),
        git: options.git.clone(),
        cancel: stop.clone(),
        progress: Some(Arc::new(move |line: &str| said.say(line))),
        ..repository::Options::default()
    };
    let work = crate::cache::private(&options.directory).join("repository");
    let location = options.repository.clone();
    blocking(move || {
        let mut repository = Repository::open(&location, &work, open)?;
        let head = repository.head()?;
        Ok((repository, head))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SyncError> + Send + 'static,
) -> Result<T, SyncError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
