// SPDX-License-Identifier: Apache-2.0
//! `obuild log ID`: print a step's log, also of one that failed.

use super::{open_engine, runtime};
use crate::cli::{Global, Log};
use crate::failure::Failure;
use anyhow::Result;

pub(crate) fn run(global: &Global, options: &Log) -> Result<()> {
    let engine = open_engine(global)?;
    let id = runtime()?.block_on(engine.find_log(&options.id))?;
    let path = engine.log_path(id);
    let mut file = match fs_err::File::open(&path) {
        Ok(file) => file,
        // A base image that was unpacked has nothing to tell.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::host(error.to_string()).into()),
    };
    std::io::copy(&mut file, &mut std::io::stdout().lock())?;
    Ok(())
}
