// SPDX-License-Identifier: Apache-2.0
//! Writes a cache: into a registry, which gets only what it lacks, or into an OCI image layout.

use super::{
    CacheDocument, CacheImport, CachePlace, DOCUMENT, Descriptor, LOG, SharedBlob, SharedCopy,
    SharedStep, VERSION, bad,
};
use crate::image::layout::{TAG, publish, put, replace};
use crate::layer::{LayerBlob, blob_path};
use crate::registry::{BlobData, Client, PushBlob, PushImage, PushManifest, PushProgress};
use crate::registry::{PushReport, push};
use crate::{Digest, Error};
use obuild_stores::SnapshotId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A cache that is being put together.
#[derive(Debug)]
pub struct CacheExport {
    document: CacheDocument,
    /// By digest: a blob may be of several steps.
    blobs: BTreeMap<Digest, (String, PushBlob)>,
}

impl Default for CacheExport {
    fn default() -> Self {
        Self {
            document: CacheDocument {
                version: VERSION,
                steps: Vec::new(),
                copies: Vec::new(),
            },
            blobs: BTreeMap::new(),
        }
    }
}

impl CacheExport {
    /// Adds the file of a step's layer.
    pub fn add_layer(&mut self, layer: &LayerBlob) {
        let data = BlobData::File(layer.path.clone());
        self.add_blob(&layer.media_type, layer.digest, layer.size, data);
    }

    /// Adds the log of a step.
    pub fn add_log(&mut self, log: Vec<u8>) -> SharedBlob {
        let digest = Digest::of(&log);
        let size = log.len() as u64;
        self.add_blob(LOG, digest, size, BlobData::Bytes(log.into()));
        SharedBlob { digest, size }
    }

    fn add_blob(&mut self, media_type: &str, digest: Digest, size: u64, data: BlobData) {
        let blob = PushBlob { digest, size, data };
        self.blobs.insert(digest, (media_type.to_owned(), blob));
    }

    /// Adds a step, whose blobs were added.
    pub fn add_step(&mut self, step: SharedStep) {
        self.document.steps.push(step);
    }

    /// Adds what a copy was found to copy.
    pub fn add_copy(&mut self, copy: SharedCopy) {
        self.document.copies.push(copy);
    }

    /// Adds a step as another cache has it, which did not have to be fetched; nothing if it was added or the other has it upon another parent.
    pub fn carry_step(&mut self, from: &CacheImport, step: SnapshotId, parent: SnapshotId) -> bool {
        let Some(found) = from.find(step).filter(|found| found.parent == parent) else {
            return false;
        };
        if self.document.steps.iter().any(|other| other.step == step) {
            return false;
        }
        let layer = found
            .layer
            .as_ref()
            .map(|layer| (CacheImport::layer_type(), layer.blob));
        let log = found.log.map(|blob| (LOG, blob));
        for (media_type, blob) in layer.into_iter().chain(log) {
            let data = from.data(blob.digest);
            self.add_blob(media_type, blob.digest, blob.size, data);
        }
        self.add_step(found.clone());
        true
    }

    /// Returns how many steps there are.
    pub fn steps(&self) -> usize {
        self.document.steps.len()
    }

