// SPDX-License-Identifier: Apache-2.0
//! One build: which of the plan's steps the target needs, which of them are there, and running the rest.
//!
//! 1. Every step that the target can reach gets its id, as far as that is possible without running anything.
//! 2. Looking back from the target, a step whose result is in the store hides everything behind it.
//! 3. What is left runs, each step as soon as those that it stands on are done.

mod identify;
mod needs;
mod offers;

use crate::fetch::Fetch;
use crate::flight::{self, Landing};
use crate::job::{Job, Scanned, Source, Work};
use crate::lock::Lease;
use crate::log::{Position, Reader};
use crate::{Engine, Error, Event, EventSender, Outcome, Settings, blocking};
use needs::{check_secrets, forced, reachable};
pub use offers::ResultStep;

use obuild_images::Resolved;
use obuild_images::tree::DigestMemo;
use obuild_specs::{CopySource, NodeIndex, Operation, Plan, StepId};
use obuild_stores::SnapshotId;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tokio::sync::{Mutex as AsyncMutex, SetOnce};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Which steps run although their result is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoCache {
    /// None.
    Never,
    /// All but bases.
    All,
    /// This step and those that stand on it.
    From(NodeIndex),
}

/// What a build was.
#[derive(Clone, Debug)]
pub struct BuildResult {
    /// The target's identity.
    pub step: StepId,
    /// The snapshot that holds the target's tree.
    pub snapshot: SnapshotId,
    /// Steps that ran, here or in a build that shared them.
    pub built: usize,
    /// Steps whose result was there.
    pub cached: usize,
    /// Steps whose result was fetched from a cache.
    pub fetched: usize,
    /// The steps that the target needs and that are known, sources before those that use them.
    pub steps: Vec<ResultStep>,
}

/// What is known of one node of the plan.
#[derive(Default)]
struct State {
    /// Digest of the files that a copy copies.
    digest: OnceLock<[u8; 32]>,
    /// The files themselves, when they were looked at in this build.
    scanned: OnceLock<Arc<Scanned>>,
    step: OnceLock<StepId>,
    snapshot: OnceLock<SnapshotId>,
    done: SetOnce<()>,
    /// Set when the node has to be there, though it stands behind a result that was to be fetched.
    wanted: SetOnce<()>,
    /// Set when its result could not be fetched.
    refused: SetOnce<()>,
    /// The digest of its tree, as the cache has it that it was fetched from.
    tree: OnceLock<[u8; 32]>,
    /// Set when `digest` is what a cache says.
    told: SetOnce<()>,
}

/// The results that were there at the start, and the noting of their use, which goes on meanwhile.
type Noted = (HashSet<SnapshotId>, JoinHandle<Result<(), Error>>);

struct Build {
    engine: Arc<Engine>,
    plan: Plan,
    bases: HashMap<String, Arc<Resolved>>,
    settings: Arc<Settings>,
    events: EventSender,
    cancel: CancellationToken,
    states: Vec<State>,
    forced: Vec<bool>,
    nonce: [u8; 16],
    overrides: HashMap<SnapshotId, SnapshotId>,
    lease: Mutex<Lease>,
    memo: AsyncMutex<Option<DigestMemo>>,
    landing: Landing,
    built: AtomicUsize,
    fetched: AtomicUsize,
    /// Which node is the one that runs of those that have the same result.
    first: OnceLock<HashMap<SnapshotId, NodeIndex>>,
    noted: Mutex<Option<Noted>>,
    /// Whether caches are believed what copies copy.
    trusting: bool,
}

