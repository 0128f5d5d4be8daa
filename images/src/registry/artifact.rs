// SPDX-License-Identifier: Apache-2.0
//! Artifacts that are no images: a manifest and its configuration, whatever that is (OCI image-spec v1.1 manifest.md, "Guidelines for Artifact
//! Usage").

use super::{Client, ImageName};
use crate::Error;
use crate::digest::Digest;
use crate::share::Manifest;
use std::path::PathBuf;

impl Client {
    /// Reads the manifest that a name means at this moment, and its configuration. What was read before costs one small request.
    pub(crate) fn artifact(
        &self,
        name: &ImageName,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Digest, Vec<u8>), Error> {
        let wrong = |error| Error::registry(name, error);
        let digest = match name.digest() {
            Some(digest) => digest,
            None => self.digest_of(name, cancelled).map_err(wrong)?,
        };
        let read = |digest: Digest, is_manifest: bool| {
            let path = self.blobs.path(digest);
            if let Ok(bytes) = fs_err::read(&path)
                && Digest::of(&bytes) == digest
            {
                return Ok(bytes);
            }
            self.fetch_document(name, digest, is_manifest, cancelled)
                .map_err(wrong)?;
            fs_err::read(&path).map_err(|error| Error::io("read", &path, error))
        };
        let manifest = Manifest::parse(&name.to_string(), &read(digest, true)?)?;
        Ok((digest, read(manifest.config, false)?))
    }

    /// Fetches a blob, which is read whole.
    pub(crate) fn blob(
        &self,
        name: &ImageName,
        digest: Digest,
        size: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Error> {
        let path = self.keep(name, digest, size, cancelled)?;
        fs_err::read(&path).map_err(|error| Error::io("read", &path, error))
    }

    /// Fetches a blob unless it is kept already, and returns its file.
    pub(crate) fn keep(
        &self,
        name: &ImageName,
        digest: Digest,
        size: u64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<PathBuf, Error> {
        let wanted = self.wanted(name, digest, size);
        let fetching = super::download::fetch(&self.transport, &self.blobs, &wanted);
        self.wait(cancelled, fetching)
            .map_err(|error| Error::registry(name, error))?;
        Ok(self.blobs.path(digest))
    }

    /// Takes the file of a blob away from those that are kept.
    pub(crate) fn release(&self, digest: Digest, to: &std::path::Path) -> std::io::Result<()> {
        fs_err::rename(self.blobs.path(digest), to)
    }

    /// Throws away a blob that is not worth keeping.
    pub(crate) fn drop_blob(&self, digest: Digest) {
        self.blobs.remove(digest);
    }
}
