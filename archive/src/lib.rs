// SPDX-License-Identifier: Apache-2.0
//! The opam world's source archive and package index, kept up to date by what changed.
//!
//! What the clients, `opam admin` and other mirrors do, and so what this must be compatible with, is opam's manual
//! (section "Repositories") and the behaviour of its releases 2.1 to 2.6. Nothing here reads the environment or prints.

pub mod cache;
pub mod check;
pub mod fetch;
pub mod image;
pub mod index;
mod replace;
pub mod repository;
pub mod serve;
pub mod state;
pub mod sync;
mod tar;

pub use obuild_opam as opam;
pub use opam::{Algorithm, BadChecksum, Checksum};