impl Engine {
    /// Executes a plan and returns its target's result.
    ///
    /// # Errors
    ///
    /// The first step's failure ends the build: what else runs for this build alone is cancelled.
    ///
    /// # Cancel safety
    ///
    /// Cancel with the token, not by dropping the future: only then has everything ended when this returns.
    pub async fn build(
        self: &Arc<Self>,
        plan: Plan,
        bases: HashMap<String, Arc<Resolved>>,
        settings: Settings,
        events: EventSender,
        cancel: CancellationToken,
    ) -> Result<BuildResult, Error> {
        let began = Instant::now();
        let needed = reachable(&plan);
        let mut nonce = [0; 16];
        let forced = forced(&plan, &settings.no_cache);
        if settings.no_cache != NoCache::Never {
            rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
                .map_err(|error| Error::Bug(format!("getrandom: {error}")))?;
        }
        check_secrets(&plan, &needed, &settings)?;
        let settings = Arc::new(settings);
        let mut trusting = true;
        let (build, result) = loop {
            let build = Arc::new(Build {
                overrides: self.database().await?.overrides().await?,
                lease: Mutex::new(Lease::create(self.state())?),
                states: plan.nodes.iter().map(|_| State::default()).collect(),
                engine: Arc::clone(self),
                plan: plan.clone(),
                bases: bases.clone(),
                settings: Arc::clone(&settings),
                events: events.clone(),
                cancel: cancel.child_token(),
                forced: forced.clone(),
                nonce,
                memo: AsyncMutex::new(None),
                landing: Landing::default(),
                built: AtomicUsize::new(0),
                fetched: AtomicUsize::new(0),
                first: OnceLock::new(),
                noted: Mutex::default(),
                trusting,
            });
            let result = build.execute(&needed).await;
            build.cancel.cancel();
            build.landing.wait().await;
            let cancelled = matches!(result, Err(Error::Cancelled));
            let record = build.record(&needed, cancelled).await;
            match result {
                Err(error @ Error::NotAsTold { .. }) if trusting => {
                    let message = format!("{error}; looking at it anew");
                    build.tell(Event::Warning { message }).await;
                    trusting = false;
                }
                result => {
                    let result = result?;
                    record?;
                    break (build, result);
                }
            }
        };
        let config = crate::images::config_of(&build.plan, &build.bases);
        self.remember_images(result.snapshot, &config, &build.bases)?;
        let _ = build
            .events
            .send(Event::BuildFinished {
                id: result.step.to_string(),
                built: result.built,
                cached: result.cached,
                fetched: result.fetched,
                duration: began.elapsed(),
            })
            .await;
        Ok(result)
    }
}

