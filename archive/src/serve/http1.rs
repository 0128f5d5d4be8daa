// SPDX-License-Identifier: Apache-2.0
//! HTTP/1.1 and 1.0 (RFC 9112), written for files: a small one goes out with its header in one write, a large one by sendfile(2).
//!
//! An idle connection holds a few hundred bytes: input is read into a buffer that all connections of a worker share, and only what belongs
//! to an unfinished request is kept.

use super::files::Entry;
use super::hook::{self, Hook};
use super::log::Record;
use super::request::{Fields, Method, Request, Version};
use super::respond::{Body, HOOK, Response, reason, respond};
use super::stream::{Socket, Stream};
use super::worker::{Answer, Client, Protocol, Worker};
use rustix::fs::sendfile;
use rustix::net::{SendFlags, send};
use std::future::poll_fn;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A longer header is refused.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// A longer target is refused.
const MAX_TARGET_BYTES: usize = 4 << 10;
/// More fields are refused.
const MAX_FIELDS: usize = 64;
/// How much of one file is sent before others get their turn.
const TURN_BYTES: u64 = 1 << 20;
/// Input that a finished request may leave allocated.
const KEPT_BYTES: usize = 1 << 10;

/// What every HTTP/2 connection without TLS begins with (RFC 9113 §3.4), as far as it tells it from HTTP/1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";

/// What became of a connection.
pub(super) enum End {
    Closed,
    /// The client speaks HTTP/2; what it said is unread.
    Http2,
}

/// What is known of a request beside what it asks for.
struct Head {
    /// How many bytes of input it takes.
    length: usize,
    version: Version,
    keep_alive: bool,
    content_length: Option<u64>,
    /// Something is wrong with it, or it is nothing that we do: this status, and no further request.
    refused: Option<u16>,
    expects_continue: bool,
}

/// Serves requests until one side has enough.
///
/// # Errors
///
/// When the connection breaks.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    stream: &mut Stream,
    client: &Rc<Client>,
) -> io::Result<End> {
    let mut input = Vec::new();
    let mut output = Vec::new();
    let mut first = true;
    let patience = &worker.shared.patience;
    loop {
        // Wait for a whole header.
        let mut looked = 0;
        loop {
            if first
                && !input.is_empty()
                && PREFACE.starts_with(&input[..input.len().min(PREFACE.len())])
            {
                if input.len() >= PREFACE.len() {
                    stream.unread(input);
                    return Ok(End::Http2);
                }
            } else if has_head(&input, &mut looked) || input.len() > MAX_HEAD_BYTES {
                break;
            }
            let waits = input.is_empty();
            if worker.stopping() && waits && !first {
                return Ok(End::Closed);
            }
            if read(worker, stream, &mut input).await? == 0 {
                return Ok(End::Closed);
            }
            if waits {
                // Line ends before a request are to be ignored (RFC 9112 §2.2).
                let blank = input
                    .iter()
                    .take_while(|byte| matches!(byte, b'\r' | b'\n'));
                let blank = blank.count();
                input.drain(..blank);
                if !input.is_empty() && !client.ticket.begin(patience.header) {
                    return Ok(End::Closed);
                }
            }
        }
        first = false;

        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let (head, request) = parse(&mut parsed, &input);
        client.ticket.busy(patience.send);
        let record = worker
            .lines
            .is_some()
            .then(|| Record::new(parsed.method.unwrap_or("-"), head.version, &request));
        let is_head = request.method == Method::Head;
        let mut keep_alive = head.keep_alive && head.refused.is_none() && !worker.stopping();
        let hook = (request.method == Method::Post && request.path() == HOOK)
            .then(|| Hook::begin(worker, &request))
            .flatten();
        let response = match (head.refused, hook) {
            (Some(status), _) => Response::status(status),
            (None, Some(hook)) => {
                input.drain(..head.length);
                let response = receive(worker, stream, client, &mut input, &head, hook).await?;
                // What it did not read of a body cannot be told from a request.
                keep_alive &= matches!(response.status, 200 | 202 | 403);
                response
            }
            (None, None) => {
                let response = respond(worker, &request);
                // Nobody reads the body of anything else.
                keep_alive &= head.content_length.unwrap_or(0) == 0;
                input.drain(..head.length);
                response
            }
        };
        if input.is_empty() && input.capacity() > KEPT_BYTES {
            input = Vec::new();
        }
        output.clear();
        worker.clock.http(|now| {
            write_head(&mut output, &response, head.version, keep_alive, now);
        });
        let mut answer = Answer::begin(worker, client, record, response.status, Protocol::Http1);
        transmit(worker, stream, &mut answer, &mut output, response, is_head).await?;
        drop(answer);
        if output.capacity() > KEPT_BYTES {
            output = Vec::new();
        }
        if !keep_alive {
            finish(worker, stream).await;
            return Ok(End::Closed);
        }
        if !input.is_empty() {
            client.ticket.busy(patience.header);
        }
    }
}

