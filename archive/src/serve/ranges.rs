// SPDX-License-Identifier: Apache-2.0
//! The `Range` field (RFC 9110 §14).
//!
//! One range is honoured. A server may ignore the field (§14.2), and with several ranges this one does, however many there are:
//! nobody who fetches archives sends them, and overlapping ones are a known way to make a server send without end.

use std::ops::Range;

/// What a `Range` field asks of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The file as a whole: no field, or one that is ignored.
    Whole,
    /// These bytes; never empty.
    Part(Range<u64>),
    /// Nothing that the file has.
    Nothing,
}

/// Reads the field for a file of `size` bytes.
pub(super) fn wanted(field: &[u8], size: u64) -> Wanted {
    let Some(spec) = std::str::from_utf8(field)
        .ok()
        .and_then(|field| field.trim().split_once('='))
        .filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes"))
        .map(|(_, spec)| spec.trim())
    else {
        return Wanted::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Wanted::Whole;
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => part(first..last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => part(first..size),
        (None, Some(suffix)) if first.is_empty() => part(size.saturating_sub(suffix)..size),
        // Several ranges, or no range at all: invalid fields are ignored.
        _ => Wanted::Whole,
    }
}

fn part(range: Range<u64>) -> Wanted {
    if range.is_empty() {
        Wanted::Nothing
    } else {
        Wanted::Part(range)
    }
}

/// Digits only, and a number that is too large for us is larger than every file.
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::{Wanted, wanted};
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let cases = [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=0-99", Wanted::Part(0..10)),
            ("Bytes=5-", Wanted::Part(5..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=99999999999999999999999-", Wanted::Nothing),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=--3", Wanted::Whole),
            ("bytes=+1-3", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("bytes", Wanted::Whole),
        ];
        for (field, expected) in cases {
            assert_eq!(wanted(field.as_bytes(), 10), expected, "{field}");
        }
        assert_eq!(wanted(b"bytes=0-0", 0), Wanted::Nothing);
        let bomb = format!("bytes={}0-", "0-,".repeat(5000));
        assert_eq!(wanted(bomb.as_bytes(), 10), Wanted::Whole);
    }

    proptest! {
        #[test]
        fn a_part_is_inside_the_file(field in "bytes=[0-9]{0,22}-[0-9]{0,22}", size: u64) {
            if let Wanted::Part(range) = wanted(field.as_bytes(), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
