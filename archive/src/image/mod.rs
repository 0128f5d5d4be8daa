// SPDX-License-Identifier: Apache-2.0
//! The archive as an OCI image whose layers are a log: each time what is new becomes one small layer, and now and then small layers
//! become one. Their number stays small, a byte is sent again O(log n) times in its life, and the first, large layer never.
//!
//! From the lowest: the layers of a base image, a program, a directory that never changes, packs of archives (the oldest first), and the
//! index with the pages of a site. All of it is below `/srv`. A layer is not kept: it is made again when a registry
//! lacks it (see `stream`), so that an image costs no room beside the archive.
//!
//! [`plan`] says what is to be done, [`Plan::make`] does it, [`ArchiveImage`] goes to a registry or into an image layout.

mod document;
mod files;
mod ledger;
mod output;
mod pack;
mod stream;
#[cfg(test)]
mod tests;
mod tiers;

pub use output::PushOptions;

use crate::cache::{Cache, CacheError};
use crate::state::StateError;
use files::File;
use ledger::{DirectoryRecord, Ledger, PackRecord};
use obuild_images::registry::{BlobData, BlobSource};
use obuild_images::{BaseLayer, Digest, ImageConfig};
use pack::{Member, Pack};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stream::{Pieces, Reader};

/// Where everything is in the image.
const ROOT: &str = "srv/";

/// There are never more packs than these and the first one. With a base image of eight layers and all else that makes 36.
const PACKS: usize = 24;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file could not be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An archive is not what its name says.
    #[error("{} is damaged; `obuild archive verify` puts it away, the next sync fetches it again", path.display())]
    Damaged {
        /// The archive.
        path: PathBuf,
    },
    /// A file's name cannot be in a layer.
    #[error("{:?} has a name that cannot be in a layer", path)]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// Something that is neither file, directory nor symbolic link.
    #[error("{} is neither a file nor a directory nor a symbolic link", path.display())]
    Kind {
        /// What it is.
        path: PathBuf,
    },
    /// A newer obuild wrote what is known of the layers.
    #[error("a newer obuild wrote what is known of the image's layers (format {format})")]
    Newer {
        /// Its format.
        format: u32,
    },
    /// The cache cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// What is known of the layers cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// A registry, or a base image.
    #[error(transparent)]
    Image(#[from] obuild_images::Error),
    /// The caller wanted to stop.
    #[error("interrupted")]
    Cancelled,
}

/// What goes into the image beside the archives and their index.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// The layers below all others.
    pub base: Vec<BaseLayer>,
    /// What the image says of processes.
    pub config: ImageConfig,
    /// A program, which becomes `/usr/bin/obuild`.
    pub program: Option<PathBuf>,
    /// A directory that never changes, which becomes `/srv/legacy`.
    pub legacy: Option<PathBuf>,
    /// A directory that may change each time, which becomes `/srv/www`.
    pub site: Option<PathBuf>,
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A layer of the base image.
    Base,
    /// The program.
    Program,
    /// The directory that never changes.
    Legacy,
    /// Archives, so many.
    Archives(u64),
    /// The index and the site.
    Site,
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is as it was.
    Keep,
    /// It is new.
    Add,
    /// So many packs become one.
    Merge(usize),
    /// It lost archives that were removed.
    Renew,
}

/// A layer of the image to be.
#[derive(Clone, Debug)]
pub struct PlannedLayer {
    /// What it holds.
    pub contents: Contents,
    /// What becomes of it.
    pub action: Action,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest, unless it has to be made to know it.
    pub digest: Option<Digest>,
    parts: Parts,
}

/// Where a layer's bytes come from.
#[derive(Clone, Debug)]
enum Parts {
    Base(BaseLayer),
    Pack { pack: Arc<Pack>, base: bool },
    Files(Arc<Vec<File>>),
}

impl Parts {
    fn pieces(&self, cache: &Cache) -> Pieces {
        match self {
            Self::Base(_) => Box::new(std::iter::empty()),
            Self::Pack { pack, .. } => pack.pieces(cache),
            Self::Files(files) => files::pieces(files.to_vec()),
        }
    }
}

/// What an image will be, and what that takes.
#[derive(Debug)]
pub struct Plan {
    directory: PathBuf,
    cache: Cache,
    ledger: Ledger,
    config: ImageConfig,
    legacy: Option<(String, String)>,
    /// The layers, the lowest first.
    pub layers: Vec<PlannedLayer>,
    /// How many archives are new, and their bytes.
    pub new: (u64, u64),
}

