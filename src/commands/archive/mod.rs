// SPDX-License-Identifier: Apache-2.0
//! `obuild archive`: the opam world's source archive and index.

mod check;
mod deploy;
mod gc;
mod image;
mod import;
mod index;
mod meter;
mod serve;
mod status;
mod sync;
mod verify;

use crate::cli::{ArchiveCommand, Global};
use crate::failure::Failure;
use anyhow::Result;
use obuild_archive::cache::CacheError;
use obuild_archive::image::ImageError;
use obuild_archive::repository;
use obuild_archive::sync::SyncError;
use obuild_engine::Kind;
use std::error::Error;
use std::path::Path;

pub(crate) fn run(global: &Global, command: &ArchiveCommand) -> Result<()> {
    match command {
        ArchiveCommand::Check(options) => check::run(global, options),
        ArchiveCommand::Sync(options) => sync::run(options),
        ArchiveCommand::Index(options) => index::run(options),
        ArchiveCommand::Status(options) => status::run(options),
        ArchiveCommand::Verify(options) => verify::run(options),
        ArchiveCommand::Gc(options) => gc::run(options),
        ArchiveCommand::Import(options) => import::run(options),
        ArchiveCommand::Serve(options) => serve::run(options),
        ArchiveCommand::Image(options) => image::run(global, options),
        ArchiveCommand::Deploy(options) => deploy::run(global, options),
    }
}

/// Refuses a directory that is no archive.
fn existing(directory: &Path) -> Result<()> {
    if directory.join("cache").is_dir() || directory.join(".obuild").is_dir() {
        return Ok(());
    }
    Err(
        Failure::usage(format!("{} is no archive", directory.display()))
            .hint("`obuild archive sync REPO --to DIR` makes one")
            .into(),
    )
}

/// Returns how many threads to read with.
fn processors(jobs: Option<u32>) -> usize {
    jobs.map_or_else(super::processors, |jobs| jobs as usize)
}

/// Returns `NAME.VERSION` of an opam file's path.
fn package(path: &str) -> &str {
    let directory = path.strip_suffix("/opam").unwrap_or(path);
    directory.rsplit('/').next().unwrap_or(directory)
}

/// Returns what kind of failure an error of the archive is.
pub(crate) fn kind(cause: &(dyn Error + 'static)) -> Option<Kind> {
    if let Some(SyncError::Interrupted) = cause.downcast_ref() {
        return Some(Kind::Interrupted);
    }
    if let Some(ImageError::Cancelled) = cause.downcast_ref() {
        return Some(Kind::Interrupted);
    }
    if let Some(CacheError::Interrupted) = cause.downcast_ref() {
        return Some(Kind::Interrupted);
    }
    if let Some(error) = cause.downcast_ref() {
        return Some(match error {
            obuild_archive::serve::Error::Directory { .. }
            | obuild_archive::serve::Error::NoCertificate(_)
            | obuild_archive::serve::Error::Certificate { .. } => Kind::Usage,
            _ => Kind::Host,
        });
    }
    if let Some(index::Error::Fields(_)) = cause.downcast_ref() {
        return Some(Kind::Usage);
    }
    match cause.downcast_ref()? {
        repository::Error::Location { .. } | repository::Error::NoSuchRevision { .. } => {
            Some(Kind::Usage)
        }
        repository::Error::Cancelled => Some(Kind::Interrupted),
        _ => None,
    }
}

/// Returns what to do about an error of the archive.
pub(crate) fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
    // A transparent error stands for its source in the chain.
    let error = match cause.downcast_ref() {
        Some(SyncError::Cache(error)) => Some(error),
        _ => cause.downcast_ref::<CacheError>(),
    };
    if matches!(error, Some(CacheError::Locked)) {
        return Some("try again when that is done, or wait for it: leave --no-wait out".to_owned());
    }
    let of_archive = error.is_some()
        || cause.is::<SyncError>()
        || cause.is::<ImageError>()
        || cause.is::<index::Error>();
    let full = of_archive
        && anyhow::Chain::new(cause).any(|cause| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
        });
    full.then(|| {
        "the disk is full; make room, and run it again: what was complete is kept, and it goes on from there".to_owned()
    })
}
