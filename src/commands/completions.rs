// SPDX-License-Identifier: Apache-2.0
//! `obuild completions SHELL`: a completion script.

use super::print;
use crate::cli::{Cli, Completions};
use anyhow::Result;
use clap::CommandFactory;

pub(crate) fn run(options: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "obuild", &mut script);
    print(script)
}
