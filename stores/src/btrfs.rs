// SPDX-License-Identifier: Apache-2.0
//! The btrfs kind: every tree is a subvolume, and a copy of it a snapshot, made by ioctl.
//!
//! A step costs one snapshot (`BTRFS_IOC_SNAP_CREATE_V2`, which is a transaction of its own) and one rename. Trees are
//! not made read-only: that would be a second transaction, and nobody writes to a committed tree anyway.
//!
//! The space of a deleted tree comes back later: a thread of the kernel does the work, once in a commit interval (30 s
//! unless mounted otherwise).
//!
//! A subvolume that a build makes inside its tree is deleted with it, but a snapshot of the tree has only an empty
//! directory in its place: btrfs does not snapshot nested subvolumes.

use crate::place::Place;
use crate::trees::{self, Layers, Trees};
use crate::{Error, Kind, Rootfs, sys, tree};
use rustix::fs::{AtFlags, Mode, StatVfsMountFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The btrfs kind.
pub(crate) struct Btrfs;

impl Trees for Btrfs {
    fn kind(&self) -> Kind {
        Kind::Btrfs
    }

    fn probe(&self, place: &Place) -> Result<(), Error> {
        let path = place.path("");
        let unsuitable = |reason: String| Error::Unsuitable {
            path: path.clone(),
            kind: Kind::Btrfs.name(),
            reason,
        };
        let statfs = rustix::fs::fstatfs(place.descriptor())
            .map_err(|errno| place.error("look at", ".", errno))?;
        if !tree::is_btrfs(&statfs) {
            return Err(unsuitable(format!(
                "it is not on btrfs: mount a btrfs file system there, or use overlay:{}",
                path.display()
            )));
        }
        if !sys::is_root() {
            let reason = "deleting subvolumes and giving files away needs root: run it as root";
            return Err(unsuitable(reason.to_owned()));
        }
        if obuild_rootless::current().is_some() && !may_delete(place)? {
            return Err(unsuitable(format!(
                "an ordinary user may delete subvolumes only where btrfs is mounted with user_subvol_rm_allowed: \
                 mount it so, or use overlay:{}",
                path.display()
            )));
        }
        let noatime = rustix::fs::fstatvfs(place.descriptor())
            .is_ok_and(|statvfs| statvfs.f_flag.contains(StatVfsMountFlags::NOATIME));
        if !noatime {
            // Each look at a directory of a fresh snapshot writes a new inode for it.
            tracing::info!(path = %path.display(), "btrfs is faster when it is mounted noatime");
        }
        Ok(())
    }

    fn layers(&self) -> Option<Layers> {
        None
    }

    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
        let name = format!("{slot}/fs");
        let directory = open(place, slot)?;
        let created = match below.first() {
            Some(source) => {
                let source = open(place, source)?;
                sys::create_snapshot(source.as_fd(), directory.as_fd(), c"fs")
            }
            None => sys::create_subvolume(directory.as_fd(), c"fs").and_then(|()| {
                // Whatever the umask is.
                let mode = Mode::from_raw_mode(0o755);
                Ok(rustix::fs::chmodat(
                    &directory,
                    c"fs",
                    mode,
                    AtFlags::empty(),
                )?)
            }),
        };
        created.map_err(|error| place.error("create the subvolume", &name, error))?;
        Ok(Rootfs::Directory(place.path(&name)))
    }

    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error> {
        trees::destroy(place, name, Some(&destroy_subvolume))
    }

    /// Counts the extents that are younger than the snapshot, as far as they are on the disk: exact after
    /// a [`sync`](crate::Store::sync). Reads only the leaves of the tree that changed.
    fn size(&self, place: &Place, name: &str, parent: Option<&str>) -> Result<u64, Error> {
        let top = open(place, name)?;
        match young_bytes(top.as_fd(), parent.is_some()) {
            // Only root of the host may search the trees: what is shared counts too then.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tree::size(top).map_err(|errno| place.error("measure", name, errno))
            }
            size => size.map_err(|error| place.error("measure", name, error)),
        }
    }

    fn touched(&self, place: &Place, name: &str) -> Result<Option<Vec<Vec<u8>>>, Error> {
        let top = open(place, name)?;
        match young_paths(top.as_fd()) {
            // Only root of the host may search the trees.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            paths => paths.map_err(|error| place.error("search", name, error)),
        }
    }
}

fn open(place: &Place, name: &str) -> Result<OwnedFd, Error> {
    place
        .open_directory(name)
        .map_err(|errno| place.error("open", name, errno))
}

