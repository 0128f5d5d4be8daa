// SPDX-License-Identifier: Apache-2.0
//! Header fields as HTTP/2 writes them (RFC 7541).
//!
//! Clients may compress as they like. What is sent refers to no table that has to be remembered: the fields of a file are written once, when it is
//! opened.

use super::huffman;
use std::collections::VecDeque;
use std::ops::Range;

/// What a client may have remembered, as it is counted (RFC 9113 §6.5.2: the initial value of `SETTINGS_HEADER_TABLE_SIZE`).
const TABLE_BYTES: usize = 4096;
/// What a field counts beside its name and value (RFC 7541 §4.1).
const OVERHEAD: usize = 32;
/// A header may have so many bytes, counted so (RFC 9113 §6.5.2, `SETTINGS_MAX_HEADER_LIST_SIZE`).
pub(super) const MAX_HEAD_BYTES: usize = 8 << 10;

/// RFC 7541 appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A header that cannot be read: the connection is lost, because both sides' tables differ from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The fields of a header.
#[derive(Debug, Default)]
pub(in crate::serve) struct Head {
    bytes: Vec<u8>,
    /// Where names and values are.
    fields: Vec<(Range<usize>, Range<usize>)>,
    counted: usize,
}

impl Head {
    fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.counted = 0;
    }

    /// Returns whether there was more than is kept.
    pub(super) fn is_too_long(&self) -> bool {
        self.counted > MAX_HEAD_BYTES
    }

    /// Returns names and values, in their order.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let at = |range: &Range<usize>| &self.bytes[range.clone()];
        self.fields
            .iter()
            .map(move |(name, value)| (at(name), at(value)))
    }

    /// Takes the field whose name and value are from `start` and `middle` on.
    fn push(&mut self, start: usize, middle: usize) {
        let end = self.bytes.len();
        self.counted += end - start + OVERHEAD;
        if self.is_too_long() {
            self.bytes.truncate(start);
        } else {
            self.fields.push((start..middle, middle..end));
        }
    }
}

/// Reads the headers of a connection.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Names and values, each pair in one block with the name's length; the newest first.
    table: VecDeque<(usize, Box<[u8]>)>,
    counted: usize,
    limit: usize,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            counted: 0,
            limit: TABLE_BYTES,
        }
    }

    /// Reads a header block.
    pub(super) fn decode(&mut self, block: &[u8], head: &mut Head) -> Result<(), Malformed> {
        head.clear();
        let mut rest = block;
        let mut first = true;
        while let Some(&byte) = rest.first() {
            let start = head.bytes.len();
            let mut resized = false;
            if byte & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                // After too much, a few bytes could go on and stand for megabytes.
                let whole = !head.is_too_long();
                let name = self.copy(index, whole, &mut head.bytes)?;
                head.push(start, start + name);
            } else if byte & 0xe0 == 0x20 {
                // Only at the beginning (RFC 7541 §4.2).
                self.limit = integer(&mut rest, 5)?;
                if !first || self.limit > TABLE_BYTES {
                    return Err(Malformed);
                }
                self.shrink(self.limit);
                resized = true;
            } else {
                let remembered = byte & 0x40 != 0;
                let index = integer(&mut rest, if remembered { 6 } else { 4 })?;
                let name = if index == 0 {
                    string(&mut rest, &mut head.bytes)?
                } else {
                    self.copy(index, false, &mut head.bytes)?
                };
                string(&mut rest, &mut head.bytes)?;
                if remembered {
                    self.remember(name, &head.bytes[start..]);
                }
                head.push(start, start + name);
            }
            first &= resized;
        }
        Ok(())
    }

    /// Copies an entry, and returns the length of its name.
    fn copy(&self, index: usize, whole: bool, into: &mut Vec<u8>) -> Result<usize, Malformed> {
        let index = index.checked_sub(1).ok_or(Malformed)?;
        if let Some((name, value)) = STATIC.get(index) {
            into.extend_from_slice(name.as_bytes());
            if whole {
                into.extend_from_slice(value.as_bytes());
            }
            return Ok(name.len());
        }
        let entry = self.table.get(index - STATIC.len());
        let (name, bytes) = entry.ok_or(Malformed)?;
        into.extend_from_slice(if whole { bytes } else { &bytes[..*name] });
        Ok(*name)
    }

    fn remember(&mut self, name: usize, field: &[u8]) {
        let size = field.len() + OVERHEAD;
        self.shrink(self.limit.saturating_sub(size));
        // One that is larger than the table empties it (RFC 7541 §4.4).
        if size <= self.limit {
            self.counted += size;
            self.table.push_front((name, field.into()));
        }
    }

    fn shrink(&mut self, limit: usize) {
        while self.counted > limit
            && let Some((_, entry)) = self.table.pop_back()
        {
            self.counted -= entry.len() + OVERHEAD;
        }
    }
}

