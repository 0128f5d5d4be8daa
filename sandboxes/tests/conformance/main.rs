// SPDX-License-Identifier: Apache-2.0
//! What every sandbox does, checked on each.
#![expect(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod command;
mod life;
mod limits;
mod next;
mod runtimes;
#[path = "../support/mod.rs"]
mod support;
mod tree;
mod users;
mod variation;
