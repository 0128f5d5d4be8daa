// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests through the `obuild` binary, on real stores and real sandboxes. They prove the wiring; what a
//! part promises is tested in its crate.

#![expect(
    clippy::unwrap_used,
    clippy::format_collect,
    reason = "a test fails by a panic, and short specs may be joined from pieces"
)]

mod archive_acme;
mod archive_check;
mod archive_deploy;
mod archive_faults;
mod archive_image;
mod archive_index;
mod archive_opam;
mod archive_page;
mod archive_serve;
mod archive_sync;
mod bad_input;
mod builds;
mod caches;
mod commands;
mod copies;
mod crashes;
#[cfg(feature = "docker")]
mod docker;
mod harness;
mod images;
mod matrix;
mod provenance;
mod registry;
mod remote;
mod rootless;
mod secrets;
mod serving;
mod sharing;
mod store;
mod users;
