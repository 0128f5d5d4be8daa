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

/// Replaces the file as a whole, so that a full disk cannot lose it.
fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let wrong =
        |error: std::io::Error| Failure::host(format!("cannot write {}: {error}", path.display()));
    let permissions = fs_err::metadata(path).map_err(wrong)?.permissions();
    obuild_images::replace(path, wrong, |file| {
        file.set_permissions(permissions)
            .and_then(|()| file.write_all(text))
            .map_err(wrong)
    })?;
    Ok(())
}
