// SPDX-License-Identifier: Apache-2.0
//! `obuild fmt`: print a spec canonically, comments kept.

use super::{parse_spec, print, read_spec};
use crate::cli::{Fmt, Global};
use crate::failure::{Failure, Negative, SpecErrors};
use anyhow::Result;
use std::io::Write;
use std::path::Path;

pub(crate) fn run(global: &Global, options: &Fmt) -> Result<()> {
    let colour = crate::progress::colour(global.color);
    let mut different = false;
    for path in &options.specs {
        let text = read_spec(path)?;
        // A spec that would not build is reported by the same words as by `check`.
        parse_spec(path, &text, colour)?;
        let formatted = obuild_specs::sexp::format(&text).map_err(|diagnostics| {
            let rendered = obuild_specs::diagnostic::render(
                &diagnostics,
                &path.to_string_lossy(),
                &text,
                colour,
            );
            let _ = std::io::stderr().write_all(rendered.as_bytes());
            SpecErrors
        })?;
        if options.check {
            if formatted != text {
                different = true;
                print(format!("{}\n", path.display()))?;
            }
        } else if options.write && path.as_os_str() != "-" {
            if formatted != text {
                replace(path, &formatted)?;
            }
        } else {
            print(&formatted)?;
        }
    }
    if different {
        Err(Negative.into())
    } else {
        Ok(())
    }
}

/// Writes beside the file and renames, so that a full disk cannot lose it.
fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let wrong = |error: std::io::Error| Failure::host(error.to_string());
    let permissions = fs_err::metadata(path).map_err(wrong)?.permissions();
    let result = fs_err::write(&name, text)
        .and_then(|()| fs_err::set_permissions(&name, permissions))
        .and_then(|()| fs_err::rename(&name, path));
    result.map_err(|error| {
        let _ = fs_err::remove_file(&name);
        wrong(error).into()
    })
}
