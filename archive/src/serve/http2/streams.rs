// SPDX-License-Identifier: Apache-2.0
//! The streams of a connection that an answer is owed to, and the windows that say how much of it may be sent (RFC 9113 §5.2).

use super::frame::{self, Code, HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::serve::files::Entry;
use crate::serve::hook::Hook;
use crate::serve::log::Record;
use crate::serve::worker::Answer;
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

/// The largest window (RFC 9113 §6.9.1).
pub(super) const MAX_WINDOW: i64 = 0x7fff_ffff;
/// The window that each side begins with (RFC 9113 §6.9.2).
const INITIAL_WINDOW: i64 = 65_535;

/// All streams of a connection.
pub(super) struct Streams {
    all: Vec<Stream>,
    /// How many there may be.
    limit: usize,
    /// What may be sent on all together.
    window: i64,
    /// What may be sent on each at first.
    initial: i64,
    /// Whose turn it is.
    turn: usize,
}

struct Stream {
    id: u32,
    window: i64,
    phase: Phase,
}

/// What a stream waits for.
enum Phase {
    /// The rest of a hook.
    Receiving(Box<Receiving>),
    /// Sending this.
    Sending(Remaining, Answer),
}

/// A hook whose body is coming in.
pub(super) struct Receiving {
    pub(super) hook: Hook,
    pub(super) length: u64,
    pub(super) record: Option<Record>,
}

/// The rest of a body, which is not empty.
pub(super) enum Remaining {
    Bytes(Bytes),
    File(Rc<Entry>, Range<u64>),
}

impl Remaining {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end - range.start,
        }
    }

    /// Moves the next `length` bytes.
    fn take(&mut self, length: usize, into: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => into.extend_from_slice(&bytes.split_to(length)),
            Self::File(entry, range) => {
                let start = into.len();
                into.resize(start + length, 0);
                entry.file.read_exact_at(&mut into[start..], range.start)?;
                range.start += length as u64;
            }
        }
        Ok(())
    }
}

impl Streams {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            all: Vec::new(),
            limit,
            window: INITIAL_WINDOW,
            initial: INITIAL_WINDOW,
            turn: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.all.len() >= self.limit
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    pub(super) fn receive(&mut self, id: u32, receiving: Receiving) {
        self.push(id, Phase::Receiving(Box::new(receiving)));
    }

    pub(super) fn send(&mut self, id: u32, remaining: Remaining, answer: Answer) {
        self.push(id, Phase::Sending(remaining, answer));
    }

    fn push(&mut self, id: u32, phase: Phase) {
        self.all.push(Stream {
            id,
            window: self.initial,
            phase,
        });
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.all.iter().position(|stream| stream.id == id)
    }

    /// Takes the hook of a stream off the list.
    pub(super) fn take_hook(&mut self, id: u32) -> Option<Box<Receiving>> {
        let at = self.find(id)?;
        if let Phase::Sending(..) = self.all[at].phase {
            return None;
        }
        match self.all.remove(at).phase {
            Phase::Receiving(receiving) => Some(receiving),
            Phase::Sending(..) => None,
        }
    }

    /// Puts a hook back whose body goes on.
    pub(super) fn put_back(&mut self, id: u32, receiving: Box<Receiving>) {
        self.push(id, Phase::Receiving(receiving));
    }

    /// Gives up a stream; returns whether it was there.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let place = self.find(id);
        place.map(|at| self.all.remove(at)).is_some()
    }

    /// Lets more be sent, on one stream or (0) on all together.
    pub(super) fn widen(&mut self, id: u32, more: i64) -> Result<(), Code> {
        if more == 0 {
            return Err(Code::Protocol);
        }
        let window = if id == 0 {
            &mut self.window
        } else if let Some(at) = self.find(id) {
            &mut self.all[at].window
        } else {
            return Ok(());
        };
        *window += more;
        if *window > MAX_WINDOW {
            Err(Code::FlowControl)
        } else {
            Ok(())
        }
    }

    /// Changes what may be sent on each stream; the windows of those that are there change with it (RFC 9113 §6.9.2).
    pub(super) fn set_initial(&mut self, window: i64) -> Result<(), Code> {
        for stream in &mut self.all {
            stream.window += window - self.initial;
            if stream.window > MAX_WINDOW {
                return Err(Code::FlowControl);
            }
        }
        self.initial = window;
        Ok(())
    }

    /// Returns whether there is something that may be sent.
    pub(super) fn can_send(&self) -> bool {
        let sends =
            |stream: &Stream| stream.window > 0 && matches!(stream.phase, Phase::Sending(..));
        self.window > 0 && self.all.iter().any(sends)
    }

    /// Writes about as much as there is `room` for, a frame for each stream in turn.
    pub(super) fn fill(&mut self, output: &mut Vec<u8>, room: usize) {
        let wanted = self
            .all
            .iter()
            .fold(0, |wanted: usize, stream| match &stream.phase {
                Phase::Sending(remaining, _) => {
                    let length = usize::try_from(remaining.length()).unwrap_or(usize::MAX);
                    wanted.saturating_add(length).saturating_add(HEADER_BYTES)
                }
                Phase::Receiving(_) => wanted,
            });
        output.reserve_exact(wanted.min(room.saturating_sub(output.len())));
        let mut idle = 0;
        while idle < self.all.len() && self.window > 0 && output.len() + HEADER_BYTES < room {
            if self.turn >= self.all.len() {
                self.turn = 0;
            }
            let stream = &mut self.all[self.turn];
            let Phase::Sending(remaining, answer) = &mut stream.phase else {
                (idle, self.turn) = (idle + 1, self.turn + 1);
                continue;
            };
            let allowed = usize::try_from(stream.window.min(self.window)).unwrap_or(0);
            if allowed == 0 {
                (idle, self.turn) = (idle + 1, self.turn + 1);
                continue;
            }
            idle = 0;
            let length = usize::try_from(remaining.length()).unwrap_or(usize::MAX);
            let room = (room - output.len() - HEADER_BYTES).min(MAX_PAYLOAD_BYTES);
            let count = length.min(allowed).min(room);
            let is_last = count == length;
            let flags = if is_last { frame::END_STREAM } else { 0 };
            let before = output.len();
            let start = frame::begin(output, frame::DATA, flags, stream.id);
            if remaining.take(count, output).is_err() {
                // The file became shorter, or the disk failed: the client must not take what it got for the whole.
                output.truncate(before);
                frame::write_reset(output, stream.id, Code::Internal);
                self.all.remove(self.turn);
                continue;
            }
            frame::end(output, start);
            answer.sent(count as u64);
            let sent = i64::try_from(count).unwrap_or(0);
            stream.window -= sent;
            self.window -= sent;
            if is_last {
                // The next one has taken its place.
                self.all.remove(self.turn);
            } else {
                self.turn += 1;
            }
        }
    }
}
