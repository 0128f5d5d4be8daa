// SPDX-License-Identifier: Apache-2.0
//! Requests and answers of HTTP/2 (RFC 9113 §8).

use super::Connection;
use super::frame::{self, Code};
use super::hpack::{Head, write_field, write_no_table, write_status};
use super::streams::{Receiving, Remaining};
use crate::serve::hook::{self, Hook};
use crate::serve::log::Record;
use crate::serve::request::{Fields, Method, Request, Version};
use crate::serve::respond::{Body, HOOK, Response, respond};
use crate::serve::worker::{Answer, Protocol};
use std::rc::Rc;

/// A longer target is refused.
const MAX_TARGET_BYTES: usize = 4 << 10;
/// More fields are refused.
const MAX_FIELDS: usize = 64;

/// A header, read.
struct Parsed<'a> {
    verb: &'a str,
    request: Request<'a>,
    refused: Option<u16>,
}

impl Connection {
    /// Takes a header that is complete. `is_whole` says that no body follows.
    pub(super) fn head(&mut self, stream: u32, is_whole: bool, block: &[u8]) -> Result<(), Code> {
        let worker = Rc::clone(&self.worker);
        let mut head = worker.head.borrow_mut();
        // Whatever becomes of it: what comes later may refer to it.
        self.decoder
            .decode(block, &mut head)
            .map_err(|_| Code::Compression)?;
        if stream.is_multiple_of(2) {
            return Err(Code::Protocol);
        }
        if stream <= self.last {
            // After a body, and of no interest.
            if is_whole {
                self.body(stream, &[], true);
            }
            return Ok(());
        }
        if self.ending {
            // The client has been told that it is not served, or has said that it asks no more.
            return Ok(());
        }
        self.last = stream;
        if self.streams.is_full() {
            self.reset(stream, Code::RefusedStream);
            return Ok(());
        }
        let Some(parsed) = parse(&head) else {
            self.reset(stream, Code::Protocol);
            return Ok(());
        };
        self.client.ticket.busy(worker.shared.patience.send);
        let request = &parsed.request;
        let lines = worker.lines.as_ref();
        let record = lines.map(|_| Record::new(parsed.verb, Version::Http2, request));
        let is_hook = request.method == Method::Post && request.path() == HOOK;
        let hook = if is_hook && parsed.refused.is_none() {
            Hook::begin(&worker, request)
        } else {
            None
        };
        if let Some(hook) = hook {
            self.client.ticket.busy(worker.shared.patience.body);
            let receiving = Receiving {
                hook,
                length: 0,
                record,
            };
            self.streams.receive(stream, receiving);
            if is_whole {
                self.body(stream, &[], true);
            }
            return Ok(());
        }
        let response = match parsed.refused {
            Some(status) => Response::status(status),
            None => respond(&worker, request),
        };
        // A body that it may have is let pass: nobody reads it.
        self.answer(stream, response, record, request.method == Method::Head);
        Ok(())
    }

    /// Takes some of the body of a request. Only a hook's is read.
    pub(super) fn body(&mut self, stream: u32, some: &[u8], is_last: bool) {
        let Some(mut receiving) = self.streams.take_hook(stream) else {
            return;
        };
        receiving.length += some.len() as u64;
        receiving.hook.update(some);
        let response = if receiving.length > hook::MAX_BYTES {
            Response::status(413)
        } else if is_last {
            receiving.hook.finish(&self.worker)
        } else {
            return self.streams.put_back(stream, receiving);
        };
        self.answer(stream, response, receiving.record, false);
    }

    /// Sends a header, and has the body sent.
    fn answer(&mut self, stream: u32, response: Response, record: Option<Record>, is_head: bool) {
        let worker = Rc::clone(&self.worker);
        let answer = Answer::begin(
            &worker,
            &self.client,
            record,
            response.status,
            Protocol::Http2,
        );
        let length = response.length();
        let is_empty = is_head || length.unwrap_or(0) == 0;
        let end = if is_empty { frame::END_STREAM } else { 0 };
        let output = &mut self.output;
        let start = frame::begin(output, frame::HEADERS, frame::END_HEADERS | end, stream);
        if std::mem::take(&mut self.confirms_table) {
            write_no_table(output);
        }
        write_status(output, response.status);
        write_field(output, "server", b"obuild");
        worker
            .clock
            .http(|now| write_field(output, "date", now.as_bytes()));
        if let Some(entry) = &response.entry {
            output.extend_from_slice(&entry.block);
        }
        for (name, value) in &response.fields {
            write_field(output, name, value.as_bytes());
        }
        if let Some(length) = length {
            write_field(output, "content-length", length.to_string().as_bytes());
        }
        frame::end(output, start);
        if is_empty {
            return;
        }
        let remaining = match (response.body, response.entry) {
            (Body::Bytes(bytes), _) => Remaining::Bytes(bytes),
            (Body::File(range), Some(entry)) => Remaining::File(entry, range),
            (Body::File(_), None) | (Body::None, _) => return,
        };
        self.streams.send(stream, remaining, answer);
    }
}

/// Reads a header; nothing if it is no request (RFC 9113 §8.1.1, §8.2, §8.3).
fn parse(head: &Head) -> Option<Parsed<'_>> {
    let mut pseudo = [None; 4];
    let mut fields = Fields::default();
    let mut count = 0;
    for (name, value) in head.fields() {
        // RFC 9113 §8.2.1.
        if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            return None;
        }
        if let Some(name) = name.strip_prefix(b":") {
            let names: [&[u8]; 4] = [b"method", b"path", b"scheme", b"authority"];
            let place = names.iter().position(|known| *known == name)?;
            if count > 0 || pseudo[place].replace(value).is_some() {
                return None;
            }
            continue;
        }
        count += 1;
        let name = str::from_utf8(name).ok()?;
        let is_of_connection = matches!(
            name,
            "connection" | "proxy-connection" | "keep-alive" | "transfer-encoding" | "upgrade"
        );
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) || is_of_connection {
            return None;
        }
        fields.take(name, value);
    }
    let text = |at: usize| pseudo[at].and_then(|value| str::from_utf8(value).ok());
    let is_long = head.is_too_long() || count > MAX_FIELDS;
    let (verb, target) = match (text(0), text(1), pseudo[2]) {
        (Some(verb), Some(target), Some(_)) if is_word(verb) && is_word(target) => (verb, target),
        // What is missing may be in what was not kept.
        _ if is_long => ("-", "/"),
        _ => return None,
    };
    let refused = if is_long {
        Some(431)
    } else if target.len() > MAX_TARGET_BYTES {
        Some(414)
    } else if target.starts_with('/') {
        None
    } else {
        Some(400)
    };
    Some(Parsed {
        verb,
        request: Request {
            method: Method::from_verb(verb),
            target,
            fields,
        },
        refused,
    })
}

/// Returns whether a text could stand in a request of HTTP/1: then it can stand in a log.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte > b' ' && byte != 0x7f)
}
