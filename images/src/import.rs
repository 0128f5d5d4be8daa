// SPDX-License-Identifier: Apache-2.0
//! From a resolved image to a snapshot in a store.

use crate::Error;
use crate::debootstrap::debootstrap;
use crate::docker;
use crate::layout::Layer;
use crate::lock::ImportLock;
use crate::registry::Download;
use crate::resolve::{ChainLayer, Remote, Resolved, Source, chain, open_archive};
use crate::stream::{Blob, Bytes, unpack_blob};
use crate::unpack::{Whiteouts, unpack};
use obuild_stores::{Draft, SnapshotId, Store};
use rustix::fs::{Mode, OFlags, openat};
use std::fs::File;
use std::os::fd::OwnedFd;

/// Attempts to unpack a layer whose bytes turned out to be wrong.
const ATTEMPTS: u32 = 4;

/// What an import has to say while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress<'a> {
    /// A layer or an archive is being unpacked.
    Unpack {
        /// Which one, from 1.
        layer: usize,
        /// How many the image has.
        layers: usize,
        /// Bytes of the file that have been read.
        bytes: u64,
        /// The file's size in bytes.
        total: u64,
    },
    /// Layers come from a registry; what has come of the first is being unpacked.
    Fetch {
        /// Bytes of all layers that have come.
        bytes: u64,
        /// Bytes of all layers that were missing.
        total: u64,
    },
    /// A directory is being copied.
    Copy {
        /// Bytes of files that have been copied.
        bytes: u64,
    },
    /// A layer was in the store already.
    Present {
        /// Which one, from 1.
        layer: usize,
        /// How many the image has.
        layers: usize,
    },
    /// A line that a program wrote, without its line feed.
    Line(&'a [u8]),
}

