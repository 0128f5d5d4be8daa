// SPDX-License-Identifier: Apache-2.0
//! Requests to an authority: bounded in time and size, and never to where others could read or change them.

use super::value::is_safe;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// What one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What an answer may have; a chain of certificates is a hundredth of it.
const LARGEST: usize = 1 << 20;

/// Speaks to an authority for the time of one order.
#[derive(Clone)]
pub(super) struct Client {
    /// Or why there is none.
    http: Result<reqwest::Client, Arc<reqwest::Error>>,
    /// Seconds that the authority asked us to wait, when it had enough of us.
    retry_after: Arc<AtomicU64>,
}

impl Client {
    pub(super) fn new() -> Self {
        // Somebody may have chosen one before; ring it is then, or whatever they chose.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // A signed request is for the URL that is signed with it.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .build();
        Self {
            http: http.map_err(Arc::new),
            retry_after: Arc::default(),
        }
    }

    /// Returns how long the authority asked us to wait, if it did.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.retry_after.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    async fn send(
        self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, Error> {
        let other =
            |error: Box<dyn std::error::Error + Send + Sync>| -> Error { Error::Other(error) };
        let client = self.http.map_err(|error| other(Box::new(error)))?;
        let (mut parts, body) = request.into_parts();
        // RFC 8555 §6.1: it is to name the software.
        let agent = concat!("obuild/", env!("CARGO_PKG_VERSION"), " instant-acme");
        parts
            .headers
            .insert(USER_AGENT, HeaderValue::from_static(agent));
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(never) => match never {},
        };
        let request = reqwest::Request::try_from(http::Request::from_parts(parts, body))
            .map_err(|error| other(Box::new(error)))?;
        if !is_safe(request.url()) {
            return Err(other("it sends us to a URL that is not https".into()));
        }
        let mut response = client
            .execute(request)
            .await
            .map_err(|error| other(Box::new(error.without_url())))?;
        let status = response.status();
        if !status.is_success() {
            let asked = response.headers().get(RETRY_AFTER).and_then(seconds);
            self.retry_after
                .fetch_max(asked.unwrap_or(0), Ordering::Relaxed);
            // RFC 8555 §6.7: what an authority itself says is a problem document.
            let kind = response.headers().get(CONTENT_TYPE);
            let is_problem =
                kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
            if !is_problem {
                return Err(other(format!("it answered with status {status}").into()));
            }
        }
        let mut content = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| other(Box::new(error.without_url())))?
        {
            if content.len() + chunk.len() > LARGEST {
                return Err(other("its answer does not end".into()));
            }
            content.extend_from_slice(&chunk);
        }
        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = status;
        parts.headers = std::mem::take(response.headers_mut());
        Ok(BytesResponse {
            parts,
            body: Box::new(Bytes::from(content)),
        })
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().send(request))
    }
}

/// Reads `Retry-After`, in either of its two forms (RFC 9110 §10.2.3).
fn seconds(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    text.parse().ok().or_else(|| {
        let at = httpdate::parse_http_date(text).ok()?;
        let left = at.duration_since(SystemTime::now()).ok()?;
        Some(left.as_secs())
    })
}
