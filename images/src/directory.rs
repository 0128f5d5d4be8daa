// SPDX-License-Identifier: Apache-2.0
//! A directory as a base: its digest, and its faithful copy.
//!
//! One walk does both. Unlike a `copy` step, which gives everything one owner, a base keeps owners, modes, times, hard links, devices
//! and attributes. All but the times are part of its identity. The copy hashes what it writes, so that a tree that
//! changes between the two walks is noticed.

use crate::Error;
use crate::import::Progress;
use crate::owners;
use crate::resolve::ResolveOptions;
use crate::stamp::{FileDigests, NoDigests, file_digest};
use crate::unpack::tree::{MAX_DEPTH, children, open_directory, timestamps};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chmodat, chownat, fchmod, fstat,
    fstatfs, futimens, lgetxattr, linkat, llistxattr, lsetxattr, mkdirat, mknodat, openat,
    readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// File systems that hold no files: a tree that is in use may have them mounted (linux v6.1 include/uapi/linux/magic.h).
const KERNEL_FILE_SYSTEMS: [i64; 8] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x0102_1994, // tmpfs: /dev, /run, /dev/shm
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x1980_0202, // mqueue
];

/// Names of attributes, or their beginnings, that belong to a tree.
const ATTRIBUTES: [&[u8]; 3] = [b"user.", b"security.capability", b"system.posix_acl_"];

/// Returns the digest of everything below `path`.
pub(crate) fn digest(path: &Path, options: &ResolveOptions<'_>) -> Result<[u8; 32], Error> {
    let source = open(path)?;
    let mut walk = Walk::new(path, options.digests, options.cancelled);
    walk.root(source.as_fd(), None)?;
    Ok(walk.hash.finalize().into())
}

/// Copies everything below `path` to `target`, and checks that it is what was digested.
pub(crate) fn copy(
    path: &Path,
    expected: &[u8; 32],
    target: &OwnedFd,
    progress: &mut dyn FnMut(Progress<'_>),
    cancelled: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let source = open(path)?;
    let mut walk = Walk::new(path, &NoDigests, cancelled);
    walk.progress = Some(progress);
    walk.root(source.as_fd(), Some(target.as_fd()))?;
    let found: [u8; 32] = walk.hash.finalize().into();
    if found == *expected {
        return Ok(());
    }
    Err(Error::NotUsable {
        path: path.to_owned(),
        wanted: "a stable directory",
        reason: "it was changed while it was read".into(),
    })
}

fn open(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let not_usable = |reason: &str| Error::NotUsable {
        path: path.to_owned(),
        wanted: "a directory with a root file system",
        reason: reason.to_owned(),
    };
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => not_usable("there is no such directory"),
        Errno::NOTDIR => not_usable("it is no directory (use tar:FILE for an archive)"),
        error => Error::io("open", path, error),
    })
}

struct Walk<'a> {
    /// The path of the current entry, for messages and for hard links.
    path: PathBuf,
    hash: Sha256,
    digests: &'a dyn FileDigests,
    cancelled: &'a dyn Fn() -> bool,
    progress: Option<&'a mut dyn FnMut(Progress<'_>)>,
    /// Where files with several names were seen first.
    links: HashMap<(u64, u64), PathBuf>,
    /// How many components of `path` are the root's.
    base: usize,
    target_root: Option<OwnedFd>,
    buffer: Vec<u8>,
    bytes: u64,
}

impl<'a> Walk<'a> {
    fn new(path: &Path, digests: &'a dyn FileDigests, cancelled: &'a dyn Fn() -> bool) -> Self {
        Self {
            path: path.to_owned(),
            hash: Sha256::new(),
            digests,
            cancelled,
            progress: None,
            links: HashMap::new(),
            base: path.components().count(),
            target_root: None,
            buffer: vec![0; 256 << 10],
            bytes: 0,
        }
    }

    fn root(
        &mut self,
        source: BorrowedFd<'_>,
        target: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        self.target_root = target
            .map(|target| target.try_clone_to_owned())
            .transpose()
            .map_err(|e| self.error("open", e))?;
        let stat = fstat(source).map_err(|error| self.error("read", error))?;
        self.attributes(b'd', &stat);
        let xattrs = self.hash_xattrs(source, b".")?;
        self.content(source, target, stat.st_dev, 0)?;
        if let Some(target) = target {
            self.finish(target, b".", &stat, &xattrs)?;
        }
        Ok(())
    }

