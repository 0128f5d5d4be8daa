// SPDX-License-Identifier: Apache-2.0
//! Gives each entry of an archive its place in a tree: what it replaces, its owner, mode, times and attributes.
//!
//! Rules for layers: OCI image-spec v1.1 layer.md, "Applying Changesets" and "Whiteouts".

use super::Error;
use super::archive::{Archive, Entry, Extent, Kind};
use super::tree::{MAX_DEPTH, Tree, children, open_directory, remove, times_of, timestamps};
use crate::owners;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, fstat, ftruncate, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat,
    statat, symlinkat, utimensat,
};
use rustix::io::{Errno, pwrite, write};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What comes before the name of what a whiteout hides (OCI image-spec v1.1 layer.md).
const WHITEOUT: &[u8] = b".wh.";
/// Metadata of AUFS, of which only the opaque marker means anything here.
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// `PATH_MAX` without its NUL.
const MAX_PATH: usize = 4095;

/// What names that start with `.wh.` mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Nothing: the archive is a root file system.
    Literal,
    /// The archive is the lowest layer: they hide nothing and make nothing.
    Ignored,
    /// They hide what lower layers have.
    Applied,
}

/// Unpacks the archive over `root`, then reads `input` to its end.
///
/// An empty draft's root gets mode 0755, root's, and the epoch's time unless the archive has an entry for it.
pub(crate) fn unpack(
    input: impl BufRead,
    root: OwnedFd,
    whiteouts: Whiteouts,
) -> Result<(), Error> {
    let at_root = |action| move |source: Errno| write_error(action, b"/", source);
    let mut tree = Tree::new(root).map_err(at_root("open"))?;
    if whiteouts != Whiteouts::Applied {
        set_owner(tree.root(), b".", 0, 0).map_err(at_root("set the owner of"))?;
        fchmod(tree.root(), Mode::from_raw_mode(0o755)).map_err(at_root("set the mode of"))?;
        tree.set_root_times(timestamps((0, 0)));
    }
    let mut unpacker = Unpacker {
        archive: Archive::new(input),
        tree,
        whiteouts,
        made: Made::default(),
    };
    while let Some(mut entry) = unpacker.archive.next()? {
        (entry.uid, entry.gid) =
            owners::allowed(entry.uid, entry.gid).map_err(|source| Error::Write {
                action: "set the owner of",
                entry: entry.name.clone().into(),
                source,
            })?;
        unpacker.apply(&entry)?;
    }
    unpacker
        .tree
        .finish()
        .map_err(at_root("set the times of"))?;
    unpacker.archive.drain()
}

struct Unpacker<R> {
    archive: Archive<R>,
    tree: Tree,
    whiteouts: Whiteouts,
    made: Made,
}

/// The paths that this layer has made: its whiteouts hide only what is below it. Eight bytes a path.
#[derive(Default)]
struct Made {
    hashes: HashSet<u64>,
    state: RandomState,
}

impl Made {
    fn insert(&mut self, path: &[&[u8]]) {
        self.hashes.insert(self.state.hash_one(path));
    }

    fn contains(&self, path: &[Vec<u8>]) -> bool {
        // A slice of vectors hashes as the slice of slices does: `Borrow` asks for it.
        self.hashes.contains(&self.state.hash_one(path))
    }
}

