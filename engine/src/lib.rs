// SPDX-License-Identifier: Apache-2.0
//! Executes a plan over a store and a sandbox: step cache, locks, logs, events, cancellation, pruning.
//!
//! [`Engine`] is one process's view of one store. Any number of engines, in any number of processes, and any number
//! of builds in each, share a store: a step that several want is run once, and all of them see its log.

mod bases;
mod build;
mod database;
mod elsewhere;
mod error;
mod events;
mod exports;
mod fetch;
mod flight;
mod ids;
mod images;
mod job;
mod lock;
mod log;
mod maintenance;
mod provenance;
#[cfg(test)]
mod tests;
mod upkeep;
mod users;

pub use build::{BuildResult, NoCache, ResultStep};
pub use error::{Error, Kind};
pub use events::{Event, EventSender, Outcome};
pub use exports::ExportMode;
pub use images::ImageSettings;
pub use job::sandbox_rootfs;
pub use maintenance::{PruneOptions, Pruned, Usage};
pub use obuild_stores::{Finding, FindingKind};
pub use upkeep::{CheckOptions, CheckReport, CopyOptions, CopyReport, Health, Progress, StoreInfo};

use bstr::BString;
use database::Database;
use obuild_images::CacheImport;
use obuild_sandboxes::{Limits, Sandbox};
use obuild_specs::StepId;
use obuild_stores::{SnapshotId, Store};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::{OnceCell, Semaphore};

/// One process's view of one store.
pub struct Engine {
    store: Arc<dyn Store>,
    sandbox: Arc<dyn Sandbox>,
    state: PathBuf,
    database: OnceCell<Database>,
    jobs: Semaphore,
    flights: Mutex<HashMap<SnapshotId, Arc<flight::Flight>>>,
    finished: Mutex<Vec<StepRecord>>,
}

/// What a build needs besides its plan.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent choice of the caller"
)]
pub struct Settings {
    /// The directory that copies from the context read.
    pub context: PathBuf,
    /// Values of secrets by name.
    pub secrets: HashMap<BString, Vec<u8>>,
    /// Limits of every step.
    pub limits: Limits,
    /// Whether steps skip `fsync` and its like. Safe: a result counts as durable only after the store's own sync.
    pub fast_sync: bool,
    /// Whether steps run with `no_new_privs`.
    pub no_new_privs: bool,
    /// Whether commands see what another machine, at another time, could show them.
    pub elsewhere: bool,
    /// Whether the tree of a failed step is kept for a look.
    pub keep_failed: bool,
    /// Which steps run although their result is there.
    pub no_cache: NoCache,
    /// Whether the logs of cached steps are told again.
    pub replay: bool,
    /// Caches of other machines' that results are taken from, the first that has one.
    pub imports: Vec<Arc<CacheImport>>,
}

/// A step as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRecord {
    /// The snapshot that holds the result.
    pub id: SnapshotId,
    /// The step's identity.
    pub step: StepId,
    /// The snapshot that the step started from.
    pub parent: Option<SnapshotId>,
    /// `base`, `layer` (one of a base, but the uppermost), `run`, `copy` or `failed`.
    pub kind: String,
    /// The step as the spec had it.
    pub heading: String,
    /// When it was made.
    pub created: SystemTime,
    /// When a build last used it.
    pub used: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// What it holds beyond its parent, if somebody has asked before.
    pub size_bytes: Option<u64>,
    /// What a command saw around it, as an [`ImageConfig`](obuild_images::ImageConfig) in JSON; nothing where none ran.
    pub config: Option<String>,
}

impl Engine {
    /// Opens the engine's part of a store. `jobs` steps run at once.
    ///
    /// # Errors
    ///
    /// When the store's state directory cannot be written.
    pub fn open(
        store: Arc<dyn Store>,
        sandbox: Arc<dyn Sandbox>,
        jobs: usize,
    ) -> Result<Arc<Self>, Error> {
        let state = store.state_dir().to_owned();
        for name in ["leases", "logs"] {
            let path = state.join(name);
            match fs_err::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(Error::Io {
                        action: "create",
                        path,
                        source: error,
                    });
                }
                _ => {}
            }
        }
        Ok(Arc::new(Self {
            store,
            sandbox,
            state,
            database: OnceCell::new(),
            jobs: Semaphore::new(jobs.max(1)),
            flights: Mutex::default(),
            finished: Mutex::default(),
        }))
    }

    /// Returns the store.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Returns the sandbox.
    pub fn sandbox(&self) -> &dyn Sandbox {
        &*self.sandbox
    }

    /// Returns the file that holds a snapshot's log, whether it is there or not.
    pub fn log_path(&self, id: SnapshotId) -> PathBuf {
        self.state.join("logs").join(id.to_string())
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) async fn database(&self) -> Result<&Database, Error> {
        let path = self.state.join("obuild.db");
        self.database
            .get_or_try_init(|| Database::open(&path))
            .await
    }

    /// Writes the finished steps' records to the database.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        let steps =
            std::mem::take(&mut *self.finished.lock().expect("no holder of this lock panics"));
        if steps.is_empty() {
            return Ok(());
        }
        self.database().await?.record(&steps).await
    }
}

/// Runs blocking work on a thread for it; a panic there is our bug, and told as one.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Bug(error.to_string())),
    }
}
