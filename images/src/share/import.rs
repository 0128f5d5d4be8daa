// SPDX-License-Identifier: Apache-2.0
//! Reads a cache, and brings steps of it into a store: nothing but the manifest and the document before a step is wanted.

use super::{
    CacheDocument, CachePlace, Manifest, SharedBlob, SharedStep, VERSION, bad, parse, shared_layers,
};
use crate::image::layout::TAG;
use crate::import::{Arriving, Progress, repeat};
use crate::layer::{adopt, blob_path};
use crate::layout::{Layer, MAX_DOCUMENT};
use crate::registry::{BlobData, Client};
use crate::resolve::Remote;
use crate::{Digest, Error};
use obuild_stores::{SnapshotId, Store};
use serde_json::Value;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A log above this size is left where it is.
const MAX_LOG: u64 = 256 << 20;

/// A cache that steps can be taken from.
#[derive(Debug)]
pub struct CacheImport {
    title: String,
    source: Source,
    steps: HashMap<SnapshotId, SharedStep>,
    copies: HashMap<(SnapshotId, Digest), Digest>,
}

#[derive(Debug)]
enum Source {
    Registry(Remote),
    Local(PathBuf),
}

/// A step that is on its way.
pub struct Fetching {
    arriving: Option<Arriving>,
    step: SharedStep,
    /// Who keeps what was fetched.
    client: Option<Arc<Client>>,
}

impl CacheImport {
    /// Finds out what a cache holds.
    ///
    /// # Errors
    ///
    /// When it is not there, cannot be reached, or is no cache.
    pub fn open(
        place: &CachePlace,
        client: &Arc<Client>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, Error> {
        let title = place.to_string();
        let (source, document) = match place {
            CachePlace::Registry(name) => {
                let (digest, document) = client.artifact(name, cancelled)?;
                tracing::debug!(%name, %digest, "found a cache");
                let remote = Remote {
                    client: Arc::clone(client),
                    name: name.clone(),
                    fetch: true,
                };
                (Source::Registry(remote), document)
            }
            CachePlace::Local { directory, tag } => {
                let manifest = find_tag(directory, tag)?;
                let manifest = Manifest::parse(&title, &read_blob(directory, manifest)?)?;
                let document = read_blob(directory, manifest.config)?;
                (Source::Local(directory.clone()), document)
            }
        };
        let document: CacheDocument = parse(&title, "cache", &document)?;
        if document.version != VERSION {
            let reason = format!("its version is {}, not {VERSION}", document.version);
            return Err(bad(&title, reason));
        }
        let steps = document.steps.into_iter();
        let copies = document.copies.into_iter();
        Ok(Self {
            title,
            source,
            steps: steps.map(|step| (step.step, step)).collect(),
            copies: copies
                .map(|copy| ((copy.source, copy.request), copy.files))
                .collect(),
        })
    }

    /// Returns where it is, for people.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Returns what the cache has of a step.
    pub fn find(&self, step: SnapshotId) -> Option<&SharedStep> {
        self.steps.get(&step)
    }

    /// Returns the digest of what a copy from a step's result copies, as the cache has it.
    pub fn copied(&self, source: SnapshotId, request: Digest) -> Option<Digest> {
        self.copies.get(&(source, request)).copied()
    }

    /// Returns what layers of caches are.
    pub(super) fn layer_type() -> &'static str {
        shared_layers(1).compression.media_type()
    }

    /// Returns where a blob of it is.
    pub(super) fn data(&self, digest: Digest) -> BlobData {
        match &self.source {
            Source::Registry(remote) => BlobData::Registry(remote.name.clone()),
            Source::Local(directory) => BlobData::File(blob_path(directory, digest)),
        }
    }

