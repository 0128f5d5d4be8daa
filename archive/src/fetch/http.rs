// SPDX-License-Identifier: Apache-2.0
//! One archive over http: attempts, waits, and going on where the last attempt broke off.

use super::hosts::Host;
use super::wait::{back_off, retry_after};
use super::{FetchError, Fetched, Fetcher};
use crate::cache::{Cache, CacheError, Counters, Incoming};
use bytes::Bytes;
use reqwest::header::{
    CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::{Response, StatusCode, Url};
use std::io;
use tokio::time::{Instant, timeout, timeout_at};

/// So much is gathered before it goes to a thread that hashes and writes.
const GATHER: usize = 256 * 1024;

/// What has come of a longer one outlives the process: a later one goes on with it.
const LONG: u64 = 1024 * 1024;

/// An attempt that brought so much was a good one: the attempts are counted anew.
const PROGRESS: u64 = 1024 * 1024;

/// One archive on its way.
struct Download {
    incoming: Option<Incoming>,
    /// What proves that the rest belongs to what has come (RFC 9110 §13.1.5).
    validator: Option<HeaderValue>,
    html: bool,
    /// Whether it begins with what an earlier process received.
    resumed: bool,
}

impl Fetcher {
    pub(super) async fn fetch_http(
        &self,
        url: &Url,
        cache: &Cache,
        sha384: bool,
    ) -> Result<Fetched, FetchError> {
        let host = self.hosts.get(url.host_str().unwrap_or_default());
        let mut download = Download::begin(url, cache, sha384).await?;
        let mut attempt = 1;
        loop {
            let before = download.size();
            let error = match self.attempt(url, &host, &mut download).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if download.size() >= before + PROGRESS {
                attempt = 1;
            }
            // Our own disk may have room another time.
            if !error.passes() && !matches!(error, FetchError::Cache(_)) {
                download.forget();
            }
            if !error.passes() || attempt >= self.options.attempts {
                return Err(error);
            }
            let options = &self.options;
            let mut wait = back_off(attempt, options.back_off, options.longest_wait);
            if let Some(asked) = error.retry_after() {
                if asked > options.longest_wait {
                    return Err(error);
                }
                wait = wait.max(asked);
                host.hold(asked);
            }
            tracing::info!(%url, %error, attempt, ?wait, "an archive is tried again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
        let incoming = download.incoming.take().expect("it is given back");
        Ok(Fetched {
            file: incoming.finish()?,
            html: download.html,
            resumed: download.resumed,
        })
    }

    async fn attempt(
        &self,
        url: &Url,
        host: &Host,
        download: &mut Download,
    ) -> Result<(), FetchError> {
        let _host = host.enter().await;
        let _job = self.jobs.acquire().await.expect("it is never closed");
        let mut request = self.client.get(url.clone());
        let mut start = download.size();
        match &download.validator {
            Some(validator) if start > 0 => {
                request = request
                    .header(RANGE, format!("bytes={start}-"))
                    .header(IF_RANGE, validator);
            }
            _ => {
                download.restart()?;
                start = 0;
            }
        }
        let patience = self.options.connect_timeout + self.options.stall_timeout;
        let response = timeout(patience, request.send())
            .await
            .map_err(|_| FetchError::Stalled {
                bytes: 0,
                time: patience,
            })?
            .map_err(FetchError::transport)?;
        let headers = response.headers();
        match response.status() {
            StatusCode::PARTIAL_CONTENT if start > 0 => {
                if range_start(headers) != Some(start) {
                    download.validator = None;
                    return Err(FetchError::Range);
                }
            }
            StatusCode::OK => {
                download.restart()?;
                download.validator = validator(headers);
                download.html = headers
                    .get(CONTENT_TYPE)
                    .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
            }
            StatusCode::RANGE_NOT_SATISFIABLE if start > 0 => {
                // All of it had come when an earlier process died (RFC 9110 §15.5.17).
                if complete_length(headers) == Some(start) {
                    return Ok(());
                }
                download.validator = None;
                return Err(FetchError::Range);
            }
            status => {
                return Err(FetchError::Status {
                    status,
                    retry_after: retry_after(headers, jiff::Timestamp::now()),
                });
            }
        }
        if response
            .content_length()
            .is_some_and(|length| download.size() + length > self.options.largest)
        {
            return Err(FetchError::TooLarge(self.options.largest));
        }
        self.receive(url, response, download).await
    }

    /// Takes the body. What had come when it broke off is kept.
    async fn receive(
        &self,
        url: &Url,
        mut response: Response,
        download: &mut Download,
    ) -> Result<(), FetchError> {
        let window = self.options.stall_timeout;
        let milliseconds = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let enough = self.options.slowest.saturating_mul(milliseconds) / 1000;
        let mut end = Instant::now() + window;
        let (mut in_window, mut total) = (0, download.size());
        let mut gathered: Vec<Bytes> = Vec::new();
        let mut waiting = 0;
        let result = loop {
            match timeout_at(end, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let length = chunk.len() as u64;
                    Counters::add(&self.counters.bytes, length);
                    in_window += length;
                    total += length;
                    waiting += chunk.len();
                    gathered.push(chunk);
                    if total > self.options.largest {
                        break Err(FetchError::TooLarge(self.options.largest));
                    }
                    if waiting >= GATHER {
                        download.write(url, std::mem::take(&mut gathered)).await?;
                        waiting = 0;
                    }
                }
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(error)) => break Err(FetchError::transport(error)),
                Err(_) => {}
            }
            // A fast sender never lets the clock run out, so it is looked at after every chunk.
            if Instant::now() >= end {
                if in_window < enough.max(1) {
                    break Err(FetchError::Stalled {
                        bytes: in_window,
                        time: window,
                    });
                }
                in_window = 0;
                end = Instant::now() + window;
            }
        };
        download.write(url, gathered).await?;
        result
    }
}

impl Download {
    /// Begins, where an earlier process broke off if one did.
    async fn begin(url: &Url, cache: &Cache, sha384: bool) -> Result<Self, FetchError> {
        let (own, earlier) = (cache.clone(), url.to_string());
        let earlier = tokio::task::spawn_blocking(move || own.resume(&earlier, sha384))
            .await
            .map_err(|error| CacheError::Read(io::Error::other(error)))?;
        let (incoming, validator) = match earlier {
            Some((incoming, validator)) => (incoming, HeaderValue::from_str(&validator).ok()),
            None => (cache.receive(sha384)?, None),
        };
        Ok(Self {
            resumed: incoming.size() > 0,
            incoming: Some(incoming),
            validator,
            html: false,
        })
    }

    /// Leaves nothing for a later process.
    fn forget(&mut self) {
        if let Some(incoming) = &mut self.incoming {
            incoming.forget();
        }
    }

    fn size(&self) -> u64 {
        self.incoming.as_ref().map_or(0, Incoming::size)
    }

    fn restart(&mut self) -> Result<(), CacheError> {
        self.resumed = false;
        match &mut self.incoming {
            Some(incoming) if incoming.size() > 0 => incoming.restart(),
            _ => Ok(()),
        }
    }

    /// Hashes and writes on a thread for that.
    async fn write(&mut self, url: &Url, chunks: Vec<Bytes>) -> Result<(), FetchError> {
        let mut incoming = self.incoming.take().expect("it is given back");
        let long = incoming.size() >= LONG;
        let validator = self.validator.as_ref().filter(|_| long);
        let note =
            validator.and_then(|text| Some((url.to_string(), text.to_str().ok()?.to_owned())));
        let work = move || {
            let mut result = chunks.iter().try_for_each(|chunk| incoming.write(chunk));
            if let Some((url, validator)) = note {
                result = result.and_then(|()| incoming.remember(&url, &validator));
            }
            (incoming, result)
        };
        let (incoming, result) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| CacheError::Write(io::Error::other(error)))?;
        self.incoming = Some(incoming);
        Ok(result?)
    }
}

/// Returns what a later request can name this very representation by: a strong entity tag, else the date.
fn validator(headers: &HeaderMap) -> Option<HeaderValue> {
    match headers.get(ETAG) {
        Some(tag) if !tag.as_bytes().starts_with(b"W/") => Some(tag.clone()),
        _ => headers.get(LAST_MODIFIED).cloned(),
    }
}

/// Returns how long the whole is, from an answer that there is nothing where it was asked for: `bytes */1234` (RFC 9110 §14.4).
fn complete_length(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes */")?.parse().ok()
}

/// Returns where a partial answer begins: `bytes 42-1233/1234` (RFC 9110 §14.4).
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    range
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .parse()
        .ok()
}
