// SPDX-License-Identifier: Apache-2.0
//! Measuring a tree.

use super::{entries, open};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Result;
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

/// Returns the bytes that a tree's files take on the disk, each file once however many names it has.
pub(crate) fn size(top: OwnedFd) -> Result<u64> {
    let mut blocks = 0;
    let mut linked = HashSet::new();
    walk(top, |directory, below| {
        blocks += rustix::fs::fstat(directory)?.st_blocks;
        entries(directory.as_fd(), |name, kind| {
            if kind == FileType::Directory {
                below.push(name);
                return Ok(());
            }
            let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                below.push(name);
            } else if stat.st_nlink == 1 || linked.insert((stat.st_dev, stat.st_ino)) {
                blocks += stat.st_blocks;
            }
            Ok(())
        })
    })?;
    // The unit of st_blocks is 512 bytes whatever the file system (stat(3type)).
    Ok(u64::try_from(blocks).unwrap_or(0) * 512)
}

/// Returns how many entries a tree has, its top directory included.
pub(crate) fn count(top: OwnedFd) -> Result<u64> {
    let mut count = 1;
    walk(top, |directory, below| {
        entries(directory.as_fd(), |name, kind| {
            count += 1;
            let directory = match kind {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                kind => kind == FileType::Directory,
            };
            if directory {
                below.push(name);
            }
            Ok(())
        })
    })?;
    Ok(count)
}

/// Calls `each` with every directory of a tree, which answers with the directories in it. One is open at a time.
fn walk(
    top: OwnedFd,
    mut each: impl FnMut(&OwnedFd, &mut Vec<CString>) -> Result<()>,
) -> Result<()> {
    let mut current = top;
    let mut stack = vec![Vec::new()];
    each(&current, &mut stack[0])?;
    while let Some(pending) = stack.last_mut() {
        if let Some(name) = pending.pop() {
            current = open(&current, &name)?;
            let mut below = Vec::new();
            each(&current, &mut below)?;
            stack.push(below);
        } else {
            stack.pop();
            if !stack.is_empty() {
                current = open(&current, c"..")?;
            }
        }
    }
    Ok(())
}
