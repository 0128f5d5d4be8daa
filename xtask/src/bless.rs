// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bless`: takes what the tests produce now as what they expect.

use crate::cmd::Cmd;
use anyhow::Result;

/// Runs the tests so that snapshots are written instead of compared; `git diff` then shows what changed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    Cmd::cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(arguments)
        // insta: write new snapshots over the old ones.
        .env("INSTA_UPDATE", "always")
        .env("INSTA_FORCE_PASS", "1")
        .run()?;
    Cmd::new("git").args(["status", "--short"]).run()
}