/// Returns whether a header is complete; `looked` is how far it was looked before.
fn has_head(input: &[u8], looked: &mut usize) -> bool {
    let from = looked.saturating_sub(3);
    *looked = input.len();
    input[from..].windows(2).enumerate().any(|(at, pair)| {
        pair == b"\n\n" || (pair == b"\n\r" && input.get(from + at + 2) == Some(&b'\n'))
    })
}

/// Reads a header. What cannot be read has a status that refuses it.
fn parse<'a>(parsed: &mut httparse::Request<'_, 'a>, input: &'a [u8]) -> (Head, Request<'a>) {
    let mut head = Head {
        length: input.len(),
        version: Version::Http11,
        keep_alive: false,
        content_length: None,
        refused: None,
        expects_continue: false,
    };
    let mut request = Request {
        method: Method::Other,
        target: "",
        fields: Fields::default(),
    };
    match parsed.parse(input) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => head.length = length,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => head.refused = Some(431),
        Err(httparse::Error::Version) => head.refused = Some(505),
        Err(_) => head.refused = Some(400),
    }
    if head.refused.is_some() {
        return (head, request);
    }
    if parsed.version == Some(0) {
        head.version = Version::Http10;
    }
    request.method = Method::from_verb(parsed.method.unwrap_or_default());
    let target = parsed.path.unwrap_or_default();
    request.target = origin_form(target);
    head.keep_alive = head.version == Version::Http11;
    let mut hosts = 0;
    for field in parsed.headers.iter() {
        match field.name.len() {
            4 if field.name.eq_ignore_ascii_case("host") => hosts += 1,
            6 if field.name.eq_ignore_ascii_case("expect") => {
                head.expects_continue = field.value.eq_ignore_ascii_case(b"100-continue");
            }
            10 if field.name.eq_ignore_ascii_case("connection") => {
                for option in field.value.split(|byte| *byte == b',') {
                    let option = option.trim_ascii();
                    if option.eq_ignore_ascii_case(b"close") {
                        head.keep_alive = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        head.keep_alive = true;
                    }
                }
            }
            14 if field.name.eq_ignore_ascii_case("content-length") => {
                let number = std::str::from_utf8(field.value)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| text.parse().ok());
                // Two lengths, or one that is none, are how requests are smuggled (RFC 9112 §6.3).
                if number.is_none() || head.content_length.is_some_and(|had| Some(had) != number) {
                    head.refused = Some(400);
                }
                head.content_length = number;
            }
            // Nothing that is taken here has to come in chunks.
            17 if field.name.eq_ignore_ascii_case("transfer-encoding") => head.refused = Some(411),
            _ => request.fields.take(field.name, field.value),
        }
    }
    // RFC 9112 §3.2.
    if hosts > 1 || (hosts == 0 && head.version == Version::Http11) {
        head.refused = Some(400);
    }
    if target.len() > MAX_TARGET_BYTES {
        head.refused = Some(414);
    } else if !request.target.starts_with('/') {
        head.refused = Some(400);
    }
    (head, request)
}