/// Reads a number whose first byte has `bits` of it (RFC 7541 §5.1).
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let mut next = || {
        let (byte, after) = rest.split_first().ok_or(Malformed)?;
        *rest = after;
        Ok(usize::from(*byte))
    };
    let mask = (1 << bits) - 1;
    let mut number = next()? & mask;
    if number < mask {
        return Ok(number);
    }
    // Nothing here is longer than what 21 bits can say.
    for shift in [0, 7, 14] {
        let byte = next()?;
        number += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

/// Reads a string, and returns its length.
fn string(rest: &mut &[u8], into: &mut Vec<u8>) -> Result<usize, Malformed> {
    let is_huffman = rest.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = after;
    let start = into.len();
    if is_huffman {
        // The shortest code has five bits.
        huffman::decode(text, into, length * 8 / 5)?;
    } else {
        into.extend_from_slice(text);
    }
    Ok(into.len() - start)
}

/// Writes the status of an answer.
pub(super) fn write_status(into: &mut Vec<u8>, status: u16) {
    let mut digits = [0; 3];
    for (place, digit) in digits.iter_mut().rev().enumerate() {
        let power = 10_u16.pow(u32::try_from(place).unwrap_or(0));
        *digit = b'0' + u8::try_from(status / power % 10).unwrap_or(0);
    }
    let digits = str::from_utf8(&digits).unwrap_or("500");
    let indexed = STATIC
        .iter()
        .position(|entry| *entry == (":status", digits));
    match indexed {
        Some(index) => write_integer(into, 0x80, 7, index + 1),
        None => write_field(into, ":status", digits.as_bytes()),
    }
}

/// Writes a field, so that nobody has to remember it.
pub(in crate::serve) fn write_field(into: &mut Vec<u8>, name: &str, value: &[u8]) {
    if let Some(index) = STATIC.iter().position(|(known, _)| *known == name) {
        write_integer(into, 0, 4, index + 1);
    } else {
        into.push(0);
        write_integer(into, 0, 7, name.len());
        into.extend_from_slice(name.as_bytes());
    }
    write_integer(into, 0, 7, value.len());
    into.extend_from_slice(value);
}

/// Says that no table is used, which has to be said when the client's limit on it changes (RFC 7541 §4.2).
pub(super) fn write_no_table(into: &mut Vec<u8>) {
    write_integer(into, 0x20, 5, 0);
}

fn write_integer(into: &mut Vec<u8>, flags: u8, bits: u32, number: usize) {
    let low = |number: usize| u8::try_from(number & 0xff).unwrap_or(0);
    let mask = (1 << bits) - 1;
    if number < mask {
        into.push(flags | low(number));
        return;
    }
    into.push(flags | low(mask));
    let mut rest = number - mask;
    while rest >= 0x80 {
        into.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    into.push(low(rest));
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Head, Malformed, write_field, write_no_table, write_status};
    use proptest::prelude::*;

    fn read(decoder: &mut Decoder, block: &str) -> Result<Vec<String>, Malformed> {
        let mut head = Head::default();
        decoder.decode(&hex::decode(block).unwrap(), &mut head)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let line = |(name, value): (&[u8], &[u8])| format!("{}: {}", text(name), text(value));
        Ok(head.fields().map(line).collect())
    }

    /// RFC 7541 appendices C.3 and C.4.
    #[test]
    fn the_examples_of_the_rfc() {
        for blocks in [
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
        ] {
            let mut decoder = Decoder::new();
            let common = ":authority: www.example.com";
            let [first, second, third] = blocks.map(|block| read(&mut decoder, block).unwrap());
            assert_eq!(first, [":method: GET", ":scheme: http", ":path: /", common]);
            assert_eq!(second[3..], [common, "cache-control: no-cache"]);
            assert_eq!(
                third[2..],
                [":path: /index.html", common, "custom-key: custom-value"]
            );
            assert_eq!(decoder.counted, 164);
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        for wrong in [
            "80",
            "be",
            "ff",
            "40",
            "4003",
            "0f",
            "3fe21f",
            "8220",
            "ffffffffff7f",
        ] {
            let result = read(&mut Decoder::new(), wrong);
            assert_eq!(result, Err(Malformed), "{wrong}");
        }
        assert_eq!(
            read(&mut Decoder::new(), "2082"),
            Ok(vec![":method: GET".to_owned()])
        );
    }

    #[test]
    fn a_header_that_is_too_long_costs_no_memory_and_no_state() {
        let mut decoder = Decoder::new();
        let mut block = Vec::new();
        for _ in 0..300 {
            // The first remembers it, the others refer to it.
            block.extend_from_slice(if block.is_empty() {
                b"\x40\x01a\x64"
            } else {
                b"\xbe"
            });
            if block.len() == 4 {
                block.extend_from_slice(&[b'x'; 100]);
            }
        }
        let mut head = Head::default();
        assert_eq!(decoder.decode(&block, &mut head), Ok(()));
        assert!(head.is_too_long() && head.bytes.len() <= super::MAX_HEAD_BYTES);
        assert_eq!(decoder.counted, 133);
        assert_eq!(decoder.decode(&[0xbe], &mut head), Ok(()));
        assert!(!head.is_too_long() && head.fields().count() == 1);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(status in 100..600_u16, value in "[ -~]{0,300}", name in "[a-z-]{1,200}|etag|server") {
            let mut block = Vec::new();
            write_no_table(&mut block);
            write_status(&mut block, status);
            write_field(&mut block, &name, value.as_bytes());
            let read = read(&mut Decoder::new(), &hex::encode(block)).unwrap();
            prop_assert_eq!(read, [format!(":status: {status}"), format!("{name}: {value}")]);
        }

        #[test]
        fn nothing_breaks_it(blocks: Vec<Vec<u8>>) {
            let mut decoder = Decoder::new();
            let mut head = Head::default();
            for block in blocks {
                let _ = decoder.decode(&block, &mut head);
                prop_assert!(decoder.counted <= super::TABLE_BYTES);
            }
        }
    }
}
