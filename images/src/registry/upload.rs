// SPDX-License-Identifier: Apache-2.0
//! Uploading one blob: in one piece when it is small, else in chunks; after a cut, from where the registry is.
//!
//! OCI distribution-spec v1.1, "Pushing blobs". The registry checks the digest of what came before it takes a blob for complete.

use super::Error;
use super::answer::{Fetched, cut};
use super::http::{Call, Transport, with_query};
use super::push::{BlobData, Counters};
use super::retry::{Failure, Retry};
use crate::digest::Digest;
use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE};
use reqwest::{Body, Method, StatusCode};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The largest chunk, and the largest blob that goes in one piece. A cut costs at most so much where the registry forgets what it got of an
/// unfinished chunk.
const CHUNK: u64 = 16 << 20;
/// The largest blob that goes from memory, over a connection that is open already; it is short enough not to be timed out while it goes.
const SMALL: u64 = 256 << 10;
/// Bytes handed to the connection at once.
const PIECE: usize = 64 << 10;
/// Pieces that wait for the connection.
const AHEAD: usize = 8;
/// How often a silent connection is looked at.
const TICK: Duration = Duration::from_millis(250);

/// One upload's surroundings.
pub(super) struct Upload {
    pub(super) transport: Arc<Transport>,
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) counters: Arc<Counters>,
}

/// Where an upload is.
struct Session {
    location: String,
    offset: u64,
}

