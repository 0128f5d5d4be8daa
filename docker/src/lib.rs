// SPDX-License-Identifier: Apache-2.0
//! A small blocking client of the Docker Engine API: what the docker store and the docker sandbox both need, and no more.
//!
//! It is a crate of its own so that the heavy dependency (`bollard`) is built once, beside the others, and only when the feature is on.
//! It knows neither stores nor sandboxes. Calls may be made from any thread, also from one that runs asynchronous code:
//! a thread of the client's own does the talking.

mod client;
mod error;

pub use client::{Client, Container, Image, Limits, Server, Tree};
pub use error::Error;
