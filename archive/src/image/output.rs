// SPDX-License-Identifier: Apache-2.0
//! The image on its way: to a registry, or into an image layout.

use super::ledger::Pushed;
use super::{ArchiveImage, ImageError, document};
use crate::state::now;
use fs_err as fs;
use obuild_images::Digest;
use obuild_images::registry::{
    Client, ImageName, PushBlob, PushImage, PushManifest, PushProgress, PushReport, push,
};
use serde_json::json;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How an image is pushed.
pub struct PushOptions<'a> {
    /// Told how far it is.
    pub progress: &'a mut dyn FnMut(PushProgress),
    /// Asked whether to stop.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Also when the registry should have this very image.
    pub force: bool,
}

impl ArchiveImage {
    /// Returns the digest of the manifest, by which registries know the image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Pushes the image, unless that is what was pushed there the last time; then `None`.
    pub fn push(
        &mut self,
        client: &Client,
        name: &ImageName,
        options: PushOptions<'_>,
    ) -> Result<Option<PushReport>, ImageError> {
        let place = name.to_string();
        let manifest = self.digest().to_string();
        let known = self.ledger.pushed.get(&place);
        if !options.force && known.is_some_and(|pushed| pushed.manifest == manifest) {
            return Ok(None);
        }
        let blobs = self.layers.iter().map(|layer| PushBlob {
            digest: layer.digest,
            size: layer.size,
            data: layer.data.clone(),
        });
        let config = PushBlob {
            digest: Digest::of(&self.config),
            size: self.config.len() as u64,
            data: obuild_images::registry::BlobData::Bytes(Arc::from(self.config.as_slice())),
        };
        let image = PushImage {
            blobs: blobs.chain([config]).collect(),
            manifests: vec![PushManifest {
                media_type: document::MANIFEST.to_owned(),
                bytes: self.manifest.clone(),
            }],
        };
        let report = push(client, name, &image, options.progress, options.cancelled)?;
        let pushed = Pushed {
            manifest,
            layers: self
                .layers
                .iter()
                .map(|layer| layer.digest.to_string())
                .collect(),
            at: now(),
        };
        self.ledger.pushed.insert(place, pushed);
        self.ledger.write(&self.directory)?;
        Ok(Some(report))
    }

    /// Writes the image into an image layout (OCI image-spec v1.1 image-layout.md), which gets no other images. Blobs that are there stay; others
    /// than this image's go. `tag` is the image's name in it.
    pub fn write_layout(&self, root: &Path, tag: Option<&str>) -> Result<(), ImageError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ImageError::Write { path, source }
        };
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
        let place = |digest: Digest| blobs.join(&digest.to_string()["sha256:".len()..]);
        let mut wanted = std::collections::HashSet::new();
        for layer in &self.layers {
            let path = place(layer.digest);
            wanted.insert(path.clone());
            if path.metadata().is_ok_and(|found| found.len() == layer.size) {
                continue;
            }
            let mut reader =
                layer
                    .data
                    .reader(layer.digest)
                    .map_err(|source| ImageError::Read {
                        path: path.clone(),
                        source,
                    })?;
            let unfinished = path.with_extension("new");
            let mut write = || {
                let mut file = fs::File::create(&unfinished)?;
                io::copy(&mut reader, &mut file)?;
                file.sync_all()?;
                fs::rename(&unfinished, &path)
            };
            write().map_err(failed(&path))?;
        }
        for bytes in [&self.config, &self.manifest] {
            let path = place(Digest::of(bytes));
            fs::write(&path, bytes).map_err(failed(&path))?;
            wanted.insert(path);
        }
        let mut descriptor = json!({
            "mediaType": document::MANIFEST,
            "digest": self.digest().to_string(),
            "size": self.manifest.len(),
        });
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        });
        let marker = json!({"imageLayoutVersion": "1.0.0"});
        for (name, document) in [("oci-layout", marker), ("index.json", index)] {
            let path = root.join(name);
            crate::state::replace(&path, document.to_string().as_bytes())?;
        }
        for found in fs::read_dir(&blobs).map_err(failed(&blobs))?.flatten() {
            if !wanted.contains(&found.path()) {
                // One that stays takes room and does no harm.
                let _ = fs::remove_file(found.path());
            }
        }
        Ok(())
    }
}
