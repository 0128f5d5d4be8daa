// SPDX-License-Identifier: Apache-2.0
//! How long to wait: doubling times with jitter, and what `Retry-After` asks for.

use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Returns the wait before attempt `attempt` + 1, counted from 1: `base`, twice that, four times…, the half of it by
/// chance, so that clients that failed together do not come back together.
pub(crate) fn back_off(attempt: u32, base: Duration, longest: Duration) -> Duration {
    let doubled = base.saturating_mul(
        1_u32
            .checked_shl(attempt.saturating_sub(1))
            .unwrap_or(u32::MAX),
    );
    let whole = doubled.min(longest);
    whole / 2 + whole.mul_f64(chance() / 2.0)
}

/// Returns a number from 0 to 1. The standard library's hash keys are random, which is random enough for manners.
fn chance() -> f64 {
    let bits = u32::try_from(RandomState::new().hash_one(0_u8) >> 32).unwrap_or(0);
    f64::from(bits) / f64::from(u32::MAX)
}

/// Reads `Retry-After`: seconds, or a date (RFC 9110 §10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: jiff::Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    // What has passed asks for nothing.
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let (base, longest) = (Duration::from_secs(1), Duration::from_secs(30));
        for (attempt, whole) in [(1, 1), (2, 2), (3, 4), (6, 30), (100, 30)] {
            let whole = Duration::from_secs(whole);
            let wait = back_off(attempt, base, longest);
            assert!(wait >= whole / 2 && wait <= whole, "{attempt}: {wait:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: jiff::Timestamp = "1994-11-06T08:48:37Z".parse().expect("a time");
        let read = |text: &str| {
            let value = text.parse().expect("a header");
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]), now)
        };
        assert_eq!(read("120"), Some(Duration::from_mins(2)));
        assert_eq!(
            read("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::from_mins(1))
        );
        assert_eq!(read("Sun, 06 Nov 1994 08:47:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }
}
