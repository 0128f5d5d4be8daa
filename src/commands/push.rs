// SPDX-License-Identifier: Apache-2.0
//! `obuild push ID NAME`: push a step's result to a registry.

use super::export;
use crate::attest::Attachments;
use crate::cli::{Global, OutputOptions, Push};
use crate::outputs::Outputs;
use anyhow::Result;

pub(crate) fn run(global: &Global, options: &Push) -> Result<()> {
    let wanted = OutputOptions {
        output: Vec::new(),
        tag: options.names.clone(),
        push: true,
        image: options.image.clone(),
    };
    let outputs = Outputs::parse(&wanted, None, options.quiet)?;
    let attach = Attachments::parse(&options.image, true, false, false)?;
    export::write(global, &options.id, outputs, attach)
}
