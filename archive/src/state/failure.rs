// SPDX-License-Identifier: Apache-2.0
//! Archives that are missing, and when they are tried again.

use super::Unix;
use crate::fetch::back_off;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The wait before the first repetition; it doubles each time.
const FIRST: Duration = Duration::from_mins(10);
/// The longest wait, so that what comes back is noticed within a day.
const LONGEST: Duration = Duration::from_hours(24);
/// No server can ask for more than this.
const LONGEST_ASKED: Duration = Duration::from_hours(7 * 24);

/// An archive that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure the last attempt was.
    pub kind: FailureKind,
    /// What each URL gave.
    pub attempts: Vec<Attempt>,
    /// Packages that declare it, by the paths of their opam files.
    pub packages: Vec<String>,
    /// Since when it has been missing.
    pub since: Unix,
    /// When it was last tried.
    pub tried: Unix,
    /// How often it was tried.
    pub times: u32,
    /// When it is tried again.
    pub next: Unix,
}

/// What was tried and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The URL, or `cache` for what was here already.
    pub url: String,
    /// Why not.
    pub reason: String,
}

/// The kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something came that has other checksums.
    Mismatch,
    /// Nothing came.
    Unreachable,
}

impl FailureKind {
    /// Returns the name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mismatch => "mismatch",
            Self::Unreachable => "unreachable",
        }
    }
}

impl Failure {
    /// Notes another failure, after the one `before`.
    pub(crate) fn after(
        before: Option<&Self>,
        kind: FailureKind,
        attempts: Vec<Attempt>,
        packages: Vec<String>,
        asked: Option<Duration>,
        now: Unix,
    ) -> Self {
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        let mut wait = back_off(times, FIRST, LONGEST);
        if let Some(asked) = asked {
            wait = wait.max(asked.min(LONGEST_ASKED));
        }
        Self {
            kind,
            attempts,
            packages,
            since: before.map_or(now, |before| before.since),
            tried: now,
            times,
            next: now + wait.as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_grow_up_to_a_day() {
        let fail = |before: Option<&Failure>, asked, now| {
            let (attempts, packages) = (Vec::new(), Vec::new());
            Failure::after(
                before,
                FailureKind::Unreachable,
                attempts,
                packages,
                asked,
                now,
            )
        };
        let mut failure = fail(None, None, 1000);
        assert!((1300..=1600).contains(&failure.next), "{}", failure.next);
        for _ in 0..40 {
            failure = fail(Some(&failure), None, failure.next);
            assert!(failure.next - failure.tried <= 86_400);
        }
        assert_eq!((failure.since, failure.times), (1000, 41));
        assert!(failure.next - failure.tried >= 43_200);
        let asked = fail(None, Some(Duration::MAX), 0);
        assert_eq!(asked.next, 7 * 86_400, "a server cannot ask for ever");
    }
}
