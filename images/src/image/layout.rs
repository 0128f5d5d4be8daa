// SPDX-License-Identifier: Apache-2.0
//! Writes an image into an OCI image layout: OCI image-spec v1.1 image-layout.md.

use super::document::MANIFEST;
use super::{Image, ImageLayer};
use crate::layer::blob_path;
use crate::registry::ImageName;
use crate::{Digest, Error};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// `oci-layout`.
pub(super) const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The annotation that holds a tag (image-layout.md, "index.json").
pub(crate) const TAG: &str = "org.opencontainers.image.ref.name";
/// The one that holds the whole name, which containerd and Docker read.
const NAME: &str = "io.containerd.image.name";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    manifests: Vec<serde_json::Value>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    media_type: &'static str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

/// Returns `index.json`, with the entries of an old one that are of other names.
pub(super) fn index(
    image: &Image,
    names: &[ImageName],
    old: Option<&[u8]>,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut index = match old {
        Some(old) => serde_json::from_slice(old)?,
        None => Index::new(),
    };
    let digest = image.digest().to_string();
    let tags: Vec<Option<&str>> = match names {
        [] => vec![None],
        names => names.iter().map(ImageName::tag).collect(),
    };
    index.manifests.retain(|entry| {
        let tag = entry["annotations"][TAG].as_str();
        !tags.contains(&tag) && (tag.is_some() || entry["digest"] != digest.as_str())
    });
    if names.is_empty() {
        index.add(&image.manifest, BTreeMap::new())?;
    }
    for name in names {
        let mut annotations = BTreeMap::from([(NAME, name.to_string())]);
        annotations.extend(name.tag().map(|tag| (TAG, tag.to_owned())));
        index.add(&image.manifest, annotations)?;
    }
    serde_json::to_vec(&index)
}

/// Returns `index.json` of a layout that has one image alone.
pub(super) fn index_of(manifest: &[u8], tag: Option<&str>) -> Result<Vec<u8>, serde_json::Error> {
    let mut index = Index::new();
    let tag = tag.map(|tag| (TAG, tag.to_owned()));
    index.add(manifest, tag.into_iter().collect())?;
    serde_json::to_vec(&index)
}

impl Index {
    fn new() -> Self {
        Self {
            schema_version: 2,
            media_type: Some("application/vnd.oci.image.index.v1+json".to_owned()),
            manifests: Vec::new(),
            others: BTreeMap::new(),
        }
    }

    fn add(
        &mut self,
        manifest: &[u8],
        annotations: BTreeMap<&'static str, String>,
    ) -> Result<(), serde_json::Error> {
        self.manifests.push(serde_json::to_value(Entry {
            media_type: MANIFEST,
            digest: Digest::of(manifest).to_string(),
            size: manifest.len(),
            annotations,
        })?);
        Ok(())
    }
}

impl Image {
    /// Writes the image into the layout in a directory, which is made if it is not there. Images of other tags stay; blobs that are there are not
    /// written again.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written, or a layer's file is damaged.
    pub fn write_layout(&self, directory: &Path, names: &[ImageName]) -> Result<(), Error> {
        for layer in &self.layers {
            let blob = &layer.blob;
            write_blob(directory, blob.digest, blob.size, |file| layer.copy(file))?;
        }
        for document in [&self.config, &self.manifest] {
            write_document(directory, document)?;
        }
        let index = directory.join("index.json");
        let old = match fs_err::read(&index) {
            Ok(old) => Some(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io("read", &index, error)),
        };
        let text = self::index(self, names, old.as_deref()).map_err(|source| Error::Json {
            path: index.clone(),
            what: "image index",
            source,
        })?;
        publish(directory, &text)
    }
}

/// Writes `index.json`, and what else makes a directory a layout. The blobs and their names are on the disk before anything names them, so that
/// not even a power failure leaves an index of blobs that are not there.
pub(crate) fn publish(directory: &Path, index: &[u8]) -> Result<(), Error> {
    let sync = |path: &Path| {
        // fsync(2), "Description": a name is its directory's affair.
        let synced = fs_err::File::open(path).and_then(|directory| directory.sync_all());
        synced.map_err(|error| Error::io("sync", path, error))
    };
    let blobs = directory.join("blobs");
    sync(&blobs.join("sha256"))?;
    sync(&blobs)?;
    for (name, text) in [("oci-layout", MARKER.as_bytes()), ("index.json", index)] {
        let path = directory.join(name);
        replace(&path, |file| put(&path, file, text))?;
    }
    sync(directory)
}

impl ImageLayer {
    /// Copies the layer's file and checks that it is what it should be.
    pub(super) fn copy(&self, to: &mut dyn Write) -> Result<(), Error> {
        let path = &self.blob.path;
        let mut file = fs_err::File::open(path).map_err(|error| Error::io("open", path, error))?;
        copy(&mut file, self.blob.digest, path, to)
    }
}

/// Copies a blob and checks that it is what it should be. `path` is for messages.
pub(super) fn copy(
    from: &mut dyn Read,
    digest: Digest,
    path: &Path,
    to: &mut dyn Write,
) -> Result<(), Error> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hash.update(&buffer[..count]);
                to.write_all(&buffer[..count])
                    .map_err(|error| Error::io("write a copy of", path, error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("read", path, error)),
        }
    }
    let found = Digest(hash.finalize().into());
    if found == digest {
        return Ok(());
    }
    Err(Error::Digest {
        path: path.to_owned(),
        what: "its digest",
        expected: digest,
        found,
    })
}

/// Returns where a layout has a blob, in a directory that is there.
fn blob_place(directory: &Path, digest: Digest) -> Result<PathBuf, Error> {
    let path = blob_path(directory, digest);
    if let Some(blobs) = path.parent() {
        fs_err::create_dir_all(blobs).map_err(|error| Error::io("make", blobs, error))?;
    }
    Ok(path)
}

/// Writes a blob into a layout, unless it is there.
pub(super) fn write_blob(
    directory: &Path,
    digest: Digest,
    size: u64,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let path = blob_place(directory, digest)?;
    let there =
        fs_err::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size);
    if there { Ok(()) } else { replace(&path, write) }
}

/// Writes a document into a layout, whatever has its name.
pub(super) fn write_document(directory: &Path, document: &[u8]) -> Result<(), Error> {
    let path = blob_place(directory, Digest::of(document))?;
    replace(&path, |file| put(&path, file, document))
}

pub(crate) fn put(path: &Path, file: &mut dyn Write, text: &[u8]) -> Result<(), Error> {
    file.write_all(text)
        .map_err(|error| Error::io("write", path, error))
}

/// Replaces a file as a whole, with one that is on the disk.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = |error| Error::io("write", path, error);
    crate::beside::replace(path, failed, |file| {
        write(file)?;
        file.sync_all().map_err(failed)
    })
}
