// SPDX-License-Identifier: Apache-2.0
//! Takes down some paths of a tree: the cost is that of these paths.

use super::read::{ListOptions, Reader, Reading, failed};
use super::{Listing, order};
use crate::tree::Cancelled;
use crate::tree::cursor::Cursor;
use crate::tree::error::TreeError;
use bstr::{BString, ByteSlice};
use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Takes down what is at these paths of the tree at `root`, with the directories that they are in. What is not there is left out.
pub(crate) fn list_paths(
    root: BorrowedFd<'_>,
    paths: &[BString],
    reading: Reading<'_>,
    cancelled: Cancelled<'_>,
) -> Result<Listing, TreeError> {
    let mut wanted: HashSet<BString> = HashSet::new();
    for path in paths {
        let mut path = path.as_bstr();
        while wanted.insert(path.to_owned()) {
            path = path[..path.rfind_byte(b'/').unwrap_or(0)].as_bstr();
        }
    }
    wanted.insert(BString::default());
    let mut wanted: Vec<BString> = wanted.into_iter().collect();
    wanted.sort_by(|left, right| order(left, right));
    let mut reader = Reader::new(
        &ListOptions {
            contents: false,
            known: None,
        },
        reading,
        cancelled,
    );
    let mut cursor = Cursor::new(root)?;
    let mut nodes = Vec::with_capacity(wanted.len());
    for path in &wanted {
        let path = path.as_bstr();
        let end = path.rfind_byte(b'/');
        let directory = match cursor.enter(path[..end.unwrap_or(0)].as_bstr()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(failed("open", path, error)),
        };
        if path.is_empty() {
            nodes.push(Arc::new(reader.top(directory)?));
            continue;
        }
        let name: &[u8] = &path[end.map_or(0, |slash| slash + 1)..];
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(failed("examine", path, error)),
        };
        nodes.extend(reader.node_at(directory, name, path, &stat)?.map(Arc::new));
    }
    Ok(Listing::new(nodes, reader.newest))
}
