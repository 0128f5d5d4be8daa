// SPDX-License-Identifier: Apache-2.0
//! A worker: one thread, which serves its share of the connections from its own files, clock and log lines.

use super::clock::Clock;
use super::connections::Ticket;
use super::files::{Files, Limits};
use super::http2::hpack::Head;
use super::log::{Lines, Record};
use super::metrics::Metrics;
use super::stream::{Socket, Stream};
use super::{Error, Shared, acme, http1, http2};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

/// What chunks of files that all connections hold may come to.
const CHUNKS_BYTES: usize = 8 << 20;

/// A connection that was accepted.
pub(super) struct Accepted {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: IpAddr,
    pub(super) tls: bool,
    pub(super) ticket: Ticket,
}

/// Whom a connection is with.
pub(super) struct Client {
    pub(super) peer: IpAddr,
    pub(super) ticket: Ticket,
    /// Requests that are being answered.
    active: Cell<usize>,
}

/// What the connections of a thread share.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) files: Files,
    pub(super) clock: Clock,
    pub(super) lines: Option<Lines>,
    /// Where input is read to before it is known whose it is.
    pub(super) scratch: RefCell<Box<[u8]>>,
    /// Where headers of HTTP/2 are read to.
    pub(super) head: RefCell<Head>,
    stop: watch::Receiver<bool>,
}

/// The protocols, as [`Metrics::protocols`] counts them.
#[derive(Clone, Copy)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// An answer on its way. When it is dropped, sent or cut off, it is counted and logged.
pub(super) struct Answer {
    worker: Rc<Worker>,
    client: Rc<Client>,
    record: Option<Record>,
    status: u16,
    sent: u64,
    protocol: Protocol,
}

impl Worker {
    /// Returns whether the server is coming to its end: connections are closed after the request at hand.
    pub(super) fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits until the server is coming to its end.
    pub(super) async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // A server that is gone has come to its end, too.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Returns the size of the pieces in which `length` bytes are read for one connection: the more connections, the smaller.
    pub(super) fn chunk_bytes(&self, length: u64) -> usize {
        let share = CHUNKS_BYTES / self.shared.table.open().max(1);
        let share = share.clamp(4 << 10, 64 << 10);
        usize::try_from(length)
            .unwrap_or(usize::MAX)
            .clamp(1, share)
    }
}

impl Answer {
    pub(super) fn begin(
        worker: &Rc<Worker>,
        client: &Rc<Client>,
        record: Option<Record>,
        status: u16,
        protocol: Protocol,
    ) -> Self {
        client.active.set(client.active.get() + 1);
        Self {
            worker: Rc::clone(worker),
            client: Rc::clone(client),
            record,
            status,
            sent: 0,
            protocol,
        }
    }

    /// Notes that bytes of the body went out, so that the patience with the client begins anew.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.client.ticket.busy(self.worker.shared.patience.send);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let metrics = &self.worker.shared.metrics;
        metrics.response(self.status, self.protocol as usize, self.sent);
        if let (Some(lines), Some(record)) = (&self.worker.lines, &self.record) {
            let peer = self.client.peer;
            lines.add(
                metrics,
                &self.worker.clock,
                peer,
                record,
                self.status,
                self.sent,
            );
        }
        let active = self.client.active.get() - 1;
        self.client.active.set(active);
        if active == 0 {
            self.client.ticket.idle(self.worker.shared.patience.idle);
        }
    }
}

/// Serves what comes through `accepted` until that is closed; then ends what is left.
pub(super) fn run(
    shared: &Arc<Shared>,
    limits: Limits,
    mut accepted: mpsc::UnboundedReceiver<Accepted>,
    stop: watch::Receiver<bool>,
) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    let worker = Rc::new(Worker {
        shared: Arc::clone(shared),
        files: Files::new(limits),
        clock: Clock::new(),
        lines: shared.log.clone().map(Lines::new),
        scratch: RefCell::new(vec![0; 8 << 10].into()),
        head: RefCell::default(),
        stop,
    });
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                next = accepted.recv() => match next {
                    Some(next) => start(&worker, next),
                    None => break,
                },
                _ = seconds.tick() => {
                    if let Some(lines) = &worker.lines {
                        lines.hand_over(&shared.metrics);
                    }
                }
            }
        }
    });
    // The connections that are left log their end.
    drop(tasks);
    if let Some(lines) = &worker.lines {
        lines.hand_over(&shared.metrics);
    }
    Ok(())
}

fn start(worker: &Rc<Worker>, accepted: Accepted) {
    let Accepted {
        stream,
        peer,
        tls,
        ticket,
    } = accepted;
    // Its end is the answer to a socket that cannot be watched.
    let Ok(stream) = TcpStream::from_std(stream) else {
        return;
    };
    let client = Rc::new(Client {
        peer,
        ticket,
        active: Cell::new(0),
    });
    let task = tokio::task::spawn_local(serve(Rc::clone(worker), Rc::clone(&client), stream, tls));
    client.ticket.served_by(task.abort_handle());
}

/// Serves one connection to its end. That it broke is the client's affair.
async fn serve(worker: Rc<Worker>, client: Rc<Client>, stream: TcpStream, tls: bool) {
    let mut stream = match (tls, &worker.shared.tls) {
        (true, Some(tls)) => match tls.accept(stream, worker.chunk_bytes(u64::MAX)).await {
            Ok(stream) => {
                let protocol = stream.get_ref().1.alpn_protocol();
                if protocol == Some(acme::PROTOCOL) {
                    // The handshake was all (RFC 8737 §3).
                    return;
                }
                let is_http2 = protocol == Some(b"h2");
                let stream = Stream::new(Socket::Tls(Box::new(stream)));
                if is_http2 {
                    return http2::serve(worker, client, stream).await;
                }
                stream
            }
            Err(error) => {
                Metrics::add(&worker.shared.metrics.handshakes_failed, 1);
                tracing::debug!(peer = %client.peer, %error, "the TLS handshake failed");
                return;
            }
        },
        _ => Stream::new(Socket::Plain(stream)),
    };
    match http1::serve(&worker, &mut stream, &client).await {
        Ok(http1::End::Closed) => {}
        Ok(http1::End::Http2) => http2::serve(worker, client, stream).await,
        Err(error) => tracing::debug!(peer = %client.peer, %error, "the connection broke"),
    }
}
