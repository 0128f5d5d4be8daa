// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests through the `obuild` binary, on real stores and real sandboxes. They prove the wiring; what a
//! part promises is tested in its crate.

#![expect(
    clippy::unwrap_used,
    clippy::format_collect,
    reason = "a test fails by a panic, and short specs may be joined from pieces"
)]

mod bad_input;
mod builds;
mod caches;
mod commands;
mod copies;
mod crashes;
mod harness;
mod images;
mod remote;
mod rootless;
mod secrets;
mod sharing;
mod store;
mod users;
