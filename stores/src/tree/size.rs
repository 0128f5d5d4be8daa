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
    let mut current = top;
    let mut stack: Vec<Vec<CString>> = Vec::new();
    let mut entered = true;
    loop {
        if entered {
            let mut pending = Vec::new();
            blocks += rustix::fs::fstat(&current)?.st_blocks;
            entries(current.as_fd(), |name, kind| {
                if kind == FileType::Directory {
                    pending.push(name);
                    return Ok(());
                }
                let stat = rustix::fs::statat(&current, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    pending.push(name);
                } else if stat.st_nlink == 1 || linked.insert((stat.st_dev, stat.st_ino)) {
                    blocks += stat.st_blocks;
                }
                Ok(())
            })?;
            stack.push(pending);
        }
        let pending = stack.last_mut().expect("the loop ends with the last one");
        entered = !pending.is_empty();
        if let Some(name) = pending.pop() {
            current = open(&current, &name)?;
        } else {
            stack.pop();
            if stack.is_empty() {
                // The unit of st_blocks is 512 bytes whatever the file system (stat(3type)).
                return Ok(u64::try_from(blocks).unwrap_or(0) * 512);
            }
            current = open(&current, c"..")?;
        }
    }
}