    /// Writes it in the place of what is there of this name. What the place has of it is not written again.
    ///
    /// # Errors
    ///
    /// When the place cannot be written. What was there of this name stays then.
    pub fn write(
        &self,
        place: &CachePlace,
        client: &Client,
        progress: &mut dyn FnMut(PushProgress),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<PushReport, Error> {
        let json = |source| Error::Json {
            path: place.to_string().into(),
            what: "cache",
            source,
        };
        let document = serde_json::to_vec(&self.document).map_err(json)?;
        if document.len() as u64 > crate::layout::MAX_DOCUMENT {
            return Err(bad(&place.to_string(), "there are too many steps for it"));
        }
        let mut layers: Vec<Descriptor> = self
            .blobs
            .values()
            .map(|(media_type, blob)| Descriptor {
                media_type: media_type.clone(),
                digest: blob.digest,
                size: blob.size,
            })
            .collect();
        let config = describe(DOCUMENT, &document);
        let mut blobs: Vec<PushBlob> = self.blobs.values().map(|(_, blob)| blob.clone()).collect();
        blobs.push(in_memory(document));
        if layers.is_empty() {
            // There has to be one (OCI image-spec v1.1 manifest.md, "Guidelines for Artifact Usage").
            let empty = b"{}".to_vec();
            layers.push(describe("application/vnd.oci.empty.v1+json", &empty));
            blobs.push(in_memory(empty));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": DOCUMENT,
            "config": config,
            "layers": layers,
        });
        let parts = PushImage {
            blobs,
            manifests: vec![PushManifest {
                media_type: MANIFEST.to_owned(),
                bytes: serde_json::to_vec(&manifest).map_err(json)?,
            }],
        };
        match place {
            CachePlace::Registry(name) => push(client, name, &parts, progress, cancelled),
            CachePlace::Local { directory, tag } => {
                write_layout(directory, tag, &parts, client, cancelled)
            }
        }
    }
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

fn in_memory(bytes: Vec<u8>) -> PushBlob {
    PushBlob {
        digest: Digest::of(&bytes),
        size: bytes.len() as u64,
        data: BlobData::Bytes(bytes.into()),
    }
}

/// Writes the parts into a layout, whose other tags stay (OCI image-spec v1.1 image-layout.md).
fn write_layout(
    directory: &Path,
    tag: &str,
    parts: &PushImage,
    client: &Client,
    cancelled: &dyn Fn() -> bool,
) -> Result<PushReport, Error> {
    let blobs = directory.join("blobs/sha256");
    fs_err::create_dir_all(&blobs).map_err(|error| Error::io("make", &blobs, error))?;
    let (mut sent_bytes, mut spared_bytes) = (0, 0);
    for blob in &parts.blobs {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        let path = blob_path(directory, blob.digest);
        let there = fs_err::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size);
        if there {
            spared_bytes += blob.size;
            continue;
        }
        let data = match &blob.data {
            BlobData::Registry(name) => {
                BlobData::File(client.keep(name, blob.digest, blob.size, cancelled)?)
            }
            data => data.clone(),
        };
        let from = data
            .reader(blob.digest)
            .map_err(|error| Error::io("read what is to be", &path, error))?;
        replace(&path, |file| {
            let mut from = crate::digest::Hashing::new(from);
            io::copy(&mut from, file).map_err(|error| Error::io("write", &path, error))?;
            let found = from.finish();
            if found == blob.digest {
                return Ok(());
            }
            Err(Error::Digest {
                path: path.clone(),
                what: "its digest",
                expected: blob.digest,
                found,
            })
        })?;
        sent_bytes += blob.size;
    }
    let mut digest = Digest::of(b"");
    for manifest in &parts.manifests {
        digest = Digest::of(&manifest.bytes);
        let path = blob_path(directory, digest);
        replace(&path, |file| put(&path, file, &manifest.bytes))?;
        sent_bytes += manifest.bytes.len() as u64;
        set_tag(directory, tag, describe(MANIFEST, &manifest.bytes))?;
    }
    Ok(PushReport {
        digest,
        sent_bytes,
        spared_bytes,
        requests: 0,
    })
}

/// Lets a tag of the layout mean a manifest.
fn set_tag(directory: &Path, tag: &str, manifest: Descriptor) -> Result<(), Error> {
    let path = directory.join("index.json");
    let wrong = |source| Error::Json {
        path: path.clone(),
        what: "image index",
        source,
    };
    let mut index: Value = match fs_err::read(&path) {
        Ok(old) => serde_json::from_slice(&old).map_err(wrong)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        }),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let mut entry = serde_json::to_value(manifest).map_err(wrong)?;
    entry["annotations"] = json!({ TAG: tag });
    let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(bad(
            &path.display().to_string(),
            "its index has no manifests",
        ));
    };
    manifests.retain(|entry| entry["annotations"][TAG] != tag);
    manifests.push(entry);
    let text = serde_json::to_vec(&index).map_err(wrong)?;
    publish(directory, &text)
}
