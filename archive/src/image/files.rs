// SPDX-License-Identifier: Apache-2.0
//! Layers of files that are not archives: the index, the pages of a site, a directory that never changes, a program.

use super::ImageError;
use super::stream::{Content, Piece, Pieces, directories, entry, link, padding, timed};
use fs_err as fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tar::EntryType;

/// A file for a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Its path in the image, without a `/` at the start.
    pub(super) name: String,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What is in a file.
    File {
        path: PathBuf,
        size: u64,
        executable: bool,
    },
    /// This, which is in no file.
    Bytes(Arc<[u8]>),
    Directory,
    Link(String),
}

/// Returns a single file.
pub(super) fn file(path: &Path, name: &str) -> Result<File, ImageError> {
    let failed = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::other("it is no file")));
    }
    Ok(File {
        name: name.to_owned(),
        kind: Kind::File {
            path: path.to_owned(),
            size: metadata.len(),
            executable: metadata.permissions().mode() & 0o111 != 0,
        },
    })
}

/// Lists a directory with all that is in it, to stand below `prefix`. Also returns what tells whether anything was changed.
pub(super) fn tree(root: &Path, prefix: &str) -> Result<(Vec<File>, String), ImageError> {
    let mut files = Vec::new();
    let mut stamps = Vec::new();
    let mut left = vec![(root.to_owned(), prefix.to_owned())];
    while let Some((directory, below)) = left.pop() {
        let failed = |source| ImageError::Read {
            path: directory.clone(),
            source,
        };
        for found in fs::read_dir(&directory).map_err(failed)? {
            let found = found.map_err(failed)?;
            let path = found.path();
            let name = found
                .file_name()
                .into_string()
                .map_err(|_| ImageError::Name { path: path.clone() })?;
            let name = format!("{below}{name}");
            // A layer deletes what such a name stands for (OCI image-spec v1.1 layer.md, "Whiteouts").
            if path
                .file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b".wh."))
            {
                return Err(ImageError::Name { path });
            }
            let failed = |source| ImageError::Read {
                path: path.clone(),
                source,
            };
            let metadata = fs::symlink_metadata(&path).map_err(failed)?;
            let kind = if metadata.is_dir() {
                left.push((path, format!("{name}/")));
                Kind::Directory
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(failed)?;
                Kind::Link(
                    target
                        .into_os_string()
                        .into_string()
                        .map_err(|_| ImageError::Name { path })?,
                )
            } else if metadata.is_file() {
                stamps.push((
                    name.clone(),
                    metadata.len(),
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.ino(),
                ));
                Kind::File {
                    path,
                    size: metadata.len(),
                    executable: metadata.permissions().mode() & 0o111 != 0,
                }
            } else {
                return Err(ImageError::Kind { path });
            };
            files.push(File { name, kind });
        }
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    stamps.sort();
    let stamp = obuild_images::Digest::of(format!("{stamps:?}").as_bytes()).to_string();
    Ok((files, stamp))
}

/// Returns when the newest file was written, in seconds since 1970.
pub(super) fn newest(files: &[File]) -> u64 {
    let times = files.iter().filter_map(|file| match &file.kind {
        Kind::File { path, .. } => u64::try_from(fs::metadata(path).ok()?.mtime()).ok(),
        _ => None,
    });
    times.max().unwrap_or(0)
}

/// Makes a layer of files, which are ordered by their names and have this time.
pub(super) fn pieces(files: Vec<File>, modified: u64) -> Pieces {
    let first = Piece {
        before: directories(
            files
                .iter()
                .filter(|file| file.kind != Kind::Directory)
                .map(|file| file.name.as_str()),
        ),
        ..Piece::default()
    };
    let rest = files.into_iter().map(move |file| {
        let mut before = Vec::new();
        match file.kind {
            Kind::File {
                path,
                size,
                executable,
            } => {
                let mode = if executable { 0o755 } else { 0o644 };
                timed(&mut before, &file.name, mode, size, modified);
                Piece {
                    before,
                    file: Some(Content {
                        path,
                        size,
                        sha256: None,
                    }),
                    after: vec![0; padding(size)],
                }
            }
            Kind::Bytes(content) => {
                let size = content.len() as u64;
                timed(&mut before, &file.name, 0o644, size, modified);
                before.extend_from_slice(&content);
                before.resize(before.len() + padding(size), 0);
                Piece {
                    before,
                    ..Piece::default()
                }
            }
            Kind::Directory => {
                let name = format!("{}/", file.name);
                entry(&mut before, EntryType::Directory, &name, 0o755, 0);
                Piece {
                    before,
                    ..Piece::default()
                }
            }
            Kind::Link(target) => {
                link(&mut before, EntryType::Symlink, &file.name, &target);
                Piece {
                    before,
                    ..Piece::default()
                }
            }
        }
    });
    Box::new(std::iter::once(first).chain(rest))
}
