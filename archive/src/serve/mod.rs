// SPDX-License-Identifier: Apache-2.0
//! An HTTP server for an archive's directory: index, archives, packages, and legacy files below them.
//!
//! One thread deals connections out to workers, one a processor; a worker serves its connections alone, with files, clock and log lines of its own.
//! HTTP/1 is ours, because no library sends files by sendfile(2); HTTP/2 is, because libraries hold 30 KB for each connection; TLS is rustls'. What is answered is decided in one
//! place for both (`respond`). Memory does not depend on the size of files, and on clients only by what their sockets and TLS need.

mod acme;
mod assembled;
mod certificate;
mod clock;
mod conditions;
mod connections;
mod files;
mod hook;
mod http1;
mod http2;
mod listen;
mod log;
mod metrics;
mod page;
mod place;
mod ranges;
mod request;
mod respond;
mod standing;
mod stream;
mod sys;
mod tls;
mod update;
mod worker;

pub use acme::{AcmeOptions, Authority, Challenge, HostName};
pub use hook::HookSecret;
pub use listen::Listener;
pub use log::{AccessLog, LogFormat};
pub use tls::TlsFiles;
pub use update::{Cause, Update};

use acme::Acme;
use connections::Table;
use files::Root;
use metrics::Metrics;
use rustix::process::{Resource, getrlimit};
use standing::Standing;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use update::Updates;

/// How often it is looked whose time is up.
const SWEEP: Duration = Duration::from_millis(500);
/// How often it is looked whether a sync has written something new.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of small files that all workers together keep in memory.
const KEPT_BYTES: usize = 8 << 20;
/// Files that a worker keeps open.
const KEPT_FILES: usize = 512;

/// What to serve, and how.
#[derive(Debug)]
pub struct Options {
    /// The archive's directory.
    pub directory: PathBuf,
    /// A directory for what is not found there.
    pub legacy: Option<PathBuf>,
    /// Threads that serve.
    pub workers: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Connections at once from one address.
    pub max_per_address: Option<usize>,
    /// The access log, if any.
    pub access_log: Option<AccessLog>,
    /// The certificate, for listeners with TLS.
    pub tls: Option<Certificates>,
    /// The secret of hooks; without it there are none.
    pub hook_secret: Option<HookSecret>,
    /// The time between updates; without it only hooks set one off.
    pub poll: Option<Duration>,
    /// How long clients may take.
    pub patience: Patience,
}

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Certificates {
    /// From files that somebody else writes.
    Files(TlsFiles),
    /// From an authority, ordered by the server itself.
    Acme(AcmeOptions),
}

/// How long clients may take before they are cut off.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a request's header, from its first byte, and for the TLS handshake.
    pub header: Duration,
    /// For the body of a hook.
    pub body: Duration,
    /// Without taking anything of an answer.
    pub send: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For the rest of what they have to say after the last answer.
    pub linger: Duration,
    /// For finishing when the server stops.
    pub stop: Duration,
}

impl Default for Patience {
    /// As other servers have it: nginx 1.22 gives 60 s for header and sending and 75 s between requests.
    fn default() -> Self {
        Self {
            header: Duration::from_secs(20),
            body: Duration::from_secs(30),
            send: Duration::from_mins(1),
            idle: Duration::from_secs(75),
            linger: Duration::from_secs(2),
            stop: Duration::from_secs(30),
        }
    }
}

/// Why a server does not start or does not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory to serve is not there, or this kernel is too old.
    #[error("cannot serve {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An address is taken, not ours or forbidden.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What the service manager passed is no listening stream socket.
    #[error("a descriptor that was passed to listen on is no listening stream socket")]
    Passed,
    /// There is nothing to listen on.
    #[error("there is nothing to listen on")]
    NoListener,
    /// A listener is to speak TLS, and there is no certificate.
    #[error("{0} is to speak TLS, and there is no certificate")]
    NoCertificate(SocketAddr),
    /// A file cannot be opened or read.
    #[error(transparent)]
    File(io::Error),
    /// A certificate or key is wrong.
    #[error("{} is wrong: {reason}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// No thread, or no way to wait for sockets.
    #[error("cannot start a worker")]
    Thread(#[source] io::Error),
}

/// What all threads of a server share.
struct Shared {
    root: Root,
    legacy: Option<Root>,
    table: Arc<Table>,
    metrics: Metrics,
    patience: Patience,
    log: Option<log::Writer>,
    tls: Option<tls::Tls>,
    /// Who orders the certificate of `tls`.
    acme: Option<Arc<Acme>>,
    hook: Option<HookSecret>,
    updates: Arc<Updates>,
    standing: Standing,
    /// Seconds since 1970.
    started: u64,
}

/// A server that has what it needs to run.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    update: Option<Update>,
    poll: Option<Duration>,
    senders: Vec<mpsc::UnboundedSender<worker::Accepted>>,
    threads: Vec<JoinHandle<Result<(), Error>>>,
    stop: watch::Sender<bool>,
}

/// Reaches a server that runs.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Opens the access log anew, reads the certificate again if it changed, and orders one at once if one is due that did not come.
    pub fn reload(&self) {
        if let Some(log) = &self.0.log {
            log.reopen();
        }
        if let Some(tls) = &self.0.tls {
            tls.refresh();
        }
        if let Some(acme) = &self.0.acme {
            acme.ask();
        }
    }
}

