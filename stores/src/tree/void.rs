// SPDX-License-Identifier: Apache-2.0
//! Recognising an overlay layer that changes nothing.
//!
//! A step that only reads can still leave directories in its layer: the kernel copies them up when something is made in them,
//! also what is removed again, such as a mount point. Each such layer would make every later miss in them slower.

use super::copy::{xattr, xattrs};
use super::{entries, open};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, Result};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// A layer with more directories than this is looked at no further: it is taken to change something.
const DIRECTORIES: usize = 16;

/// Returns whether the layer `own` shows the same as the layers below it alone do. `layer` opens them, topmost first.
///
/// True only if `own` holds nothing but directories, each with the attributes that it has below.
pub(crate) fn is_void(
    own: &OwnedFd,
    layer: impl Fn(usize) -> Option<Result<OwnedFd>>,
) -> Result<bool> {
    // Paths in the tree of directories that are still to be compared, with those that contain them first.
    let mut pending: Vec<Vec<u8>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(path) = pending.pop() {
        seen += 1;
        if seen > DIRECTORIES {
            return Ok(false);
        }
        let here = match path.as_slice() {
            b"" => open(own, c".")?,
            path => open(own, OsStr::from_bytes(path))?,
        };
        if !path.is_empty() && is_opaque(&here)? {
            return Ok(false);
        }
        let Some(below) = find(&path, &layer)? else {
            return Ok(false);
        };
        if !same(&here, &below)? {
            return Ok(false);
        }
        let mut files = false;
        entries(here.as_fd(), |name, kind| {
            if kind == FileType::Directory {
                let mut inner = path.clone();
                if !inner.is_empty() {
                    inner.push(b'/');
                }
                inner.extend_from_slice(name.to_bytes());
                pending.push(inner);
            } else {
                files = true;
            }
            Ok(())
        })?;
        if files {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the directory at `path` in the topmost layer that has it; `None` where the merged tree has none.
fn find(path: &[u8], layer: impl Fn(usize) -> Option<Result<OwnedFd>>) -> Result<Option<OwnedFd>> {
    let look = |layer: &OwnedFd, path: &[u8]| {
        let path = if path.is_empty() {
            b".".as_slice()
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(layer, OsStr::from_bytes(path), flags, Mode::empty(), within)
    };
    let parent = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map(|slash| &path[..slash]);
    let mut number = 0;
    while let Some(layer) = layer(number) {
        let layer = layer?;
        match look(&layer, path) {
            Ok(found) => return Ok(Some(found)),
            Err(Errno::NOENT) => {}
            // A whiteout, a file or a link in its place.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        // A parent that hides what the lower layers have.
        if let Some(parent) = parent {
            match look(&layer, parent) {
                Ok(parent) if is_opaque(&parent)? => return Ok(None),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
        number += 1;
    }
    Ok(None)
}

fn is_opaque(directory: &OwnedFd) -> Result<bool> {
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut [0_u8; 8]) {
        // "x": there are whiteouts in the form of attributes in it (overlayfs.rst, "Nesting").
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Returns whether two directories have the same owner, mode, time of change and extended attributes.
fn same(left: &OwnedFd, right: &OwnedFd) -> Result<bool> {
    let what = |stat: &Stat| {
        let modified = (stat.st_mtime, stat.st_mtime_nsec);
        (stat.st_mode, stat.st_uid, stat.st_gid, modified)
    };
    if what(&rustix::fs::fstat(left)?) != what(&rustix::fs::fstat(right)?) {
        return Ok(false);
    }
    let sorted = |directory: &OwnedFd| -> Result<Vec<CString>> {
        let mut names = xattrs(directory)?;
        names.sort_unstable();
        Ok(names)
    };
    let names = sorted(left)?;
    if names != sorted(right)? {
        return Ok(false);
    }
    for name in &names {
        if xattr(left, name)? != xattr(right, name)? {
            return Ok(false);
        }
    }
    Ok(true)
}