impl Upload {
    fn call(&self, method: Method, address: impl Into<String>) -> Call {
        Call::new(method, &self.host, address)
            .scope(&self.repository, "pull,push")
            .what(format!("push to {}", self.repository))
    }

    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/blobs/{rest}", self.repository)
    }

    /// Asks whether the repository has the blob.
    pub(super) async fn is_there(&self, digest: Digest) -> Result<bool, Error> {
        let call = self.call(Method::HEAD, self.path(&digest.to_string()));
        let head = self.transport.fetch(&call, 0).await?;
        match head.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(head.error(&call)),
        }
    }

    /// Asks for the blob of another repository; returns where to upload it instead if the registry does not.
    pub(super) async fn mount(&self, digest: Digest, from: &str) -> Result<Option<String>, Error> {
        let digest = digest.to_string();
        let address = with_query(
            &self.path("uploads/"),
            &[("mount", &digest), ("from", from)],
        );
        let call = self.call(Method::POST, address).scope(from, "pull");
        let post = match self.transport.fetch(&call, super::pull::limit()).await {
            Ok(post) => post,
            // Who may not read the other repository may still write this one.
            Err(Error::Unauthorized { .. }) => return self.begin().await.map(Some),
            Err(error) => return Err(error),
        };
        match post.status {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => location(&post).map(Some),
            _ => self.begin().await.map(Some),
        }
    }

    /// Begins an upload.
    async fn begin(&self) -> Result<String, Error> {
        let call = self.call(Method::POST, self.path("uploads/"));
        let post = self.transport.fetch(&call, super::pull::limit()).await?;
        match post.status {
            StatusCode::ACCEPTED => location(&post),
            _ => Err(post.error(&call)),
        }
    }

    /// Sends a blob.
    pub(super) async fn send(
        &self,
        digest: Digest,
        size: u64,
        data: &BlobData,
        location: Option<String>,
    ) -> Result<(), Error> {
        let mut retry = Retry::default();
        let mut furthest = 0;
        let mut session = location.map(|location| Session {
            location,
            offset: 0,
        });
        let counted = AtomicU64::new(0);
        loop {
            let mut current = match session.take() {
                Some(session) => session,
                None => Session {
                    location: self.begin().await?,
                    offset: 0,
                },
            };
            let failure = match self.drive(digest, size, data, &mut current, &counted).await {
                Ok(()) => {
                    self.count(&counted, size);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            if current.offset > furthest {
                furthest = current.offset;
                retry.progress();
            }
            let times = retry.failures() + 1;
            retry.pause(failure.told(times)).await?;
            // It may have taken all and only its answer was lost.
            if self.is_there(digest).await? {
                self.count(&counted, size);
                return Ok(());
            }
            session = self
                .status(&current)
                .await?
                .filter(|session| session.offset <= size);
            self.count(
                &counted,
                session.as_ref().map_or(0, |session| session.offset),
            );
        }
    }

    /// Notes in the progress that the registry has this much of the blob.
    fn count(&self, counted: &AtomicU64, now: u64) {
        let before = counted.swap(now, Ordering::Relaxed);
        if now >= before {
            self.counters
                .done
                .fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.counters
                .done
                .fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Sends what is missing of a blob and closes the upload.
    async fn drive(
        &self,
        digest: Digest,
        size: u64,
        data: &BlobData,
        session: &mut Session,
        counted: &AtomicU64,
    ) -> Result<(), Failure> {
        let name = digest.to_string();
        // The blob in one request, if it is short and nothing of it is there.
        let at_once = session.offset == 0 && size <= CHUNK;
        while !at_once && session.offset < size {
            let end = size.min(session.offset + CHUNK);
            let call = self
                .call(Method::PATCH, session.location.clone())
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_RANGE, format!("{}-{}", session.offset, end - 1))
                .header(CONTENT_LENGTH, (end - session.offset).to_string());
            let answer = self
                .stream(&call, digest, data, session.offset, end, counted)
                .await?;
            if answer.status != StatusCode::ACCEPTED {
                return Err(unfit(answer, &call, digest));
            }
            session.location = location(&answer)?;
            session.offset = range_end(&answer.headers).unwrap_or(end);
            if session.offset > size {
                return Err(Failure::Final(Error::Lied {
                    url: answer.url,
                    what: "it says that it has more than was sent".to_owned(),
                }));
            }
            self.count(counted, session.offset);
        }
        let address = with_query(&session.location, &[("digest", &name)]);
        let length = if at_once { size } else { 0 };
        let call = self
            .call(Method::PUT, address)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, length.to_string());
        let answer = if at_once && size <= SMALL {
            self.small(call.clone(), digest, data, size).await?
        } else if at_once {
            self.stream(&call, digest, data, 0, size, counted).await?
        } else {
            self.transport.once(&call, super::pull::limit()).await?
        };
        if !answer.status.is_success() {
            return Err(unfit(answer, &call, digest));
        }
        match super::pull::content_digest(&answer) {
            Some(theirs) if theirs != digest => Err(Failure::Final(Error::Lied {
                url: answer.url,
                what: format!("it took the blob {digest} for {theirs}"),
            })),
            _ => Ok(()),
        }
    }

    /// Sends a request whose body is the blob, which fits into memory.
    async fn small(
        &self,
        mut call: Call,
        digest: Digest,
        data: &BlobData,
        size: u64,
    ) -> Result<Fetched, Failure> {
        let data = data.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            data.open(digest, 0)?.take(size).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        });
        let reason = match reading.await {
            Ok(Ok(bytes)) if bytes.len() as u64 == size => {
                call.body = bytes.into();
                let answer = self.transport.once(&call, super::pull::limit()).await;
                self.counters.sent.fetch_add(size, Ordering::Relaxed);
                return answer;
            }
            Ok(Ok(bytes)) => format!("it ends {} bytes early", size - bytes.len() as u64),
            Ok(Err(error)) => error.to_string(),
            Err(_) => return Err(Failure::Final(Error::Cancelled)),
        };
        Err(Failure::Final(Error::Source { digest, reason }))
    }

    /// Sends a request whose body is a part of the blob.
    async fn stream(
        &self,
        call: &Call,
        digest: Digest,
        data: &BlobData,
        start: u64,
        end: u64,
        counted: &AtomicU64,
    ) -> Result<Fetched, Failure> {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(AHEAD);
        let moved = Arc::new(AtomicU64::new(0));
        let reading = read_part(data.clone(), digest, start, end, sender);
        let body = Pieces {
            receiver,
            moved: Arc::clone(&moved),
        };
        let request = self
            .transport
            .once_with(call, Body::wrap_stream(body), super::pull::limit());
        tokio::pin!(request);
        let mut seen = 0;
        let mut silent = Duration::ZERO;
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut request => break answer,
                () = tokio::time::sleep(TICK) => {
                    let now = moved.load(Ordering::Relaxed);
                    self.count(counted, start + now);
                    silent = if now > seen { Duration::ZERO } else { silent + TICK };
                    seen = now;
                    if silent >= self.transport.options.timeout {
                        let url = self.transport.url(&call.host, &call.address)?;
                        break Err(Failure::transient(cut(&call.method, &url, 1, "no answer in time")));
                    }
                }
            }
        };
        self.counters
            .sent
            .fetch_add(moved.load(Ordering::Relaxed), Ordering::Relaxed);
        // A source that failed is the reason for whatever followed.
        match reading.await {
            Ok(Err(reason)) => Err(Failure::Final(Error::Source { digest, reason })),
            _ => answer,
        }
    }

    /// Asks how far an upload came; `None` if the registry does not know it any more.
    async fn status(&self, session: &Session) -> Result<Option<Session>, Error> {
        let call = self.call(Method::GET, session.location.clone());
        let got = self.transport.fetch(&call, super::pull::limit()).await?;
        if !got.status.is_success() {
            return Ok(None);
        }
        let offset = range_end(&got.headers).unwrap_or(0);
        Ok(Some(Session {
            location: location(&got).unwrap_or_else(|_| session.location.clone()),
            offset,
        }))
    }
}

