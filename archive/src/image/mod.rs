// SPDX-License-Identifier: Apache-2.0
//! The archive as an OCI image whose layers are a log: each time what is new becomes one small layer, and now and then small layers
//! become one. Their number stays small, a byte is sent again O(log n) times in its life, and the first, large layer never.
//!
//! From the lowest: the layers of a base image, a program, a directory that never changes, packs of archives (the oldest first), and the
//! index with the pages of a site. All of it is below `/srv`. Where our own server is in the image, the index is there in parts, which are in
//! packs like archives, and the uppermost layer has the list of them alone. A layer is not kept: it is made again when a registry
//! lacks it (see `stream`), so that an image costs no room beside the archive.
//!
//! [`plan`] says what is to be done, [`Plan::make`] does it, [`ArchiveImage`] goes to a registry or into an image layout.

mod files;
mod ledger;
mod output;
mod pack;
mod stream;
#[cfg(test)]
mod tests;
mod tiers;

pub use output::PushOptions;

use crate::Checksum;
use crate::cache::{Cache, CacheError};
use crate::index::{self, Index};
use crate::state::{State, Unix};
use files::{File, Kind};
use ledger::{DirectoryRecord, Ledger, PackRecord, TopRecord};
use obuild_images::registry::{BlobData, BlobSource};
use obuild_images::{BaseLayer, Digest, ImageConfig, StackedImage};
use pack::{IndexPart, Member, Pack, Places};
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
    /// The index cannot be taken to parts.
    #[error(transparent)]
    Index(#[from] index::Error),
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
    /// Whether the index is there in parts, for our own server to put together.
    pub parts: bool,
    /// Where the image goes, by the names that it was [pushed](ArchiveImage::push) to. A layer that all of these places have stays as it is when archives in it
    /// were removed, and a new one hides them; any other is made anew without them. Nothing if the image goes elsewhere, too.
    pub places: Vec<String>,
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
    /// Archives, so many, parts of the index, and names of archives that are hidden.
    Archives(u64, u64, u64),
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
    Pack {
        pack: Arc<Pack>,
        base: bool,
        /// Some of it is not there any more, so that it cannot be made.
        lost: bool,
    },
    /// Files, and the time that they have.
    Files(Arc<Vec<File>>, u64),
}

impl Parts {
    fn pieces(&self, places: &Places) -> Pieces {
        match self {
            Self::Base(_) => Box::new(std::iter::empty()),
            Self::Pack { pack, .. } => pack.pieces(places),
            Self::Files(files, modified) => files::pieces(files.to_vec(), *modified),
        }
    }
}

/// What an image will be, and what that takes.
#[derive(Debug)]
pub struct Plan {
    directory: PathBuf,
    places: Places,
    /// The index whose parts the image has.
    index: Option<Index>,
    ledger: Ledger,
    config: ImageConfig,
    legacy: Option<(String, String)>,
    /// When the repository's commit was made.
    committed: Option<Unix>,
    /// The layers, the lowest first.
    pub layers: Vec<PlannedLayer>,
    /// How many archives are new, and their bytes.
    pub new: (u64, u64),
}

