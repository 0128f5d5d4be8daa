// SPDX-License-Identifier: Apache-2.0
//! From a resolved image to a snapshot in a store.

use crate::Error;
use crate::debootstrap::debootstrap;
use crate::lock::ImportLock;
use crate::resolve::{ChainLayer, Resolved, Source, open_archive};
use crate::stream::{Blob, unpack_blob};
use crate::unpack::{Whiteouts, unpack};
use obuild_stores::{Draft, SnapshotId, Store};
use rustix::fs::{Mode, OFlags, openat};
use std::os::fd::OwnedFd;

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
        Source::Layers(layers) if layers.is_empty() => maker.scratch(resolved.id)?,
        Source::Layers(layers) => maker.layers(layers, progress)?,
        Source::Tar { path, digest } => maker.make(resolved.id, None, |draft| {
            let file = open_archive(path)?;
            let total = file
                .metadata()
                .map_err(|source| Error::io("read", path, source))?
                .len();
            let blob = Blob {
                file: &file,
                path,
                digest: *digest,
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
        for (index, ChainLayer { id, layer }) in layers.iter().enumerate().skip(first) {
            let parent = index.checked_sub(1).map(|below| layers[below].id);
            self.make(*id, parent, |draft| {
                let missing = || Error::MissingBlob {
                    path: layer.path.clone(),
                    what: format!("layer {} of {count}", index + 1),
                };
                let metadata = match fs_err::metadata(&layer.path) {
                    Ok(metadata) if metadata.is_file() => metadata,
                    Ok(_) => return Err(missing()),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        return Err(missing());
                    }
                    Err(error) => return Err(Error::io("open", &layer.path, error)),
                };
                if metadata.len() != layer.size {
                    return Err(Error::NotUsable {
                        path: layer.path.clone(),
                        wanted: "a whole layer",
                        reason: format!(
                            "it has {} bytes instead of {}",
                            metadata.len(),
                            layer.size
                        ),
                    });
                }
                let file = fs_err::File::open(&layer.path)
                    .map_err(|error| Error::io("open", &layer.path, error))?;
                let blob = Blob {
                    file: file.file(),
                    path: &layer.path,
                    digest: layer.digest,
                    content: Some(layer.diff_id),
                    whiteouts: if parent.is_some() {
                        Whiteouts::Applied
                    } else {
                        Whiteouts::Ignored
                    },
                };
                let mut report = |bytes| {
                    progress(Progress::Unpack {
                        layer: index + 1,
                        layers: count,
                        bytes,
                        total: layer.size,
                    });
                };
                unpack_blob(&blob, open(draft)?, &mut report, self.cancelled)
            })?;
        }
        Ok(())
    }
}

fn open(draft: &Draft) -> Result<OwnedFd, Error> {
    let top = draft.rootfs().open()?;
    // The store gives a descriptor that only names the place.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&top, ".", flags, Mode::empty())
        .map_err(|source| Error::io("open the tree of", draft.id().to_string(), source))
}