impl Server {
    /// Opens everything and starts the workers. `update` is run as `poll` and hooks say.
    ///
    /// # Errors
    ///
    /// When something that the options name is not there or wrong.
    pub fn start(
        options: Options,
        listeners: Vec<Listener>,
        update: Option<Update>,
    ) -> Result<Self, Error> {
        if listeners.is_empty() {
            return Err(Error::NoListener);
        }
        let open =
            |path: PathBuf| Root::open(&path).map_err(|source| Error::Directory { path, source });
        let mut acme = None;
        let tls = match options.tls {
            None => None,
            Some(Certificates::Files(files)) => Some(tls::Tls::open(files)?),
            Some(Certificates::Acme(options_of_acme)) => {
                let orders = Arc::new(Acme::new(options_of_acme, &options.directory));
                acme = Some(Arc::clone(&orders));
                Some(tls::Tls::ordered(orders)?)
            }
        };
        if tls.is_none()
            && let Some(listener) = listeners.iter().find(|listener| listener.tls())
        {
            return Err(Error::NoCertificate(listener.address()));
        }
        let workers = options.workers.max(1);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let files = files::Limits {
            files: (descriptors / 8 / workers).clamp(16, KEPT_FILES),
            bytes: KEPT_BYTES / workers,
        };
        // Each connection may be sending a file that is not kept open for others.
        let room = descriptors.saturating_sub(64 + workers * files.files) / 2;
        let table = Table::new(connections::Limits {
            connections: options.max_connections.min(room).max(8),
            per_address: options.max_per_address,
        });
        let shared = Arc::new(Shared {
            root: open(options.directory.clone())?,
            legacy: options.legacy.map(open).transpose()?,
            table,
            metrics: Metrics::default(),
            patience: options.patience,
            log: options
                .access_log
                .as_ref()
                .map(log::Writer::start)
                .transpose()?,
            tls,
            acme,
            hook: options.hook_secret,
            updates: Arc::default(),
            standing: Standing::new(options.directory),
            started: clock::seconds(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut senders = Vec::new();
        let mut threads = Vec::new();
        for number in 0..workers {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || worker::run(&shared, files, receiver, stopped))
                .map_err(Error::Thread)?;
            senders.push(sender);
            threads.push(thread);
        }
        Ok(Self {
            shared,
            listeners,
            update,
            poll: options.poll,
            senders,
            threads,
            stop,
        })
    }

    /// Returns a handle on the server, for while it runs.
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Serves until `stopping` is done; then takes no more connections, finishes the requests at hand, for as long as
    /// [`Patience::stop`] allows, and ends.
    ///
    /// # Errors
    ///
    /// When connections cannot be waited for.
    pub async fn run(self, stopping: impl Future<Output = ()>) -> Result<(), Error> {
        let shared = &self.shared;
        let metrics = &shared.metrics;
        let dealer = listen::Dealer {
            table: Arc::clone(&shared.table),
            workers: self.senders,
            patience: shared.patience.header,
        };
        let accepting = async {
            let all = self.listeners.into_iter().map(|listener| {
                let stop = self.stop.subscribe();
                Box::pin(dealer.accept(listener, metrics, stop))
            });
            all_of(all.collect()).await
        };
        let sweeping = async {
            let mut ticks = tokio::time::interval(SWEEP);
            let mut certificate = 0_u32;
            loop {
                ticks.tick().await;
                shared.table.sweep(metrics);
                certificate += 1;
                if let Some(tls) = &shared.tls
                    && certificate.is_multiple_of(4)
                {
                    tls.refresh();
                }
            }
        };
        let updating = async {
            match self.update {
                Some(update) => {
                    let updates = Arc::clone(&shared.updates);
                    updates.run(update, self.poll, metrics).await;
                }
                None => std::future::pending().await,
            }
        };
        let ordering = async {
            match (&shared.acme, &shared.tls) {
                (Some(acme), Some(tls)) => acme.run(tls, metrics).await,
                _ => std::future::pending().await,
            }
        };
        let serving = async {
            tokio::pin!(accepting);
            tokio::select! {
                result = &mut accepting => return result,
                () = stopping => {}
                () = updating => {}
                () = ordering => {}
            }
            // An update is dropped here: the next one goes on where it was.
            self.stop.send_replace(true);
            accepting.await?;
            shared.table.end(false);
            let finished = async {
                while shared.table.open() > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            if tokio::time::timeout(shared.patience.stop, finished)
                .await
                .is_err()
            {
                tracing::warn!(connections = shared.table.open(), "cut off at the end");
                shared.table.end(true);
            }
            Ok(())
        };
        let result = tokio::select! {
            result = serving => result,
            () = sweeping => Ok(()),
            () = shared.standing.follow(LOOK) => Ok(()),
        };
        // The workers end when nobody can send them connections.
        drop(dealer);
        for thread in self.threads {
            match thread.join() {
                Ok(ended) => ended?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        if let Some(log) = &shared.log {
            log.flush();
        }
        result
    }
}

/// Runs futures together until all are done, or one has failed.
async fn all_of<F>(mut futures: Vec<F>) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>> + Unpin,
{
    std::future::poll_fn(|context| {
        let mut failure = None;
        futures.retain_mut(|future| match std::pin::Pin::new(future).poll(context) {
            std::task::Poll::Ready(result) => {
                failure = result.err().or(failure.take());
                false
            }
            std::task::Poll::Pending => true,
        });
        match failure {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if futures.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}