/// Takes scheme and authority off a target: a server must understand the form that proxies get (RFC 9112 §3.2.2).
fn origin_form(target: &str) -> &str {
    let rest = ["http://", "https://"].iter().find_map(|scheme| {
        let (head, rest) = target.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    match rest {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// Reads what has come in to the end of `input`.
async fn read(worker: &Worker, stream: &mut Stream, input: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|context| {
        let mut scratch = worker.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                input.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Reads the body of a hook, which is not kept.
async fn receive(
    worker: &Worker,
    stream: &mut Stream,
    client: &Client,
    input: &mut Vec<u8>,
    head: &Head,
    mut hook: Hook,
) -> io::Result<Response> {
    let Some(mut missing) = head.content_length else {
        return Ok(Response::status(411));
    };
    if missing > hook::MAX_BYTES {
        return Ok(Response::status(413));
    }
    if head.expects_continue && input.is_empty() && missing > 0 {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        stream.flush().await?;
    }
    // All of it in one span of patience: a body that crawls in gains none by crawling.
    client.ticket.busy(worker.shared.patience.body);
    loop {
        let count = input
            .len()
            .min(usize::try_from(missing).unwrap_or(usize::MAX));
        hook.update(&input[..count]);
        input.drain(..count);
        missing -= count as u64;
        if missing == 0 {
            return Ok(hook.finish(worker));
        }
        if read(worker, stream, input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn write_head(
    output: &mut Vec<u8>,
    response: &Response,
    version: Version,
    keep_alive: bool,
    now: &str,
) {
    let mut put = |pieces: &[&[u8]]| {
        for piece in pieces {
            output.extend_from_slice(piece);
        }
    };
    let mut digits = itoa(u64::from(response.status));
    put(&[
        b"HTTP/1.1 ",
        digits.as_bytes(),
        b" ",
        reason(response.status).as_bytes(),
    ]);
    put(&[b"\r\nserver: obuild\r\ndate: ", now.as_bytes(), b"\r\n"]);
    if let Some(entry) = &response.entry {
        put(&[&entry.rendered]);
    }
    for (name, value) in &response.fields {
        put(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    if let Some(length) = response.length() {
        digits = itoa(length);
        put(&[b"content-length: ", digits.as_bytes(), b"\r\n"]);
    }
    match (version, keep_alive) {
        (_, false) => put(&[b"connection: close\r\n"]),
        (Version::Http10, true) => put(&[b"connection: keep-alive\r\n"]),
        _ => {}
    }
    put(&[b"\r\n"]);
}

/// Writes a number without the machinery of formatting.
fn itoa(number: u64) -> Digits {
    let mut digits = Digits {
        bytes: [0; 20],
        from: 20,
    };
    let mut rest = number;
    loop {
        digits.from -= 1;
        digits.bytes[digits.from] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            return digits;
        }
    }
}

struct Digits {
    bytes: [u8; 20],
    from: usize,
}

impl Digits {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

/// Sends header and body.
async fn transmit(
    worker: &Worker,
    stream: &mut Stream,
    answer: &mut Answer,
    output: &mut Vec<u8>,
    response: Response,
    is_head: bool,
) -> io::Result<()> {
    match response.body {
        Body::File(range) if !is_head => {
            let entry = response.entry.ok_or(io::ErrorKind::InvalidInput)?;
            match stream.socket() {
                Socket::Plain(socket) => {
                    send_head(socket, output).await?;
                    send_file(socket, answer, &entry, range).await
                }
                Socket::Tls(_) => {
                    stream.write_all(output).await?;
                    send_chunks(worker, stream, answer, &entry, range).await?;
                    stream.flush().await
                }
            }
        }
        body => {
            let head = output.len();
            if let Body::Bytes(bytes) = body
                && !is_head
            {
                output.extend_from_slice(&bytes);
            }
            stream.write_all(output).await?;
            stream.flush().await?;
            answer.sent((output.len() - head) as u64);
            Ok(())
        }
    }
}

/// Sends a header that a file follows at once: `MSG_MORE` keeps it from going out alone (send(2)).
async fn send_head(socket: &TcpStream, output: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < output.len() {
        sent += socket
            .async_io(Interest::WRITABLE, || {
                let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
                Ok(send(socket, &output[sent..], flags)?)
            })
            .await?;
    }
    Ok(())
}

/// Sends a part of a file from the page cache, without it passing through us.
async fn send_file(
    socket: &TcpStream,
    answer: &mut Answer,
    entry: &Entry,
    range: Range<u64>,
) -> io::Result<()> {
    let mut offset = range.start;
    while offset < range.end {
        let turn = (range.end - offset).min(TURN_BYTES);
        let count = usize::try_from(turn).unwrap_or(usize::MAX);
        let sent = socket
            .async_io(Interest::WRITABLE, || {
                Ok(sendfile(socket, &entry.file, Some(&mut offset), count)?)
            })
            .await?;
        if sent == 0 {
            // The file became shorter: the client must not take what it got for the whole.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.sent(sent as u64);
        if sent == count && offset < range.end {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// Sends a part of a file through a buffer, for TLS.
async fn send_chunks(
    worker: &Worker,
    stream: &mut Stream,
    answer: &mut Answer,
    entry: &Entry,
    range: Range<u64>,
) -> io::Result<()> {
    let mut offset = range.start;
    let mut chunk = vec![0; worker.chunk_bytes(range.end - range.start)];
    while offset < range.end {
        let length = usize::try_from(range.end - offset)
            .unwrap_or(usize::MAX)
            .min(chunk.len());
        entry.file.read_exact_at(&mut chunk[..length], offset)?;
        stream.write_all(&chunk[..length]).await?;
        offset += length as u64;
        answer.sent(length as u64);
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Closes so that the client gets the last answer: what it may still be sending is read for a moment, because closing with unread
/// input resets the connection and the answer with it (RFC 9112 §9.6).
async fn finish(worker: &Worker, stream: &mut Stream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut discarded = Vec::new();
    let drain = async {
        for _ in 0..64 {
            discarded.clear();
            match read(worker, stream, &mut discarded).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        }
    };
    // Ends either way.
    let _ = tokio::time::timeout(worker.shared.patience.linger, drain).await;
}

/// Answers a connection for which there is no room, if that can be done without waiting.
pub(super) fn turn_away(mut stream: std::net::TcpStream) {
    // Its end says the same.
    let _ = stream.write_all(
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
}

#[cfg(test)]
mod tests {
    use super::{has_head, itoa, origin_form, parse};
    use crate::serve::request::{Method, Version};
    use proptest::prelude::*;

    fn refused(input: &str) -> Option<u16> {
        let mut fields = [httparse::EMPTY_HEADER; super::MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        parse(&mut parsed, input.as_bytes()).0.refused
    }

    #[test]
    fn a_request_is_read() {
        let input =
            b"HEAD /a?b HTTP/1.0\r\nConnection: x, Keep-Alive\r\nRange: bytes=1-\r\n\r\nrest";
        let mut fields = [httparse::EMPTY_HEADER; super::MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let (head, request) = parse(&mut parsed, input);
        assert_eq!(head.length, input.len() - 4);
        assert_eq!(head.version, Version::Http10);
        assert!(head.keep_alive && head.refused.is_none());
        assert_eq!(request.method, Method::Head);
        assert_eq!((request.target, request.path()), ("/a?b", "/a"));
        assert_eq!(request.fields.range, Some(b"bytes=1-".as_slice()));
    }

    #[test]
    fn what_could_be_two_requests_is_refused() {
        let with = |fields: &str| refused(&format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}\r\n"));
        assert_eq!(with(""), None);
        assert_eq!(with("content-length: 3\r\ncontent-length: 3\r\n"), None);
        assert_eq!(
            with("content-length: 3\r\ncontent-length: 4\r\n"),
            Some(400)
        );
        assert_eq!(with("content-length: +3\r\n"), Some(400));
        assert_eq!(with("content-length: -1\r\n"), Some(400));
        assert_eq!(with("content-length: 99999999999999999999\r\n"), Some(400));
        assert_eq!(with("transfer-encoding: chunked\r\n"), Some(411));
        assert_eq!(with("host: y\r\n"), Some(400));
        assert_eq!(with(" folded: x\r\n"), Some(400));
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Some(400), "no host");
        assert_eq!(refused("GET * HTTP/1.0\r\n\r\n"), Some(400));
        assert_eq!(refused("GET / HTTP/3.0\r\n\r\n"), Some(505));
        assert_eq!(
            refused("\x16\x03\x01\x02\n\n"),
            Some(400),
            "TLS on a plain port"
        );
        let long = format!("GET /{} HTTP/1.0\r\n\r\n", "a".repeat(5000));
        assert_eq!(refused(&long), Some(414));
        let many = format!("GET / HTTP/1.0\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(refused(&many), Some(431));
    }

    #[test]
    fn forms_of_targets_and_numbers() {
        assert_eq!(origin_form("http://x.org/a?b"), "/a?b");
        assert_eq!(origin_form("HTTPS://x.org"), "/");
        assert_eq!(origin_form("/http://x/"), "/http://x/");
        for number in [0, 9, 10, 4096, u64::MAX] {
            assert_eq!(itoa(number).as_bytes(), number.to_string().as_bytes());
        }
    }

    proptest! {
        /// However a header comes in, its end is found when its last byte is there, and not earlier.
        #[test]
        fn the_end_of_a_header_is_found(pieces in prop::collection::vec(1_usize..9, 1..20), bare: bool) {
            let whole = if bare { "GET / HTTP/1.1\nhost: x\n\n" } else { "GET / HTTP/1.1\r\nhost: x\r\n\r\n" };
            let (mut looked, mut end) = (0, 0);
            for piece in pieces {
                end = (end + piece).min(whole.len());
                prop_assert_eq!(has_head(&whole.as_bytes()[..end], &mut looked), end == whole.len());
                if end == whole.len() { break; }
            }
        }

        #[test]
        fn no_input_is_a_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut fields = [httparse::EMPTY_HEADER; super::MAX_FIELDS];
            let mut parsed = httparse::Request::new(&mut fields);
            let _ = parse(&mut parsed, &input);
        }
    }
}
