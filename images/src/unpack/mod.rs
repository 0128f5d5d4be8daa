// SPDX-License-Identifier: Apache-2.0
//! Unpacking of tar archives that nobody trusts into a tree.
//!
//! [`archive`] turns bytes into entries, [`tree`] walks the target one path component at a time through directory
//! descriptors, and [`apply`] gives an entry its place. No path string of an archive ever reaches the kernel whole, and no
//! component is followed as a symbolic link by it, so nothing outside the target can be touched. The target must
//! not be written by anybody else meanwhile.

mod apply;
mod archive;
mod error;
mod pax;
#[cfg(test)]
mod tests;
pub(crate) mod tree;

pub(crate) use apply::{Whiteouts, unpack};
pub use error::Error;