    /// Begins to fetch a step's layer.
    pub fn start(&self, step: &SharedStep) -> Result<Fetching, Error> {
        let arriving = step.layer.as_ref().map(|layer| {
            let path = match &self.source {
                Source::Local(directory) => blob_path(directory, layer.blob.digest),
                Source::Registry(remote) => {
                    PathBuf::from(format!("{}@{}", remote.name, layer.blob.digest))
                }
            };
            let layer = Layer {
                path,
                part: None,
                digest: Some(layer.blob.digest),
                size: layer.blob.size,
                diff_id: layer.diff_id,
                media_type: Self::layer_type().to_owned(),
            };
            Arriving::start(layer, self.remote())
        });
        Ok(Fetching {
            arriving: arriving.transpose()?,
            step: step.clone(),
            client: self.remote().map(|remote| Arc::clone(&remote.client)),
        })
    }

    fn remote(&self) -> Option<&Remote> {
        match &self.source {
            Source::Registry(remote) => Some(remote),
            Source::Local(_) => None,
        }
    }

    /// Fetches a step's log; nothing if it wrote nothing.
    pub fn log(&self, step: &SharedStep, cancelled: &dyn Fn() -> bool) -> Result<Vec<u8>, Error> {
        let Some(SharedBlob { digest, size }) = step.log else {
            return Ok(Vec::new());
        };
        if size > MAX_LOG {
            return Err(bad(&self.title, format!("a log of it has {size} bytes")));
        }
        match &self.source {
            Source::Registry(remote) => {
                let bytes = remote.client.blob(&remote.name, digest, size, cancelled)?;
                remote.client.drop_blob(digest);
                check(Path::new(&self.title), digest, bytes)
            }
            Source::Local(directory) => {
                let path = blob_path(directory, digest);
                let bytes = read(&path, MAX_LOG)?;
                check(&path, digest, bytes)
            }
        }
    }
}

impl Fetching {
    /// Makes the snapshot of the step's result, upon its parent's. The layer's digests are checked before it is there.
    pub fn place(
        mut self,
        store: &dyn Store,
        id: SnapshotId,
        parent: SnapshotId,
        progress: &mut dyn FnMut(Progress<'_>),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        match &mut self.arriving {
            Some(arriving) => arriving.place(store, id, parent, progress, cancelled)?,
            None => repeat(store, id, parent, cancelled)?,
        }
        // The download has its file open, no more.
        self.arriving = None;
        let layer = self.step.layer.as_ref();
        let blob = layer.map(|layer| (layer.blob.digest, layer.blob.size, layer.diff_id));
        let take = |digest: Digest, to: &Path| match &self.client {
            Some(client) => client.release(digest, to),
            None => Ok(()),
        };
        adopt(
            store.state_dir(),
            parent,
            id,
            &shared_layers(1),
            blob,
            &take,
        )
    }
}

/// Returns which manifest a tag of a layout means.
fn find_tag(directory: &Path, tag: &str) -> Result<Digest, Error> {
    let path = directory.join("index.json");
    let title = path.display().to_string();
    let index: Value = parse(&title, "image index", &read(&path, MAX_DOCUMENT)?)?;
    let entries = index["manifests"].as_array().map_or(&[][..], Vec::as_slice);
    let found = entries
        .iter()
        .find(|entry| entry["annotations"][TAG] == tag)
        .and_then(|entry| entry["digest"].as_str());
    match found {
        Some(text) => Digest::parse(text).map_err(|reason| bad(&title, reason)),
        None => Err(Error::NoSuchTag {
            layout: directory.to_owned(),
            tag: tag.to_owned(),
            tags: entries
                .iter()
                .filter_map(|entry| entry["annotations"][TAG].as_str())
                .map(str::to_owned)
                .collect(),
        }),
    }
}

fn read_blob(directory: &Path, digest: Digest) -> Result<Vec<u8>, Error> {
    let path = blob_path(directory, digest);
    let bytes = read(&path, MAX_DOCUMENT)?;
    check(&path, digest, bytes)
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::io("read", path, error);
    let file = fs_err::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(bad(&path.display().to_string(), "it is too large"));
    }
    Ok(bytes)
}

fn check(path: &Path, expected: Digest, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    let found = Digest::of(&bytes);
    if found == expected {
        return Ok(bytes);
    }
    Err(Error::Digest {
        path: path.to_owned(),
        what: "its digest",
        expected,
        found,
    })
}