/// Decides what the image of the archive in `directory` will be. Reads names and sizes only. The archive must be locked
/// ([`crate::cache::Lock`]) until the image is where it shall be.
pub fn plan(directory: &Path, options: &ImageOptions) -> Result<Plan, ImageError> {
    let cache = Cache::open(directory)?;
    let ledger = Ledger::read(directory)?;
    let mut layers: Vec<PlannedLayer> = options
        .base
        .iter()
        .map(|base| PlannedLayer {
            contents: Contents::Base,
            action: Action::Keep,
            size: base.size,
            digest: Some(base.digest),
            parts: Parts::Base(base.clone()),
        })
        .collect();
    if let Some(program) = &options.program {
        let files = vec![files::file(program, "usr/bin/obuild")?];
        layers.push(of_files(&cache, Contents::Program, files));
    }
    let mut legacy = None;
    if let Some(root) = &options.legacy {
        let (files, stamp) = files::tree(root, &format!("{ROOT}legacy/"))?;
        let mut layer = of_files(&cache, Contents::Legacy, files);
        let name = root.to_string_lossy().into_owned();
        if let Some(known) = ledger.directories.get(&name)
            && known.stamp == stamp
            && known.size == layer.size
        {
            layer.digest = Digest::parse(&known.digest).ok();
            layer.action = Action::Keep;
        }
        legacy = Some((name, stamp));
        layers.push(layer);
    }
    let new = packs(directory, &cache, &ledger, &mut layers)?;
    let mut top = Vec::new();
    for name in ["index.tar.gz", "repo"] {
        let path = directory.join(name);
        if path.exists() {
            top.push(files::file(&path, &format!("{ROOT}{name}"))?);
        }
    }
    if let Some(site) = &options.site {
        top.extend(files::tree(site, &format!("{ROOT}www/"))?.0);
    }
    if !top.is_empty() {
        layers.push(of_files(&cache, Contents::Site, top));
    }
    Ok(Plan {
        directory: directory.to_owned(),
        cache,
        ledger,
        config: options.config.clone(),
        legacy,
        layers,
        new,
    })
}

fn of_files(cache: &Cache, contents: Contents, files: Vec<File>) -> PlannedLayer {
    let parts = Parts::Files(Arc::new(files));
    PlannedLayer {
        contents,
        action: Action::Add,
        size: stream::length(parts.pieces(cache)),
        digest: None,
        parts,
    }
}

/// A pack on its way from what is known to what will be.
struct Draft {
    pack: Pack,
    base: bool,
    action: Action,
    known: Option<PackRecord>,
}

/// Adds the packs to the layers. Returns how many archives are in none yet, and their bytes.
fn packs(
    directory: &Path,
    cache: &Cache,
    ledger: &Ledger,
    layers: &mut Vec<PlannedLayer>,
) -> Result<(u64, u64), ImageError> {
    let mut there: HashMap<Vec<crate::Checksum>, u64> = cache
        .walk()?
        .files
        .into_iter()
        .map(|file| (file.names, file.size))
        .collect();
    let mut drafts = Vec::new();
    for record in &ledger.packs {
        let Some(pack) = Ledger::pack(directory, record) else {
            continue;
        };
        let before = pack.members.len();
        let members: Vec<Member> = pack
            .members
            .into_iter()
            // An archive that has got another name is packed again with all of them.
            .filter(|member| there.remove(&member.names) == Some(member.size))
            .collect();
        let same = members.len() == before;
        if !members.is_empty() {
            drafts.push(Draft {
                pack: Pack { members },
                base: record.base,
                action: if same { Action::Keep } else { Action::Renew },
                known: same.then(|| record.clone()),
            });
        }
    }
    let members: Vec<Member> = there
        .into_iter()
        .map(|(names, size)| Member { names, size })
        .collect();
    let pack = Pack::new(members);
    let new = (pack.members.len() as u64, pack.content_bytes());
    if new.0 > 0 {
        drafts.push(Draft {
            pack,
            base: drafts.is_empty(),
            action: Action::Add,
            known: None,
        });
    }
    merge(&mut drafts);
    for draft in drafts {
        let archives = draft.pack.members.len() as u64;
        let parts = Parts::Pack {
            pack: Arc::new(draft.pack),
            base: draft.base,
        };
        let digest = draft
            .known
            .as_ref()
            .and_then(|record| Digest::parse(&record.digest).ok());
        layers.push(PlannedLayer {
            contents: Contents::Archives(archives),
            action: draft.action,
            size: stream::length(parts.pieces(cache)),
            digest,
            parts,
        });
    }
    Ok(new)
}