/// Finds out whether a subvolume can be deleted, which `user_subvol_rm_allowed` allows to others than root (btrfs(5)).
fn may_delete(place: &Place) -> Result<bool, Error> {
    let name = format!(".probe-{}", std::process::id());
    let probe = CString::new(name.as_str()).expect("digits");
    let directory = place.descriptor();
    sys::create_subvolume(directory, &probe)
        .map_err(|error| place.error("create the subvolume", &name, error))?;
    let deleted = sys::destroy_subvolume(directory, &probe).is_ok();
    if !deleted {
        // An empty one goes as a directory does (Linux 4.18).
        rustix::fs::unlinkat(directory, &probe, AtFlags::REMOVEDIR)
            .map_err(|errno| place.error("remove", &name, errno))?;
    }
    Ok(deleted)
}

/// Destroys the subvolume `name`, and first all that builds made in it.
fn destroy_subvolume(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    match sys::destroy_subvolume(directory, name).map_err(errno) {
        Err(Errno::NOTEMPTY) => {}
        // Another process destroys the same.
        Err(Errno::NOENT) => return Ok(()),
        result => return result,
    }
    if obuild_rootless::current().is_some() {
        // Only root of the host may ask for the numbers of those inside: they are met on the way through the tree instead.
        let inside = tree::open(directory, name)?;
        let mut names = Vec::new();
        tree::entries(inside.as_fd(), |name, _| {
            names.push(name);
            Ok(())
        })?;
        for name in names {
            tree::remove(inside.as_fd(), &name, Some(&destroy_subvolume))?;
        }
        return sys::destroy_subvolume(directory, name).map_err(errno);
    }
    let (top, _) = sys::subvolume_info(tree::open(directory, name)?.as_fd()).map_err(errno)?;
    let mut found = vec![top];
    let mut next = 0;
    while let Some(id) = found.get(next).copied() {
        next += 1;
        // ROOT_REF items are keyed (outer subvolume, ROOT_REF, inner subvolume): btrfs on-disk format.
        let search = sys::Search {
            tree: sys::ROOT_TREE,
            objects: (id, id),
            kind: sys::ROOT_REF,
            since: 0,
        };
        sys::search_tree(directory, &search, |item| found.push(item.offset)).map_err(errno)?;
    }
    for id in found.into_iter().skip(1).rev() {
        match sys::destroy_subvolume_by_id(directory, id).map_err(errno) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    sys::destroy_subvolume(directory, name).map_err(errno)
}

/// Returns all paths of the inodes that were changed after the subvolume was made; `None` when there are some that have no
/// path that the kernel could tell.
fn young_paths(top: BorrowedFd<'_>) -> io::Result<Option<Vec<Vec<u8>>>> {
    let since = sys::subvolume_info(top)?.1 + 1;
    let mut inodes = Vec::new();
    let search = sys::Search {
        tree: 0,
        objects: (sys::SUBVOLUME_TOP, u64::MAX),
        kind: sys::INODE_ITEM,
        since,
    };
    sys::search_tree(top, &search, |item| {
        // struct btrfs_inode_item: the transaction that wrote it last at 8, the number of links at 40 (linux
        // include/uapi/linux/btrfs_tree.h). What has no link is deleted, but was open when the build ended.
        let word = |at: usize| item.data.get(at..at + 8)?.try_into().ok();
        let young = word(8).is_none_or(|word| u64::from_le_bytes(word) >= since);
        let links = item.data.get(40..44).is_none_or(|links| links != [0; 4]);
        if young && links {
            inodes.push(item.objectid);
        }
    })?;
    let mut paths = Vec::with_capacity(inodes.len());
    for inode in inodes {
        if inode == sys::SUBVOLUME_TOP {
            paths.push(Vec::new());
        } else if !sys::paths_of(top, inode, &mut paths)? {
            return Ok(None);
        }
    }
    Ok(Some(paths))
}

/// Sums the extents in a subvolume's tree that came after the subvolume, or all if it has no parent.
fn young_bytes(top: BorrowedFd<'_>, has_parent: bool) -> io::Result<u64> {
    // Making a snapshot ends a transaction; what is written to it belongs to later ones.
    let since = if has_parent {
        sys::subvolume_info(top)?.1 + 1
    } else {
        0
    };
    let mut bytes = 0;
    let mut seen = HashSet::new();
    let search = sys::Search {
        tree: 0,
        objects: (0, u64::MAX),
        kind: sys::EXTENT_DATA,
        since,
    };
    sys::search_tree(top, &search, |item| {
        // struct btrfs_file_extent_item, packed: generation at 0, type at 20, then inline data or disk_bytenr and
        // disk_num_bytes (linux include/uapi/linux/btrfs_tree.h).
        let word = |at: usize| {
            item.data
                .get(at..at + 8)
                .and_then(|word| word.try_into().ok())
                .map(u64::from_le_bytes)
        };
        if word(0).is_none_or(|generation| generation < since) {
            return;
        }
        match (item.data.get(20), word(21), word(29)) {
            (Some(0), ..) => bytes += item.data.len().saturating_sub(21) as u64,
            (Some(_), Some(start), Some(length)) if start != 0 && seen.insert(start) => {
                bytes += length;
            }
            _ => {}
        }
    })?;
    Ok(bytes)
}
