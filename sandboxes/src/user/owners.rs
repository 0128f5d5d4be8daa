// SPDX-License-Identifier: Apache-2.0
//! Gives a tree to a build user, and takes it back for root, so that a result does not tell who made it.
//!
//! Both walk the tree by descriptors and follow no link. Neither may run while a process of the build user lives.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::rc::Rc;

/// The bits with which a program runs as somebody else.
const SET_IDS: u32 = 0o6000;

/// The longest part of a tree's path that a message shows.
const SHOWN_BYTES: usize = 200;

/// Gives everything below `root`, and itself, to the user.
///
/// Device nodes are removed: their owner could reach the device. Set-uid bits go, as on every change of owner.
///
/// # Errors
///
/// When a file is linked from outside of the tree: who owned it here would own it there.
pub(super) fn give(root: BorrowedFd<'_>, owner: (u32, u32)) -> io::Result<()> {
    let mut linked: HashMap<(u64, u64), Linked> = HashMap::new();
    walk(root, &mut |directory, name, stat| {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::BlockDevice | FileType::CharacterDevice) {
            return unlink(directory, name);
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            Linked::add(&mut linked, directory, name, stat);
            return Ok(());
        }
        change(directory, name, stat, owner)
    })?;
    for file in linked.values() {
        let (directory, name) = &file.names[0];
        if file.has_others() {
            return Err(io::Error::other(format!(
                "{} has a link outside of the tree; a store that shares files between trees cannot be used here",
                shown(name)
            )));
        }
        change(directory, name, &file.stat, owner)?;
    }
    own(root, owner)
}

/// Takes everything below `root`, and itself, from the user, for root. Doing so again changes nothing.
///
/// # Errors
///
/// When something was neither root's nor the user's: only a link to a file that was never in the tree is. It is removed.
pub(super) fn take(root: BorrowedFd<'_>, from: u32) -> io::Result<()> {
    let mut linked: HashMap<(u64, u64), Linked> = HashMap::new();
    let mut taken = HashSet::new();
    let mut foreign = None;
    walk(root, &mut |directory, name, stat| {
        let several = !is_directory(stat) && stat.st_nlink > 1;
        if stat.st_uid == from {
            if several {
                taken.insert(identity(stat));
            }
            return change(directory, name, stat, (0, 0));
        }
        if stat.st_uid != 0 {
            foreign.get_or_insert_with(|| shown(name));
            return unlink(directory, name);
        }
        if several && !taken.contains(&identity(stat)) {
            Linked::add(&mut linked, directory, name, stat);
        }
        Ok(())
    })?;
    // Root's with several names: taken before by one who was killed, if all the names are here.
    for file in linked.values().filter(|file| file.has_others()) {
        for (directory, name) in &file.names {
            foreign.get_or_insert_with(|| shown(name));
            unlink(directory, name)?;
        }
    }
    own(root, (0, 0))?;
    match foreign {
        None => Ok(()),
        Some(name) => Err(io::Error::other(format!(
            "the step made {name} a link to somebody else's file"
        ))),
    }
}

/// A file with several names.
struct Linked {
    stat: Stat,
    names: Vec<(Rc<OwnedFd>, CString)>,
}

impl Linked {
    fn add(all: &mut HashMap<(u64, u64), Self>, directory: &Rc<OwnedFd>, name: &CStr, stat: &Stat) {
        let entry = all.entry(identity(stat)).or_insert_with(|| Self {
            stat: *stat,
            names: Vec::new(),
        });
        entry.names.push((Rc::clone(directory), name.to_owned()));
    }

    /// Returns whether it has names that were not seen.
    fn has_others(&self) -> bool {
        u64::try_from(self.names.len()).is_ok_and(|seen| seen != u64::from(self.stat.st_nlink))
    }
}

/// What is done with one entry of a directory.
type Visit<'a> = &'a mut dyn FnMut(&Rc<OwnedFd>, &CStr, &Stat) -> io::Result<()>;

/// Visits everything below a directory; directories before what is in them. One descriptor is held for each level.
fn walk(root: BorrowedFd<'_>, visit: Visit<'_>) -> io::Result<()> {
    let mut open = vec![listed(open_directory(root, c".")?)?];
    while let Some((directory, entries)) = open.last_mut() {
        let Some(entry) = entries.next() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let directory = Rc::clone(directory);
        let failed = |error: io::Error| about(name, &error);
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(error.into()))?;
        visit(&directory, name, &stat).map_err(failed)?;
        if is_directory(&stat) {
            let inner = open_directory(directory.as_fd(), name).map_err(failed)?;
            open.push(listed(inner)?);
        }
    }
    Ok(())
}

fn listed(directory: OwnedFd) -> io::Result<(Rc<OwnedFd>, Dir)> {
    let entries = Dir::read_from(&directory)?;
    Ok((Rc::new(directory), entries))
}

fn open_directory(at: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, name, flags, Mode::empty())?)
}

fn change(directory: &OwnedFd, name: &CStr, stat: &Stat, owner: (u32, u32)) -> io::Result<()> {
    if (stat.st_uid, stat.st_gid) == owner {
        return Ok(());
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    // Some systems leave the bits when root changes the owner: POSIX chown.
    if kind == FileType::RegularFile && u32::from(stat.st_mode) & SET_IDS != 0 {
        let mode = Mode::from_raw_mode(stat.st_mode & 0o1777);
        rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
    }
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        flags,
    )?)
}

fn own(root: BorrowedFd<'_>, owner: (u32, u32)) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    Ok(rustix::fs::fchown(root, Some(uid), Some(gid))?)
}

fn unlink(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_sign_loss,
    reason = "the types differ between systems"
)]
fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn about(name: &CStr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", shown(name)))
}

fn shown(name: &CStr) -> String {
    let bytes = name.to_bytes();
    format!(
        "{:?}",
        bstr::BStr::new(&bytes[..bytes.len().min(SHOWN_BYTES)])
    )
}
