// SPDX-License-Identifier: Apache-2.0
//! One blob on its way into [`super::blobs`], readable while it comes.
//!
//! The download hashes what it writes and gives the blob its name only when size and digest are right. A reader gets the bytes as they arrive,
//! and the end of the file only after that check: who has read to the end has read the right bytes.

use super::Error;
use super::answer::{broken, cut, shown, status_error};
use super::blobs::{Blobs, Partial};
use super::http::{Call, Transport};
use super::retry::{Failure, Retry};
use crate::digest::Digest;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How often a blob that another process fetches is looked at.
const PATIENCE: Duration = Duration::from_millis(50);

/// What is to be fetched, and from where.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Mirrors first, the registry last.
    pub(super) hosts: Vec<String>,
    pub(super) repository: String,
}

/// A running or finished download. Dropping it stops it; what has come is kept for the next attempt.
#[derive(Debug)]
pub(crate) struct Download {
    shared: Arc<Shared>,
    size: u64,
    task: tokio::task::AbortHandle,
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.end(Err(Error::Cancelled));
    }
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    available: u64,
    /// Counts how often everything had to be fetched anew.
    generation: u32,
    end: Option<Result<(), Arc<Error>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Notes how it ended; the first end counts.
    fn end(&self, result: Result<(), Error>) {
        self.update(|state| {
            state.end.get_or_insert(result.map_err(Arc::new));
        });
    }
}

impl Download {
    /// Starts it; it waits for its turn.
    pub(super) fn start(
        runtime: &tokio::runtime::Handle,
        transport: Arc<Transport>,
        turns: Arc<Semaphore>,
        blobs: Blobs,
        wanted: Wanted,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let size = wanted.size;
        let own = Arc::clone(&shared);
        let task = runtime.spawn(async move {
            let Ok(_turn) = turns.acquire().await else {
                return;
            };
            let fetch = Fetch {
                transport: &transport,
                blobs: &blobs,
                wanted: &wanted,
                shared: &own,
            };
            let result = fetch.run().await;
            own.end(result);
        });
        Self {
            shared,
            size,
            task: task.abort_handle(),
        }
    }

    /// Returns how many bytes there are.
    pub(crate) fn available(&self) -> u64 {
        self.shared.lock().available
    }

    /// Returns a reader from the blob's start. It waits for bytes that have not come yet, until `stop` is set.
    pub(crate) fn reader(&self, stop: Arc<AtomicBool>) -> Reader {
        Reader {
            generation: self.shared.lock().generation,
            shared: Arc::clone(&self.shared),
            size: self.size,
            offset: 0,
            stop,
        }
    }

    /// Returns how it failed, if it has.
    pub(crate) fn failure(&self) -> Option<Arc<Error>> {
        match &self.shared.lock().end {
            Some(Err(error)) => Some(Arc::clone(error)),
            _ => None,
        }
    }

    /// Counts how often everything had to be fetched anew, because what had come was wrong.
    pub(crate) fn generation(&self) -> u32 {
        self.shared.lock().generation
    }
}

/// Reads a blob while it comes.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    generation: u32,
    size: u64,
    offset: u64,
    stop: Arc<AtomicBool>,
}

impl Reader {
    /// Waits for bytes, or for the blob's verified end.
    fn wait(&self) -> io::Result<Option<(Arc<File>, u64)>> {
        let mut state = self.shared.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("nobody wants it any more"));
            }
            if state.generation != self.generation {
                return Err(io::Error::other("what had come was wrong; it comes anew"));
            }
            match (&state.file, &state.end) {
                (_, Some(Err(error))) => return Err(io::Error::other(error.to_string())),
                (Some(file), _) if state.available > self.offset => {
                    return Ok(Some((Arc::clone(file), state.available)));
                }
                (Some(_), Some(Ok(()))) if self.offset == self.size => return Ok(None),
                (_, Some(Ok(()))) => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
            // Woken by every change; the time is for `stop` alone.
            (state, _) = self
                .shared
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .expect("no holder of this lock panics");
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some((file, available)) = self.wait()? else {
            return Ok(0);
        };
        let wanted = usize::try_from(available - self.offset).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        let length = file.read_at(&mut buffer[..wanted], self.offset)?;
        if self.shared.lock().generation != self.generation {
            return Err(io::Error::other("what had come was wrong; it comes anew"));
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += length as u64;
        Ok(length)
    }
}

