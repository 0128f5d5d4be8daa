// SPDX-License-Identifier: Apache-2.0
//! Results of steps, shared between machines: a cache in a registry or in an OCI image layout.
//!
//! A cache is an artifact (OCI image-spec v1.1 manifest.md, "Guidelines for Artifact Usage"). Its configuration is a [`CacheDocument`], which
//! says what there is; its layers are the steps' layers and logs, named by their digests. The format is documented in
//! `docs/src/sharing.md`. A cache is read from where the user says, and nothing in it is taken without its digest being right.

mod export;
mod import;

pub use export::CacheExport;
pub use import::{CacheImport, Fetching};

use crate::registry::ImageName;
use crate::{Compression, Digest, Error, LayerOptions, Times};
use obuild_stores::SnapshotId;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// The media type of a [`CacheDocument`].
const DOCUMENT: &str = "application/vnd.obuild.cache.v1+json";
/// The media type of a step's log: bytes as they came.
const LOG: &str = "application/vnd.obuild.log.v1";
/// The version of the document.
const VERSION: u32 = 1;

/// Where a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachePlace {
    /// In a registry.
    Registry(ImageName),
    /// In an OCI image layout, under a tag.
    Local {
        /// The layout's directory.
        directory: PathBuf,
        /// The tag.
        tag: String,
    },
}

impl fmt::Display for CachePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(name) => name.fmt(formatter),
            Self::Local { directory, .. } => directory.display().fmt(formatter),
        }
    }
}

/// Returns how the layers of shared steps are made: with all times as they are, since later steps may look at them.
pub fn shared_layers(threads: usize) -> LayerOptions {
    LayerOptions {
        times: Times::Latest(i64::MAX),
        // Whoever reads them is obuild, so they need not be of the kind that every tool reads.
        compression: Compression::Zstd(3),
        threads,
    }
}

/// What a cache holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheDocument {
    /// The version of the format.
    pub version: u32,
    /// The steps.
    pub steps: Vec<SharedStep>,
    /// What was copied between builds: so that a copy's id is known without what it copies from.
    #[serde(default)]
    pub copies: Vec<SharedCopy>,
}

/// One step's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedStep {
    /// The step's id.
    #[serde(with = "text")]
    pub step: SnapshotId,
    /// The id of the step that it stands on: another of the cache, or a base, which is not in it.
    #[serde(with = "text")]
    pub parent: SnapshotId,
    /// `run` or `copy`.
    pub kind: String,
    /// The step as the spec had it.
    pub heading: String,
    /// When it was run, in milliseconds since 1970.
    pub created: i64,
    /// How long it took, in milliseconds.
    pub duration: u64,
    /// What it changed; nothing if it changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<SharedLayer>,
    /// What it wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<SharedBlob>,
    /// The digest of its tree, as `obuild store check` records it, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Digest>,
}

impl SharedStep {
    /// Returns the digest of what the step changed, if it changed something.
    pub fn diff_id(&self) -> Option<Digest> {
        self.layer.as_ref().map(|layer| layer.diff_id)
    }
}

/// A step's layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedLayer {
    /// Its blob.
    #[serde(flatten)]
    pub blob: SharedBlob,
    /// The digest of the archive that it is when it is not compressed.
    pub diff_id: Digest,
}

/// A blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What a copy from a step's result was found to copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedCopy {
    /// The step's id.
    #[serde(with = "text")]
    pub source: SnapshotId,
    /// The digest of which files were asked for.
    pub request: Digest,
    /// The digest of these files.
    pub files: Digest,
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Ids as text.
mod text {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::fmt::Display;
    use std::str::FromStr;

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

/// What is read of a cache's manifest.
pub(crate) struct Manifest {
    /// The digest of the document.
    pub(crate) config: Digest,
}

impl Manifest {
    /// Reads a manifest and checks that it is a cache's. `title` is for messages.
    pub(crate) fn parse(title: &str, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Shape {
            config: Option<Descriptor>,
        }
        let shape: Shape = parse(title, "manifest of a cache", bytes)?;
        match shape.config {
            Some(config) if config.media_type == DOCUMENT => Ok(Self {
                config: config.digest,
            }),
            Some(_) => Err(bad(title, "it is an image, not a cache")),
            None => Err(bad(title, "it is an index of images, not a cache")),
        }
    }
}

fn bad(title: &str, reason: impl Into<String>) -> Error {
    Error::BadImage {
        layout: title.into(),
        reason: reason.into(),
    }
}

fn parse<'b, T: Deserialize<'b>>(
    title: &str,
    what: &'static str,
    bytes: &'b [u8],
) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        path: title.into(),
        what,
        source,
    })
}

#[cfg(test)]
mod tests;
