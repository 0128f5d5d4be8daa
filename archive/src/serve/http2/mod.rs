// SPDX-License-Identifier: Apache-2.0
//! HTTP/2 (RFC 9113), over TLS and, for clients that know beforehand, without; written for files and for thousands of clients.
//!
//! A connection is one task, and holds a few hundred bytes while nothing goes on. What a client can make us hold is bounded: few streams, fewer the more
//! connections there are; one unfinished frame; and of all its streams together one piece of files that it has not taken yet. While
//! that waits, nothing more is read from the client.

mod frame;
pub(super) mod hpack;
mod huffman;
mod request;
mod streams;

use self::frame::{Code, HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, PREFACE};
use self::hpack::{Decoder, MAX_HEAD_BYTES};
use self::streams::{MAX_WINDOW, Streams};
use super::stream::Stream;
use super::worker::{Client, Worker};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead as _, AsyncWrite as _, AsyncWriteExt as _, ReadBuf};

/// Streams that a client may have at once: the RFC's advice is at least 100 (RFC 9113 §6.5.2), but for times when memory is short.
const MAX_STREAMS: usize = 100;
/// Streams that each client may have however many clients there are.
const MIN_STREAMS: usize = 16;
/// What the streams of all clients together may come to before each client has fewer.
const ALL_STREAMS: usize = 16 << 10;
/// Answers that wait for a client to take them before more is read from it.
const PENDING_BYTES: usize = 16 << 10;
/// Settings and other frames that are read whole may have so much; no sensible one comes near.
const MAX_CONTROL_BYTES: usize = 1 << 10;
/// Requests that a client may have called back more than it has let be answered (CVE-2023-44487).
const MAX_CALLED_BACK: u32 = 200;
/// Rounds of reading and writing before others get their turn.
const TURNS: usize = 4;

/// A connection.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is about something else, and none follows from another"
)]
struct Connection {
    worker: Rc<Worker>,
    client: Rc<Client>,
    /// What is not known whole yet.
    input: Vec<u8>,
    /// What is to be sent, and how much of it has been.
    output: Vec<u8>,
    sent: usize,
    /// The preface has come.
    begun: bool,
    decoder: Decoder,
    /// A header that other frames go on with: its stream, whether its body is empty, and what came of it.
    unfinished: Option<(u32, bool, Vec<u8>)>,
    /// A frame whose payload is taken as it comes.
    passing: Option<Passing>,
    streams: Streams,
    /// The last stream that the client began.
    last: u32,
    called_back: u32,
    /// The client has limited our table, which is to be confirmed.
    confirms_table: bool,
    /// One side has said that it ends after the streams at hand.
    ending: bool,
    failed: bool,
}

/// The rest of a frame that need not be seen whole.
struct Passing {
    header: Header,
    left: usize,
    /// How much of what is left is padding.
    padding: usize,
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, client: Rc<Client>, mut stream: Stream) {
    let linger = worker.shared.patience.linger;
    let mut connection = Box::new(Connection::new(Rc::clone(&worker), Rc::clone(&client)));
    let result = {
        let mut stopped = Box::pin(worker.stopped());
        poll_fn(|context| {
            if !connection.ending && stopped.as_mut().poll(context).is_ready() {
                connection.go_away(Code::None);
            }
            connection.poll(context, &mut stream)
        })
        .await
    };
    drop(connection);
    match result {
        // The client may not take even that.
        Ok(()) => drop(tokio::time::timeout(linger, stream.shutdown()).await),
        Err(error) => tracing::debug!(peer = %client.peer, %error, "the connection broke"),
    }
}

