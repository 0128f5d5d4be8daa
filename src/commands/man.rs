// SPDX-License-Identifier: Apache-2.0
//! `obuild man DIR`: the manual pages, one a subcommand.

use crate::cli::{Cli, Man};
use crate::failure::Failure;
use anyhow::Result;
use clap::CommandFactory;

pub(crate) fn run(options: &Man) -> Result<()> {
    let directory = &options.directory;
    fs_err::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .map_err(|error| Failure::host(format!("cannot write the manual pages: {error}")).into())
}
