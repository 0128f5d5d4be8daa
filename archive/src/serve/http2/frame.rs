// SPDX-License-Identifier: Apache-2.0
//! Frames of HTTP/2 (RFC 9113 §4 and §6), as far as a server of files sends and takes them.

/// What every connection begins with (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The header of a frame.
pub(super) const HEADER_BYTES: usize = 9;
/// The longest frame that either side may send unless told otherwise, which nobody is (RFC 9113 §4.2).
pub(super) const MAX_PAYLOAD_BYTES: usize = 16 << 10;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 0x1;
pub(super) const ACK: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITY: u8 = 0x20;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Why a stream or a connection ends (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    None = 0x0,
    Protocol = 0x1,
    Internal = 0x2,
    FlowControl = 0x3,
    FrameSize = 0x6,
    RefusedStream = 0x7,
    Compression = 0x9,
    EnhanceYourCalm = 0xb,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Header {
    /// Reads a header, if it is there.
    pub(super) fn read(input: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *input.first_chunk::<HEADER_BYTES>()?;
        Some(Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            // The first bit means nothing (RFC 9113 §4.1).
            stream: number(stream) & 0x7fff_ffff,
        })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Reads a number of four bytes.
pub(super) fn number(bytes: [u8; 4]) -> u32 {
    u32::from_be_bytes(bytes)
}

/// Begins a frame; [`end`] enters the length of what was written after it.
pub(super) fn begin(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32) -> usize {
    into.extend_from_slice(&[0, 0, 0, kind, flags]);
    into.extend_from_slice(&stream.to_be_bytes());
    into.len()
}

/// Ends the frame whose payload begins at `start`.
pub(super) fn end(into: &mut [u8], start: usize) {
    // No frame is longer than a few pieces of a file, or a header.
    let length = u32::try_from(into.len() - start).unwrap_or(0).to_be_bytes();
    into[start - HEADER_BYTES..][..3].copy_from_slice(&length[1..]);
}

/// Writes a frame.
pub(super) fn write(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let start = begin(into, kind, flags, stream);
    into.extend_from_slice(payload);
    end(into, start);
}

/// Writes that a stream is given up.
pub(super) fn write_reset(into: &mut Vec<u8>, stream: u32, code: Code) {
    write(into, RST_STREAM, 0, stream, &(code as u32).to_be_bytes());
}

/// Writes settings.
pub(super) fn write_settings(into: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let start = begin(into, SETTINGS, 0, 0);
    for (name, value) in settings {
        into.extend_from_slice(&name.to_be_bytes());
        into.extend_from_slice(&value.to_be_bytes());
    }
    end(into, start);
}
