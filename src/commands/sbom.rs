// SPDX-License-Identifier: Apache-2.0
//! `obuild sbom ID|IMAGE`: which packages a result or an image holds.

use super::{open_engine, print_json, runtime};
use crate::cli::{Global, Pull, Sbom, SbomFormat};
use crate::outputs::{source_date_epoch, write_to};
use anyhow::{Context, Result};
use obuild_engine::{Engine, Error};
use obuild_images::sbom::{Bill, Subject, survey};
use obuild_stores::SnapshotId;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

pub(crate) fn run(global: &Global, options: &Sbom) -> Result<()> {
    let engine = open_engine(global)?;
    let found = runtime()?.block_on(engine.find(&options.what));
    let (engine, id, name) = match found {
        Ok(id) => (engine, id, id.to_string()),
        // What is written as an id is meant as one.
        Err(Error::NoSuchStep(_)) if options.what.bytes().any(|byte| !byte.is_ascii_hexdigit()) => {
            let image = Pull {
                image: options.what.clone(),
                when: options.when,
                platform: options.platform.clone(),
                progress: None,
                quiet: false,
            };
            let (engine, id) = super::pull::fetch(global, &image)?;
            (engine, id, options.what.clone())
        }
        Err(error) => return Err(error.into()),
    };
    let subject = Subject { name, digest: None };
    let bill = runtime()?.block_on(bill(&engine, id, subject))?;
    let document = match options.format {
        SbomFormat::Spdx => bill.to_spdx(),
        SbomFormat::CycloneDx => bill.to_cyclonedx(),
    };
    let Some(path) = &options.output else {
        return print_json(&document);
    };
    write_to(path, |file| Ok(writeln!(file, "{document:#}")?))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Makes the bill of a result.
pub(crate) async fn bill(engine: &Arc<Engine>, id: SnapshotId, subject: Subject) -> Result<Bill> {
    let created = match source_date_epoch()? {
        Some(seconds) => seconds,
        None => created(engine, id).await?,
    };
    let snapshot = engine
        .store()
        .get(id)?
        .ok_or_else(|| obuild_engine::Error::NoSuchStep(id.to_string()))?;
    let root = snapshot.rootfs.open()?;
    let inventory =
        survey(root.as_fd(), &|| false).with_context(|| format!("cannot tell what {id} holds"))?;
    Ok(Bill {
        subject,
        inventory,
        created,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// Returns when a result was made; of one that the database does not know, the beginning of time.
async fn created(engine: &Arc<Engine>, id: SnapshotId) -> Result<i64> {
    let steps = engine.steps().await?;
    let time = steps.iter().find(|step| step.id == id);
    let time = time.map_or(UNIX_EPOCH, |step| step.created);
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_secs()).unwrap_or_default())
}
