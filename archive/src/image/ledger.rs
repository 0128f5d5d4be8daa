// SPDX-License-Identifier: Apache-2.0
//! What is remembered of the image between syncs: which archives are in which pack, and what registries were sent.
//!
//! `.obuild/image/ledger.json`, and beside it the list of each pack, named by its layer's digest. Lists are written before the ledger
//! that names them, which is replaced at once; so a crash leaves the ledger of before or that of after. Without any
//! the next image begins anew, with one pack.

use super::pack::Pack;
use super::{ImageError, PACKS};
use crate::cache::private;
use crate::replace::replace;
use crate::state::Unix;
use fs_err as fs;
use obuild_images::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// Raised when a released version's files would be misunderstood.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    format: u32,
    /// The packs, the oldest first.
    pub(super) packs: Vec<PackRecord>,
    /// The layer with the index and the site.
    #[serde(default)]
    pub(super) top: Option<TopRecord>,
    /// Directories that never change, by their paths.
    pub(super) directories: BTreeMap<String, DirectoryRecord>,
    /// What is at each place that the image was pushed to.
    pub(super) pushed: BTreeMap<String, Pushed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PackRecord {
    /// The layer's digest.
    pub(super) digest: String,
    /// The layer's size in bytes.
    pub(super) size: u64,
    /// How many archives it holds.
    pub(super) archives: u64,
    /// How many parts of the index.
    #[serde(default)]
    pub(super) parts: u64,
    /// How many names of archives it hides.
    #[serde(default)]
    pub(super) gone: u64,
    /// Whether it is the one that the image began with, which is never merged with others.
    pub(super) base: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TopRecord {
    /// The layer's digest.
    pub(super) digest: String,
    /// The time that its files have, so that the same files have it again.
    pub(super) modified: Unix,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DirectoryRecord {
    /// What its files looked like when the layer was made.
    pub(super) stamp: String,
    pub(super) digest: String,
    pub(super) size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pushed {
    /// The digest of the manifest.
    pub(super) manifest: String,
    /// The digests of the layers.
    pub(super) layers: Vec<String>,
    pub(super) at: Unix,
}

fn folder(directory: &Path) -> PathBuf {
    private(directory).join("image")
}

impl Ledger {
    /// Reads the ledger of the archive in a directory.
    pub(super) fn read(directory: &Path) -> Result<Self, ImageError> {
        let path = folder(directory).join("ledger.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ImageError::Read { path, source }),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(ledger) if ledger.format > FORMAT => Err(ImageError::Newer {
                format: ledger.format,
            }),
            Ok(ledger) => Ok(ledger),
            Err(error) => {
                tracing::warn!(%error, "what is known of the image's layers is damaged; they are made anew");
                Ok(Self::default())
            }
        }
    }

    /// Returns whether all these places have the layer of a pack, as far as is known.
    pub(super) fn is_at(&self, places: &[String], pack: &PackRecord) -> bool {
        let has = |place: &String| {
            let pushed = self.pushed.get(place);
            pushed.is_some_and(|pushed| pushed.layers.contains(&pack.digest))
        };
        !places.is_empty() && places.iter().all(has)
    }

    /// Reads the list of a pack; `None` if it is lost or damaged, so that its archives have to be packed again.
    pub(super) fn pack(directory: &Path, record: &PackRecord) -> Option<Pack> {
        let digest = Digest::parse(&record.digest).ok()?;
        let text = fs::read_to_string(list(directory, digest)).ok()?;
        Pack::parse(&text).filter(|pack| {
            let lengths = [pack.members.len(), pack.parts.len(), pack.gone.len()];
            lengths.map(|length| length as u64) == [record.archives, record.parts, record.gone]
        })
    }

    /// Writes the list of a pack.
    pub(super) fn write_pack(
        directory: &Path,
        digest: Digest,
        pack: &Pack,
    ) -> Result<(), ImageError> {
        let path = list(directory, digest);
        fs::create_dir_all(path.parent().unwrap_or(directory))
            .and_then(|()| replace(&path, pack.to_text().as_bytes()))
            .map_err(|source| ImageError::Write { path, source })
    }

    /// Writes the ledger, and forgets the lists that it does not name.
    pub(super) fn write(&mut self, directory: &Path) -> Result<(), ImageError> {
        debug_assert!(self.packs.len() <= PACKS + 1, "there is a limit");
        self.format = FORMAT;
        let folder = folder(directory);
        let path = folder.join("ledger.json");
        let failed = |source| ImageError::Write {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        replace(&path, &text).map_err(failed)?;
        let named: HashSet<PathBuf> = self
            .packs
            .iter()
            .filter_map(|pack| Some(list(directory, Digest::parse(&pack.digest).ok()?)))
            .collect();
        if let Ok(entries) = fs::read_dir(folder.join("packs")) {
            for entry in entries.flatten() {
                if !named.contains(&entry.path()) {
                    // One that stays costs a few bytes.
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(())
    }
}

/// Returns where the parts of the index are that packs hold.
pub(super) fn parts(directory: &Path) -> PathBuf {
    folder(directory).join("index")
}

fn list(directory: &Path, digest: Digest) -> PathBuf {
    folder(directory)
        .join("packs")
        .join(digest.to_string().replace(':', "-"))
}
