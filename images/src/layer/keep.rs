// SPDX-License-Identifier: Apache-2.0
//! The layers that were made before.
//!
//! ```text
//! STATE/blobs/sha256/DIGEST     a layer, as an OCI image layout names its blobs
//! STATE/layers/ID/KEY        which layer a snapshot is upon another one, with which options: one line of JSON
//! ```

use super::{LayerBlob, LayerError, LayerOptions, Times};
use crate::layer::compress::Packer;
use crate::tree::destination::link;
use crate::{Compression, Digest, Error};
use obuild_stores::{SnapshotId, Store};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
struct Kept {
    /// Nothing when nothing changed.
    layer: Option<KeptLayer>,
}

#[derive(Serialize, Deserialize)]
struct KeptLayer {
    digest: String,
    size: u64,
    diff_id: String,
}

/// What a layer was found to be; nothing when nothing changed.
pub(super) struct Known(pub(super) Option<LayerBlob>);

/// Returns the file of a blob in a directory that is, or is like, an OCI image layout.
pub(crate) fn blob_path(directory: &Path, digest: Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.digits())
}

fn record(
    state: &Path,
    since: Option<SnapshotId>,
    snapshot: SnapshotId,
    options: &LayerOptions,
) -> PathBuf {
    let mut hash = Sha256::new();
    // The number is the version of everything that makes a layer's bytes what they are.
    hash.update(b"obuild layer 1\0");
    hash.update(since.map_or([0; 32], |id| *id.as_bytes()));
    let (kind, seconds) = match options.times {
        Times::Fixed(seconds) => (0_u8, seconds),
        Times::Latest(seconds) => (1, seconds),
    };
    hash.update([kind]);
    hash.update(seconds.to_le_bytes());
    let (kind, level) = match options.compression {
        Compression::None => (0_u8, 0),
        Compression::Gzip(level) => (1, i64::from(level)),
        Compression::Zstd(level) => (2, i64::from(level)),
    };
    hash.update([kind]);
    hash.update(level.to_le_bytes());
    let key: [u8; 32] = hash.finalize().into();
    state
        .join("layers")
        .join(snapshot.to_string())
        .join(hex::encode(&key[..8]))
}

/// Returns a layer that was made before, if its file is still there.
pub(super) fn find(
    state: &Path,
    since: Option<SnapshotId>,
    snapshot: SnapshotId,
    options: &LayerOptions,
) -> Result<Option<Known>, Error> {
    let path = record(state, since, snapshot, options);
    let text = match fs_err::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    // What a crash has damaged is made again.
    let Ok(kept) = serde_json::from_slice::<Kept>(&text) else {
        return Ok(None);
    };
    let Some(kept) = kept.layer else {
        return Ok(Some(Known(None)));
    };
    let (Ok(digest), Ok(diff_id)) = (Digest::parse(&kept.digest), Digest::parse(&kept.diff_id))
    else {
        return Ok(None);
    };
    let path = blob_path(state, digest);
    let whole = fs_err::metadata(&path).is_ok_and(|metadata| metadata.len() == kept.size);
    Ok(whole.then_some(Known(Some(LayerBlob {
        path,
        digest,
        size: kept.size,
        diff_id,
        media_type: options.compression.media_type().to_owned(),
    }))))
}

/// Writes a layer to a file that has no name before it is whole.
pub(super) fn write(
    state: &Path,
    options: &LayerOptions,
    fill: impl FnOnce(&mut dyn Write) -> Result<u64, LayerError>,
) -> Result<LayerBlob, LayerError> {
    let directory = state.join("blobs/sha256");
    fs_err::create_dir_all(&directory).map_err(LayerError::Write)?;
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    // Of the name that a file gets where there are none without (zfs-fuse), which goes with this.
    let mut name = None;
    let opened = match openat(CWD, &directory, flags, mode) {
        Ok(nameless) => File::from(nameless),
        Err(Errno::OPNOTSUPP) => {
            let (opened, path) = tempfile::NamedTempFile::new_in(&directory)
                .map_err(LayerError::Write)?
                .into_parts();
            name = Some(path);
            rustix::fs::fchmod(&opened, mode).map_err(|error| LayerError::Write(error.into()))?;
            opened
        }
        Err(error) => return Err(LayerError::Write(error.into())),
    };
    let out = BufWriter::with_capacity(1 << 16, opened);
    let mut packer =
        Packer::new(out, options.compression, options.threads).map_err(LayerError::Write)?;
    fill(&mut packer)?;
    let (out, result) = packer.finish().map_err(LayerError::Write)?;
    let path = blob_path(state, result.digest);
    let place = openat(
        CWD,
        &directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| LayerError::Write(error.into()))?;
    let digits = result.digest.digits();
    match link(out.get_ref().as_fd(), place.as_fd(), digits.as_bytes()) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            // Of the right size it is the same; else a power cut has torn it.
            let whole = fs_err::metadata(&path).is_ok_and(|metadata| metadata.len() == result.size);
            if !whole {
                fs_err::remove_file(&path).map_err(LayerError::Write)?;
                link(out.get_ref().as_fd(), place.as_fd(), digits.as_bytes())
                    .map_err(|error| LayerError::Write(error.into()))?;
            }
        }
        Err(error) => return Err(LayerError::Write(error.into())),
    }
    drop(name);
    Ok(LayerBlob {
        path,
        digest: result.digest,
        size: result.size,
        diff_id: result.content,
        media_type: options.compression.media_type().to_owned(),
    })
}

