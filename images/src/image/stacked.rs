// SPDX-License-Identifier: Apache-2.0
//! Images that are put together of layers at hand, without a store.

use super::document::{self, Descriptor};
use super::layout;
use crate::registry::{BlobData, PushBlob, PushImage, PushManifest};
use crate::reuse::BaseLayer;
use crate::{Digest, Error, ImageConfig};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::path::Path;

/// An image of layers that may be anywhere, also made while they are read.
#[derive(Clone, Debug)]
pub struct StackedImage {
    /// Its layers, lowest first.
    pub layers: Vec<BaseLayer>,
    /// Its configuration, as bytes of JSON. No time is in it: the same layers give the same image.
    pub config: Vec<u8>,
    /// Its manifest, as bytes of JSON.
    pub manifest: Vec<u8>,
}

impl StackedImage {
    /// Makes the documents of an image with these layers.
    pub fn new(config: &ImageConfig, layers: Vec<BaseLayer>) -> Self {
        let diff_ids = layers.iter().map(|layer| layer.diff_id);
        let config = document::config(config, diff_ids, &[], None);
        let described = layers.iter().map(|layer| Descriptor {
            media_type: &layer.media_type,
            digest: layer.digest.to_string(),
            size: layer.size,
        });
        let manifest = document::manifest(&config, described, &BTreeMap::new());
        Self {
            layers,
            config,
            manifest,
        }
    }

    /// Returns the digest of the manifest, by which registries know the image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Returns what a push sends. Bytes of layers are read only if the registry lacks them.
    pub fn to_push(&self) -> PushImage {
        let layers = self.layers.iter().map(|layer| PushBlob {
            digest: layer.digest,
            size: layer.size,
            data: layer.data.clone(),
        });
        let config = PushBlob {
            digest: Digest::of(&self.config),
            size: self.config.len() as u64,
            data: BlobData::Bytes(self.config.as_slice().into()),
        };
        PushImage {
            blobs: layers.chain([config]).collect(),
            manifests: vec![PushManifest {
                media_type: document::MANIFEST.to_owned(),
                bytes: self.manifest.clone(),
            }],
        }
    }

    /// Writes the image into an image layout (OCI image-spec v1.1 image-layout.md), which gets no other images: blobs that are there stay,
    /// others than this image's go.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written, or a layer is not what it should be.
    pub fn write_layout(&self, directory: &Path, tag: Option<&str>) -> Result<(), Error> {
        for layer in &self.layers {
            layout::write_blob(directory, layer.digest, layer.size, |file| {
                let place = Path::new("a layer");
                let mut reader = layer
                    .data
                    .reader(layer.digest)
                    .map_err(|error| Error::io("read", place, error))?;
                layout::copy(&mut reader, layer.digest, place, file)
            })?;
        }
        for document in [&self.config, &self.manifest] {
            layout::write_document(directory, document)?;
        }
        let index = directory.join("index.json");
        let text = layout::index_of(&self.manifest, tag).map_err(|source| Error::Json {
            path: index.clone(),
            what: "image index",
            source,
        })?;
        layout::publish(directory, &text)?;
        let documents = [Digest::of(&self.config), Digest::of(&self.manifest)];
        let layers = self.layers.iter().map(|layer| layer.digest);
        let wanted: HashSet<OsString> = layers
            .chain(documents)
            .map(|digest| digest.digits().into())
            .collect();
        let found = fs_err::read_dir(directory.join("blobs/sha256"));
        for found in found.into_iter().flatten().flatten() {
            if !wanted.contains(&found.file_name()) {
                // One that stays takes room and does no harm.
                let _ = fs_err::remove_file(found.path());
            }
        }
        Ok(())
    }
}
