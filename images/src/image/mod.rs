// SPDX-License-Identifier: Apache-2.0
//! Images made of snapshots: which layers they have, their documents, and the files that hold them.
//!
//! [`Image::assemble`] makes what is missing of an image and names all of its parts; [`Image::write_layout`] and
//! [`Image::write_archive`] put them where others can take them. The formats are those of the OCI image-spec v1.1 (manifest.md, config.md, image-layout.md) and of `docker save`.

mod archive;
mod bases;
mod document;
pub(crate) mod layout;
mod stacked;

pub use archive::ArchiveFormat;
use bases::BaseRecord;
pub use bases::remember_base;
use document::Descriptor;
pub use stacked::StackedImage;

use crate::layer::{LayerBlob, LayerOptions, Times, layer};
use crate::registry::{BlobData, PushBlob, PushImage, PushManifest};
use crate::tree::Cancelled;
use crate::{Digest, Error, ImageConfig};
use obuild_stores::{SnapshotId, Store};
use std::collections::BTreeMap;

/// What an image is made of.
pub struct ImageRequest<'a> {
    /// The snapshot that is its tree.
    pub snapshot: SnapshotId,
    /// Whether each step has a layer of its own; else what the build changed is one.
    pub per_step: bool,
    /// How layers are made.
    pub layers: LayerOptions,
    /// What it says of the processes that run in it.
    pub config: ImageConfig,
    /// What its manifest says besides.
    pub annotations: BTreeMap<String, String>,
    /// Says how a snapshot came about, for its history.
    pub heading: &'a dyn Fn(SnapshotId) -> Option<String>,
}

/// An image whose parts all are in files or in memory.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// Its configuration, as bytes of JSON.
    pub config: Vec<u8>,
    /// Its manifest, as bytes of JSON.
    pub manifest: Vec<u8>,
    /// When it says that it was made, in seconds since 1970.
    pub created: i64,
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct ImageLayer {
    /// Its file and digests.
    pub blob: LayerBlob,
    /// Whether it is a layer of the base image, as that had it.
    pub of_base: bool,
}

/// A snapshot's place in the image.
struct Rung {
    /// What the layer is upon.
    since: Option<SnapshotId>,
    snapshot: SnapshotId,
    /// What the base image had for it.
    blob: Option<LayerBlob>,
    times: Times,
    created_by: String,
}

impl Image {
    /// Makes the layers that are not there and the documents. Layers of a base image that are still at hand are taken as they are.
    ///
    /// # Errors
    ///
    /// When a snapshot is not there, or a layer cannot be made.
    pub fn assemble(
        store: &dyn Store,
        request: &ImageRequest<'_>,
        cancelled: Cancelled<'_>,
    ) -> Result<Self, Error> {
        let mut layers = Vec::new();
        let mut history = Vec::new();
        for rung in rungs(store, request)? {
            let of_base = rung.blob.is_some();
            let blob = if rung.blob.is_some() {
                rung.blob
            } else {
                let options = LayerOptions {
                    times: rung.times,
                    ..request.layers
                };
                layer(store, rung.since, rung.snapshot, &options, cancelled)?
            };
            history.push((rung.created_by, blob.is_none()));
            layers.extend(blob.map(|blob| ImageLayer { blob, of_base }));
        }
        let created = match request.layers.times {
            Times::Fixed(seconds) | Times::Latest(seconds) => seconds,
        };
        let diff_ids = layers.iter().map(|layer| layer.blob.diff_id);
        let config = document::config(&request.config, diff_ids, &history, Some(created));
        let described = layers.iter().map(|layer| Descriptor {
            media_type: &layer.blob.media_type,
            digest: layer.blob.digest.to_string(),
            size: layer.blob.size,
        });
        let manifest = document::manifest(&config, described, &request.annotations);
        Ok(Self {
            layers,
            config,
            manifest,
            created,
        })
    }

    /// Returns what a push sends. Bytes of layers are read only if the registry lacks them.
    pub fn to_push(&self) -> PushImage {
        let layer = |layer: &ImageLayer| PushBlob {
            digest: layer.blob.digest,
            size: layer.blob.size,
            data: BlobData::File(layer.blob.path.clone()),
        };
        let config = PushBlob {
            digest: self.config_digest(),
            size: self.config.len() as u64,
            data: BlobData::Bytes(self.config.clone().into()),
        };
        PushImage {
            blobs: self.layers.iter().map(layer).chain([config]).collect(),
            manifests: vec![PushManifest {
                media_type: document::MANIFEST.to_owned(),
                bytes: self.manifest.clone(),
            }],
        }
    }

    /// Returns the digest of the configuration, which Docker calls the image's id.
    pub fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// Returns the digest of the manifest, by which registries know the image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// Finds out which layers the image has, lowest first.
fn rungs(store: &dyn Store, request: &ImageRequest<'_>) -> Result<Vec<Rung>, Error> {
    let mut chain = Vec::new();
    let mut next = Some(request.snapshot);
    while let Some(id) = next {
        chain.push(id);
        let snapshot = store.get(id)?;
        next = snapshot
            .ok_or(obuild_stores::Error::NoSuchSnapshot(id))?
            .parent;
    }
    chain.reverse();
    // The highest snapshot that is a base; what a store of an older version knows of none begins with one.
    let mut base = None;
    for (place, id) in chain.iter().enumerate().rev() {
        if let Some(record) = BaseRecord::read(store.state_dir(), *id)? {
            base = Some((place, record));
            break;
        }
    }
    let (top, record) = base.unwrap_or_default();
    let mut rungs = Vec::new();
    for (place, id) in chain.iter().enumerate() {
        let is_base = place <= top;
        let last = place + 1 == chain.len();
        if !is_base && !request.per_step && !last {
            continue;
        }
        let below = if is_base || request.per_step {
            place.checked_sub(1)
        } else {
            Some(top)
        };
        let times = match request.layers.times {
            // An archive's times are no times of the build.
            Times::Fixed(_) if is_base && record.keeps_times => Times::Latest(i64::MAX),
            times => times,
        };
        let created_by = if is_base {
            record.reference.clone()
        } else if request.per_step {
            (request.heading)(*id).unwrap_or_default()
        } else {
            let headings = chain[top + 1..]
                .iter()
                .filter_map(|id| (request.heading)(*id));
            headings.collect::<Vec<_>>().join("\n")
        };
        rungs.push(Rung {
            since: below.map(|below| chain[below]),
            snapshot: *id,
            blob: is_base.then(|| record.blob(*id)).flatten(),
            times,
            created_by,
        });
    }
    Ok(rungs)
}
