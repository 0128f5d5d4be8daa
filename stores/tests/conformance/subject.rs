// SPDX-License-Identifier: Apache-2.0
//! The stores under test, each in a directory of its own.

use obuild_fixtures::{FileSystem, root, scratch};
use obuild_stores::{Memory, Options, SnapshotId, Store, StoreUrl, open};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A kind of store on a kind of file system.
pub(crate) struct Subject {
    kind: Option<&'static str>,
    file_system: FileSystem,
}

pub(crate) const MEMORY: Subject = Subject {
    kind: None,
    file_system: FileSystem::Default,
};
pub(crate) const OVERLAY: Subject = Subject {
    kind: Some("overlay"),
    file_system: FileSystem::Default,
};
pub(crate) const OVERLAY_ON_XFS: Subject = Subject {
    kind: Some("overlay"),
    file_system: FileSystem::Xfs,
};
pub(crate) const OVERLAY_ON_BTRFS: Subject = Subject {
    kind: Some("overlay"),
    file_system: FileSystem::Btrfs,
};
pub(crate) const BTRFS: Subject = Subject {
    kind: Some("btrfs"),
    file_system: FileSystem::Btrfs,
};

#[cfg(feature = "docker")]
pub(crate) const DOCKER: Subject = Subject {
    kind: Some("docker"),
    file_system: FileSystem::Default,
};

/// An open store and its directory.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    kind: Option<&'static str>,
    directory: TempDir,
}

impl Subject {
    /// Makes an empty store; `None` after a loud skip.
    pub(crate) fn fixture(&self) -> Option<Fixture> {
        if !root() {
            return None;
        }
        if self.kind == Some("docker") {
            obuild_fixtures::docker()?;
        }
        let directory = scratch(self.file_system)?;
        let store: Arc<dyn Store> = match self.kind {
            None => Arc::new(Memory::create(directory.path()).unwrap()),
            Some(kind) => {
                let url = url(kind, &directory.path().join("store"));
                open(&url, &options()).unwrap()
            }
        };
        Some(Fixture {
            store,
            kind: self.kind,
            directory,
        })
    }
}

impl Fixture {
    /// Returns the store's directory.
    pub(crate) fn path(&self) -> PathBuf {
        match self.kind {
            None => self.directory.path().to_owned(),
            Some(_) => self.directory.path().join("store"),
        }
    }

    /// Returns the directory that the store's is in.
    pub(crate) fn scratch(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn url(&self) -> StoreUrl {
        url(
            self.kind.expect("only persistent stores have one"),
            &self.path(),
        )
    }

    pub(crate) fn is_btrfs(&self) -> bool {
        self.kind == Some("btrfs")
    }

    /// Opens the store once more.
    pub(crate) fn reopen(&self) -> Arc<dyn Store> {
        open(&self.url(), &options()).unwrap()
    }

    /// Opens it as after the boot `boot_id`.
    pub(crate) fn reopen_after_boot(&self, boot_id: &str) -> Arc<dyn Store> {
        let options = Options {
            boot_id: Some(boot_id.to_owned()),
            ..options()
        };
        open(&self.url(), &options).unwrap()
    }

    /// Removes everything through the store, closes it, and checks that nothing is left in its directory.
    pub(crate) fn finish(self) {
        // Ordered so that a parent comes before its children.
        let mut ordered: Vec<SnapshotId> = Vec::new();
        let mut level: Vec<Option<SnapshotId>> = vec![None];
        let mut children: HashMap<Option<SnapshotId>, Vec<SnapshotId>> = HashMap::new();
        for (id, parent) in self.store.list().unwrap() {
            children.entry(parent).or_default().push(id);
        }
        while let Some(parent) = level.pop() {
            let below = children.remove(&parent).unwrap_or_default();
            level.extend(below.iter().copied().map(Some));
            ordered.extend(below);
        }
        for id in ordered.into_iter().rev() {
            self.store.remove(id).unwrap();
        }
        assert_eq!(self.store.list().unwrap(), []);
        for (name, _) in self.store.caches().unwrap() {
            self.store.delete_cache(&name).unwrap();
        }
        self.store.sync().unwrap();
        self.store.sweep().unwrap();
        let path = self.path();
        drop(self.store);
        assert_eq!(leftovers(&path), Vec::<PathBuf>::new());
    }
}

/// Returns everything in a store's directory that an empty, closed store does not have.
pub(crate) fn leftovers(path: &Path) -> Vec<PathBuf> {
    let usual = [
        "obuild-store",
        "boot",
        "snapshots",
        "drafts",
        "provisional",
        "caches",
        "trash",
        "state",
        "docker",
    ];
    let mut found = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs_err::read_dir(&directory).unwrap() {
            let entry = entry.unwrap().path();
            let name = entry
                .strip_prefix(path)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            if !usual.contains(&name.as_str()) {
                found.push(entry);
            } else if entry.is_dir() {
                pending.push(entry);
            }
        }
    }
    found
}

/// Returns how stores under test are opened.
pub(crate) fn options() -> Options {
    let mut options = Options::default();
    if let Some(socket) = std::env::var_os("OBUILD_TEST_DOCKER") {
        options.docker_socket = socket.into();
    }
    options
}

pub(crate) fn url(kind: &str, path: &Path) -> StoreUrl {
    format!("{kind}:{}", path.display()).parse().unwrap()
}

/// Returns one of many ids.
pub(crate) fn id(number: u32) -> SnapshotId {
    let mut digest = [0xab; 32];
    digest[..4].copy_from_slice(&number.to_be_bytes());
    SnapshotId::from_digest(digest)
}
