// SPDX-License-Identifier: Apache-2.0
//! Decides what is answered to a request; how it is sent is the protocols' affair.

use super::acme::WELL_KNOWN;
use super::conditions::{Verdict, judge, range_counts};
use super::files::{Entry, Found};
use super::place::{Kind, Nowhere, Place, find};
use super::ranges::{Wanted, wanted};
use super::request::{Method, Request};
use super::worker::Worker;
use super::{metrics, page};
use bytes::Bytes;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

/// Where hooks are posted to.
pub(super) const HOOK: &str = "/hooks/update";

/// An answer, before it is sent.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    /// The file whose header fields go with it.
    pub(super) entry: Option<Rc<Entry>>,
    /// Further header fields; neither length, date nor those of one protocol.
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

/// What comes after the header.
#[derive(Debug)]
pub(super) enum Body {
    /// Nothing, and there is none (304).
    None,
    Bytes(Bytes),
    /// These bytes of the response's file.
    File(Range<u64>),
}

impl Response {
    /// A few words, for people.
    pub(super) fn text(status: u16, text: &str) -> Self {
        let mut body = text.to_owned();
        body.push('\n');
        Self {
            status,
            entry: None,
            fields: vec![
                ("content-type", "text/plain; charset=utf-8".to_owned()),
                ("cache-control", "no-store".to_owned()),
                ("x-content-type-options", "nosniff".to_owned()),
            ],
            body: Body::Bytes(body.into()),
        }
    }

    /// A status and its usual words.
    pub(super) fn status(status: u16) -> Self {
        Self::text(status, reason(status))
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Returns the length of the body, unless there cannot be one.
    pub(super) fn length(&self) -> Option<u64> {
        match &self.body {
            Body::None => None,
            Body::Bytes(bytes) => Some(bytes.len() as u64),
            Body::File(range) => Some(range.end - range.start),
        }
    }
}

/// Returns the words that go with a status (RFC 9110 §15).
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Internal Server Error",
    }
}

/// Answers everything but a hook, whose body has to be read first.
pub(super) fn respond(worker: &Worker, request: &Request<'_>) -> Response {
    let path = request.path();
    let hooks = path == HOOK && worker.shared.hook.is_some();
    if !matches!(request.method, Method::Get | Method::Head) || hooks {
        let allow = if hooks { "POST" } else { "GET, HEAD" };
        return Response::status(405).with("allow", allow);
    }
    match path {
        "/healthz" => Response::text(200, "ok"),
        "/metrics" => {
            let mut response = Response::text(200, metrics::render(&worker.shared).trim_end());
            // https://prometheus.io/docs/instrumenting/exposition_formats/
            let media = "text/plain; version=0.0.4; charset=utf-8".to_owned();
            response.fields[0] = ("content-type", media);
            response
        }
        "/status" => status_page(worker),
        "/status.json" => match worker.shared.standing.current() {
            Some(reading) => Response {
                status: 200,
                entry: None,
                fields: vec![
                    ("content-type", "application/json".to_owned()),
                    ("cache-control", "no-cache".to_owned()),
                ],
                body: Body::Bytes(reading.json.clone()),
            },
            None => Response::status(404),
        },
        _ => match proof(worker, path) {
            Some(proof) => Response {
                status: 200,
                entry: None,
                // RFC 8555 §8.3.
                fields: vec![("content-type", "application/octet-stream".to_owned())],
                body: Body::Bytes(proof.into()),
            },
            None => file(worker, request, path),
        },
    }
}

/// What a certificate authority asks for, while one is ordered.
fn proof(worker: &Worker, path: &str) -> Option<String> {
    let acme = worker.shared.acme.as_ref()?;
    acme.http_answer(path.strip_prefix(WELL_KNOWN)?)
}

fn file(worker: &Worker, request: &Request<'_>, path: &str) -> Response {
    let shared = &worker.shared;
    let place = match find(path) {
        Ok(place) => place,
        Err(Nowhere::Malformed) => return Response::status(400),
        Err(Nowhere::Missing) => return Response::status(404),
    };
    let now = Instant::now();
    let found = match (&place, &shared.legacy) {
        (Place::Archive { path, kind }, None) => {
            worker.files.find(&[&shared.root], path, kind, now)
        }
        (Place::Archive { path, kind }, Some(legacy)) => {
            worker.files.find(&[&shared.root, legacy], path, kind, now)
        }
        (Place::Legacy(_), None) => Found::Missing,
        (Place::Legacy(path), Some(legacy)) => {
            if path.is_empty() || path.ends_with('/') {
                let path = format!("{path}index.html");
                worker.files.find(&[legacy], &path, &Kind::Index, now)
            } else {
                worker.files.find(&[legacy], path, &Kind::Index, now)
            }
        }
    };
    match found {
        Found::File(entry) => send(request, entry),
        // A page's relative links need the slash. Only the path: a name of a host would be one that the client chose.
        Found::Directory if matches!(place, Place::Legacy(_)) && !path.starts_with("//") => {
            Response::status(301).with("location", format!("{path}/"))
        }
        Found::Missing if path == "/" => status_page(worker),
        Found::Missing | Found::Directory => Response::status(404),
        Found::Exhausted => Response::status(503).with("retry-after", "1"),
        Found::Failed(error) => {
            tracing::error!(path, %error, "cannot read a file");
            Response::status(500)
        }
    }
}

/// Sends a file, or the part of it or the news that the request's conditions ask for.
fn send(request: &Request<'_>, entry: Rc<Entry>) -> Response {
    let fields = &request.fields;
    let (status, body, range) = match judge(fields, &entry.tag, entry.modified) {
        Verdict::NotModified => (304, Body::None, None),
        Verdict::Failed => return Response::status(412),
        Verdict::Send => {
            let field = fields
                .range
                // Defined for GET only (RFC 9110 §14.2).
                .filter(|_| request.method == Method::Get)
                .filter(|_| range_counts(fields, &entry.tag, entry.modified));
            let whole = 0..entry.size;
            match field.map_or(Wanted::Whole, |field| wanted(field, entry.size)) {
                Wanted::Whole => (200, Body::File(whole), None),
                Wanted::Part(part) => {
                    let range = format!("bytes {}-{}/{}", part.start, part.end - 1, entry.size);
                    (206, Body::File(part), Some(range))
                }
                Wanted::Nothing => {
                    return Response::status(416)
                        .with("content-range", format!("bytes */{}", entry.size));
                }
            }
        }
    };
    // Short enough to go out with the header.
    let body = match (body, &entry.content) {
        (Body::File(range), Some(content)) => {
            match (usize::try_from(range.start), usize::try_from(range.end)) {
                (Ok(start), Ok(end)) => Body::Bytes(content.slice(start..end)),
                _ => Body::File(range),
            }
        }
        (body, _) => body,
    };
    Response {
        status,
        entry: Some(entry),
        fields: range
            .map(|range| ("content-range", range))
            .into_iter()
            .collect(),
        body,
    }
}

fn status_page(worker: &Worker) -> Response {
    let html = page::render(worker);
    Response {
        status: 200,
        entry: None,
        fields: vec![
            ("content-type", "text/html; charset=utf-8".to_owned()),
            ("cache-control", "no-cache".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
            // No script, no image, nothing from anywhere: what a package's author could slip in does nothing.
            (
                "content-security-policy",
                "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
                    .to_owned(),
            ),
        ],
        body: Body::Bytes(html.into()),
    }
}