/// Notes which layer it was.
pub(super) fn remember(
    state: &Path,
    since: Option<SnapshotId>,
    snapshot: SnapshotId,
    options: &LayerOptions,
    blob: Option<&LayerBlob>,
) -> io::Result<()> {
    let path = record(state, since, snapshot, options);
    if let Some(directory) = path.parent() {
        fs_err::create_dir_all(directory)?;
    }
    let kept = Kept {
        layer: blob.map(|blob| KeptLayer {
            digest: blob.digest.to_string(),
            size: blob.size,
            diff_id: blob.diff_id.to_string(),
        }),
    };
    fs_err::write(path, serde_json::to_vec(&kept)?)
}

/// Takes over a layer that a snapshot was made of: what it is need not be found out again. `take` moves its file, if there is one to be kept.
pub(crate) fn adopt(
    state: &Path,
    since: SnapshotId,
    snapshot: SnapshotId,
    options: &LayerOptions,
    layer: Option<(Digest, u64, Digest)>,
    take: &dyn Fn(Digest, &Path) -> io::Result<()>,
) -> Result<(), Error> {
    let blob = layer.map(|(digest, size, diff_id)| LayerBlob {
        path: blob_path(state, digest),
        digest,
        size,
        diff_id,
        media_type: options.compression.media_type().to_owned(),
    });
    if let Some(blob) = &blob {
        let directory = state.join("blobs/sha256");
        let taken = fs_err::create_dir_all(&directory).and_then(|()| take(blob.digest, &blob.path));
        if let Err(error) = taken {
            // It is made again by whoever wants it.
            tracing::debug!(%error, "the file of a layer was not kept");
        }
    }
    let path = record(state, Some(since), snapshot, options);
    remember(state, Some(since), snapshot, options, blob.as_ref())
        .map_err(|error| Error::io("write", path, error))
}

/// Returns the digest of what a snapshot changed, as far as it was found out before; `Some(None)` if it changed nothing.
pub fn known_diff_id(
    store: &dyn Store,
    since: SnapshotId,
    snapshot: SnapshotId,
    options: &LayerOptions,
) -> Option<Option<Digest>> {
    let path = record(store.state_dir(), Some(since), snapshot, options);
    let kept: Kept = serde_json::from_slice(&fs_err::read(path).ok()?).ok()?;
    match kept.layer {
        Some(layer) => Digest::parse(&layer.diff_id).ok().map(Some),
        None => Some(None),
    }
}

/// Forgets the layers of a snapshot that is about to be made: it may have been there before, and become another now.
pub fn forget_layers_of(store: &dyn Store, id: SnapshotId) -> Result<(), Error> {
    let path = store.state_dir().join("layers").join(id.to_string());
    match fs_err::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", &path, error))
        }
        _ => Ok(()),
    }
}

/// Forgets the layers of snapshots that are gone, and deletes what no other layer shares with them. Returns the bytes that this freed.
pub fn forget_layers(store: &dyn Store) -> Result<u64, Error> {
    use std::collections::{HashMap, HashSet};
    let state = store.state_dir();
    let layers = state.join("layers");
    let entries = match fs_err::read_dir(&layers) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(Error::io("read", &layers, error)),
    };
    let (mut gone, mut used) = (HashMap::new(), HashSet::new());
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("read", &layers, error))?;
        let id = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let stays = match id {
            Some(id) => store.get(id)?.is_some(),
            None => false,
        };
        let directory = entry.path();
        let records =
            fs_err::read_dir(&directory).map_err(|error| Error::io("read", &directory, error))?;
        for record in records.flatten() {
            let kept = fs_err::read(record.path())
                .ok()
                .and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
            let Some(KeptLayer { digest, size, .. }) = kept.and_then(|kept| kept.layer) else {
                continue;
            };
            let Ok(digest) = Digest::parse(&digest) else {
                continue;
            };
            if stays {
                used.insert(digest);
            } else {
                gone.insert(digest, size);
            }
        }
        if !stays {
            fs_err::remove_dir_all(&directory)
                .map_err(|error| Error::io("remove", &directory, error))?;
        }
    }
    let mut freed = 0;
    for (digest, size) in gone {
        let path = blob_path(state, digest);
        if !used.contains(&digest) && fs_err::remove_file(path).is_ok() {
            freed += size;
        }
    }
    Ok(freed)
}
