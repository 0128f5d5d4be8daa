// SPDX-License-Identifier: Apache-2.0
//! `obuild archive`: the opam world's source archive and index.

mod check;
mod serve;

pub(crate) use serve::Serve;

use crate::cli::{ArchiveCommand, Global};
use anyhow::Result;

pub(crate) fn run(global: &Global, command: &ArchiveCommand) -> Result<()> {
    match command {
        ArchiveCommand::Check(options) => check::run(global, options),
        ArchiveCommand::Serve(options) => serve::run(options),
    }
}
