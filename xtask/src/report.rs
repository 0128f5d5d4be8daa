// SPDX-License-Identifier: Apache-2.0
//! Runs checks one after the other, goes on after a failure, and tells at the end how each came out.

use crate::workspace;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// The checks so far.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, Outcome, Duration)>,
}

impl Report {
    /// Runs a check.
    pub(crate) fn check(&mut self, name: &str, action: impl FnOnce() -> Result<()>) {
        eprintln!("\n==> {name}");
        let start = Instant::now();
        let outcome = match action() {
            Ok(()) => Outcome::Passed,
            Err(error) => {
                eprintln!("FAILED {name}: {error:#}");
                Outcome::Failed(format!("{error:#}"))
            }
        };
        self.rows.push((name.to_owned(), outcome, start.elapsed()));
    }

    /// Notes loudly that something was not checked.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        eprintln!("\n==> {name}\nSKIPPED {name}: {reason}");
        self.rows.push((
            name.to_owned(),
            Outcome::Skipped(reason.to_owned()),
            Duration::ZERO,
        ));
    }

    /// Notes that something the checks rest on is lacking: a skip at a desk, a failure in CI.
    pub(crate) fn lack(&mut self, name: &str, reason: &str) {
        if !workspace::in_ci() {
            return self.skip(name, reason);
        }
        self.check(name, || bail!("may not be skipped in CI: {reason}"));
    }

    /// Prints the table.
    ///
    /// # Errors
    ///
    /// When a check failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\nSummary:");
        let mut failed = 0;
        for (name, outcome, time) in &self.rows {
            let (word, note) = match outcome {
                Outcome::Passed => ("ok", ""),
                Outcome::Failed(reason) => {
                    failed += 1;
                    ("FAILED", reason.as_str())
                }
                Outcome::Skipped(reason) => ("SKIPPED", reason.as_str()),
            };
            let seconds = time.as_secs_f64();
            println!("  {word:<7} {name:<24} {seconds:>7.1} s  {note}");
        }
        if failed > 0 {
            bail!("{failed} of {} checks failed", self.rows.len());
        }
        println!("All {} checks came out well.", self.rows.len());
        Ok(())
    }
}