/// Merges packs until there are few enough. What they become takes the place of the lowest: what is below stays as it is for those that
/// have pulled it.
fn merge(drafts: &mut Vec<Draft>) {
    let places: Vec<usize> = (0..drafts.len())
        .filter(|place| !drafts[*place].base)
        .collect();
    let sizes: Vec<u64> = places
        .iter()
        .map(|place| drafts[*place].pack.content_bytes())
        .collect();
    let chosen: Vec<usize> = tiers::choose(&sizes, PACKS)
        .into_iter()
        .map(|chosen| places[chosen])
        .collect();
    let Some(lowest) = chosen.first() else { return };
    let mut members = Vec::new();
    for place in chosen.iter().rev() {
        members.append(&mut drafts.remove(*place).pack.members);
    }
    drafts.insert(
        *lowest,
        Draft {
            pack: Pack::new(members),
            base: false,
            action: Action::Merge(chosen.len()),
            known: None,
        },
    );
}

impl Plan {
    /// Makes the image. What the layers are is remembered, so that the next image has the same. `tick` is told of every part of the archives
    /// that is read, and says whether to stop.
    pub fn make(mut self, tick: &mut dyn FnMut(u64) -> bool) -> Result<ArchiveImage, ImageError> {
        let mut layers = Vec::new();
        let mut records = Vec::new();
        for planned in self.layers {
            let digest = if let Some(digest) = planned.digest {
                digest
            } else {
                let (digest, size) = stream::measure(planned.parts.pieces(&self.cache), tick)?;
                debug_assert_eq!(size, planned.size, "the layer is what was planned");
                Digest::from_bytes(digest)
            };
            let layer = match planned.parts {
                Parts::Base(base) => Layer {
                    digest: base.digest,
                    diff_id: base.diff_id,
                    size: base.size,
                    media_type: base.media_type,
                    data: base.data,
                },
                parts => {
                    if let Parts::Pack { pack, base } = &parts {
                        if planned.action != Action::Keep {
                            Ledger::write_pack(&self.directory, digest, pack)?;
                        }
                        records.push(PackRecord {
                            digest: digest.to_string(),
                            size: planned.size,
                            archives: pack.members.len() as u64,
                            base: *base,
                        });
                    }
                    if planned.contents == Contents::Legacy
                        && let Some((name, stamp)) = self.legacy.take()
                    {
                        let record = DirectoryRecord {
                            stamp,
                            digest: digest.to_string(),
                            size: planned.size,
                        };
                        self.ledger.directories = BTreeMap::from([(name, record)]);
                    }
                    Layer {
                        digest,
                        diff_id: digest,
                        size: planned.size,
                        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
                        data: BlobData::Source(Arc::new(Made {
                            cache: self.cache.clone(),
                            parts,
                        })),
                    }
                }
            };
            layers.push(layer);
        }
        if self.ledger.packs != records || self.legacy.is_none() {
            self.ledger.packs = records;
            self.ledger.write(&self.directory)?;
        }
        let config = document::config(&self.config, &layers);
        let manifest = document::manifest(&config, &layers);
        Ok(ArchiveImage {
            directory: self.directory,
            ledger: self.ledger,
            layers,
            config,
            manifest,
        })
    }

    /// Returns how many bytes of layers have to be sent to a place that the image was pushed to before, as far as is known.
    pub fn to_send(&self, name: &str) -> u64 {
        let known: HashSet<&str> = match self.ledger.pushed.get(name) {
            Some(pushed) => pushed.layers.iter().map(String::as_str).collect(),
            None => HashSet::new(),
        };
        self.layers
            .iter()
            .filter(|layer| {
                layer
                    .digest
                    .is_none_or(|digest| !known.contains(digest.to_string().as_str()))
            })
            .map(|layer| layer.size)
            .sum()
    }
}

/// A layer that is made when somebody reads it.
struct Made {
    cache: Cache,
    parts: Parts,
}

impl BlobSource for Made {
    fn open(&self, _: Digest, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Reader::new(
            self.parts.pieces(&self.cache),
            offset,
        )?))
    }
}

/// A layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The digest of the blob.
    pub digest: Digest,
    /// The digest of the archive that it is when it is not compressed.
    pub diff_id: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// What it is.
    pub media_type: String,
    data: BlobData,
}

/// An image of the archive.
#[derive(Debug)]
pub struct ArchiveImage {
    directory: PathBuf,
    ledger: Ledger,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}
