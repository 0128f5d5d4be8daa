// SPDX-License-Identifier: Apache-2.0
//! Conditional requests (RFC 9110 §13): whether the client has the file already.

use super::request::Fields;
use std::time::{Duration, SystemTime};

/// What the conditions of a request come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send what was asked for.
    Send,
    /// 304: the client has it.
    NotModified,
    /// 412: the file is not the one that the client means.
    Failed,
}

/// Judges in the order of RFC 9110 §13.2.2. `tag` is a strong validator with its quotes, `modified` in whole seconds since 1970.
pub(super) fn judge(fields: &Fields<'_>, tag: &str, modified: u64) -> Verdict {
    if let Some(list) = fields.if_match {
        if !lists(list, tag, false) {
            return Verdict::Failed;
        }
    } else if let Some(date) = fields.if_unmodified_since.and_then(date)
        && modified > date
    {
        return Verdict::Failed;
    }
    if let Some(list) = fields.if_none_match {
        if lists(list, tag, true) {
            return Verdict::NotModified;
        }
    } else if let Some(date) = fields.if_modified_since.and_then(date)
        && modified <= date
    {
        return Verdict::NotModified;
    }
    Verdict::Send
}

/// Returns whether a `Range` counts: without `If-Range`, or when that names exactly this file (RFC 9110 §13.1.5).
pub(super) fn range_counts(fields: &Fields<'_>, tag: &str, modified: u64) -> bool {
    let Some(field) = fields.if_range.map(<[u8]>::trim_ascii) else {
        return true;
    };
    if field.starts_with(b"\"") || field.starts_with(b"W/") {
        field == tag.as_bytes()
    } else {
        date(field) == Some(modified)
    }
}

/// Returns whether a list of tags has this one. `weak`: a weak tag of the same letters will do.
fn lists(list: &[u8], tag: &str, weak: bool) -> bool {
    // A comma may stand in a tag, but not in ours: a piece of a strange tag is not taken for ours because of its quotes.
    list.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .any(|entry| {
            let entry = entry.strip_prefix(b"W/").filter(|_| weak).unwrap_or(entry);
            entry == b"*" || entry == tag.as_bytes()
        })
}

/// Reads a date of any of the three formats of RFC 9110 §5.6.7, in seconds since 1970.
fn date(field: &[u8]) -> Option<u64> {
    let time = httpdate::parse_http_date(std::str::from_utf8(field).ok()?.trim()).ok()?;
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .map(|since| since.as_secs())
}

/// Writes a date for a header field; nothing for one that the format cannot hold.
pub(super) fn written(seconds: u64) -> Option<String> {
    // Five digits of a year are not in the format, and httpdate panics at them.
    const YEAR_10000: u64 = 253_402_300_800;
    (seconds < YEAR_10000)
        .then(|| httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)))
}

#[cfg(test)]
mod tests {
    use super::{Verdict, judge, range_counts, written};
    use crate::serve::request::Fields;

    const TAG: &str = "\"abc\"";
    const MODIFIED: u64 = 784_111_777;
    const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &[u8] = b"Sunday, 06-Nov-94 08:49:36 GMT";

    fn verdict(set: impl FnOnce(&mut Fields<'static>)) -> Verdict {
        let mut fields = Fields::default();
        set(&mut fields);
        judge(&fields, TAG, MODIFIED)
    }

    #[test]
    fn conditions_are_judged_in_the_order_of_the_rfc() {
        use Verdict::{Failed, NotModified, Send};
        assert_eq!(verdict(|_| ()), Send);
        assert_eq!(
            verdict(|f| f.if_none_match = Some(b"\"x\", W/\"abc\"")),
            NotModified
        );
        assert_eq!(verdict(|f| f.if_none_match = Some(b"*")), NotModified);
        assert_eq!(verdict(|f| f.if_none_match = Some(b"abc")), Send);
        assert_eq!(verdict(|f| f.if_modified_since = Some(DATE)), NotModified);
        assert_eq!(verdict(|f| f.if_modified_since = Some(EARLIER)), Send);
        assert_eq!(verdict(|f| f.if_modified_since = Some(b"yesterday")), Send);
        let both = verdict(|f| {
            f.if_none_match = Some(b"\"x\"");
            f.if_modified_since = Some(DATE);
        });
        assert_eq!(both, Send, "a tag wins over a date");
        assert_eq!(verdict(|f| f.if_match = Some(b"W/\"abc\"")), Failed, "weak");
        assert_eq!(verdict(|f| f.if_match = Some(b"\"abc\"")), Send);
        assert_eq!(verdict(|f| f.if_unmodified_since = Some(EARLIER)), Failed);
        assert_eq!(verdict(|f| f.if_unmodified_since = Some(DATE)), Send);
    }

    #[test]
    fn a_range_of_another_file_does_not_count() {
        let counts = |field: &'static [u8]| {
            let fields = Fields {
                if_range: Some(field),
                ..Fields::default()
            };
            range_counts(&fields, TAG, MODIFIED)
        };
        assert!(counts(b"\"abc\"") && counts(DATE));
        assert!(!counts(b"W/\"abc\"") && !counts(b"\"x\"") && !counts(EARLIER) && !counts(b"?"));
    }

    #[test]
    fn dates_are_written_and_years_have_four_digits() {
        assert_eq!(written(MODIFIED).as_deref().map(str::as_bytes), Some(DATE));
        assert_eq!(written(u64::MAX), None);
    }
}
