// SPDX-License-Identifier: Apache-2.0
//! Taking out of a squashed layer the whiteouts that hide nothing.
//!
//! The kernel makes a whiteout only where it hides something, and relies on it: a directory that one layer alone has
//! is listed as it is, whiteouts and all, which programs then see as files that cannot be looked at.

use super::merge::{is_opaque, is_whiteout};
use super::{entries, open};
use rustix::fs::{AtFlags, FileType};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

/// A layer further down, on the way through the tree.
struct Below {
    /// The directory that corresponds to the one looked at, or to the last that had one.
    directory: OwnedFd,
    /// The depth from which on it has none.
    hidden_from: Option<usize>,
}

/// Removes from the layer `top` the whiteouts that hide nothing in the layers `below`, topmost first.
pub(crate) fn prune_whiteouts(top: OwnedFd, below: Vec<OwnedFd>) -> Result<()> {
    let below = below.into_iter();
    let mut below: Vec<Below> = below
        .map(|directory| Below {
            directory,
            hidden_from: None,
        })
        .collect();
    // As in `merge`, one directory a layer is open, and one comes back up through "..".
    let mut top = top;
    let mut stack = vec![look(&top, &below)?];
    while let Some(pending) = stack.last_mut() {
        let Some(name) = pending.pop() else {
            stack.pop();
            if stack.is_empty() {
                break;
            }
            top = open(&top, c"..")?;
            for layer in &mut below {
                match layer.hidden_from {
                    None => layer.directory = open(&layer.directory, c"..")?,
                    Some(depth) if depth > stack.len() => layer.hidden_from = None,
                    Some(_) => {}
                }
            }
            continue;
        };
        top = open(&top, &name)?;
        let mut hidden = is_opaque(top.as_fd())?;
        for layer in &mut below {
            if layer.hidden_from.is_some() {
                continue;
            }
            let inner = if hidden {
                None
            } else {
                shown(layer, &name, &mut hidden)?
            };
            match inner {
                Some(inner) => layer.directory = inner,
                None => layer.hidden_from = Some(stack.len() + 1),
            }
        }
        stack.push(look(&top, &below)?);
    }
    Ok(())
}

/// Opens the directory `name` of a layer, if it has one; sets `hidden` if what it has hides the layers below.
fn shown(layer: &Below, name: &CStr, hidden: &mut bool) -> Result<Option<OwnedFd>> {
    match open(&layer.directory, name) {
        Ok(directory) => {
            *hidden = is_opaque(directory.as_fd())?;
            Ok(Some(directory))
        }
        Err(Errno::NOENT) => Ok(None),
        // A file, a link (not followed: LOOP) or a whiteout.
        Err(Errno::NOTDIR | Errno::LOOP) => {
            *hidden = true;
            Ok(None)
        }
        Err(errno) => Err(errno),
    }
}

/// Removes needless whiteouts from one directory. Returns its directories.
fn look(top: &OwnedFd, below: &[Below]) -> Result<Vec<CString>> {
    let mut pending = Vec::new();
    let mut whiteouts = Vec::new();
    entries(top.as_fd(), |name, kind| {
        match kind {
            FileType::Directory => pending.push(name),
            FileType::CharacterDevice | FileType::Unknown => {
                let stat = rustix::fs::statat(top, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    pending.push(name);
                } else if is_whiteout(&stat) {
                    whiteouts.push(name);
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    'whiteouts: for name in whiteouts {
        for layer in below.iter().filter(|layer| layer.hidden_from.is_none()) {
            match rustix::fs::statat(&layer.directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if !is_whiteout(&stat) => continue 'whiteouts,
                Ok(_) => break,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        rustix::fs::unlinkat(top, &name, AtFlags::empty())?;
    }
    Ok(pending)
}