impl Build {
    async fn execute(self: &Arc<Self>, needed: &[NodeIndex]) -> Result<BuildResult, Error> {
        self.identify_all(needed).await?;
        let mut missing = self.missing()?;
        // A step that the plan has twice, such as the same base of several builds, is told and run once.
        let mut first = HashMap::new();
        let (own, twins): (Vec<NodeIndex>, Vec<NodeIndex>) = needed.iter().partition(|index| {
            self.states[**index]
                .snapshot
                .get()
                .is_none_or(|id| *first.entry(*id).or_insert(**index) == **index)
        });
        // The first of them may stand behind a result that is there while another is wanted.
        for &index in needed {
            if let Some(id) = self.states[index].snapshot.get()
                && missing[index]
            {
                missing[first[id]] = true;
            }
        }
        self.note(own.iter().filter(|index| !missing[**index]));
        self.tell(Event::BuildStarted { steps: own.len() }).await;
        // Set once, here.
        let _ = self.first.set(first.clone());
        let mut tasks = JoinSet::new();
        for &index in own.iter().filter(|index| !missing[**index]) {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if self.stands_by(index)? {
                let build = Arc::clone(self);
                tasks.spawn(async move { build.stand_by(index).await });
                continue;
            }
            self.tell_cached(index).await?;
            // Set once, here or in `run_node`.
            let _ = self.states[index].done.set(());
        }
        for &index in own.iter().filter(|index| missing[**index]) {
            let build = Arc::clone(self);
            tasks.spawn(async move { build.run_node(index).await });
        }
        for index in twins {
            let build = Arc::clone(self);
            let twin = build.states[index]
                .snapshot
                .get()
                .and_then(|id| first.get(id))
                .copied()
                .unwrap_or(index);
            tasks.spawn(async move {
                tokio::select! {
                    () = build.states[twin].done.wait() => {}
                    () = build.cancel.cancelled() => return Err(Error::Cancelled),
                }
                let _ = build.states[index].done.set(());
                Ok(())
            });
        }
        let mut failure = None;
        while let Some(ended) = tasks.join_next().await {
            let result = ended.unwrap_or_else(|error| Err(Error::Bug(error.to_string())));
            if let Err(error) = result {
                self.cancel.cancel();
                if failure.is_none() || matches!(failure, Some(Error::Cancelled)) {
                    failure = Some(error);
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let target = &self.states[self.plan.target];
        let built = self.built.load(Ordering::Relaxed);
        let fetched = self.fetched.load(Ordering::Relaxed);
        match (target.step.get(), target.snapshot.get()) {
            (Some(step), Some(snapshot)) => Ok(BuildResult {
                step: *step,
                snapshot: *snapshot,
                built,
                cached: own.len().saturating_sub(built + fetched),
                fetched,
                steps: self.result_steps(needed),
            }),
            _ => Err(Error::Bug(
                "the target has no id after the build".to_owned(),
            )),
        }
    }

    /// Begins to note that the results of these nodes are used.
    fn note<'a>(&self, nodes: impl Iterator<Item = &'a NodeIndex>) {
        let ids: HashSet<SnapshotId> = nodes
            .filter_map(|index| self.states[*index].snapshot.get().copied())
            .collect();
        let (engine, list) = (
            Arc::clone(&self.engine),
            ids.iter().copied().collect::<Vec<_>>(),
        );
        let target = self.states[self.plan.target].snapshot.get().copied();
        let target = target.filter(|target| ids.contains(target));
        let noting =
            tokio::spawn(async move { engine.database().await?.touch(&list, target).await });
        *self.noted.lock().expect("no holder of this lock panics") = Some((ids, noting));
    }

    fn exists(&self, id: SnapshotId) -> Result<bool, Error> {
        self.engine
            .store()
            .get(id)
            .map(|snapshot| snapshot.is_some())
            .map_err(Error::Store)
    }

    /// Returns for each node whether it has to run (or to be looked at again when its sources are there).
    fn missing(&self) -> Result<Vec<bool>, Error> {
        let mut missing = vec![false; self.plan.nodes.len()];
        let mut seen = vec![false; self.plan.nodes.len()];
        let mut stack = vec![self.plan.target];
        while let Some(index) = stack.pop() {
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            let state = &self.states[index];
            if let Some(snapshot) = state.snapshot.get()
                && self.exists(*snapshot)?
            {
                continue;
            }
            missing[index] = true;
            stack.extend(self.needs(index));
        }
        Ok(missing)
    }

    async fn run_node(self: &Arc<Self>, index: NodeIndex) -> Result<(), Error> {
        let node = &self.plan.nodes[index];
        if let Some(fetch) = self.offer(index)
            && self.fetch(index, fetch).await?
        {
            self.land(index, &self.fetched);
            return Ok(());
        }
        for source in node.operation.edges() {
            tokio::select! {
                () = self.states[source].done.wait() => {}
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
            }
        }
        let state = &self.states[index];
        if state.snapshot.get().is_none() {
            self.identify(index, true).await?;
            let snapshot = self.snapshot(index)?;
            self.lease
                .lock()
                .expect("no holder of this lock panics")
                .add([snapshot])?;
            if self.exists(snapshot)? {
                self.tell_cached(index).await?;
                let _ = state.done.set(());
                return Ok(());
            }
            if let Some(fetch) = self.offer(index)
                && self.fetch(index, fetch).await?
            {
                self.land(index, &self.fetched);
                return Ok(());
            }
        }
        self.check_told(index).await?;
        self.fly(index, None).await?;
        self.land(index, &self.built);
        Ok(())
    }

    /// Notes that a node has its result.
    fn land(&self, index: NodeIndex, count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
        let _ = self.states[index].done.set(());
    }

    /// Returns whether a node that need not be there may have to be after all: what hides it may be to be fetched.
    fn stands_by(&self, index: NodeIndex) -> Result<bool, Error> {
        if self.settings.imports.is_empty() {
            return Ok(false);
        }
        match self.states[index].snapshot.get() {
            Some(snapshot) => Ok(!self.exists(*snapshot)?),
            None => Ok(true),
        }
    }

    /// Waits until a node is wanted, and runs it then, or until the target is there without it.
    async fn stand_by(self: &Arc<Self>, index: NodeIndex) -> Result<(), Error> {
        let state = &self.states[index];
        tokio::select! {
            () = state.wanted.wait() => return self.run_node(index).await,
            () = self.states[self.plan.target].done.wait() => {}
            () = self.cancel.cancelled() => return Err(Error::Cancelled),
        }
        if state.snapshot.get().is_some() {
            self.tell_cached(index).await?;
        }
        let _ = state.done.set(());
        Ok(())
    }

    fn snapshot(&self, index: NodeIndex) -> Result<SnapshotId, Error> {
        let known = self.states[index].snapshot.get().copied();
        known.ok_or_else(|| Error::Bug(format!("step {index} has no id")))
    }

    fn job(self: &Arc<Self>, index: NodeIndex, fetch: Option<&Fetch>) -> Result<Job, Error> {
        let node = &self.plan.nodes[index];
        let step = self.states[index].step.get().copied();
        let ready = fetch.and_then(|_| self.ready(index));
        let work = match (&node.operation, fetch) {
            (_, Some(fetch)) => Work::Fetch(Box::new(fetch.clone())),
            (Operation::Base { reference, .. }, None) => Work::Base(
                self.bases
                    .get(reference)
                    .cloned()
                    .ok_or_else(|| Error::Bug(format!("the base {reference} was not resolved")))?,
            ),
            (Operation::Run { parent, run }, None) => Work::Run {
                parent: self.snapshot(*parent)?,
                run: run.clone(),
            },
            (Operation::Copy { parent, copy }, None) => Work::Copy {
                parent: self.snapshot(*parent)?,
                from: match copy.source {
                    CopySource::Context => Source::Context(self.settings.context.clone()),
                    CopySource::Node(source) => Source::Snapshot(self.snapshot(source)?),
                },
                copy: copy.clone(),
                scanned: self.states[index].scanned.get().cloned(),
            },
        };
        Ok(Job {
            step: step.ok_or_else(|| Error::Bug(format!("step {index} has no id")))?,
            id: self.snapshot(index)?,
            heading: node.heading.clone(),
            work,
            settings: Arc::clone(&self.settings),
            ready,
        })
    }

    /// Runs the step, or takes part in it where somebody else runs it already, telling its output meanwhile.
    async fn fly(self: &Arc<Self>, index: NodeIndex, fetch: Option<Fetch>) -> Result<(), Error> {
        let began = Instant::now();
        self.tell_started(index).await?;
        loop {
            let ticket = flight::join(&self.engine, self.job(index, fetch.as_ref())?)?;
            self.landing.add(&ticket.flight);
            match self.follow(index, &ticket).await {
                // Its last user left as we came: start anew.
                Err(Error::Shared(error))
                    if matches!(*error, Error::Cancelled) && !self.cancel.is_cancelled() => {}
                Err(Error::Shared(error)) => {
                    if let Ok(id) = self.snapshot(index)
                        && !matches!(*error, Error::Cancelled)
                        && !error.is_not_fetched()
                    {
                        self.tell(Event::StepFailed {
                            step: index,
                            id: id.to_string(),
                            error: error.reason(),
                            duration: began.elapsed(),
                        })
                        .await;
                    }
                    return Err(match Arc::try_unwrap(error) {
                        Ok(error) => error,
                        Err(error) if matches!(*error, Error::Cancelled) => Error::Cancelled,
                        Err(error) => Error::Shared(error),
                    });
                }
                Err(error) => return Err(error),
                Ok(outcome) => {
                    let id = self.snapshot(index)?.to_string();
                    self.tell(Event::StepFinished {
                        step: index,
                        id,
                        outcome,
                        duration: began.elapsed(),
                    })
                    .await;
                    return Ok(());
                }
            }
        }
    }

    /// Tells a flight's output until it has landed.
    async fn follow(&self, index: NodeIndex, ticket: &flight::Ticket) -> Result<Outcome, Error> {
        let flight = &ticket.flight;
        let mut log = flight.log.subscribe();
        let mut foreign = flight.foreign.subscribe();
        let mut progress = flight.progress.subscribe();
        let mut reader = Reader::new(self.engine.log_path(self.snapshot(index)?));
        loop {
            let position: Position = *log.borrow_and_update();
            while let Some(data) = reader.next(position)? {
                self.tell(Event::StepOutput { step: index, data }).await;
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
                result = flight.done.wait() => {
                    let position: Position = *flight.log.borrow();
                    while let Some(data) = reader.next(position)? {
                        self.tell(Event::StepOutput { step: index, data }).await;
                    }
                    return result.clone().map_err(Error::Shared);
                }
                Ok(()) = log.changed() => {}
                Ok(()) = foreign.changed() => {
                    if *foreign.borrow_and_update() {
                        self.tell(Event::StepShared { step: index }).await;
                    }
                }
                Ok(()) = progress.changed() => {
                    let now = *progress.borrow_and_update();
                    if let Some((done_bytes, total_bytes)) = now {
                        self.tell(Event::StepProgress { step: index, done_bytes, total_bytes }).await;
                    }
                }
            }
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more: the build goes on.
        let _ = self.events.send(event).await;
    }

    async fn tell_started(&self, index: NodeIndex) -> Result<(), Error> {
        let node = &self.plan.nodes[index];
        self.tell(Event::StepStarted {
            step: index,
            id: self.snapshot(index)?.to_string(),
            build: node.build.clone(),
            heading: node.heading.clone(),
            preamble: node.preamble.clone(),
        })
        .await;
        Ok(())
    }

    async fn tell_cached(&self, index: NodeIndex) -> Result<(), Error> {
        self.tell_started(index).await?;
        let snapshot = self.snapshot(index)?;
        if self.settings.replay {
            let path = self.engine.log_path(snapshot);
            let length = fs_err::metadata(&path).map_or(0, |metadata| metadata.len());
            let mut reader = Reader::new(path);
            while let Some(data) = reader.next(Position { attempt: 1, length })? {
                self.tell(Event::StepOutput { step: index, data }).await;
            }
        }
        let id = snapshot.to_string();
        let duration = std::time::Duration::ZERO;
        self.tell(Event::StepFinished {
            step: index,
            id,
            outcome: Outcome::Cached,
            duration,
        })
        .await;
        Ok(())
    }

    /// Makes the build's results durable and writes what the database keeps of it.
    ///
    /// Who cancels does not wait for a disk, which may take seconds to write out a base that has just come: the results stay provisional,
    /// until the next build that uses them.
    async fn record(&self, needed: &[NodeIndex], cancelled: bool) -> Result<(), Error> {
        let wrote = !self
            .engine
            .finished
            .lock()
            .expect("no holder of this lock panics")
            .is_empty();
        let mut used: Vec<_> = needed
            .iter()
            .filter_map(|index| self.states[*index].snapshot.get().copied())
            .collect();
        let noted = self
            .noted
            .lock()
            .expect("no holder of this lock panics")
            .take();
        let store = Arc::clone(&self.engine.store);
        // What was found may be of a build that still runs, or was killed before it synced.
        let unsafe_yet = !cancelled
            && (wrote || {
                let provisional = store.provisional().map_err(Error::Store)?;
                provisional.iter().any(|id| used.contains(id))
            });
        let syncing =
            unsafe_yet.then(|| tokio::spawn(blocking(move || store.sync().map_err(Error::Store))));
        self.engine.flush().await?;
        self.record_fetched(needed).await?;
        if let Some((ids, noting)) = noted {
            used.retain(|id| !ids.contains(id));
            noting
                .await
                .unwrap_or_else(|error| Err(Error::Bug(error.to_string())))?;
        }
        if !used.is_empty() {
            self.engine.database().await?.touch(&used, None).await?;
        }
        match syncing {
            Some(syncing) => syncing
                .await
                .unwrap_or_else(|error| Err(Error::Bug(error.to_string()))),
            None => Ok(()),
        }
    }
}
