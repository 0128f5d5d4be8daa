// SPDX-License-Identifier: Apache-2.0
//! The image on its way: to a registry, or into an image layout.

use super::ledger::Pushed;
use super::{ArchiveImage, ImageError};
use crate::state::now;
use obuild_images::Digest;
use obuild_images::registry::{Client, ImageName, PushProgress, PushReport, push};
use std::path::Path;

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
        self.image.digest()
    }

    /// Pushes the image, unless that is what was pushed there the last time; then `None`.
    pub fn push(
        &mut self,
        client: &Client,
        name: &ImageName,
        options: &mut PushOptions<'_>,
    ) -> Result<Option<PushReport>, ImageError> {
        let place = name.to_string();
        let manifest = self.digest().to_string();
        let known = self.ledger.pushed.get(&place);
        if !options.force && known.is_some_and(|pushed| pushed.manifest == manifest) {
            return Ok(None);
        }
        let image = self.image.to_push();
        let report = push(client, name, &image, options.progress, options.cancelled)?;
        let layers = self.image.layers.iter();
        let pushed = Pushed {
            manifest,
            layers: layers.map(|layer| layer.digest.to_string()).collect(),
            at: now(),
        };
        self.ledger.pushed.insert(place, pushed);
        self.ledger.write(&self.directory)?;
        Ok(Some(report))
    }

    /// Writes the image into an image layout, which gets no other images. `tag` is the image's name in it.
    pub fn write_layout(&self, root: &Path, tag: Option<&str>) -> Result<(), ImageError> {
        Ok(self.image.write_layout(root, tag)?)
    }
}