impl<R: BufRead> Unpacker<R> {
    fn apply(&mut self, entry: &Entry) -> Result<(), Error> {
        let path = components(&entry.name).map_err(|reason| refused(entry, reason))?;
        let Some((&name, parents)) = path.split_last() else {
            return self.apply_root(entry);
        };
        if self.whiteouts != Whiteouts::Literal {
            if parents.iter().any(|parent| parent.starts_with(META))
                || (name.starts_with(META) && name != OPAQUE)
            {
                tracing::debug!(entry = %bstr::BStr::new(&entry.name), "left out metadata of AUFS");
                return Ok(());
            }
            if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
                return Err(refused(entry, "a whiteout cannot hold entries"));
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                return self.whiteout(entry, parents, hidden);
            }
        }
        self.tree
            .enter(parents)
            .map_err(|error| write_error("enter the directory of", &entry.name, error))?;
        if self.whiteouts == Whiteouts::Applied {
            for depth in 0..path.len() {
                self.made.insert(&path[..=depth]);
            }
        }
        self.tree.touched();
        match &entry.kind {
            Kind::File | Kind::Sparse { .. } => self.file(entry, name),
            Kind::Directory => self.directory(entry, name),
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                    return Err(refused(entry, "the link's target is empty or too long"));
                }
                self.node(entry, name, "link", |parent| {
                    symlinkat(target.as_slice(), parent, name)
                })
            }
            Kind::HardLink(target) => self.hard_link(entry, parents, name, target),
            Kind::Character(0, 0) => {
                // Documentation/filesystems/overlayfs.rst: a 0:0 character device in a layer is a whiteout.
                Err(refused(
                    entry,
                    "a character device 0:0 would hide files in an overlay",
                ))
            }
            Kind::Character(..) | Kind::Block(..) if owners::without_devices(&entry.name) => Ok(()),
            Kind::Character(major, minor) => {
                let device = makedev(*major, *minor);
                self.node(entry, name, "make the device", |parent| {
                    mknodat(
                        parent,
                        name,
                        FileType::CharacterDevice,
                        Mode::empty(),
                        device,
                    )
                })
            }
            Kind::Block(major, minor) => {
                let device = makedev(*major, *minor);
                self.node(entry, name, "make the device", |parent| {
                    mknodat(parent, name, FileType::BlockDevice, Mode::empty(), device)
                })
            }
            Kind::Fifo => self.node(entry, name, "make the pipe", |parent| {
                mknodat(parent, name, FileType::Fifo, Mode::empty(), 0)
            }),
        }
    }

    /// The entry `./` describes the root itself.
    fn apply_root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(refused(
                entry,
                "the root of the tree can only be a directory",
            ));
        }
        let failed = |action| move |source: Errno| write_error(action, b"/", source);
        let root = self.tree.root();
        set_owner(root, b".", entry.uid, entry.gid).map_err(failed("set the owner of"))?;
        fchmod(root, Mode::from_raw_mode(entry.mode)).map_err(failed("set the mode of"))?;
        set_xattrs(entry, |name, value| {
            fsetxattr(root, name, value, XattrFlags::empty())
        })?;
        self.tree.set_root_times(timestamps(entry.mtime));
        Ok(())
    }

    fn whiteout(&mut self, entry: &Entry, parents: &[&[u8]], hidden: &[u8]) -> Result<(), Error> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(entry, "a whiteout must name a file"));
        }
        if self.whiteouts == Whiteouts::Ignored {
            return Ok(());
        }
        let failed = |source| write_error("apply the whiteout", &entry.name, source);
        // Made by its own layer or by a lower one, the directory is there; if not, it hides nothing.
        let directory = match self.tree.find(parents) {
            Ok(_) => {
                self.tree.enter(parents).map_err(failed)?;
                self.tree.here()
            }
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut path: Vec<Vec<u8>> = parents.iter().map(|name| name.to_vec()).collect();
        if entry.name.ends_with(OPAQUE) {
            for child in children(directory).map_err(failed)? {
                path.push(child);
                hide(&self.made, directory, &mut path).map_err(failed)?;
                path.pop();
            }
        } else {
            path.push(hidden.to_vec());
            hide(&self.made, directory, &mut path).map_err(failed)?;
        }
        self.tree.touched();
        Ok(())
    }

    fn file(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        let failed = |action| move |source: Errno| write_error(action, &entry.name, source);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = replacing(self.tree.here(), name, |parent| {
            openat(parent, name, flags, Mode::from_raw_mode(0o600))
        })
        .map_err(failed("create"))?;
        match &entry.kind {
            Kind::Sparse { size, map } => {
                ftruncate(&file, *size).map_err(failed("make room for"))?;
                for extent in map {
                    self.extent(&file, *extent, entry)?;
                }
            }
            _ => self.body(&file, entry)?,
        }
        // In this order: a change of the owner takes set-id bits and capabilities away (chown(2), capabilities(7)).
        fchown(
            &file,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(failed("set the owner of"))?;
        fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(failed("set the mode of"))?;
        set_xattrs(entry, |name, value| {
            fsetxattr(&file, name, value, XattrFlags::empty())
        })?;
        futimens(&file, &timestamps(entry.mtime)).map_err(failed("set the times of"))
    }

    fn body(&mut self, file: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        loop {
            let bytes = self.archive.chunk(u64::MAX)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let written = retry(|| write(file, bytes))
                .map_err(|source| write_error("write", &entry.name, source))?;
            self.archive.consume(written);
        }
    }

    fn extent(&mut self, file: &OwnedFd, mut extent: Extent, entry: &Entry) -> Result<(), Error> {
        while extent.length > 0 {
            let bytes = self.archive.chunk(extent.length)?;
            let written = retry(|| pwrite(file, bytes, extent.offset))
                .map_err(|source| write_error("write", &entry.name, source))?;
            self.archive.consume(written);
            extent.offset += written as u64;
            extent.length -= written as u64;
        }
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        let failed = |action| move |source: Errno| write_error(action, &entry.name, source);
        let parent = self.tree.here();
        match mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            // A directory that is there stays, with its content.
            Err(Errno::EXIST) if open_directory(parent, name).is_ok() => {}
            Err(Errno::EXIST) => {
                replacing(parent, name, |parent| {
                    mkdirat(parent, name, Mode::from_raw_mode(0o700))
                })
                .map_err(failed("create"))?;
            }
            other => other.map_err(failed("create"))?,
        }
        self.attributes(entry, name)
    }

    /// Makes something by one call, in place of what has its name.
    fn node(
        &mut self,
        entry: &Entry,
        name: &[u8],
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        replacing(self.tree.here(), name, make)
            .map_err(|source| write_error(action, &entry.name, source))?;
        self.attributes(entry, name)
    }

    /// Sets owner, mode, attributes and times by name; the name was made just now and is no link unless the entry is.
    fn attributes(&self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        let failed = |action| move |source: Errno| write_error(action, &entry.name, source);
        let parent = self.tree.here();
        set_owner(parent, name, entry.uid, entry.gid).map_err(failed("set the owner of"))?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            chmodat(
                parent,
                name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
            .map_err(failed("set the mode of"))?;
        }
        if !entry.xattrs.is_empty() {
            // There is no lsetxattr relative to a descriptor before Linux 6.13 (setxattrat). The link in /proc is ours.
            let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            set_xattrs(entry, |name, value| {
                lsetxattr(path.as_slice(), name, value, XattrFlags::empty())
            })?;
        }
        utimensat(
            parent,
            name,
            &timestamps(entry.mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed("set the times of"))
    }

    fn hard_link(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
        target: &[u8],
    ) -> Result<(), Error> {
        let failed = |source| match source {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => refused(
                entry,
                format!(
                    "it links to {:?}, which is not there",
                    bstr::BStr::new(target)
                ),
            ),
            Errno::PERM | Errno::ISDIR => refused(
                entry,
                format!(
                    "it links to {:?}, which is a directory",
                    bstr::BStr::new(target)
                ),
            ),
            source => write_error("link", &entry.name, source),
        };
        let target = components(target)
            .map_err(|reason| refused(entry, format!("the link's target: {reason}")))?;
        let Some((&target_name, target_parents)) = target.split_last() else {
            return Err(failed(Errno::ISDIR));
        };
        let found;
        let target_parent = if target_parents == parents {
            self.tree.here()
        } else {
            found = self.tree.find(target_parents).map_err(failed)?;
            found.as_fd()
        };
        let here = self.tree.here();
        let wanted =
            statat(target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(wanted.st_mode) == FileType::Directory {
            return Err(failed(Errno::ISDIR));
        }
        let link = || linkat(target_parent, target_name, here, name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                let existing = statat(here, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if (existing.st_dev, existing.st_ino) == (wanted.st_dev, wanted.st_ino) {
                    return Ok(());
                }
                remove(here, name).map_err(failed)?;
                link().map_err(failed)
            }
            other => other.map_err(failed),
        }
    }
}

/// Removes what the layer has not made itself; `path` ends with a name in `parent`.
fn hide(made: &Made, parent: BorrowedFd<'_>, path: &mut Vec<Vec<u8>>) -> Result<(), Errno> {
    let Some(name) = path.last() else {
        return Ok(());
    };
    if !made.contains(path) {
        return remove(parent, name);
    }
    let directory = match open_directory(parent, name) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    let times = times_of(&fstat(&directory)?);
    for child in children(directory.as_fd())? {
        path.push(child);
        hide(made, directory.as_fd(), path)?;
        path.pop();
    }
    futimens(&directory, &times)
}

/// Makes something exclusively; if the name is taken, removes what has it and tries again.
fn replacing<T>(
    parent: BorrowedFd<'_>,
    name: &[u8],
    make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    match make(parent) {
        Err(Errno::EXIST) => {
            remove(parent, name)?;
            make(parent)
        }
        other => other,
    }
}

/// Splits a name into components. A leading slash and `.` mean nothing, as for tar(1); `..` is refused.
fn components(name: &[u8]) -> Result<Vec<&[u8]>, String> {
    if name.len() > MAX_PATH {
        return Err(format!(
            "a path of {} bytes (the limit is {MAX_PATH})",
            name.len()
        ));
    }
    let mut path = Vec::new();
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("its path contains `..`".to_owned()),
            _ if component.contains(&0) => return Err("its path contains a NUL".to_owned()),
            _ => path.push(component),
        }
    }
    if path.len() > MAX_DEPTH {
        return Err(format!(
            "a path of {} components (the limit is {MAX_DEPTH})",
            path.len()
        ));
    }
    Ok(path)
}

