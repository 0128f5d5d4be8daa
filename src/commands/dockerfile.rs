// SPDX-License-Identifier: Apache-2.0
//! `obuild dockerfile SPEC`: convert a spec to a Dockerfile.

use super::{parse_spec, print, read_spec};
use crate::cli::{Dockerfile, EscapeKind, Global};
use crate::failure::Failure;
use anyhow::Result;
use obuild_specs::Escape;
use obuild_specs::diagnostic::render;
use std::io::Write;

pub(crate) fn run(global: &Global, options: &Dockerfile) -> Result<()> {
    let path = options
        .spec
        .as_ref()
        .or(options.file.as_ref())
        .ok_or_else(|| Failure::usage("which spec?"))?;
    let text = read_spec(path)?;
    let colour = crate::progress::colour(global.color);
    let spec = parse_spec(path, &text, colour)?;
    let escape = match options.escape {
        EscapeKind::Unix => Escape::Unix,
        EscapeKind::Windows => Escape::Windows,
    };
    let dockerfile = obuild_specs::to_dockerfile(&spec, options.buildkit, escape);
    let warnings = render(&dockerfile.warnings, &path.to_string_lossy(), &text, colour);
    // Nobody reads standard error: the comments in the file tell the same.
    let _ = std::io::stderr().write_all(warnings.as_bytes());
    print(dockerfile.text)
}
