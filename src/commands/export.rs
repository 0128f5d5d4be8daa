// SPDX-License-Identifier: Apache-2.0
//! `obuild export ID --to WHERE`: copy a step's tree out of the store.

use super::{open_engine, runtime};
use crate::cli::{Export, Global};
use crate::failure::Failure;
use anyhow::{Context, Result};
use obuild_images::tree;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;

pub(crate) fn run(global: &Global, options: &Export) -> Result<()> {
    let (kind, place) = options
        .to
        .split_once(':')
        .filter(|(kind, place)| matches!(*kind, "dir" | "tar") && !place.is_empty())
        .ok_or_else(|| {
            Failure::usage(format!("{:?} is no place to export to", options.to))
                .hint("give dir:PATH, tar:FILE or tar:-")
        })?;
    let engine = open_engine(global)?;
    let id = runtime()?.block_on(engine.find(&options.id))?;
    let snapshot = engine
        .store()
        .get(id)?
        .ok_or_else(|| obuild_engine::Error::NoSuchStep(id.to_string()))?;
    let root = snapshot.rootfs.open()?;
    if kind == "dir" {
        return tree::export_dir(root.as_fd(), Path::new(place), &mut |_| {}, &|| false)
            .map(drop)
            .context("cannot export");
    }
    if place == "-" {
        let out = std::io::stdout();
        if out.is_terminal() {
            return Err(Failure::usage("an archive would garble the terminal")
                .hint("redirect it: obuild export ID --to tar:- > FILE")
                .into());
        }
        let mut out = std::io::BufWriter::with_capacity(1 << 16, out.lock());
        tree::export_tar(root.as_fd(), &mut out, None, &mut |_| {}, &|| false)
            .context("cannot export")?;
        return Ok(out.flush()?);
    }
    write_file(Path::new(place), |file| {
        tree::export_tar(root.as_fd(), file, None, &mut |_| {}, &|| false)
            .map(drop)
            .context("cannot export")
    })
}

/// Writes beside the file and renames, so that half an archive never has its name.
pub(crate) fn write_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let finish = || {
        let mut file = std::io::BufWriter::with_capacity(1 << 16, fs_err::File::create(&name)?);
        write(&mut file)?;
        file.flush()?;
        fs_err::rename(&name, path)?;
        Ok(())
    };
    let result: Result<()> = finish();
    if result.is_err() {
        let _ = fs_err::remove_file(&name);
    }
    result
}
