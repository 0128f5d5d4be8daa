// SPDX-License-Identifier: Apache-2.0
//! `obuild key`: keys that sign.

use super::print;
use crate::cli::{KeyCommand, KeyGenerate};
use crate::failure::Failure;
use anyhow::{Context, Result};
use fs_err::os::unix::fs::OpenOptionsExt;
use obuild_images::attest::SigningKey;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) fn run(command: &KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Generate(options) => generate(options),
    }
}

fn generate(options: &KeyGenerate) -> Result<()> {
    let with = |end: &str| {
        let mut path = options.output.clone().into_os_string();
        path.push(end);
        PathBuf::from(path)
    };
    let (private, public) = (with(".key"), with(".pub"));
    let (key, text) = SigningKey::generate().context("cannot make a key")?;
    write(&private, 0o600, &text)?;
    if let Err(error) = write(&public, 0o644, &key.public().to_pem()) {
        let _ = fs_err::remove_file(&private);
        return Err(error);
    }
    print(format!("{}\n{}\n", private.display(), public.display()))
}

/// Writes a new file: a key that is there is not to be lost.
fn write(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::usage(format!("{} is there already", path.display()))
                    .hint("choose another name with --output PREFIX")
            }
            _ => Failure::host(error.to_string()),
        })?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}
