// SPDX-License-Identifier: Apache-2.0
//! A store for tests: its books are in memory, its trees are plain directories, and every copy is a full one.
//!
//! It needs neither root nor a special file system, and passes the same conformance suite as the others but for what
//! outlives a process.

use crate::draft::Draft;
use crate::store::{CacheLease, Snapshot, Space, Store};
use crate::{Error, Rootfs, SnapshotId, tree};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A store for tests.
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    directory: PathBuf,
    state: PathBuf,
    books: Mutex<Books>,
    /// Held while a cache's content is copied or replaced.
    caching: Mutex<()>,
}

#[derive(Default)]
struct Books {
    snapshots: HashMap<SnapshotId, (Option<SnapshotId>, PathBuf)>,
    /// Parents of what is being made.
    drafts: Vec<(SnapshotId, SnapshotId)>,
    /// Each cache's generation and content.
    caches: HashMap<Vec<u8>, (u64, PathBuf)>,
    counter: u64,
}

/// A directory that is deleted when it is dropped, unless it is taken out.
struct Tree {
    shared: Arc<Shared>,
    path: Option<PathBuf>,
    draft: Option<(SnapshotId, SnapshotId)>,
    /// For a lease: the cache's name and generation.
    cache: (Vec<u8>, u64),
}

impl Tree {
    /// Takes the directory out: the caller keeps it.
    fn take(&mut self) -> PathBuf {
        self.path.take().expect("a tree is taken once")
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = delete(path)
        {
            tracing::warn!(%error, "a tree could not be thrown away");
        }
        if let Some(draft) = self.draft {
            let mut books = self.shared.books();
            if let Some(index) = books.drafts.iter().position(|other| *other == draft) {
                books.drafts.swap_remove(index);
            }
        }
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn caching(&self) -> MutexGuard<'_, ()> {
        self.caching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

impl Memory {
    /// Makes an empty store whose trees will be in `directory`, which must be there.
    pub fn create(directory: &Path) -> Result<Self, Error> {
        let state = directory.join("state");
        make_directory(&state)?;
        let directory = directory.to_owned();
        let (books, caching) = (Mutex::default(), Mutex::default());
        Ok(Self {
            shared: Arc::new(Shared {
                directory,
                state,
                books,
                caching,
            }),
        })
    }

    /// Makes a tree: a copy of `source`, or empty.
    fn tree(&self, source: Option<&Path>) -> Result<(Tree, Rootfs), Error> {
        let number = self.shared.books().number();
        let path = self.shared.directory.join(format!("tree-{number}"));
        make_directory(&path)?;
        let tree = Tree {
            shared: Arc::clone(&self.shared),
            path: Some(path.clone()),
            draft: None,
            cache: (Vec::new(), 0),
        };
        if let Some(source) = source {
            copy(source, &path, &mut HashMap::new()).map_err(|e| Error::io("copy", source, e))?;
        }
        Ok((tree, Rootfs::Directory(path)))
    }

    fn own(&self, guard: crate::draft::Guard) -> Result<Box<Tree>, Error> {
        match guard.downcast::<Tree>() {
            Ok(tree) if Arc::ptr_eq(&tree.shared, &self.shared) => Ok(tree),
            _ => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "it is of another store");
                Err(Error::io(
                    "commit a draft to",
                    &self.shared.directory,
                    source,
                ))
            }
        }
    }
}

impl Store for Memory {
    fn url(&self) -> String {
        format!("memory:{}", self.shared.directory.display())
    }

    fn state_dir(&self) -> &Path {
        &self.shared.state
    }

    fn prepare(&self, id: SnapshotId, parent: Option<SnapshotId>) -> Result<Draft, Error> {
        let source = {
            let mut books = self.shared.books();
            if books.snapshots.contains_key(&id) {
                return Err(Error::Exists(id));
            }
            let source = match parent {
                None => None,
                Some(parent) => {
                    let found = books.snapshots.get(&parent);
                    Some(found.ok_or(Error::NoSuchSnapshot(parent))?.1.clone())
                }
            };
            books.drafts.extend(parent.map(|parent| (id, parent)));
            source
        };
        let made = self.tree(source.as_deref());
        let (mut tree, rootfs) = made.inspect_err(|_| {
            let mut books = self.shared.books();
            books
                .drafts
                .retain(|draft| Some(*draft) != parent.map(|parent| (id, parent)));
        })?;
        tree.draft = parent.map(|parent| (id, parent));
        Ok(Draft {
            id,
            parent,
            rootfs,
            guard: Box::new(tree),
        })
    }

    fn commit(&self, draft: Draft) -> Result<Snapshot, Error> {
        let (id, parent) = (draft.id, draft.parent);
        let mut tree = self.own(draft.guard)?;
        {
            let mut books = self.shared.books();
            books
                .snapshots
                .entry(id)
                .or_insert_with(|| (parent, tree.take()));
        }
        drop(tree);
        self.get(id)?.ok_or(Error::NoSuchSnapshot(id))
    }

    fn discard(&self, draft: Draft) -> Result<(), Error> {
        let mut tree = self.own(draft.guard)?;
        delete(&tree.take())
    }

    fn get(&self, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
        let books = self.shared.books();
        Ok(books.snapshots.get(&id).map(|(parent, path)| Snapshot {
            id,
            parent: *parent,
            rootfs: Rootfs::Directory(path.clone()),
        }))
    }

    fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        let path = {
            let mut books = self.shared.books();
            let committed = books
                .snapshots
                .iter()
                .filter(|(_, (parent, _))| *parent == Some(id));
            let mut children: Vec<SnapshotId> = committed.map(|(child, _)| *child).collect();
            let drafts = books.drafts.iter().filter(|(_, parent)| *parent == id);
            children.extend(drafts.map(|(child, _)| *child));
            if !children.is_empty() {
                return Err(Error::HasChildren { id, children });
            }
            books.snapshots.remove(&id)
        };
        path.map_or(Ok(()), |(_, path)| delete(&path))
    }

    fn list(&self) -> Result<Vec<(SnapshotId, Option<SnapshotId>)>, Error> {
        let books = self.shared.books();
        Ok(books
            .snapshots
            .iter()
            .map(|(id, (parent, _))| (*id, *parent))
            .collect())
    }

    fn size(&self, id: SnapshotId) -> Result<u64, Error> {
        let (path, parent) = {
            let books = self.shared.books();
            let (parent, path) = books.snapshots.get(&id).ok_or(Error::NoSuchSnapshot(id))?;
            let parent = parent.and_then(|parent| books.snapshots.get(&parent));
            (path.clone(), parent.map(|(_, path)| path.clone()))
        };
        let below = parent.map_or(Ok(0), |parent| size(&parent))?;
        Ok(size(&path)?.saturating_sub(below))
    }

    fn space(&self) -> Result<Space, Error> {
        let directory = &self.shared.directory;
        let statvfs =
            rustix::fs::statvfs(directory).map_err(|e| Error::io("look at", directory, e))?;
        Ok(Space {
            total: statvfs.f_blocks * statvfs.f_frsize,
            available: statvfs.f_bavail * statvfs.f_frsize,
        })
    }

    fn lease_cache(&self, name: &[u8], owner: (u32, u32)) -> Result<CacheLease, Error> {
        let _caching = self.shared.caching();
        let known = self.shared.books().caches.get(name).cloned();
        let (generation, source) = if let Some(known) = known {
            known
        } else {
            let (mut tree, _) = self.tree(None)?;
            let mut books = self.shared.books();
            let fresh = (books.number(), tree.take());
            books.caches.entry(name.to_owned()).or_insert(fresh).clone()
        };
        let (mut tree, rootfs) = self.tree(Some(&source))?;
        tree.cache = (name.to_owned(), generation);
        if let Some(path) = &tree.path {
            // Without privilege only the own ids can be given, which the directory has already.
            let owner = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            if rustix::process::geteuid().is_root() {
                rustix::fs::chown(path, Some(owner.0), Some(owner.1))
                    .map_err(|e| Error::io("give away", path, e))?;
            }
        }
        Ok(CacheLease {
            rootfs,
            guard: Box::new(tree),
        })
    }

    fn release_cache(&self, lease: CacheLease) -> Result<(), Error> {
        let mut tree = self.own(lease.guard)?;
        let _caching = self.shared.caching();
        let (name, generation) = std::mem::take(&mut tree.cache);
        let old = {
            let mut books = self.shared.books();
            let next = books.number();
            match books.caches.get_mut(&name) {
                Some(cache) if cache.0 == generation => {
                    std::mem::replace(cache, (next, tree.take())).1
                }
                _ => tree.take(),
            }
        };
        delete(&old)
    }

    fn caches(&self) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        let _caching = self.shared.caching();
        let caches = self.shared.books().caches.clone();
        caches
            .into_iter()
            .map(|(name, (_, path))| Ok((name, size(&path)?)))
            .collect()
    }

    fn delete_cache(&self, name: &[u8]) -> Result<(), Error> {
        let _caching = self.shared.caching();
        let removed = self.shared.books().caches.remove(name);
        removed.map_or(Ok(()), |(_, path)| delete(&path))
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn sweep(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)).map_err(|e| Error::io("create", path, e))
}

fn delete(path: &Path) -> Result<(), Error> {
    let (parent, name) = (
        path.parent().unwrap_or(path),
        path.file_name().unwrap_or_default(),
    );
    let name = CString::new(name.as_bytes()).expect("a path holds no NUL");
    tree::open(CWD, parent)
        .and_then(|parent| tree::remove(parent.as_fd(), &name, None))
        .map_err(|errno| Error::io("delete", path, errno))
}

fn size(path: &Path) -> Result<u64, Error> {
    tree::open(CWD, path)
        .and_then(tree::size)
        .map_err(|errno| Error::io("measure", path, errno))
}

/// Copies the content and attributes of a directory to one that is there. `links` knows the first copy of every file
/// with several names.
fn copy(
    source: &Path,
    target: &Path,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> rustix::io::Result<()> {
    let (from, to) = (tree::open(CWD, source)?, tree::open(CWD, target)?);
    let each = |name: CString| -> rustix::io::Result<()> {
        let path = |directory: &Path| directory.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let stat = rustix::fs::lstat(path(source))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            rustix::fs::mkdir(path(target), Mode::RWXU)?;
            return copy(&path(source), &path(target), links);
        }
        if let Some(first) = links.get(&(stat.st_dev, stat.st_ino)) {
            return rustix::fs::link(first, path(target));
        }
        if stat.st_nlink > 1 {
            links.insert((stat.st_dev, stat.st_ino), path(target));
        }
        tree::copy_node(from.as_fd(), to.as_fd(), &name)
    };
    names(from.as_fd())?.into_iter().try_for_each(each)?;
    tree::copy_attributes(&from, &to, &rustix::fs::fstat(&from)?)
}

fn names(directory: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    tree::entries(directory, |name, _| {
        names.push(name);
        Ok(())
    })?;
    Ok(names)
}