/// Decides what the image of the archive in `directory` will be. Reads names and sizes only. The archive must be locked
/// ([`crate::cache::Lock`]) until the image is where it shall be.
pub fn plan(directory: &Path, options: &ImageOptions) -> Result<Plan, ImageError> {
    let places = Places {
        cache: Cache::open(directory)?,
        parts: ledger::parts(directory),
    };
    let ledger = Ledger::read(directory)?;
    let index = if options.parts {
        Index::published(directory)?
    } else {
        None
    };
    if options.parts && index.is_none() && directory.join("index.tar.gz").exists() {
        tracing::warn!("nothing is known of this index.tar.gz; it goes as one file, not in parts");
    }
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
        layers.push(of_files(&places, Contents::Program, files));
    }
    let mut legacy = None;
    if let Some(root) = &options.legacy {
        let (files, stamp) = files::tree(root, &format!("{ROOT}legacy/"))?;
        let mut layer = of_files(&places, Contents::Legacy, files);
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
    let new = packs(
        directory,
        &places,
        &ledger,
        index.as_ref(),
        options,
        &mut layers,
    )?;
    let mut top = Vec::new();
    if let Some(index) = &index {
        top.push(File {
            name: format!("{ROOT}index/{}", index::LIST),
            kind: Kind::Bytes(index.list().into()),
        });
    }
    for name in ["index.tar.gz", "repo"] {
        if index.is_some() && name == "index.tar.gz" {
            continue;
        }
        let path = directory.join(name);
        if path.exists() {
            top.push(files::file(&path, &format!("{ROOT}{name}"))?);
        }
    }
    if let Some(site) = &options.site {
        top.extend(files::tree(site, &format!("{ROOT}www/"))?.0);
    }
    if !top.is_empty() {
        layers.push(of_files(&places, Contents::Site, top));
    }
    Ok(Plan {
        directory: directory.to_owned(),
        places,
        index,
        ledger,
        config: options.config.clone(),
        legacy,
        // Without a time it is that of the files.
        committed: State::read(directory)
            .ok()
            .and_then(|state| state.committed),
        layers,
        new,
    })
}

fn of_files(places: &Places, contents: Contents, files: Vec<File>) -> PlannedLayer {
    let parts = Parts::Files(Arc::new(files), 0);
    PlannedLayer {
        contents,
        action: Action::Add,
        size: stream::length(parts.pieces(places)),
        digest: None,
        parts,
    }
}

/// A pack on its way from what is known to what will be.
struct Draft {
    /// What is in it that is still there.
    live: Pack,
    /// What else its layer holds, if that stays as it is: archives that are hidden by a layer above.
    dead: Vec<Member>,
    base: bool,
    action: Action,
    /// The layer as it is, with all that it holds.
    known: Option<(PackRecord, Pack)>,
}