/// Fetches a blob that nobody reads meanwhile.
pub(super) async fn fetch(
    transport: &Transport,
    blobs: &Blobs,
    wanted: &Wanted,
) -> Result<(), Error> {
    let shared = Shared::default();
    let fetch = Fetch {
        transport,
        blobs,
        wanted,
        shared: &shared,
    };
    fetch.run().await
}

/// The work of one download.
struct Fetch<'a> {
    transport: &'a Transport,
    blobs: &'a Blobs,
    wanted: &'a Wanted,
    shared: &'a Shared,
}

/// What is there of the blob.
struct Got {
    file: Arc<File>,
    path: std::path::PathBuf,
    have: u64,
    hash: Sha256,
}

impl Fetch<'_> {
    async fn run(&self) -> Result<(), Error> {
        let digest = self.wanted.digest;
        let partial = loop {
            if self.take_whole()? {
                return Ok(());
            }
            match self.blobs.try_begin(digest)? {
                Some(partial) => break partial,
                None => tokio::time::sleep(PATIENCE).await,
            }
        };
        // Another may have finished between the look and the lock.
        if self.take_whole()? {
            let _ = fs_err::remove_file(&partial.path);
            return Ok(());
        }
        let mut got = self.begin(&partial).await?;
        let hosts = &self.wanted.hosts;
        // Bytes of several sources, of which one may have been wrong.
        let mut mixed = got.have > 0;
        let mut source = 0;
        loop {
            while got.have < self.wanted.size {
                let Some(host) = hosts.get(source) else {
                    return Err(Error::NotHere {
                        image: format!("the blob {digest}"),
                    });
                };
                match self.fetch_rest(host, &mut got).await {
                    Ok(()) => {}
                    Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
                    Err(error) if source + 1 < hosts.len() => {
                        tracing::warn!(%error, "the mirror does not help");
                        mixed |= got.have > 0;
                        source += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            let found = Digest(std::mem::take(&mut got.hash).finalize().into());
            if found == digest {
                return self.blobs.finish(digest, &partial).map(|()| {
                    self.shared.update(|state| state.available = got.have);
                });
            }
            let host = hosts.get(source).map_or("?", String::as_str);
            let error = Error::Lied {
                url: format!("the blob {digest} from {host}"),
                what: format!("its digest is {found}"),
            };
            if std::mem::take(&mut mixed) {
                tracing::info!(%error, "fetching it anew");
            } else if source + 1 < hosts.len() {
                tracing::warn!(%error, "the mirror does not help");
                source += 1;
            } else {
                let _ = fs_err::remove_file(&partial.path);
                return Err(error);
            }
            self.restart(&mut got)?;
        }
    }

    /// Takes the blob if it is there.
    fn take_whole(&self) -> Result<bool, Error> {
        let Wanted { digest, size, .. } = *self.wanted;
        if !self.blobs.has(digest, size) {
            return Ok(false);
        }
        let path = self.blobs.path(digest);
        let file = fs_err::File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        self.shared.update(|state| {
            state.file = Some(Arc::new(file.into_parts().0));
            state.available = size;
        });
        Ok(true)
    }

    /// Hashes what an earlier attempt has left.
    async fn begin(&self, partial: &Partial) -> Result<Got, Error> {
        let fail = |action| {
            let path = partial.path.clone();
            move |error: io::Error| Error::io(action, path, error)
        };
        let file = partial.file.try_clone().map_err(fail("open"))?;
        let mut have = file.metadata().map_err(fail("read"))?.len();
        if have > self.wanted.size {
            file.set_len(0).map_err(fail("truncate"))?;
            have = 0;
        }
        let file = Arc::new(file);
        let mut hash = Sha256::new();
        if have > 0 {
            let file = Arc::clone(&file);
            let hashing = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; 256 << 10];
                let mut offset = 0;
                while offset < have {
                    let length = file.read_at(&mut buffer, offset)?;
                    if length == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    hash.update(&buffer[..length]);
                    offset += length as u64;
                }
                Ok(hash)
            });
            let hashed = hashing.await.map_err(|_| Error::Cancelled)?;
            hash = hashed.map_err(fail("read"))?;
        }
        self.shared.update(|state| {
            state.file = Some(Arc::clone(&file));
            state.available = have;
        });
        Ok(Got {
            file,
            path: partial.path.clone(),
            have,
            hash,
        })
    }

    /// Throws away what has come.
    fn restart(&self, got: &mut Got) -> Result<(), Error> {
        self.shared.update(|state| {
            state.generation += 1;
            state.available = 0;
        });
        got.have = 0;
        got.hash = Sha256::new();
        got.file
            .set_len(0)
            .map_err(|error| Error::io("truncate", &got.path, error))
    }

    /// Fetches what is missing from one host, going on where it is cut.
    async fn fetch_rest(&self, host: &str, got: &mut Got) -> Result<(), Error> {
        let mut retry = Retry::default();
        loop {
            let before = got.have;
            let failure = match self.fetch_once(host, got).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            if got.have > before {
                retry.progress();
            }
            let times = retry.failures() + 1;
            retry.pause(failure.told(times)).await?;
        }
    }

    async fn fetch_once(&self, host: &str, got: &mut Got) -> Result<(), Failure> {
        let Wanted {
            digest,
            size,
            repository,
            ..
        } = self.wanted;
        let mut call = Call::new(
            Method::GET,
            host,
            format!("/v2/{repository}/blobs/{digest}"),
        )
        .scope(repository, "pull")
        // The digest is of the blob as it is (RFC 9110 §12.5.3).
        .header(ACCEPT_ENCODING, "identity")
        .what(format!("blob {digest} in {repository}"));
        if got.have > 0 {
            call = call.header(RANGE, format!("bytes={}-", got.have));
        }
        let mut response = self.transport.attempt(&call, None).await?;
        let url = response.url().clone();
        let lied = |what: String| {
            Failure::Final(Error::Lied {
                url: shown(&url),
                what,
            })
        };
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE);
                let start = range.and_then(|value| range_start(value.to_str().ok()?));
                if start != Some(got.have) {
                    return Err(lied("it sends another part than was asked for".to_owned()));
                }
                got.have
            }
            _ => return Err(status_error(&call, response).await.into()),
        };
        if let Some(length) = response.content_length()
            && start + length != *size
        {
            return Err(lied(format!(
                "it has {} bytes instead of {size}",
                start + length
            )));
        }
        // A server that knows no ranges sends all again.
        let mut skip = got.have - start;
        loop {
            let chunk = response
                .chunk()
                .await
                .map_err(|error| broken(&call.method, &url, &error))?;
            let Some(chunk) = chunk else { break };
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= known as u64;
            let new = &chunk[known..];
            if got.have + new.len() as u64 > *size {
                return Err(lied(format!("it is longer than {size} bytes")));
            }
            got.file
                .write_all_at(new, got.have)
                .map_err(|error| Error::io("write", &got.path, error))?;
            got.hash.update(new);
            got.have += new.len() as u64;
            self.shared.update(|state| state.available = got.have);
        }
        if got.have < *size {
            let reason = format!("it ended after {} of {size} bytes", got.have);
            return Err(Failure::transient(cut(&call.method, &url, 1, &reason)));
        }
        Ok(())
    }
}

/// Reads where a part begins (RFC 9110 §14.4).
fn range_start(text: &str) -> Option<u64> {
    let (start, _) = text.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}
