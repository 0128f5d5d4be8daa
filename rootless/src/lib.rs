// SPDX-License-Identifier: Apache-2.0
//! User namespaces: how an ordinary user becomes root of its own, and which ids there are then.
//!
//! A leaf that the other crates ask for one fact: whether this process is in a user namespace, and with which ids
//! ([`current`], [`owner`]). Only the program itself calls [`enter`]. See `user_namespaces(7)` and
//! `docs/decisions/0009-rootless.md`.

mod enter;
mod mapping;
mod subid;
mod sys;

pub use enter::{Error, enter};
pub use mapping::{Extent, Mapping, Unmapped, current, owner};
