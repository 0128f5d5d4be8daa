// SPDX-License-Identifier: Apache-2.0
//! `obuild unshare [-- CMD]`: run a command in the user namespace that rootless builds have. The process is in it already.

use crate::cli::Unshare;
use crate::failure::Failure;
use anyhow::Result;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

pub(crate) fn run(options: &Unshare) -> Result<()> {
    let mut words = options.command.iter().cloned();
    let program = words
        .next()
        .or_else(|| std::env::var_os("SHELL").filter(|shell| !shell.is_empty()))
        .unwrap_or_else(|| OsString::from("/bin/sh"));
    let error = std::process::Command::new(&program).args(words).exec();
    Err(Failure::usage(format!("cannot run {}: {error}", program.display())).into())
}
