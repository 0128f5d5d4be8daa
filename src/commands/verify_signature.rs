// SPDX-License-Identifier: Apache-2.0
//! `obuild verify-signature FILE`: whether a statement was signed by a key, and what it says.

use super::print_json;
use crate::attest::{read_public_key, refused};
use crate::cli::VerifySignature;
use crate::failure::Failure;
use anyhow::Result;
use obuild_images::attest::Envelope;

pub(crate) fn run(options: &VerifySignature) -> Result<()> {
    let key = read_public_key(&options.key)?;
    let text = fs_err::read(&options.file)
        .map_err(|error| Failure::usage(format!("cannot read the envelope: {error}")))?;
    let what = options.file.display().to_string();
    let statement = Envelope::parse(&text)
        .and_then(|envelope| envelope.verify(&key))
        .map_err(|error| refused(&what, &error))?;
    print_json(&serde_json::to_value(statement)?)
}