/// Adds the packs to the layers. Returns how many archives are in none yet, and their bytes.
fn packs(
    directory: &Path,
    places: &Places,
    ledger: &Ledger,
    index: Option<&Index>,
    options: &ImageOptions,
    layers: &mut Vec<PlannedLayer>,
) -> Result<(u64, u64), ImageError> {
    let mut there: HashMap<Vec<Checksum>, u64> = places
        .cache
        .walk()?
        .files
        .into_iter()
        .map(|file| (file.names, file.size))
        .collect();
    let live: HashSet<Checksum> = there.keys().flatten().cloned().collect();
    let mut wanted: HashSet<IndexPart> = index
        .map(Index::parts)
        .unwrap_or_default()
        .into_iter()
        .map(|part| IndexPart {
            name: part.name(),
            size: part.bytes,
        })
        .collect();
    let used = wanted.clone();
    let mut drafts = Vec::new();
    // From the uppermost on: what a pack hides is not to be seen in the lower ones, be it there again or not.
    let mut hidden: HashSet<Checksum> = HashSet::new();
    let mut gone: Vec<Checksum> = Vec::new();
    for record in ledger.packs.iter().rev() {
        let Some(pack) = Ledger::pack(directory, record) else {
            continue;
        };
        // An archive that has got another name is packed again with all of them.
        let (members, dead): (Vec<Member>, Vec<Member>) =
            pack.members.iter().cloned().partition(|member| {
                !member.names.iter().any(|name| hidden.contains(name))
                    && there.get(&member.names) == Some(&member.size)
                    && there.remove(&member.names).is_some()
            });
        let parts: Vec<IndexPart> = pack
            .parts
            .iter()
            .filter(|part| wanted.remove(*part) || part.is_in(&places.parts))
            .cloned()
            .collect();
        let same = dead.is_empty() && parts.len() == pack.parts.len();
        let stays = same || ledger.is_at(&options.places, record);
        let live_pack = Pack {
            members,
            parts,
            gone: pack.gone.clone(),
        };
        if live_pack.is_empty() {
            continue;
        }
        let names = dead.iter().flat_map(|member| &member.names);
        let names = names.filter(|name| !live.contains(name) && !hidden.contains(name));
        if stays {
            gone.extend(names.cloned());
        }
        hidden.extend(pack.gone.iter().cloned());
        drafts.push(Draft {
            live: live_pack,
            dead: if stays { dead } else { Vec::new() },
            base: record.base,
            action: if stays { Action::Keep } else { Action::Renew },
            known: stays.then(|| (record.clone(), pack)),
        });
    }
    drafts.reverse();
    let members: Vec<Member> = there
        .into_iter()
        .map(|(names, size)| Member { names, size })
        .collect();
    let new = (
        members.len() as u64,
        members.iter().map(|member| member.size).sum(),
    );
    let pack = Pack::new(members, wanted.into_iter().collect(), gone);
    if !pack.is_empty() {
        drafts.push(Draft {
            live: pack,
            dead: Vec::new(),
            base: drafts.is_empty(),
            action: Action::Add,
            known: None,
        });
    }
    merge(&mut drafts, &used, &live);
    // A pack that hides only what is not below any more.
    let mut below: HashSet<Checksum> = HashSet::new();
    drafts.retain(|draft| {
        let pack = &draft.live;
        let is_full = !pack.members.is_empty() || !pack.parts.is_empty();
        let stays = is_full || pack.gone.iter().any(|name| below.contains(name));
        let dead = draft.dead.iter().filter(|_| stays);
        below.extend(dead.flat_map(|member| member.names.iter().cloned()));
        stays
    });
    for draft in drafts {
        let contents = Contents::Archives(
            draft.live.members.len() as u64,
            draft.live.parts.len() as u64,
            draft.live.gone.len() as u64,
        );
        let lost = draft
            .known
            .as_ref()
            .is_some_and(|(_, pack)| *pack != draft.live);
        let (known, pack) = match draft.known {
            Some((record, pack)) => (
                Digest::parse(&record.digest)
                    .ok()
                    .map(|digest| (digest, record.size)),
                pack,
            ),
            None => (None, draft.live),
        };
        let parts = Parts::Pack {
            pack: Arc::new(pack),
            base: draft.base,
            lost,
        };
        layers.push(PlannedLayer {
            contents,
            action: draft.action,
            size: match known {
                Some((_, size)) => size,
                None => stream::length(parts.pieces(places)),
            },
            digest: known.map(|(digest, _)| digest),
            parts,
        });
    }
    Ok(new)
}

