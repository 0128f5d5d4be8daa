// SPDX-License-Identifier: Apache-2.0
//! `obuild check`: report what is wrong in a spec.

use super::{parse_spec, print_json, read_spec};
use crate::cli::{Check, Format, Global};
use crate::failure::SpecErrors;
use anyhow::Result;
use obuild_specs::Spec;
use obuild_specs::diagnostic::{render, to_json};
use obuild_specs::spec::warnings;
use serde_json::Value;
use std::io::Write;

pub(crate) fn run(global: &Global, options: &Check) -> Result<()> {
    let colour = crate::progress::colour(global.color);
    let mut wrong = false;
    let mut found = Vec::new();
    for path in &options.specs {
        let text = read_spec(path)?;
        match options.format {
            Format::Text => match parse_spec(path, &text, colour) {
                Ok(spec) => {
                    let warnings = render(&warnings(&spec), &path.to_string_lossy(), &text, colour);
                    // Nobody reads standard error: the exit status still tells.
                    let _ = std::io::stderr().write_all(warnings.as_bytes());
                }
                Err(_) => wrong = true,
            },
            Format::Json => {
                let diagnostics = match Spec::parse(&text) {
                    Ok(spec) => warnings(&spec),
                    Err(diagnostics) => {
                        wrong = true;
                        diagnostics
                    }
                };
                let rendered = to_json(&diagnostics, &path.to_string_lossy(), &text);
                if let Value::Array(all) = rendered {
                    found.extend(all);
                }
            }
        }
    }
    if options.format == Format::Json {
        print_json(&Value::Array(found))?;
    }
    if wrong {
        Err(SpecErrors.into())
    } else {
        Ok(())
    }
}
