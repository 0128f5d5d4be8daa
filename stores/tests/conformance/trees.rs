// SPDX-License-Identifier: Apache-2.0
//! Writing into trees and describing what is in them.

use obuild_stores::{Rootfs, Snapshot, SnapshotId, Store};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, statat, unlinkat};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A tree that is open for writing or reading.
pub(crate) struct Tree(pub(crate) OwnedFd);

impl Tree {
    pub(crate) fn open(rootfs: &Rootfs) -> Self {
        Self(rootfs.open().unwrap())
    }

    pub(crate) fn write(&self, path: &str, content: &str) {
        self.try_write(path, content.as_bytes()).unwrap();
    }

    pub(crate) fn try_write(&self, path: &str, content: &[u8]) -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mut file = File::from(openat(&self.0, path, flags, Mode::from_raw_mode(0o644))?);
        file.write_all(content)
    }

    pub(crate) fn append(&self, path: &str, content: &str) {
        let flags = OFlags::WRONLY | OFlags::APPEND;
        let mut file = File::from(openat(&self.0, path, flags, Mode::empty()).unwrap());
        file.write_all(content.as_bytes()).unwrap();
    }

    pub(crate) fn make_directory(&self, path: &str) {
        mkdirat(&self.0, path, Mode::from_raw_mode(0o755)).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        let mut file = File::from(openat(&self.0, path, flags, Mode::empty()).ok()?);
        let mut content = String::new();
        file.read_to_string(&mut content).ok()?;
        Some(content)
    }

    /// Deletes a file or a whole directory.
    pub(crate) fn delete(&self, path: &str) {
        delete(self.0.as_fd(), path);
    }

    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let mut names = names(&open_directory(self.0.as_fd(), path));
        names.sort();
        names
    }

    /// Describes everything in the tree: a line for each path.
    pub(crate) fn describe(&self) -> BTreeMap<String, String> {
        let mut lines = BTreeMap::new();
        let mut inodes = HashMap::new();
        describe(self.0.as_fd(), ".", "", &mut lines, &mut inodes);
        lines
    }
}

fn open_directory(directory: BorrowedFd<'_>, path: &str) -> OwnedFd {
    openat(
        directory,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    )
    .unwrap()
}

fn names(directory: &OwnedFd) -> Vec<String> {
    let entries = Dir::read_from(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned());
    names.filter(|name| name != "." && name != "..").collect()
}

fn delete(directory: BorrowedFd<'_>, path: &str) {
    let stat = statat(directory, path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(directory, path, AtFlags::empty()).unwrap();
    }
    let inner = open_directory(directory, path);
    for name in names(&inner) {
        delete(inner.as_fd(), &name);
    }
    unlinkat(directory, path, AtFlags::REMOVEDIR).unwrap();
}

fn describe(
    directory: BorrowedFd<'_>,
    name: &str,
    path: &str,
    lines: &mut BTreeMap<String, String>,
    inodes: &mut HashMap<u64, String>,
) {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut line = format!(
        "{kind:?} {:o} {}:{}",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid
    );
    match kind {
        FileType::RegularFile => {
            let mut content = Vec::new();
            let file = openat(
                directory,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW,
                Mode::empty(),
            );
            File::from(file.unwrap()).read_to_end(&mut content).unwrap();
            write!(line, " {:?}", String::from_utf8_lossy(&content)).unwrap();
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new()).unwrap();
            write!(line, " -> {target:?}").unwrap();
        }
        FileType::Directory => {
            let inner = open_directory(directory, name);
            for name in names(&inner) {
                describe(
                    inner.as_fd(),
                    &name,
                    &format!("{path}/{name}"),
                    lines,
                    inodes,
                );
            }
        }
        _ => write!(line, " {:x}", stat.st_rdev).unwrap(),
    }
    if kind != FileType::Directory && stat.st_nlink > 1 {
        // Link counts may be those of several snapshots; what counts is which paths are one file.
        if let Some(first) = inodes.insert(stat.st_ino, path.to_owned()) {
            let (low, high) = if *first < *path {
                (first.as_str(), path)
            } else {
                (path, first.as_str())
            };
            lines.insert(format!("{low} = {high}"), String::new());
        }
    }
    lines.insert(format!("{path}/"), line);
}

/// Makes and commits a snapshot whose tree `fill` changes.
pub(crate) fn commit(
    store: &dyn Store,
    id: SnapshotId,
    parent: Option<SnapshotId>,
    fill: impl FnOnce(&Tree),
) -> Snapshot {
    let draft = store.prepare(id, parent).unwrap();
    fill(&Tree::open(draft.rootfs()));
    let snapshot = store.commit(draft).unwrap();
    assert_eq!((snapshot.id, snapshot.parent), (id, parent));
    snapshot
}

/// Opens a committed tree.
pub(crate) fn tree(store: &dyn Store, id: SnapshotId) -> Tree {
    Tree::open(
        &store
            .get(id)
            .unwrap()
            .expect("the snapshot is there")
            .rootfs,
    )
}