/// Reads a part of a blob on a thread for it, into a channel. Returns what is wrong with the source.
fn read_part(
    data: BlobData,
    digest: Digest,
    start: u64,
    end: u64,
    sender: tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>,
) -> tokio::task::JoinHandle<Result<(), String>> {
    tokio::task::spawn_blocking(move || {
        let fail = |reason: String| {
            // The connection is broken off, so that nobody takes the part for whole.
            let _ = sender.blocking_send(Err(std::io::Error::other(reason.clone())));
            Err(reason)
        };
        let mut reader = match data.open(digest, start) {
            Ok(reader) => reader,
            Err(error) => return fail(error.to_string()),
        };
        let mut left = end - start;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let mut piece = vec![0; wanted];
            let mut length = 0;
            while length < wanted {
                match reader.read(&mut piece[length..]) {
                    Ok(0) => return fail(format!("it ends {} bytes early", left - length as u64)),
                    Ok(count) => length += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return fail(error.to_string()),
                }
            }
            left -= wanted as u64;
            if sender.blocking_send(Ok(piece.into())).is_err() {
                // The connection is gone, which is told elsewhere.
                return Ok(());
            }
        }
        Ok(())
    })
}

/// The pieces of a part, counted as the connection takes them.
struct Pieces {
    receiver: tokio::sync::mpsc::Receiver<Result<Bytes, std::io::Error>>,
    moved: Arc<AtomicU64>,
}

impl futures_core::Stream for Pieces {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let piece = std::task::ready!(self.receiver.poll_recv(context));
        if let Some(Ok(piece)) = &piece {
            self.moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        std::task::Poll::Ready(piece)
    }
}

/// Reads where an upload goes on.
fn location(answer: &Fetched) -> Result<String, Error> {
    let value = answer
        .headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    value.map(str::to_owned).ok_or_else(|| Error::Lied {
        url: answer.url.clone(),
        what: "it does not say where to upload to".to_owned(),
    })
}

/// Reads how many bytes a registry has: `0-N`, where N is the last one's number; `0-0` may be none (distribution 2.8).
fn range_end(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?;
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let last: u64 = text.strip_prefix("0-")?.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

/// An answer that refuses a part: the upload may be lost, which another try finds out; other refusals stay.
fn unfit(answer: Fetched, call: &Call, digest: Digest) -> Failure {
    // OCI distribution-spec v1.1, "Error Codes".
    if answer
        .body
        .windows(14)
        .any(|bytes| bytes == b"DIGEST_INVALID")
    {
        let reason = "its bytes are not what its digest says".to_owned();
        return Failure::Final(Error::Source { digest, reason });
    }
    let lost = matches!(
        answer.status,
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::RANGE_NOT_SATISFIABLE
    );
    let error = answer.error(call);
    if lost {
        Failure::transient(error)
    } else {
        Failure::Final(error)
    }
}
