// SPDX-License-Identifier: Apache-2.0
//! Reading answers, and making errors of those that are not what was wanted.

use super::Error;
use super::http::Call;
use super::retry::Failure;
use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode, Url};

/// Bytes that are read of an answer that is an error, or a token.
pub(super) const MAX_WORDS: usize = 64 << 10;

/// A short answer.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    pub(super) url: String,
}

/// Returns whether another attempt may get another answer.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// Reads an answer of no more than `limit` bytes.
pub(super) async fn read(
    call: &Call,
    mut response: Response,
    limit: usize,
) -> Result<Fetched, Failure> {
    let url = response.url().clone();
    let (status, headers) = (response.status(), response.headers().clone());
    let mut body = Vec::new();
    loop {
        let chunk = response
            .chunk()
            .await
            .map_err(|error| broken(&call.method, &url, &error))?;
        let Some(chunk) = chunk else { break };
        if body.len() + chunk.len() > limit {
            let what = format!("it is longer than {limit} bytes");
            return Err(Error::Lied {
                url: shown(&url),
                what,
            }
            .into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Fetched {
        status,
        headers,
        body,
        url: shown(&url),
    })
}

/// Makes an error of an answer that is not what was wanted.
pub(super) async fn status_error(call: &Call, response: Response) -> Error {
    let (status, url) = (response.status(), shown(response.url()));
    let message = words(response).await;
    refusal(call, status, url, message)
}

impl Fetched {
    /// Makes an error of an answer that is not what was wanted.
    pub(super) fn error(self, call: &Call) -> Error {
        refusal(call, self.status, self.url, message(&self.body))
    }
}

fn refusal(call: &Call, status: StatusCode, url: String, message: String) -> Error {
    match status {
        StatusCode::NOT_FOUND => Error::NotFound {
            host: call.host.clone(),
            what: call.what.clone(),
            message,
        },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized {
            host: call.host.clone(),
            what: call.what.clone(),
            message,
            with_credentials: true,
        },
        _ => Error::Status {
            method: call.method.to_string(),
            url,
            status: status.to_string(),
            message,
        },
    }
}

/// Reads what a server says about its refusal; what cannot be read is nothing.
pub(super) async fn words(mut response: Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_WORDS {
            break;
        }
    }
    message(&body)
}

/// Finds the message in an error's body (OCI distribution-spec v1.1, "Error Codes"; token servers say `details`).
pub(super) fn message(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        // Proxies and Go's servers answer with a line of text.
        let text = String::from_utf8_lossy(body);
        let line = text.trim();
        return if line.starts_with('<') || line.lines().count() > 1 || line.len() > 200 {
            String::new()
        } else {
            line.to_owned()
        };
    };
    let first = &value["errors"][0];
    [
        &first["message"],
        &first["code"],
        &value["details"],
        &value["message"],
    ]
    .into_iter()
    .find_map(|text| text.as_str().filter(|text| !text.is_empty()))
    .unwrap_or_default()
    .chars()
    .filter(|c| !c.is_control())
    .take(300)
    .collect()
}

/// Sorts a failure of the connection.
pub(super) fn broken(method: &Method, url: &Url, error: &reqwest::Error) -> Failure {
    let reason = reason(error);
    if error.is_connect() {
        let useless = reason.contains("certificate") || reason.contains("corrupt message");
        let error = Error::Connect {
            host: authority(url),
            reason,
        };
        return if useless {
            Failure::Final(error)
        } else {
            Failure::transient(error)
        };
    }
    if error.is_builder() {
        return Failure::Final(Error::Setup {
            host: authority(url),
            reason,
        });
    }
    Failure::transient(cut(method, url, 1, &reason))
}

pub(super) fn cut(method: &Method, url: &Url, times: u32, reason: &str) -> Error {
    Error::Cut {
        method: method.to_string(),
        url: shown(url),
        times,
        reason: reason.to_owned(),
    }
}

/// Returns the innermost reason of a failure: the outer ones only say that a request failed.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    while let Some(cause) = next {
        text = cause.to_string();
        next = cause.source();
    }
    text
}

/// Returns an address without its query: signatures may be in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// Returns the host, with its port if that is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}
