// SPDX-License-Identifier: Apache-2.0
//! Registries: pulling and pushing images over HTTP, after the OCI distribution specification v1.1.
//!
//! [`Client`] is one process's view of all registries. Its calls block; inside, a small runtime of its own carries the transfers, so that
//! several go on at once while a caller's thread unpacks. Nothing is read from the environment: [`ClientOptions`] says it all.

mod answer;
mod artifact;
mod attach;
mod auth;
mod blobs;
mod connect;
mod credentials;
mod download;
mod error;
mod http;
mod kept;
mod known;
mod name;
mod pull;
mod push;
mod retry;
mod upload;

pub use attach::{AttachError, Signed, attach, sign, statements, verify};
pub use error::Error;
pub use kept::{KeptBlob, kept_blobs};
pub use name::ImageName;
pub use push::{
    BlobData, BlobSource, PushBlob, PushImage, PushManifest, PushProgress, PushReport, push,
};

pub(crate) use answer::reason as innermost;
pub(crate) use connect::choose_cryptography;
pub(crate) use download::Download;

use blobs::Blobs;
use http::Transport;
use known::Known;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;

/// The directory of a store's state directory that is meant for [`ClientOptions::state_dir`].
pub const DIRECTORY: &str = "images";
/// Transfers at once: enough to fill a line on which one connection is slow.
const TRANSFERS: usize = 4;
/// How often a caller's wish to stop is looked for.
const TICK: Duration = Duration::from_millis(50);

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where blobs are kept, and what is known of registries: a directory of the store's.
    pub state_dir: PathBuf,
    /// Docker's configuration file, which has the credentials.
    pub credentials: Option<PathBuf>,
    /// Where credential helpers are looked for, as in `PATH`.
    pub search_path: OsString,
    /// Variables that name proxies (`http_proxy`, `https_proxy`, `no_proxy`), in lower or upper case.
    pub proxies: Vec<(OsString, OsString)>,
    /// What is special about some registries, by host.
    pub hosts: BTreeMap<String, HostOptions>,
    /// How long a server may be silent.
    pub timeout: Duration,
}

impl ClientOptions {
    /// Returns options without credentials, proxies and special hosts.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            credentials: None,
            search_path: OsString::new(),
            proxies: Vec::new(),
            hosts: BTreeMap::new(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// What is special about one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Whether it is talked to without TLS; by default only this machine itself is.
    pub insecure: Option<bool>,
    /// A file with the certificates of the authorities that it is trusted by, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Registries to ask first, by host, for what it has.
    pub mirrors: Vec<String>,
}

/// Talks to registries.
pub struct Client {
    transport: Arc<Transport>,
    blobs: Blobs,
    known: Known,
    turns: Arc<Semaphore>,
    runtime: OnceLock<Runtime>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client. Nothing is read and no connection made before it is needed.
    pub fn new(options: ClientOptions) -> Self {
        Self {
            blobs: Blobs::new(options.state_dir.clone()),
            known: Known::new(options.state_dir.join("known")),
            transport: Arc::new(Transport::new(options)),
            turns: Arc::new(Semaphore::new(TRANSFERS)),
            runtime: OnceLock::new(),
        }
    }

    fn runtime(&self) -> Result<&Handle, Error> {
        if let Some(runtime) = self.runtime.get() {
            return Ok(runtime.handle());
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.min(TRANSFERS))
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| Error::io("start threads for", "registries", error))?;
        // Of two threads that come here at once, one's is dropped again.
        if let Err(second) = self.runtime.set(runtime) {
            second.shutdown_background();
        }
        self.runtime()
    }

    /// Returns a new file without a name, among the blobs.
    pub(crate) fn scratch(&self) -> Result<File, crate::Error> {
        let directory = self.blobs.root();
        fs_err::create_dir_all(directory)
            .map_err(|error| crate::Error::io("create", directory, error))?;
        tempfile::tempfile_in(directory)
            .map_err(|error| crate::Error::io("create a file in", directory, error))
    }

    /// Waits for the future as [`Client::wait`] does, whatever its errors are.
    pub(crate) fn wait_for<T>(
        &self,
        cancelled: &dyn Fn() -> bool,
        future: impl Future<Output = Result<T, crate::Error>>,
    ) -> Result<T, crate::Error> {
        self.wait(cancelled, async { Ok(future.await) })
            .unwrap_or_else(|error| Err(crate::Error::registry(&"docker-daemon", error)))
    }

    /// Waits for the future on the caller's thread, until the caller cancels.
    fn wait<T>(
        &self,
        cancelled: &dyn Fn() -> bool,
        future: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.runtime()?.block_on(async {
            tokio::pin!(future);
            loop {
                tokio::select! {
                    biased;
                    result = &mut future => return result,
                    () = tokio::time::sleep(TICK) => {
                        if cancelled() {
                            return Err(Error::Cancelled);
                        }
                    }
                }
            }
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Dropping a runtime waits, which an asynchronous caller may not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
