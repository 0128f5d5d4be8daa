// SPDX-License-Identifier: Apache-2.0
//! `obuild verify-signature`: whether an image, or a statement in a file, was signed with a key, and what was said.

use super::{open_store, print_json};
use crate::attest::{read_public_key, refused, registry_failure};
use crate::cli::{Global, VerifySignature};
use crate::config::Config;
use crate::failure::Failure;
use anyhow::Result;
use obuild_images::attest::{Envelope, PublicKey};
use obuild_images::registry::{ImageName, statements, verify};
use serde_json::{Value, json};
use std::path::Path;

pub(crate) fn run(global: &Global, options: &VerifySignature) -> Result<()> {
    let key = read_public_key(&options.key)?;
    print_json(&match (&options.file, &options.image) {
        (Some(file), _) => of_file(file, &key)?,
        (None, Some(image)) => of_image(global, image, &key)?,
        (None, None) => return Err(Failure::usage("which image?").into()),
    })
}

fn of_file(file: &Path, key: &PublicKey) -> Result<Value> {
    let text = fs_err::read(file)
        .map_err(|error| Failure::usage(format!("cannot read the envelope: {error}")))?;
    let statement = Envelope::parse(&text)
        .and_then(|envelope| envelope.verify(key))
        .map_err(|error| refused(&file.display().to_string(), &error))?;
    Ok(serde_json::to_value(statement)?)
}

fn of_image(global: &Global, image: &str, key: &PublicKey) -> Result<Value> {
    let config = Config::read(global)?;
    let name: ImageName = image.parse()?;
    let client = config.registry_client(&*open_store(global, &config)?);
    let image = client.signed(&name, &|| false)?;
    verify(&client, &image, key, &|| false).map_err(registry_failure)?;
    let statements = statements(&client, &image, key, &|| false).map_err(registry_failure)?;
    Ok(json!({
        "image": format!("{}/{}", image.name.host(), image.name.repository()),
        "digest": image.digest.to_string(),
        "statements": statements,
    }))
}
