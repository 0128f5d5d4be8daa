// SPDX-License-Identifier: Apache-2.0
//! Finds places inside a tree, makes the mount points that are missing, and takes them away again.
//!
//! A tree may hold anything, also links that lead out of it. Every look-up therefore stays below the root descriptor: by
//! `RESOLVE_IN_ROOT` where the place exists, and step by step, following each link ourselves, where a part is missing.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

// path_resolution(7): the kernel gives up after 40 links.
const MAX_LINKS: usize = 40;

/// What a mount point is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// A root tree, and what was made in it for the step.
pub(crate) struct Tree {
    root: OwnedFd,
    parents: Vec<Parent>,
    created: Vec<Created>,
    /// Whether the step got to see the directories with their own times.
    restored: bool,
}

/// A directory in which something was made.
struct Parent {
    directory: OwnedFd,
    stat: Stat,
}

/// Something that was made.
struct Created {
    parent: usize,
    name: Vec<u8>,
    kind: Kind,
    device: u64,
    inode: u64,
}

impl Tree {
    /// Takes a tree by its root directory.
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            parents: Vec::new(),
            created: Vec::new(),
            restored: false,
        }
    }

    /// Returns the root directory.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what is at `path`, following links inside the tree.
    pub(crate) fn open(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        // openat2(2): EAGAIN when a rename anywhere on the host raced with the look-up.
        for _ in 0..32 {
            match rustix::fs::openat2(
                &self.root,
                OsStr::from_bytes(path),
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            ) {
                Err(Errno::AGAIN) => {}
                result => return result.map_err(io::Error::from),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Reads a small file of the tree; `None` when there is none.
    pub(crate) fn read(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        use std::io::Read;
        // Without NONBLOCK a FIFO in its place would hold us.
        let file = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        // Room for one byte more, so that the end is found without another read.
        let mut content =
            Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0).min(1 << 20) + 1);
        std::fs::File::from(file)
            .take(8 << 20)
            .read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Returns the mount point at `path`, made for this step when it is missing.
    pub(crate) fn point(&mut self, path: &[u8], kind: Kind) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.walk(path, kind, true),
            result => result,
        }
    }

    /// Returns the directory at `path`, made for good when it is missing.
    pub(crate) fn directory(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let directory = match self.open(path, OFlags::PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.walk(path, Kind::Directory, false)?
            }
            result => result?,
        };
        if kind_of(&directory)? == FileType::Directory {
            Ok(directory)
        } else {
            Err(Errno::NOTDIR.into())
        }
    }

    fn walk(&mut self, path: &[u8], kind: Kind, remember: bool) -> io::Result<OwnedFd> {
        let mut rest = VecDeque::new();
        prepend(&mut rest, path);
        let mut way: Vec<OwnedFd> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                way.pop();
                continue;
            }
            let here = way.last().unwrap_or(&self.root).try_clone()?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&here, OsStr::from_bytes(&name), flags, Mode::empty()) {
                Ok(next) => match kind_of(&next)? {
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP.into());
                        }
                        let target = rustix::fs::readlinkat(&next, "", Vec::new())?;
                        if target.as_bytes().starts_with(b"/") {
                            way.clear();
                        }
                        prepend(&mut rest, target.as_bytes());
                    }
                    FileType::Directory => way.push(next),
                    _ if rest.is_empty() => way.push(next),
                    _ => return Err(Errno::NOTDIR.into()),
                },
                Err(Errno::NOENT) => {
                    let last = rest.iter().all(|name| name == b"..");
                    let kind = if last { kind } else { Kind::Directory };
                    way.push(self.make(&here, name, kind, remember)?);
                }
                Err(error) => return Err(error.into()),
            }
        }
        match way.pop() {
            Some(found) => Ok(found),
            None => Ok(self.root.try_clone()?),
        }
    }

    fn make(
        &mut self,
        here: &OwnedFd,
        name: Vec<u8>,
        kind: Kind,
        remember: bool,
    ) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(here, ".", flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&directory)?;
        let path = OsStr::from_bytes(&name);
        match kind {
            Kind::Directory => {
                rustix::fs::mkdirat(&directory, path, Mode::from_raw_mode(0o755))?;
            }
            Kind::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                rustix::fs::openat(&directory, path, flags, Mode::from_raw_mode(0o644))?;
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&directory, path, flags, Mode::empty())?;
        if remember {
            let made = rustix::fs::fstat(&made)?;
            let known = self.parents.iter().position(|parent| {
                (parent.stat.st_dev, parent.stat.st_ino) == (stat.st_dev, stat.st_ino)
            });
            let parent = known.unwrap_or_else(|| {
                self.parents.push(Parent { directory, stat });
                self.parents.len() - 1
            });
            self.created.push(Created {
                parent,
                name,
                kind,
                device: made.st_dev,
                inode: made.st_ino,
            });
        }
        Ok(made)
    }

    /// Sets the times of the directories in which something was made back to what they were.
    pub(crate) fn restore_times(&mut self) -> io::Result<()> {
        self.restored = true;
        for parent in &self.parents {
            set_modified(&parent.directory, &parent.stat)?;
        }
        Ok(())
    }

    /// Removes what was made for the step, unless the step has put something there, and sets the directories' times back to how the
    /// step left them, or to how they were when it never ran. Whatever is mounted on the points is unmounted first. Changes the working directory.
    pub(crate) fn remove_points(&self) -> io::Result<()> {
        let left: Vec<Stat> = self
            .parents
            .iter()
            .map(|parent| {
                if self.restored {
                    rustix::fs::fstat(&parent.directory)
                } else {
                    Ok(parent.stat)
                }
            })
            .collect::<Result<_, _>>()?;
        for created in self.created.iter().rev() {
            let directory = &self.parents[created.parent].directory;
            let name = OsStr::from_bytes(&created.name);
            rustix::process::fchdir(directory)?;
            // Two mounts of one step may have the same target.
            while rustix::mount::unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                .is_ok()
            {}
            let Ok(now) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if (now.st_dev, now.st_ino) != (created.device, created.inode) {
                continue;
            }
            let result = match created.kind {
                Kind::Directory => rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR),
                Kind::File if now.st_size == 0 => {
                    rustix::fs::unlinkat(directory, name, AtFlags::empty())
                }
                Kind::File => Ok(()),
            };
            match result {
                // On a read-only tree the points are on a layer of ours, which goes by itself.
                Ok(()) | Err(Errno::NOTEMPTY | Errno::ROFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for (parent, stat) in self.parents.iter().zip(&left) {
            set_modified(&parent.directory, stat)?;
        }
        Ok(())
    }
}

fn prepend(rest: &mut VecDeque<Vec<u8>>, path: &[u8]) {
    for name in path.split(|&byte| byte == b'/').rev() {
        if !name.is_empty() && name != b"." {
            rest.push_front(name.to_vec());
        }
    }
}

fn kind_of(file: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

fn set_modified(directory: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.cast_signed(),
        },
    };
    match rustix::fs::futimens(directory, &times) {
        Ok(()) | Err(Errno::ROFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