/// Merges packs until there are few enough. What they become takes the place of the lowest: what is below stays as it is for those that
/// have pulled it. If something is hidden, it takes that of the highest, so that nothing that is hidden, and nothing that hides, changes sides.
/// Parts of the index that are not in use stay behind, and so do whiteouts of what is not below any more.
fn merge(drafts: &mut Vec<Draft>, used: &HashSet<IndexPart>, live: &HashSet<Checksum>) {
    let places: Vec<usize> = (0..drafts.len())
        .filter(|place| !drafts[*place].base)
        .collect();
    let sizes: Vec<u64> = places
        .iter()
        .map(|place| drafts[*place].live.content_bytes())
        .collect();
    let chosen: Vec<usize> = tiers::choose(&sizes, PACKS)
        .into_iter()
        .map(|chosen| places[chosen])
        .collect();
    let (Some(lowest), Some(highest)) = (chosen.first(), chosen.last()) else {
        return;
    };
    let hides = drafts.iter().any(|draft| !draft.live.gone.is_empty());
    let place = if hides {
        highest + 1 - chosen.len()
    } else {
        *lowest
    };
    let (mut members, mut parts, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for place in chosen.iter().rev() {
        let mut pack = drafts.remove(*place).live;
        members.append(&mut pack.members);
        parts.extend(pack.parts.into_iter().filter(|part| used.contains(part)));
        gone.append(&mut pack.gone);
    }
    let below = drafts[..place].iter().flat_map(|draft| &draft.dead);
    let below: HashSet<&Checksum> = below.flat_map(|member| &member.names).collect();
    gone.retain(|name| below.contains(name) && !live.contains(name));
    let pack = Pack::new(members, parts, gone);
    if pack.is_empty() {
        return;
    }
    drafts.insert(
        place,
        Draft {
            live: pack,
            dead: Vec::new(),
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
        if let Some(index) = &self.index {
            index.write_segments(&self.places.parts)?;
        }
        let mut layers = Vec::new();
        let mut records = Vec::new();
        let mut parts_kept = HashSet::new();
        for mut planned in std::mem::take(&mut self.layers) {
            if planned.contents == Contents::Site {
                self.date(&mut planned, tick)?;
            }
            let digest = if let Some(digest) = planned.digest {
                digest
            } else {
                let (digest, size) = stream::measure(planned.parts.pieces(&self.places), tick)?;
                debug_assert_eq!(size, planned.size, "the layer is what was planned");
                Digest::from_bytes(digest)
            };
            let layer = match planned.parts {
                Parts::Base(base) => base,
                parts => {
                    if let Parts::Pack { pack, base, .. } = &parts {
                        if planned.action != Action::Keep {
                            Ledger::write_pack(&self.directory, digest, pack)?;
                        }
                        records.push(PackRecord {
                            digest: digest.to_string(),
                            size: planned.size,
                            archives: pack.members.len() as u64,
                            parts: pack.parts.len() as u64,
                            gone: pack.gone.len() as u64,
                            base: *base,
                        });
                        parts_kept.extend(pack.parts.iter().map(|part| part.name.clone()));
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
                    BaseLayer {
                        digest,
                        diff_id: digest,
                        size: planned.size,
                        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
                        data: BlobData::Source(Arc::new(Made {
                            places: self.places.clone(),
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
        // Only when the ledger does not name their packs any more.
        for found in fs_err::read_dir(&self.places.parts)
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = found.file_name();
            if !name.to_str().is_some_and(|name| parts_kept.contains(name)) {
                // One that stays costs a few bytes.
                let _ = fs_err::remove_file(found.path());
            }
        }
        Ok(ArchiveImage {
            directory: self.directory,
            ledger: self.ledger,
            image: StackedImage::new(&self.config, layers),
        })
    }

    /// Finds the time that the files of the uppermost layer have, and what the layer is with it.
    ///
    /// Web servers tell by a file's time whether it is another one, so it has to grow whenever something changed; and it must not
    /// change for anything else, or the layer would be sent again. So it is the commit's, but later than that of what was there before; and
    /// it is remembered.
    fn date(
        &mut self,
        planned: &mut PlannedLayer,
        tick: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ImageError> {
        let Parts::Files(files, modified) = &mut planned.parts else {
            return Ok(());
        };
        let time = self.committed.unwrap_or_else(|| files::newest(files));
        let mut measure = |modified| -> Result<Digest, ImageError> {
            let (digest, _) = stream::measure(files::pieces(files.to_vec(), modified), tick)?;
            Ok(Digest::from_bytes(digest))
        };
        let before = self.ledger.top.take();
        let same = match &before {
            Some(top) => {
                let digest = measure(top.modified)?;
                (digest.to_string() == top.digest).then_some((digest, top.modified))
            }
            None => None,
        };
        let (digest, time) = if let Some(same) = same {
            same
        } else {
            let time = time.max(before.map_or(0, |top| top.modified + 1));
            (measure(time)?, time)
        };
        *modified = time;
        planned.digest = Some(digest);
        self.ledger.top = Some(TopRecord {
            digest: digest.to_string(),
            modified: time,
        });
        Ok(())
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
    places: Places,
    parts: Parts,
}

impl BlobSource for Made {
    fn open(&self, _: Digest, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        if let Parts::Pack { lost: true, .. } = self.parts {
            return Err(io::Error::other(
                "it is not where it was pushed to, and holds archives that `obuild archive gc` removed; --rebase makes one without them",
            ));
        }
        Ok(Box::new(Reader::new(
            self.parts.pieces(&self.places),
            offset,
        )?))
    }
}

/// An image of the archive.
#[derive(Debug)]
pub struct ArchiveImage {
    directory: PathBuf,
    ledger: Ledger,
    image: StackedImage,
}
