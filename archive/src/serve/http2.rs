// SPDX-License-Identifier: Apache-2.0
//! HTTP/2: hyper speaks it, over TLS and, for clients that know beforehand, without.
//!
//! What a client can make us hold is bounded: few streams, small windows towards us, and of all its streams together only two chunks of files
//! that it has not taken yet.

use super::files::Entry;
use super::hook::{self, Hook};
use super::log::Record;
use super::request::{Fields, Method, Request, Version};
use super::respond::{Body as Content, HOOK, Response, respond};
use super::stream::Stream;
use super::worker::{Answer, Client, Protocol, Worker};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{HeaderName, HeaderValue};
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper::{StatusCode, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Streams that a client may have at once; the RFC's advice is at least 100 (RFC 9113 §6.5.2).
const MAX_STREAMS: u32 = 100;
/// The header of a request, all fields together.
const MAX_HEAD_BYTES: u32 = 8 << 10;
/// Chunks of files that wait for one client.
const MAX_CHUNKS: usize = 2;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, client: Rc<Client>, stream: Stream) {
    let budget = Arc::new(Budget::default());
    let service = service_fn({
        let (worker, client) = (Rc::clone(&worker), Rc::clone(&client));
        move |request| {
            answer(
                Rc::clone(&worker),
                Rc::clone(&client),
                Arc::clone(&budget),
                request,
            )
        }
    });
    // Boxed as it is made: as a variable it would be in this task twice, before and after it is pinned.
    let mut connection = Box::pin(
        http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES)
            .max_send_buf_size(16 << 10)
            // Nothing but hooks has a body.
            .initial_stream_window_size(64 << 10)
            .initial_connection_window_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service),
    );
    let result = tokio::select! {
        result = &mut connection => result,
        () = worker.stopped() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(peer = %client.peer, %error, "the connection broke");
    }
}

async fn answer(
    worker: Rc<Worker>,
    client: Rc<Client>,
    budget: Arc<Budget>,
    incoming: hyper::Request<Incoming>,
) -> Result<hyper::Response<Sending>, Infallible> {
    client.ticket.busy(worker.shared.patience.send);
    let (parts, body) = incoming.into_parts();
    let mut fields = Fields::default();
    for (name, value) in &parts.headers {
        fields.take(name.as_str(), value.as_bytes());
    }
    let request = Request {
        method: Method::from_verb(parts.method.as_str()),
        target: parts
            .uri
            .path_and_query()
            .map_or("*", |target| target.as_str()),
        fields,
    };
    let record = worker
        .lines
        .is_some()
        .then(|| Record::new(parts.method.as_str(), Version::Http2, &request));
    let is_head = request.method == Method::Head;
    let hook = (request.method == Method::Post && request.path() == HOOK)
        .then(|| Hook::begin(&worker, &request))
        .flatten();
    let response = match hook {
        Some(hook) => receive(&worker, &client, hook, body).await,
        None => respond(&worker, &request),
    };
    let answer = Answer::begin(&worker, &client, record, response.status, Protocol::Http2);
    Ok(convert(response, answer, is_head, budget, worker))
}

/// Reads the body of a hook, which is not kept.
async fn receive(worker: &Worker, client: &Client, mut hook: Hook, mut body: Incoming) -> Response {
    client.ticket.busy(worker.shared.patience.body);
    let mut length = 0;
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(frame) = frame else {
            return Response::status(400);
        };
        if let Ok(data) = frame.into_data() {
            length += data.len() as u64;
            if length > hook::MAX_BYTES {
                return Response::status(413);
            }
            hook.update(&data);
        }
    }
    hook.finish(worker)
}

