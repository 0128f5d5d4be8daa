// SPDX-License-Identifier: Apache-2.0
//! Trying again: how often, and how long to wait before.

use super::Error;
use rustix::rand::{GetRandomFlags, getrandom};
use std::time::{Duration, SystemTime};

/// Tries that may fail one after the other without getting any further.
const TRIES: u32 = 5;
/// The first wait at most; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(250);
/// The longest wait that we choose.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest wait that a server may choose; for more it is better to tell the user.
const PATIENCE: Duration = Duration::from_mins(1);

/// How an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt would fare the same.
    Final(Error),
    /// Another attempt may succeed, after the wait that the server asks for.
    Transient {
        error: Error,
        after: Option<Duration>,
    },
}

impl Failure {
    pub(super) fn transient(error: Error) -> Self {
        Self::Transient { error, after: None }
    }

    /// Says in a cut connection's error how often it was tried.
    pub(super) fn told(self, tries: u32) -> Self {
        match self {
            Self::Transient {
                error:
                    Error::Cut {
                        method,
                        url,
                        reason,
                        ..
                    },
                after,
            } => Self::Transient {
                error: Error::Cut {
                    method,
                    url,
                    times: tries,
                    reason,
                },
                after,
            },
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
}

impl Retry {
    /// Something was gained: the count begins anew.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
    }

    /// Returns how many attempts in a row have failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Waits before the next attempt; gives the error back when there shall be none.
    pub(super) async fn pause(&mut self, failure: Failure) -> Result<(), Error> {
        let (error, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Transient { error, after } => (error, after),
        };
        self.failures += 1;
        if self.failures >= TRIES || after.is_some_and(|after| after > PATIENCE) {
            return Err(error);
        }
        // Half of it by chance, so that many clients that were cut off at once do not come back at once.
        let wait = after.unwrap_or_else(|| {
            let longest = (FIRST * 2_u32.pow(self.failures - 1)).min(LONGEST);
            longest / 2 + (longest / 2).mul_f64(random())
        });
        tracing::info!(%error, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Returns a number from 0 to 1.
fn random() -> f64 {
    let mut bytes = [0; 2];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => f64::from(u16::from_le_bytes(bytes)) / f64::from(u16::MAX),
        Err(_) => 0.5,
    }
}

/// Reads `Retry-After`: seconds or a date (RFC 9110 §10.2.3).
pub(super) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, seconds) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sat, 06 Nov 1993 08:49:37 GMT", Some(0)),
            ("soon", None),
        ] {
            assert_eq!(
                parse_retry_after(text, now),
                seconds.map(Duration::from_secs),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_server_that_wants_too_long_is_not_waited_for() {
        let failure = |after| Failure::Transient {
            error: Error::Cancelled,
            after,
        };
        let mut retry = Retry::default();
        assert!(
            retry
                .pause(failure(Some(Duration::from_hours(1))))
                .await
                .is_err()
        );
        let mut retry = Retry::default();
        let mut tries = 1;
        while retry.pause(failure(Some(Duration::ZERO))).await.is_ok() {
            tries += 1;
        }
        assert_eq!(tries, TRIES);
    }
}
