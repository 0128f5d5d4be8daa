// SPDX-License-Identifier: Apache-2.0
//! The format file, by which a directory is known as a store, and the making of a new store.

use crate::place::Place;
use crate::trees::Trees;
use crate::{Error, Kind};
use rustix::fs::{IFlags, Mode};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

const FILE: &str = "obuild-store";
/// The newest format that this program reads and writes.
pub(super) const VERSION: u32 = 1;

/// Only root may enter these: trees hold set-uid programs of any age, which nobody on the host should run.
const PRIVATE: [&str; 5] = ["snapshots", "drafts", "provisional", "caches", "trash"];

/// Opens the directory of a store; makes it if nothing is there.
pub(super) fn open(path: &Path, trees: &mut dyn Trees, wait: Duration) -> Result<Place, Error> {
    let kind = trees.kind();
    let unsuitable = |reason: String| Error::Unsuitable {
        path: path.to_owned(),
        kind: kind.name(),
        reason,
    };
    match fs::DirBuilder::new().recursive(true).create(path) {
        Ok(()) => {}
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
            ) =>
        {
            return Err(unsuitable(
                "it is, or lies in, something that is not a directory".to_owned(),
            ));
        }
        Err(error) => return Err(Error::io("create", path, error)),
    }
    let place = Place::open(path)?;
    if !check(&place, path, trees)? {
        let _lock = place.lock(".", true, wait)?;
        // Another process may have made it meanwhile.
        if !check(&place, path, trees)? {
            if let Some(stranger) = stranger(&place)? {
                return Err(unsuitable(format!(
                    "it is not a store, and not empty (it holds {stranger:?}): choose a new or empty \
                     {}",
                    if kind == Kind::Zfs {
                        "dataset"
                    } else {
                        "directory"
                    }
                )));
            }
            trees.probe(&place)?;
            let settings = trees.settle(None)?;
            if obuild_rootless::current().is_some() {
                // A set-uid program of root's in a tree is the user's on the host: nobody else may come near it.
                rustix::fs::fchmod(place.descriptor(), Mode::RWXU)
                    .map_err(|errno| place.error("close to others", ".", errno))?;
            }
            place.make_directory("drafts", 0o700)?;
            spread(&place, "drafts")?;
            place.replace(
                FILE,
                &format!("{kind} {VERSION}\n{settings}{}", ids()),
                true,
            )?;
        }
    } else if !crate::sys::is_root() {
        trees.probe(&place)?;
    }
    for name in PRIVATE {
        place.make_directory(name, 0o700)?;
    }
    if let Err(error) = trees.furnish(&place) {
        // On a full disk a store has to open all the same: who else would make room?
        tracing::debug!(%error, "the store is not furnished");
    }
    if place.make_directory("state", 0o755)? {
        write_in_place(&place)?;
    }
    Ok(place)
}

/// Reads the format file. Returns `false` when there is none.
fn check(place: &Place, path: &Path, trees: &mut dyn Trees) -> Result<bool, Error> {
    let kind = trees.kind();
    let Some(text) = place.read(FILE)? else {
        return Ok(false);
    };
    let unsuitable = |reason: String| Error::Unsuitable {
        path: path.to_owned(),
        kind: kind.name(),
        reason,
    };
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let parsed = first.trim_end().split_once(' ');
    let Some((found, Ok(version))) = parsed.map(|(kind, version)| (kind, version.parse::<u32>()))
    else {
        return Err(unsuitable(format!(
            "its file {FILE} is damaged; if the directory held a {kind} store, write \"{kind} {VERSION}\" \
             into it, else choose another directory"
        )));
    };
    // First, because a newer program may know kinds that this one does not.
    if version > VERSION {
        return Err(Error::Newer {
            path: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    if found == "zfs" {
        if kind == Kind::Zfs {
            return Ok(true);
        }
        return Err(unsuitable(
            "it holds a store of kind zfs: name its dataset (zfs:POOL/DATASET), or another directory"
                .to_owned(),
        ));
    }
    if found != kind.name() {
        return Err(unsuitable(format!(
            "it holds a store of kind {found}: use {found}:{} or another directory",
            path.display()
        )));
    }
    let (settings, found) = match rest.find(IDS) {
        Some(start) => rest.split_at(start),
        None => (rest, ""),
    };
    if found != ids() {
        return Err(unsuitable(other_ids(found)));
    }
    trees.settle(Some(settings))?;
    Ok(true)
}

/// What begins that line.
const IDS: &str = "ids ";

/// Returns the line by which a store in a user namespace names the ids that its files have on the host; nothing for root's stores.
fn ids() -> String {
    obuild_rootless::current().map_or_else(String::new, |mapping| format!("{IDS}{mapping}\n"))
}

/// Says why a store with such a line cannot be used here: its files would belong to others than they should.
fn other_ids(line: &str) -> String {
    let line = line.strip_prefix(IDS).unwrap_or(line).trim_end();
    match (line.is_empty(), obuild_rootless::current()) {
        (true, _) => {
            "it was made by root: run obuild as root, or choose another directory".to_owned()
        }
        (false, None) => format!(
            "an ordinary user made it (ids: {line}): run obuild as that user, or choose another directory"
        ),
        (false, Some(mapping)) => format!(
            "it was made when this user had other ids ({line}; now {mapping}): give back what has changed in \
             /etc/subuid and /etc/subgid, or choose another directory"
        ),
    }
}

/// Returns something in the directory that no unfinished making of a store can have left.
fn stranger(place: &Place) -> Result<Option<String>, Error> {
    for name in place.names(".")? {
        // ext4 makes lost+found in the top directory of every file system.
        let ours = name == "lost+found"
            || name == format!("{FILE}.new")
            || name.starts_with(".probe-")
            || ["drafts", "trees", "cache-trees"].contains(&name.as_str())
                && place.names(&name).is_ok_and(|below| below.is_empty());
        if !ours {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Has btrfs write the files in `state` in the blocks that they have (`FS_NOCOW_FL`, `chattr +C`).
///
/// SQLite maps a file into memory that all its processes write to (sqlite.org/walformat.html, the WAL-index). Where each
/// write wants a new block, a full disk ends the process by SIGBUS.
fn write_in_place(place: &Place) -> Result<(), Error> {
    let state = place
        .open_directory("state")
        .map_err(|errno| place.error("open", "state", errno))?;
    if let Ok(flags) = rustix::fs::ioctl_getflags(&state) {
        // Others write in place anyway, and do not know the flag.
        let _ = rustix::fs::ioctl_setflags(&state, flags | IFlags::NOCOW);
    }
    Ok(())
}

/// Has ext4 put each new directory in `name` into a block group of its own (`FS_TOPDIR_FL`, `chattr +T`).
///
/// ext4 does not use the number of an inode again within a minute or five of its deletion, but looks at each such whenever
/// it makes an inode in the group (linux fs/ext4/ialloc.c, `recently_deleted`). A step makes and deletes about ten, most of
/// them the kernel for the mount. On a disk where much had been deleted near the store it took 3.6 to 12.5 ms of processor
/// time, and 1.7 to 2.0 with this (200 steps, three runs each, 2-core VM, 6.18, 2026-11).
pub(super) fn spread(place: &Place, name: &str) -> Result<(), Error> {
    let directory = place
        .open_directory(name)
        .map_err(|errno| place.error("open", name, errno))?;
    if let Ok(flags) = rustix::fs::ioctl_getflags(&directory) {
        // Other file systems do not know the flag, and do not need it.
        let _ = rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR);
    }
    Ok(())
}
