// SPDX-License-Identifier: Apache-2.0
//! What is known of base images after they have become snapshots: `STATE/bases/ID`, one JSON document each.

use crate::layer::LayerBlob;
use crate::resolve::{ChainLayer, Resolved, Source};
use crate::{Compression, Digest, Error, Reference};
use obuild_stores::{SnapshotId, Store};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What a base image was.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BaseRecord {
    /// What it was called.
    pub(super) reference: String,
    /// Whether the times of its files came with it.
    pub(super) keeps_times: bool,
    layers: Vec<LayerRecord>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LayerRecord {
    snapshot: String,
    path: PathBuf,
    digest: String,
    size: u64,
    diff_id: String,
}

impl LayerRecord {
    /// What is a part of an archive is no blob.
    fn of(ChainLayer { id, layer }: &ChainLayer) -> Option<Self> {
        Some(Self {
            snapshot: id.to_string(),
            path: layer.part.is_none().then(|| layer.path.clone())?,
            digest: layer.digest?.to_string(),
            size: layer.size,
            diff_id: layer.diff_id.to_string(),
        })
    }
}

impl BaseRecord {
    fn of(resolved: &Resolved) -> Self {
        let layers = match &resolved.source {
            Source::Layers { layers, .. } => layers.iter().filter_map(LayerRecord::of).collect(),
            _ => Vec::new(),
        };
        Self {
            // Not where it was on this machine: images would differ by it.
            reference: match &resolved.reference {
                reference @ (Reference::Registry(_)
                | Reference::Debootstrap(_)
                | Reference::Scratch) => reference.to_string(),
                local => {
                    let text = local.to_string();
                    text.split(':').next().unwrap_or_default().to_owned()
                }
            },
            keeps_times: matches!(resolved.source, Source::Layers { .. } | Source::Tar { .. }),
            layers,
        }
    }

    /// Returns what is known of a snapshot as a base image, if anything is.
    pub(super) fn read(state: &Path, id: SnapshotId) -> Result<Option<Self>, Error> {
        let path = place(state, id);
        match fs_err::read(&path) {
            // One that is damaged is as good as none: layers are made anew.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// Returns the layer that a snapshot of this image was made of, if its file is still what it was.
    pub(super) fn blob(&self, id: SnapshotId) -> Option<LayerBlob> {
        let id = id.to_string();
        let layer = self.layers.iter().find(|layer| layer.snapshot == id)?;
        let metadata = fs_err::metadata(&layer.path).ok()?;
        if !metadata.is_file() || metadata.len() != layer.size {
            return None;
        }
        Some(LayerBlob {
            path: layer.path.clone(),
            digest: Digest::parse(&layer.digest).ok()?,
            size: layer.size,
            diff_id: Digest::parse(&layer.diff_id).ok()?,
            media_type: media_type(&layer.path).ok()?.to_owned(),
        })
    }
}

fn place(state: &Path, id: SnapshotId) -> PathBuf {
    state.join("bases").join(id.to_string())
}

/// Tells by its first bytes what a layer is: an image may be of Docker's media types, which must not be mixed with others.
fn media_type(path: &Path) -> io::Result<&'static str> {
    let mut magic = [0; 4];
    let mut file = fs_err::File::open(path)?;
    let compression = match file.read(&mut magic)? {
        4 if magic[..2] == [0x1f, 0x8b] => Compression::Gzip(0),
        4 if magic == [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd(0),
        _ => Compression::None,
    };
    Ok(compression.media_type())
}

/// Notes what a base image is, so that images built upon it can be made of its own layers later. Costs one small read when it is noted already.
pub fn remember_base(store: &dyn Store, resolved: &Resolved) -> Result<(), Error> {
    let record = BaseRecord::of(resolved);
    let state = store.state_dir();
    if BaseRecord::read(state, resolved.id)?.as_ref() == Some(&record) {
        return Ok(());
    }
    let path = place(state, resolved.id);
    let failed = |error| Error::io("write", &path, error);
    if let Some(directory) = path.parent() {
        fs_err::create_dir_all(directory).map_err(failed)?;
    }
    let text = serde_json::to_vec(&record).map_err(|error| failed(error.into()))?;
    crate::replace(&path, failed, |file| file.write_all(&text).map_err(failed))
}