impl Connection {
    fn new(worker: Rc<Worker>, client: Rc<Client>) -> Self {
        let share = ALL_STREAMS / worker.shared.table.open().max(1);
        let limit = share.clamp(MIN_STREAMS, MAX_STREAMS);
        let mut output = Vec::new();
        frame::write_settings(
            &mut output,
            &[
                (
                    frame::MAX_CONCURRENT_STREAMS,
                    u32::try_from(limit).unwrap_or(1),
                ),
                (
                    frame::MAX_HEADER_LIST_SIZE,
                    u32::try_from(MAX_HEAD_BYTES).unwrap_or(1),
                ),
            ],
        );
        Self {
            worker,
            client,
            input: Vec::new(),
            output,
            sent: 0,
            begun: false,
            decoder: Decoder::new(),
            unfinished: None,
            passing: None,
            streams: Streams::new(limit),
            last: 0,
            called_back: 0,
            confirms_table: false,
            ending: false,
            failed: false,
        }
    }

    /// Reads and writes what can be, until the connection has come to its end.
    fn poll(&mut self, context: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        for _ in 0..TURNS {
            let is_held = self.failed || self.output.len() - self.sent >= PENDING_BYTES;
            let read = if is_held {
                Poll::Pending
            } else {
                self.poll_read(context, stream)?
            };
            if read == Poll::Ready(0) {
                return Poll::Ready(Ok(()));
            }
            let written = self.poll_write(context, stream)?;
            if written.is_ready() && (self.failed || self.ending && self.streams.is_empty()) {
                return Poll::Ready(Ok(()));
            }
            let goes_on = read.is_ready() || is_held || self.streams.can_send();
            if !goes_on || (written.is_pending() && read.is_pending()) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads what has come, and does what it says; returns how much it was.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Result<Poll<usize>, io::Error> {
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        if Pin::new(stream)
            .poll_read(context, &mut buffer)?
            .is_pending()
        {
            return Ok(Poll::Pending);
        }
        let new = buffer.filled();
        let result = if self.input.is_empty() {
            self.take(new)
                .map(|taken| self.input.extend_from_slice(&new[taken..]))
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend_from_slice(new);
            self.take(&input)
                .map(|taken| self.input.extend_from_slice(&input[taken..]))
        };
        if let Err(code) = result {
            self.go_away(code);
            self.failed = true;
            self.streams.clear();
        }
        Ok(Poll::Ready(new.len()))
    }

    /// Sends what there is to send; it is ready when that is all.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut Stream,
    ) -> Result<Poll<()>, io::Error> {
        for _ in 0..TURNS {
            if self.sent == 0 {
                // A small body goes out with its header.
                let room = self.worker.chunk_bytes(u64::MAX);
                stream.limit(room);
                self.streams.fill(&mut self.output, room);
            }
            if self.output.is_empty() {
                return Ok(Pin::new(stream).poll_flush(context)?);
            }
            while self.sent < self.output.len() {
                let rest = &self.output[self.sent..];
                match Pin::new(&mut *stream).poll_write(context, rest)? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(count) => self.sent += count,
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            self.sent = 0;
            // An idle connection keeps no memory for answers.
            self.output = Vec::new();
        }
        Ok(Poll::Ready(()))
    }

    /// Says that no stream after those at hand is served.
    fn go_away(&mut self, code: Code) {
        let payload = u64::from(self.last) << 32 | u64::from(code as u32);
        frame::write(
            &mut self.output,
            frame::GOAWAY,
            0,
            0,
            &payload.to_be_bytes(),
        );
        self.ending = true;
    }

    fn reset(&mut self, stream: u32, code: Code) {
        frame::write_reset(&mut self.output, stream, code);
    }

    /// Takes as many whole frames as there are; returns how many bytes they had.
    fn take(&mut self, input: &[u8]) -> Result<usize, Code> {
        let mut rest = input;
        if !self.begun {
            let length = rest.len().min(PREFACE.len());
            if rest[..length] != PREFACE[..length] {
                return Err(Code::Protocol);
            }
            if length < PREFACE.len() {
                return Ok(0);
            }
            self.begun = true;
            rest = &rest[length..];
        }
        while !self.failed {
            if let Some(passing) = &self.passing
                && passing.left > 0
            {
                let (some, after) = rest.split_at(rest.len().min(passing.left));
                if some.is_empty() {
                    break;
                }
                rest = after;
                self.pass(some);
                continue;
            }
            let Some(header) = Header::read(rest) else {
                break;
            };
            let payload = &rest[HEADER_BYTES..];
            let is_head = matches!(header.kind, frame::HEADERS | frame::CONTINUATION);
            if header.length > MAX_PAYLOAD_BYTES {
                return Err(Code::FrameSize);
            }
            if let Some((stream, ..)) = self.unfinished
                && (header.kind, header.stream) != (frame::CONTINUATION, stream)
            {
                // Nothing may come in between (RFC 9113 §6.10).
                return Err(Code::Protocol);
            }
            match header.kind {
                frame::DATA => {
                    let has_padding = header.has(frame::PADDED);
                    if has_padding && header.length > 0 && payload.is_empty() {
                        break;
                    }
                    let padding = if has_padding {
                        payload.first().copied()
                    } else {
                        Some(0)
                    };
                    rest = &payload[usize::from(has_padding).min(payload.len())..];
                    self.begin_data(header, padding)?;
                }
                frame::HEADERS
                | frame::RST_STREAM
                | frame::SETTINGS
                | frame::PUSH_PROMISE
                | frame::PING
                | frame::WINDOW_UPDATE
                | frame::CONTINUATION => {
                    let limit = if is_head {
                        MAX_HEAD_BYTES
                    } else {
                        MAX_CONTROL_BYTES
                    };
                    if header.length > limit {
                        return Err(Code::EnhanceYourCalm);
                    }
                    let Some((payload, after)) = payload.split_at_checked(header.length) else {
                        break;
                    };
                    rest = after;
                    self.frame(header, payload)?;
                }
                // Priorities are only advice, and what is not known is to be passed over (RFC 9113 §5.3.2, §4.1).
                kind => {
                    if kind == frame::GOAWAY {
                        self.ending = true;
                    }
                    rest = payload;
                    self.passing = Some(Passing {
                        header,
                        left: header.length,
                        padding: 0,
                    });
                }
            }
        }
        Ok(input.len() - rest.len())
    }

    /// Does what a frame says that is there whole.
    fn frame(&mut self, header: Header, payload: &[u8]) -> Result<(), Code> {
        // Of a stream or of none, as their kind has it.
        let of_stream = match header.kind {
            frame::SETTINGS | frame::PING => Some(false),
            frame::WINDOW_UPDATE => None,
            _ => Some(true),
        };
        if of_stream.is_some_and(|of_stream| of_stream == (header.stream == 0)) {
            return Err(Code::Protocol);
        }
        match header.kind {
            frame::HEADERS => {
                let block = unpadded(header, payload)?;
                let skipped = if header.has(frame::PRIORITY) { 5 } else { 0 };
                let block = block.get(skipped..).ok_or(Code::FrameSize)?;
                let is_whole = header.has(frame::END_STREAM);
                if header.has(frame::END_HEADERS) {
                    return self.head(header.stream, is_whole, block);
                }
                self.client.ticket.busy(self.worker.shared.patience.header);
                self.unfinished = Some((header.stream, is_whole, block.to_vec()));
            }
            frame::CONTINUATION => {
                let (stream, is_whole, mut block) = self.unfinished.take().ok_or(Code::Protocol)?;
                block.extend_from_slice(payload);
                // Nor is there an end to empty ones.
                if block.len() > MAX_HEAD_BYTES || payload.is_empty() {
                    return Err(Code::EnhanceYourCalm);
                }
                if header.has(frame::END_HEADERS) {
                    return self.head(stream, is_whole, &block);
                }
                self.unfinished = Some((stream, is_whole, block));
            }
            frame::SETTINGS => self.settings(header, payload)?,
            frame::PING => {
                let payload: [u8; 8] = payload.try_into().map_err(|_| Code::FrameSize)?;
                if !header.has(frame::ACK) {
                    frame::write(&mut self.output, frame::PING, frame::ACK, 0, &payload);
                }
            }
            frame::RST_STREAM => {
                if payload.len() != 4 {
                    return Err(Code::FrameSize);
                }
                self.known(header.stream)?;
                if self.streams.remove(header.stream) {
                    self.called_back += 1;
                    if self.called_back > MAX_CALLED_BACK + self.last / 4 {
                        return Err(Code::EnhanceYourCalm);
                    }
                }
            }
            frame::WINDOW_UPDATE => {
                let payload: [u8; 4] = payload.try_into().map_err(|_| Code::FrameSize)?;
                let more = i64::from(frame::number(payload) & 0x7fff_ffff);
                if header.stream != 0 {
                    self.known(header.stream)?;
                }
                match self.streams.widen(header.stream, more) {
                    Ok(()) => {}
                    Err(code) if header.stream == 0 => return Err(code),
                    Err(code) => {
                        self.streams.remove(header.stream);
                        self.reset(header.stream, code);
                    }
                }
            }
            // A client that promises.
            _ => return Err(Code::Protocol),
        }
        Ok(())
    }

    fn settings(&mut self, header: Header, payload: &[u8]) -> Result<(), Code> {
        let is_answer = header.has(frame::ACK);
        if !payload.len().is_multiple_of(6) || (is_answer && !payload.is_empty()) {
            return Err(Code::FrameSize);
        }
        if is_answer {
            return Ok(());
        }
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = frame::number([setting[2], setting[3], setting[4], setting[5]]);
            match name {
                frame::HEADER_TABLE_SIZE => self.confirms_table = true,
                frame::INITIAL_WINDOW_SIZE => {
                    let window = i64::from(value);
                    if window > MAX_WINDOW {
                        return Err(Code::FlowControl);
                    }
                    self.streams.set_initial(window)?;
                }
                _ => {}
            }
        }
        frame::write(&mut self.output, frame::SETTINGS, frame::ACK, 0, &[]);
        Ok(())
    }

    /// Fails for a stream that was never begun (RFC 9113 §5.1, "idle").
    fn known(&self, stream: u32) -> Result<(), Code> {
        if stream > self.last || stream.is_multiple_of(2) {
            return Err(Code::Protocol);
        }
        Ok(())
    }

    /// Begins with the payload of a request's body. `padding` is nothing where it should be told and is not.
    fn begin_data(&mut self, header: Header, padding: Option<u8>) -> Result<(), Code> {
        self.known(header.stream)?;
        let left = header
            .length
            .checked_sub(usize::from(header.has(frame::PADDED)));
        let padding = padding
            .map(usize::from)
            .zip(left)
            .filter(|(padding, left)| padding <= left);
        let (padding, left) = padding.ok_or(Code::Protocol)?;
        if header.length > 0 {
            // Taken already, as far as the client's windows are concerned: nothing of it is kept.
            let more = u32::try_from(header.length).unwrap_or(0).to_be_bytes();
            let streams = [0, header.stream];
            for stream in &streams[..2 - usize::from(header.has(frame::END_STREAM))] {
                frame::write(&mut self.output, frame::WINDOW_UPDATE, 0, *stream, &more);
            }
        }
        self.passing = Some(Passing {
            header,
            left,
            padding,
        });
        if left == 0 {
            self.pass(&[]);
        }
        Ok(())
    }

    /// Takes some of the payload of the frame that is passing.
    fn pass(&mut self, some: &[u8]) {
        let Some(passing) = &mut self.passing else {
            return;
        };
        let data = some
            .len()
            .min(passing.left - passing.padding.min(passing.left));
        passing.left -= some.len();
        let (header, left) = (passing.header, passing.left);
        if header.kind == frame::DATA {
            let is_last = left == 0 && header.has(frame::END_STREAM);
            self.body(header.stream, &some[..data], is_last);
        }
    }
}

/// Takes the padding off a payload.
fn unpadded(header: Header, payload: &[u8]) -> Result<&[u8], Code> {
    if !header.has(frame::PADDED) {
        return Ok(payload);
    }
    let (padding, payload) = payload.split_first().ok_or(Code::FrameSize)?;
    let length = payload
        .len()
        .checked_sub(usize::from(*padding))
        .ok_or(Code::Protocol)?;
    Ok(&payload[..length])
}
