// SPDX-License-Identifier: Apache-2.0
//! `obuild sign IMAGE`: sign an image in a registry, and attach statements to it.

use super::{open_store, print};
use crate::attest::{image_subject, read_signing_key, registry_failure};
use crate::cli::{Global, Sign};
use crate::config::Config;
use crate::failure::Failure;
use anyhow::Result;
use obuild_images::attest::{CYCLONEDX, SPDX, Statement};
use obuild_images::registry::{ImageName, Signed, attach, sign};
use serde_json::Value;
use std::path::Path;

pub(crate) fn run(global: &Global, options: &Sign) -> Result<()> {
    let config = Config::read(global)?;
    let key = read_signing_key(&options.key)?;
    let name: ImageName = options.image.parse()?;
    let client = config.registry_client(&*open_store(global, &config)?);
    let image = client.signed(&name, &|| false)?;
    let statements = options.attest.iter().map(|path| statement(path, &image));
    let statements = statements.collect::<Result<Vec<_>>>()?;
    for statement in &statements {
        attach(&client, &image, statement, &key, &|| false).map_err(registry_failure)?;
    }
    sign(&client, &image, &key, &|| false).map_err(registry_failure)?;
    print(format!("{}\n", image.digest))
}

/// Reads a document, and makes a statement about the image of it.
fn statement(path: &Path, image: &Signed) -> Result<Statement> {
    let wrong = |reason: &str| Failure::usage(format!("{}: {reason}", path.display()));
    let text = fs_err::read(path)
        .map_err(|error| Failure::usage(format!("cannot read the statement: {error}")))?;
    let document: Value =
        serde_json::from_slice(&text).map_err(|error| wrong(&error.to_string()))?;
    let (kind, predicate) = if document.get("_type").is_some() {
        let statement = Statement::parse(&text).map_err(|error| wrong(&error.to_string()))?;
        (statement.predicate_type, statement.predicate)
    } else if document.get("spdxVersion").is_some() {
        (SPDX.to_owned(), document)
    } else if document.get("bomFormat").is_some() {
        (CYCLONEDX.to_owned(), document)
    } else {
        return Err(wrong("it is no statement and no bill of materials")
            .hint("give what `obuild run --provenance` or `obuild sbom` has written, unsigned")
            .into());
    };
    Ok(Statement::new(vec![image_subject(image)], &kind, predicate))
}