    /// Walks a directory's content in the order of the names' bytes.
    fn content(
        &mut self,
        source: BorrowedFd<'_>,
        target: Option<BorrowedFd<'_>>,
        device: u64,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(self.error("enter", Errno::NAMETOOLONG));
        }
        let mut names = children(source).map_err(|error| self.error("read", error))?;
        names.sort_unstable();
        self.bytes_of(&(names.len() as u64).to_le_bytes());
        for name in names {
            if (self.cancelled)() {
                return Err(Error::Cancelled);
            }
            self.path.push(std::ffi::OsStr::from_bytes(&name));
            self.entry(source, target, &name, device, depth)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(
        &mut self,
        source: BorrowedFd<'_>,
        target: Option<BorrowedFd<'_>>,
        name: &[u8],
        device: u64,
        depth: usize,
    ) -> Result<(), Error> {
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error("read", error))?;
        self.text(name);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                self.bytes_of(b"h");
                self.text(first.as_os_str().as_bytes());
                return target.map_or(Ok(()), |target| self.link(&first, target, name));
            }
            let first = self.path.components().skip(self.base).collect();
            self.links.insert((stat.st_dev, stat.st_ino), first);
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let failed = |walk: &Self, action| {
            let path = walk.path.clone();
            move |source: Errno| Error::io(action, path, source)
        };
        let xattrs = match kind {
            FileType::RegularFile => {
                self.attributes(b'f', &stat);
                let xattrs = self.hash_xattrs(source, name)?;
                self.file(source, target, name)?;
                xattrs
            }
            FileType::Directory => {
                self.attributes(b'd', &stat);
                let xattrs = self.hash_xattrs(source, name)?;
                if let Some(target) = target {
                    mkdirat(target, name, Mode::RWXU).map_err(failed(self, "create"))?;
                }
                let below = open_directory(source, name).map_err(failed(self, "open"))?;
                let into = target
                    .map(|target| open_directory(target, name))
                    .transpose();
                let into = into.map_err(failed(self, "open"))?;
                if stat.st_dev != device && is_kernels(&below) {
                    self.bytes_of(&0_u64.to_le_bytes());
                } else {
                    self.content(
                        below.as_fd(),
                        into.as_ref().map(OwnedFd::as_fd),
                        stat.st_dev,
                        depth + 1,
                    )?;
                }
                xattrs
            }
            FileType::Symlink => {
                self.attributes(b'l', &stat);
                let link = readlinkat(source, name, Vec::new()).map_err(failed(self, "read"))?;
                self.text(link.as_bytes());
                if let Some(target) = target {
                    symlinkat(link.as_c_str(), target, name).map_err(failed(self, "create"))?;
                }
                Vec::new()
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                return Err(Error::NotUsable {
                    path: self.path.clone(),
                    wanted: "part of a root file system",
                    reason: "it is an overlay's whiteout; name the mounted tree, not a layer of it"
                        .into(),
                });
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                self.attributes(if kind == FileType::Fifo { b'p' } else { b'n' }, &stat);
                self.bytes_of(&(stat.st_mode & 0o170_000).to_le_bytes());
                self.bytes_of(&stat.st_rdev.to_le_bytes());
                let device = kind != FileType::Fifo;
                if target.is_some() && device && owners::without_devices(name) {
                    return Ok(());
                }
                if let Some(target) = target {
                    mknodat(target, name, kind, mode, stat.st_rdev)
                        .map_err(failed(self, "create"))?;
                }
                Vec::new()
            }
            // A socket is a running program's.
            _ => {
                self.bytes_of(b"s");
                return Ok(());
            }
        };
        target.map_or(Ok(()), |target| self.finish(target, name, &stat, &xattrs))
    }

    /// Hashes a file's content, and copies it if there is a target.
    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        target: Option<BorrowedFd<'_>>,
        name: &[u8],
    ) -> Result<(), Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(source, name, flags, Mode::empty())
            .map_err(|error| self.error("open", error))?;
        let mut file = File::from(file);
        let Some(target) = target else {
            let digest = file_digest(&self.path, &file, self.digests, self.cancelled)?;
            self.bytes_of(digest.as_bytes());
            return Ok(());
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = openat(target, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| self.error("create", error))?;
        let mut copy = File::from(copy);
        let mut hash = Sha256::new();
        loop {
            let length = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.error("read", error)),
            };
            hash.update(&self.buffer[..length]);
            copy.write_all(&self.buffer[..length])
                .map_err(|error| self.error("write", error))?;
            self.bytes += length as u64;
            if (self.cancelled)() {
                return Err(Error::Cancelled);
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        self.bytes_of(&digest);
        if let Some(progress) = &mut self.progress {
            progress(Progress::Copy { bytes: self.bytes });
        }
        Ok(())
    }

    /// Gives a name in the target to a file that was copied before.
    fn link(&self, first: &Path, target: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
        let Some(root) = &self.target_root else {
            return Ok(());
        };
        let mut directory = root
            .try_clone()
            .map_err(|error| self.error("open", error))?;
        let mut names = first.iter().map(OsStrExt::as_bytes).peekable();
        while let Some(component) = names.next() {
            if names.peek().is_some() {
                directory = open_directory(directory.as_fd(), component)
                    .map_err(|error| self.error("open", error))?;
            } else {
                linkat(&directory, component, target, name, AtFlags::empty())
                    .map_err(|error| self.error("link", error))?;
            }
        }
        Ok(())
    }

    /// Sets owner, mode, attributes and times of what was made, in the order in which they do not undo each other.
    fn finish(
        &self,
        target: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        xattrs: &Xattrs,
    ) -> Result<(), Error> {
        let failed = |error: Errno| self.error("set the attributes of the copy of", error);
        let (uid, gid) = owners::copied(stat.st_uid, stat.st_gid)
            .map_err(|error| self.error("set the owner of the copy of", error))?;
        let owner = (Uid::from_raw(uid), Gid::from_raw(gid));
        chownat(
            target,
            name,
            Some(owner.0),
            Some(owner.1),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        if name == b"." {
            fchmod(target, mode).map_err(failed)?;
        } else if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            chmodat(target, name, mode, AtFlags::empty()).map_err(failed)?;
        }
        for (attribute, value) in xattrs {
            lsetxattr(
                in_proc(target, name).as_slice(),
                attribute.as_slice(),
                value,
                XattrFlags::empty(),
            )
            .map_err(failed)?;
        }
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
        let times = timestamps((stat.st_mtime, nanoseconds));
        if name == b"." {
            futimens(target, &times).map_err(failed)
        } else {
            utimensat(target, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
        }
    }

    /// Hashes kind, mode and owner.
    fn attributes(&mut self, kind: u8, stat: &Stat) {
        self.bytes_of(&[kind]);
        self.bytes_of(&(stat.st_mode & 0o7777).to_le_bytes());
        self.bytes_of(&stat.st_uid.to_le_bytes());
        self.bytes_of(&stat.st_gid.to_le_bytes());
    }

    fn hash_xattrs(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs, Error> {
        let xattrs = read_xattrs(parent, name)
            .map_err(|error| self.error("read the attributes of", error))?;
        self.bytes_of(&(xattrs.len() as u64).to_le_bytes());
        for (attribute, value) in &xattrs {
            self.text(attribute);
            self.text(value);
        }
        Ok(xattrs)
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes_of(&(text.len() as u64).to_le_bytes());
        self.bytes_of(text);
    }

    fn bytes_of(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    fn error(&self, action: &'static str, source: impl Into<std::io::Error>) -> Error {
        Error::io(action, &self.path, source)
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Reads those attributes of a file that belong to a tree, by name; a file system without attributes has none.
fn read_xattrs(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Xattrs, Errno> {
    let path = in_proc(parent, name);
    // 64 KiB bounds both a list and a value (xattr(7)).
    let mut buffer = vec![0; 64 << 10];
    let length = match llistxattr(path.as_slice(), &mut buffer[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let mut names: Vec<Vec<u8>> = buffer[..length]
        .split(|&byte| byte == 0)
        .filter(|name| {
            ATTRIBUTES.iter().any(|known| name.starts_with(known))
                && !name.starts_with(b"user.overlay.")
        })
        .map(<[u8]>::to_vec)
        .collect();
    names.sort_unstable();
    let mut xattrs = Vec::new();
    for name in names {
        let length = lgetxattr(path.as_slice(), name.as_slice(), &mut buffer[..])?;
        xattrs.push((name, buffer[..length].to_vec()));
    }
    Ok(xattrs)
}

/// Names a file through an open directory: there is no lgetxattr relative to a descriptor before Linux 6.13.
fn in_proc(parent: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn is_kernels(directory: &OwnedFd) -> bool {
    fstatfs(directory).is_ok_and(|stat| KERNEL_FILE_SYSTEMS.contains(&stat.f_type))
}
