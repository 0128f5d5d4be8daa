// SPDX-License-Identifier: Apache-2.0
//! Writes an image as one tar archive: an OCI image layout, and for Docker the list that `docker load` reads besides.

use super::{Image, layout};
use crate::registry::ImageName;
use crate::tree::ExportError;
use crate::tree::tar_writer::{Member, TarWriter};
use crate::tree::xattr::Attributes;
use crate::{Digest, Error};
use serde::Serialize;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use tar::EntryType;

/// What reads the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// Whatever reads OCI image layouts.
    Oci,
    /// `docker load`, of any version, and what reads OCI image layouts.
    Docker,
}

/// An image in `manifest.json`: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Load<'a> {
    config: String,
    repo_tags: Vec<String>,
    layers: &'a [String],
}

impl Image {
    /// Writes the image as an archive. After an error it is incomplete. `place` is for messages.
    pub fn write_archive(
        &self,
        format: ArchiveFormat,
        names: &[ImageName],
        place: &Path,
        writer: &mut dyn Write,
    ) -> Result<(), Error> {
        let failed = |error: ExportError| match error {
            ExportError::Write(error) => Error::io("write", place, error),
            error => Error::io("write", place, io::Error::other(error)),
        };
        let json = |error: serde_json::Error| Error::io("write", place, error);
        let mut tar = TarWriter::new(writer);
        for directory in ["blobs/", "blobs/sha256/"] {
            tar.header(&member(EntryType::Directory, directory, 0, self.created))
                .map_err(failed)?;
        }
        let blob = |digest: Digest| format!("blobs/sha256/{}", digest.digits());
        let mut seen = BTreeSet::new();
        for layer in &self.layers {
            if !seen.insert(layer.blob.digest) {
                continue;
            }
            let name = blob(layer.blob.digest);
            tar.header(&member(
                EntryType::Regular,
                &name,
                layer.blob.size,
                self.created,
            ))
            .map_err(failed)?;
            tar.body(layer.blob.size, |writer| layer.copy(writer))
                .map_err(failed)??;
        }
        let index = layout::index(self, names, None).map_err(json)?;
        let mut documents = vec![
            (blob(self.config_digest()), self.config.clone()),
            (blob(self.digest()), self.manifest.clone()),
            ("index.json".to_owned(), index),
            ("oci-layout".to_owned(), layout::MARKER.into()),
        ];
        if format == ArchiveFormat::Docker {
            let layers: Vec<String> = self
                .layers
                .iter()
                .map(|layer| blob(layer.blob.digest))
                .collect();
            let load = [Load {
                config: blob(self.config_digest()),
                repo_tags: names.iter().map(ToString::to_string).collect(),
                layers: &layers,
            }];
            let load = serde_json::to_vec(&load).map_err(json)?;
            documents.push(("manifest.json".to_owned(), load));
        }
        for (name, text) in documents {
            let size = text.len() as u64;
            tar.header(&member(EntryType::Regular, &name, size, self.created))
                .map_err(failed)?;
            tar.body(size, |writer| writer.write_all(&text))
                .map_err(failed)?
                .map_err(|error| Error::io("write", place, error))?;
        }
        tar.finish().map_err(failed)
    }
}

fn member(kind: EntryType, path: &str, size: u64, modified: i64) -> Member<'_> {
    Member {
        kind,
        path: path.as_bytes(),
        target: b"",
        size,
        mode: if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        },
        uid: 0,
        gid: 0,
        modified,
        device: (0, 0),
        attributes: const { &Attributes::new() },
    }
}
