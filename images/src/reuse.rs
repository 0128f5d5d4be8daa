// SPDX-License-Identifier: Apache-2.0
//! Layers of a base image as they are, for an image upon it that is put together without a store.

use crate::registry::BlobData;
use crate::resolve::{Resolved, Source};
use crate::{Digest, Error};

/// A layer of an image that was resolved.
#[derive(Clone, Debug)]
pub struct BaseLayer {
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// The digest of the archive that it is when it is not compressed.
    pub diff_id: Digest,
    /// What it is, by the OCI's names.
    pub media_type: String,
    /// Where its bytes are.
    pub data: BlobData,
}

impl Resolved {
    /// Returns the image's layers, lowest first.
    ///
    /// # Errors
    ///
    /// When the base is no image, or one in an archive of Docker's, whose layers have no digests.
    pub fn layers(&self) -> Result<Vec<BaseLayer>, Error> {
        let unusable = |reason: &str| Error::BadReference {
            text: self.reference.to_string(),
            reason: reason.to_owned(),
        };
        match &self.source {
            Source::Scratch => Ok(Vec::new()),
            Source::Layers { layers, remote } => layers
                .iter()
                .map(|chained| {
                    let layer = &chained.layer;
                    let digest = layer
                        .digest
                        .ok_or_else(|| unusable("its layers have no digests"))?;
                    let data = match remote {
                        Some(remote) if !layer.path.is_file() => {
                            BlobData::Registry(remote.name.clone())
                        }
                        _ => BlobData::File(layer.path.clone()),
                    };
                    Ok(BaseLayer {
                        digest,
                        size: layer.size,
                        diff_id: layer.diff_id,
                        media_type: oci_media_type(&layer.media_type),
                        data,
                    })
                })
                .collect(),
            _ => Err(unusable("it is no image")),
        }
    }
}

/// Docker's media types of layers must not be mixed with the OCI's (OCI image-spec v1.1 media-types.md, "Compatibility Matrix").
fn oci_media_type(name: &str) -> String {
    match name {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.v1.tar+gzip".to_owned()
        }
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => {
            "application/vnd.oci.image.layer.v1.tar+zstd".to_owned()
        }
        "application/vnd.docker.image.rootfs.diff.tar" => {
            "application/vnd.oci.image.layer.v1.tar".to_owned()
        }
        other => other.to_owned(),
    }
}