/// Brings the image into the store and returns its snapshot's id, which is [`Resolved::id`].
///
/// Each layer becomes a snapshot upon the layers below it, so that images share them; what is there is not unpacked
/// again. Digests of a layer, compressed and not, are checked before its snapshot is committed. Several threads and
/// processes may import at once.
///
/// # Errors
///
/// When a part of the image is missing, damaged or hostile, or when the store fails. Snapshots of whole layers that were
/// finished before stay; nothing else does.
pub fn import(
    resolved: &Resolved,
    store: &dyn Store,
    progress: &mut dyn FnMut(Progress<'_>),
    cancelled: &dyn Fn() -> bool,
) -> Result<SnapshotId, Error> {
    if store.get(resolved.id)?.is_some() {
        return Ok(resolved.id);
    }
    let maker = Maker { store, cancelled };
    match &resolved.source {
        Source::Scratch => maker.scratch(resolved.id)?,
        Source::Layers { layers, .. } if layers.is_empty() => maker.scratch(resolved.id)?,
        Source::Layers { layers, remote } => maker.layers(layers, remote.as_ref(), progress)?,
        Source::Daemon(image) => {
            let mut report = |bytes| {
                progress(Progress::Fetch {
                    bytes,
                    total: image.size.max(bytes),
                });
            };
            let layers = chain(docker::fetch(image, &mut report, cancelled)?.layers);
            match layers.last() {
                None => maker.scratch(resolved.id)?,
                Some(top) if top.id == resolved.id => maker.layers(&layers, None, progress)?,
                Some(_) => {
                    return Err(Error::BadImage {
                        layout: resolved.reference.to_string().into(),
                        reason: "the daemon has sent other layers than it had told of".to_owned(),
                    });
                }
            }
        }
        Source::Tar { path, digest } => maker.make(resolved.id, None, |draft| {
            let file = open_archive(path)?;
            let total = file
                .metadata()
                .map_err(|source| Error::io("read", path, source))?
                .len();
            let blob = Blob {
                bytes: Bytes::of(&file),
                path,
                digest: Some(*digest),
                content: None,
                whiteouts: Whiteouts::Literal,
            };
            let mut report = |bytes| {
                progress(Progress::Unpack {
                    layer: 1,
                    layers: 1,
                    bytes,
                    total,
                });
            };
            unpack_blob(&blob, open(draft)?, &mut report, cancelled)
        })?,
        Source::Directory { path, digest } => maker.make(resolved.id, None, |draft| {
            crate::directory::copy(path, digest, &open(draft)?, progress, cancelled)
        })?,
        Source::Debootstrap {
            suite,
            architecture,
            tools,
        } => maker.make(resolved.id, None, |draft| {
            let mut line = |line: &[u8]| progress(Progress::Line(line));
            debootstrap(
                suite,
                architecture,
                tools,
                draft.rootfs(),
                &mut line,
                cancelled,
            )
        })?,
    }
    Ok(resolved.id)
}

/// A layer on its way into a store: what [`import`] does with each layer of an image, for one alone.
pub(crate) struct Arriving {
    layer: Layer,
    downloads: Downloads,
}

impl Arriving {
    /// Begins to fetch the layer, if it has to come from elsewhere.
    pub(crate) fn start(layer: Layer, remote: Option<&Remote>) -> Result<Self, Error> {
        let downloads = Downloads::start([&layer], remote)?;
        Ok(Self { layer, downloads })
    }

    /// Makes a snapshot of the layer upon another one.
    pub(crate) fn place(
        &mut self,
        store: &dyn Store,
        id: SnapshotId,
        parent: SnapshotId,
        progress: &mut dyn FnMut(Progress<'_>),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let place = Place {
            index: 0,
            count: 1,
            whiteouts: Whiteouts::Applied,
        };
        let maker = Maker { store, cancelled };
        let downloads = &mut self.downloads;
        maker.place(
            id,
            Some(parent),
            &self.layer,
            &place,
            downloads,
            0,
            progress,
        )
    }
}

/// Makes a snapshot that is what its parent is.
pub(crate) fn repeat(
    store: &dyn Store,
    id: SnapshotId,
    parent: SnapshotId,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Error> {
    Maker { store, cancelled }.make(id, Some(parent), |_| Ok(()))
}

struct Maker<'a> {
    store: &'a dyn Store,
    cancelled: &'a dyn Fn() -> bool,
}

impl Maker<'_> {
    /// Makes a snapshot unless it is there, alone: whoever wants the same one waits and takes the result.
    fn make(
        &self,
        id: SnapshotId,
        parent: Option<SnapshotId>,
        fill: impl FnOnce(&Draft) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _lock = ImportLock::acquire(self.store.state_dir(), id, self.cancelled)?;
        if self.store.get(id)?.is_some() {
            return Ok(());
        }
        if (self.cancelled)() {
            return Err(Error::Cancelled);
        }
        let draft = self.store.prepare(id, parent)?;
        match fill(&draft) {
            Ok(()) => {
                self.store.commit(draft)?;
                Ok(())
            }
            Err(error) => {
                if let Err(discard) = self.store.discard(draft) {
                    // The store sweeps it later; the first error is the one that matters.
                    tracing::warn!(%id, %discard, "cannot throw away an unfinished import");
                }
                Err(error)
            }
        }
    }

    fn scratch(&self, id: SnapshotId) -> Result<(), Error> {
        self.make(id, None, |draft| {
            // An archive without entries gives the root its owner, mode and time.
            unpack(&b""[..], open(draft)?, Whiteouts::Literal).map_err(|source| Error::Unpack {
                path: "scratch".into(),
                source,
            })
        })
    }

    fn layers(
        &self,
        layers: &[ChainLayer],
        remote: Option<&Remote>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Error> {
        let count = layers.len();
        let mut first = 0;
        for (index, layer) in layers.iter().enumerate().rev() {
            if self.store.get(layer.id)?.is_some() {
                first = index + 1;
                break;
            }
        }
        for index in 0..first {
            progress(Progress::Present {
                layer: index + 1,
                layers: count,
            });
        }
        // All begin now; while one is unpacked, those above it come.
        let mut downloads =
            Downloads::start(layers[first..].iter().map(|chain| &chain.layer), remote)?;
        for (index, ChainLayer { id, layer }) in layers.iter().enumerate().skip(first) {
            let parent = index.checked_sub(1).map(|below| layers[below].id);
            let place = Place {
                index,
                count,
                whiteouts: if parent.is_some() {
                    Whiteouts::Applied
                } else {
                    Whiteouts::Ignored
                },
            };
            self.place(
                *id,
                parent,
                layer,
                &place,
                &mut downloads,
                index - first,
                progress,
            )?;
        }
        Ok(())
    }

    /// Makes a snapshot of a layer; `slot` is the layer's place among the downloads.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one part of the one thing that it does"
    )]
    fn place(
        &self,
        id: SnapshotId,
        parent: Option<SnapshotId>,
        layer: &Layer,
        place: &Place,
        downloads: &mut Downloads,
        slot: usize,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Error> {
        for attempt in 1.. {
            let generation = downloads.generation(slot);
            let made = self.make(id, parent, |draft| {
                let download = downloads.get(slot);
                self.layer(layer, place, draft, download, downloads, progress)
            });
            match made {
                Ok(()) => break,
                // A blob kept from before is damaged, or came wrong from a mirror and comes from elsewhere now.
                Err(error)
                    if attempt < ATTEMPTS
                        && downloads.renew(slot, generation, layer, &error)? =>
                {
                    tracing::warn!(%error, "unpacking the layer again");
                }
                Err(error) => return Err(downloads.explain(slot, error)),
            }
        }
        Ok(())
    }

    /// Unpacks one layer.
    fn layer(
        &self,
        layer: &Layer,
        place: &Place,
        draft: &Draft,
        download: Option<&Download>,
        downloads: &Downloads,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Error> {
        let file;
        let (bytes, digest) = match (download, &layer.part) {
            // It is checked on its way.
            (Some(download), _) => (Bytes::Download(download), None),
            (None, Some(part)) => {
                let bytes = Bytes::File {
                    file: &part.file,
                    offset: part.offset,
                    length: layer.size,
                };
                (bytes, layer.digest)
            }
            (None, None) => {
                file = open_layer(layer, place)?;
                (Bytes::of(&file), layer.digest)
            }
        };
        let blob = Blob {
            bytes,
            path: &layer.path,
            digest,
            content: Some(layer.diff_id),
            whiteouts: place.whiteouts,
        };
        let mut report = |bytes| match downloads.progress() {
            Some((bytes, total)) if bytes < total => {
                progress(Progress::Fetch { bytes, total });
            }
            _ => progress(Progress::Unpack {
                layer: place.index + 1,
                layers: place.count,
                bytes,
                total: layer.size,
            }),
        };
        unpack_blob(&blob, open(draft)?, &mut report, self.cancelled)
    }
}

/// Which layer of an image it is.
struct Place {
    index: usize,
    count: usize,
    whiteouts: Whiteouts,
}

fn open_layer(layer: &Layer, place: &Place) -> Result<File, Error> {
    let missing = || Error::MissingBlob {
        path: layer.path.clone(),
        what: format!("layer {} of {}", place.index + 1, place.count),
    };
    let metadata = match fs_err::metadata(&layer.path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Err(missing()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(Error::io("open", &layer.path, error)),
    };
    if metadata.len() != layer.size {
        return Err(Error::NotUsable {
            path: layer.path.clone(),
            wanted: "a whole layer",
            reason: format!("it has {} bytes instead of {}", metadata.len(), layer.size),
        });
    }
    let file =
        fs_err::File::open(&layer.path).map_err(|error| Error::io("open", &layer.path, error))?;
    Ok(file.into_parts().0)
}

/// The downloads of an image's missing layers.
struct Downloads {
    remote: Option<Remote>,
    running: Vec<Option<Download>>,
    total: u64,
}

impl Downloads {
    fn start<'l>(
        layers: impl IntoIterator<Item = &'l Layer>,
        remote: Option<&Remote>,
    ) -> Result<Self, Error> {
        let mut downloads = Self {
            remote: remote.cloned(),
            running: Vec::new(),
            total: 0,
        };
        for layer in layers {
            let download = match remote {
                Some(remote) => remote.download(layer)?,
                None => None,
            };
            if download.is_some() {
                downloads.total += layer.size;
            }
            downloads.running.push(download);
        }
        Ok(downloads)
    }

    fn get(&self, index: usize) -> Option<&Download> {
        self.running.get(index)?.as_ref()
    }

    fn generation(&self, index: usize) -> u32 {
        self.get(index).map_or(0, Download::generation)
    }

    /// Returns the bytes that have come, and all that are to come, if any are.
    fn progress(&self) -> Option<(u64, u64)> {
        let bytes = self.running.iter().flatten().map(Download::available).sum();
        (self.total > 0).then_some((bytes, self.total))
    }

    /// Sees to it that another attempt reads other bytes; returns whether it would.
    fn renew(
        &mut self,
        index: usize,
        generation: u32,
        layer: &Layer,
        error: &Error,
    ) -> Result<bool, Error> {
        let Some(remote) = &self.remote else {
            return Ok(false);
        };
        if self.get(index).is_some() {
            return Ok(self.generation(index) != generation);
        }
        let damaged = matches!(
            error,
            Error::Digest { .. } | Error::NotUsable { .. } | Error::MissingBlob { .. }
        );
        if !damaged {
            return Ok(false);
        }
        remote.forget(layer);
        self.running[index] = remote.download(layer)?;
        Ok(self.running[index].is_some())
    }

    /// Puts a download's own error in the place of what its reader saw of it.
    fn explain(&self, index: usize, error: Error) -> Error {
        let failure = self.get(index).and_then(Download::failure);
        match (&self.remote, failure, error) {
            (_, _, Error::Cancelled) => Error::Cancelled,
            (Some(remote), Some(source), _) => Error::Registry {
                image: remote.name.to_string(),
                source,
            },
            (_, _, error) => error,
        }
    }
}

fn open(draft: &Draft) -> Result<OwnedFd, Error> {
    let top = draft.rootfs().open()?;
    // The store gives a descriptor that only names the place.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&top, ".", flags, Mode::empty())
        .map_err(|source| Error::io("open the tree of", draft.id().to_string(), source))
}