fn convert(
    response: Response,
    answer: Answer,
    is_head: bool,
    budget: Arc<Budget>,
    worker: Rc<Worker>,
) -> hyper::Response<Sending> {
    let length = response.length();
    let content = match response.body {
        _ if is_head => Remaining::Nothing,
        Content::None => Remaining::Nothing,
        Content::Bytes(bytes) => Remaining::Bytes(bytes),
        Content::File(range) => response
            .entry
            .clone()
            .map_or(Remaining::Nothing, |entry| Remaining::File(entry, range)),
    };
    let mut converted = hyper::Response::new(Sending {
        remaining: content,
        answer,
        budget,
        worker,
    });
    *converted.status_mut() =
        StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = converted.headers_mut();
    let entry = response.entry.iter().flat_map(|entry| &entry.fields);
    for (name, value) in entry.chain(&response.fields) {
        if let Ok(value) = HeaderValue::try_from(value) {
            fields.insert(HeaderName::from_static(name), value);
        }
    }
    fields.insert("server", HeaderValue::from_static("obuild"));
    if let Some(length) = length {
        fields.insert("content-length", HeaderValue::from(length));
    }
    converted
}

/// A body on its way.
struct Sending {
    remaining: Remaining,
    answer: Answer,
    budget: Arc<Budget>,
    worker: Rc<Worker>,
}

enum Remaining {
    Nothing,
    Bytes(Bytes),
    File(Rc<Entry>, Range<u64>),
}

impl Body for Sending {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let bytes = match std::mem::replace(&mut this.remaining, Remaining::Nothing) {
            Remaining::Nothing => return Poll::Ready(None),
            Remaining::Bytes(bytes) => bytes,
            Remaining::File(_, range) if range.is_empty() => return Poll::Ready(None),
            Remaining::File(entry, range) => {
                let Some(permit) = this.budget.take(context.waker()) else {
                    this.remaining = Remaining::File(entry, range);
                    return Poll::Pending;
                };
                let length = this.worker.chunk_bytes(range.end - range.start, MAX_CHUNKS);
                let mut bytes = vec![0; length];
                if let Err(error) = entry.file.read_exact_at(&mut bytes, range.start) {
                    return Poll::Ready(Some(Err(error)));
                }
                let next = range.start + bytes.len() as u64;
                this.remaining = Remaining::File(entry, next..range.end);
                Bytes::from_owner(Chunk {
                    bytes,
                    _permit: permit,
                })
            }
        };
        this.answer.sent(bytes.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.remaining {
            Remaining::Nothing => true,
            Remaining::Bytes(bytes) => bytes.is_empty(),
            Remaining::File(_, range) => range.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.remaining {
            Remaining::Nothing => 0,
            Remaining::Bytes(bytes) => bytes.len() as u64,
            Remaining::File(_, range) => range.end - range.start,
        })
    }
}

/// A piece of a file, counted until it is sent.
struct Chunk {
    bytes: Vec<u8>,
    _permit: Permit,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How many chunks a connection holds, and who waits to hold one.
#[derive(Default)]
struct Budget(Mutex<(usize, Vec<Waker>)>);

struct Permit(Arc<Budget>);

impl Budget {
    fn take(self: &Arc<Self>, waker: &Waker) -> Option<Permit> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.0 == MAX_CHUNKS {
            if !inner.1.iter().any(|waiting| waiting.will_wake(waker)) {
                inner.1.push(waker.clone());
            }
            return None;
        }
        inner.0 += 1;
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inner = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0 -= 1;
        let waiting = std::mem::take(&mut inner.1);
        drop(inner);
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, MAX_CHUNKS};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_connection_holds_few_chunks_and_the_next_waits_for_one() {
        let budget = Arc::new(Budget::default());
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut permits: Vec<_> = (0..MAX_CHUNKS)
            .map(|_| budget.take(&waker).expect("there is room"))
            .collect();
        assert!(budget.take(&waker).is_none() && budget.take(&waker).is_none());
        assert_eq!(counter.0.load(Ordering::Relaxed), 0);
        permits.pop();
        assert_eq!(counter.0.load(Ordering::Relaxed), 1, "woken once");
        assert!(budget.take(&waker).is_some());
    }
}
