// SPDX-License-Identifier: Apache-2.0
//! Images out of Docker: archives that `docker save` writes, and a daemon's own.

mod archive;
mod daemon;

pub(crate) use archive::{expand, read_archive};
pub(crate) use daemon::{DaemonImage, fetch, inspect};
