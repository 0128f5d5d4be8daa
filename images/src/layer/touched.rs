// SPDX-License-Identifier: Apache-2.0
//! From what a store knows of a change to the paths that have to be looked at.

use crate::tree::TreeError;
use crate::tree::cursor::Cursor;
use crate::tree::ladder::DIRECTORY;
use crate::tree::listing::{is_opaque, order, read_failed};
use crate::tree::walk::{Step, Walk};
use bstr::{BStr, BString, ByteSlice};
use obuild_stores::Touched;
use rustix::fs::{CWD, Dir, FileType, Mode, openat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Returns every path at which the tree at `root` may differ from the one at `since`, in the order of paths; `None` when these are all.
///
/// `touched` is what the store says of each snapshot between the two.
pub(super) fn candidates(
    since: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    touched: &[Touched],
) -> Result<Option<Vec<BString>>, TreeError> {
    let mut search = Search {
        was: Cursor::new(since)?,
        now: Cursor::new(root)?,
        paths: Vec::new(),
        directories: Vec::new(),
        by_inode: true,
    };
    for one in touched {
        match one {
            Touched::Anything => return Ok(None),
            Touched::Layer(path) => search.layer(path, touched.len() > 1)?,
            Touched::Paths(paths) => {
                let paths = paths.iter().map(|path| BString::from(path.as_slice()));
                search.paths.extend(paths.clone());
                search.directories.extend(paths);
            }
        }
    }
    search.expand()?;
    let mut paths = search.paths;
    paths.sort_by(|left, right| order(left, right));
    paths.dedup();
    Ok(Some(paths))
}

struct Search<'a> {
    was: Cursor<'a>,
    now: Cursor<'a>,
    paths: Vec<BString>,
    /// What may be a directory whose names are others than before.
    directories: Vec<BString>,
    /// Whether what has the same name and inode number as before is the same, unless it is among the paths.
    by_inode: bool,
}

impl Search<'_> {
    /// Takes over the entries of an overlay layer, which is one of `several` or the only one.
    fn layer(&mut self, layer: &Path, several: bool) -> Result<(), TreeError> {
        self.by_inode = false;
        let top = BStr::new("/");
        let failed = |action| read_failed(action, top);
        let layer = openat(CWD, layer, DIRECTORY, Mode::empty()).map_err(failed("open"))?;
        let mut walk = Walk::new(layer.as_fd()).map_err(failed("open"))?;
        self.paths.push(BString::default());
        while let Some(step) = walk
            .next()
            .map_err(|error| read_failed("read", walk.path())(error))?
        {
            let Step::Entry(stat) = step else { continue };
            let path = walk.path().to_owned();
            self.paths.push(path.clone());
            let replaces = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    walk.enter()
                        .map_err(|error| read_failed("open", walk.path())(error))?;
                    is_opaque(walk.directory())
                        .map_err(|error| read_failed("examine", walk.path())(error))?
                }
                // Behind this one, a directory in another layer has nothing to do with what was below.
                _ => several,
            };
            if replaces {
                self.directories.push(path);
            }
        }
        Ok(())
    }

    /// Adds the names that directories have or had, where it matters.
    fn expand(&mut self) -> Result<(), TreeError> {
        self.directories.sort_by(|left, right| order(right, left));
        while let Some(path) = self.directories.pop() {
            // What is no directory any more is one path, whatever was below it.
            let Some(now) = names(&mut self.now, path.as_bstr())? else {
                continue;
            };
            let was = names(&mut self.was, path.as_bstr())?.unwrap_or_default();
            let by_inode = self.by_inode;
            let different = |other: &BTreeMap<BString, u64>, name: &BString, inode: &u64| {
                !by_inode || other.get(name) != Some(inode)
            };
            let mut found: Vec<&BString> = now
                .iter()
                .filter(|(name, inode)| different(&was, name, inode))
                .chain(was.iter().filter(|(name, _)| !now.contains_key(*name)))
                .map(|(name, _)| name)
                .collect();
            // Taken from the end, so that cursors go through the tree in order.
            found.sort_by(|left, right| right.cmp(left));
            for name in found {
                let mut inside = path.clone();
                if !inside.is_empty() {
                    inside.push(b'/');
                }
                inside.extend_from_slice(name);
                self.paths.push(inside.clone());
                self.directories.push(inside);
            }
        }
        Ok(())
    }
}

/// Returns the names in a directory with their inode numbers; `None` when there is no such directory.
fn names(
    cursor: &mut Cursor<'_>,
    path: &BStr,
) -> Result<Option<BTreeMap<BString, u64>>, TreeError> {
    let failed = |action| read_failed(action, path);
    let directory = match cursor.enter(path) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    let mut names = BTreeMap::new();
    for entry in Dir::read_from(directory).map_err(failed("read"))? {
        let entry = entry.map_err(failed("read"))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(BString::from(name), entry.ino());
        }
    }
    Ok(Some(names))
}