fn set_owner(parent: BorrowedFd<'_>, name: &[u8], uid: u32, gid: u32) -> Result<(), Errno> {
    chownat(
        parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// Sets the attributes that belong to the tree.
///
/// Those that the kernel's overlay reads would let an image hide or redirect files, and labels of `SELinux` belong to the host's policy:
/// both are left out. A file system without some class of attributes is no error, but a capability must not get lost.
fn set_xattrs(entry: &Entry, set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>) -> Result<(), Error> {
    for (name, value) in &entry.xattrs {
        let left_out = [
            &b"trusted.overlay."[..],
            b"user.overlay.",
            b"security.selinux",
        ];
        if left_out.iter().any(|prefix| name.starts_with(prefix)) {
            tracing::debug!(entry = %bstr::BStr::new(&entry.name), attribute = %bstr::BStr::new(name), "left out");
            continue;
        }
        match set(name, value) {
            Ok(()) => {}
            // xattr(7): user attributes exist only on files and directories.
            Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
                tracing::debug!(entry = %bstr::BStr::new(&entry.name), attribute = %bstr::BStr::new(name), "cannot be kept");
            }
            Err(source) => {
                return Err(write_error(
                    "set an extended attribute of",
                    &entry.name,
                    source,
                ));
            }
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn refused(entry: &Entry, reason: impl Into<String>) -> Error {
    Error::Refused {
        entry: entry.name.clone().into(),
        reason: reason.into(),
    }
}

fn write_error(action: &'static str, entry: &[u8], source: Errno) -> Error {
    Error::Write {
        action,
        entry: entry.into(),
        source: source.into(),
    }
}
