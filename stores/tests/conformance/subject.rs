// SPDX-License-Identifier: Apache-2.0
//! The stores under test, each in a directory of its own.

use crate::zfs::TestDataset;
use obuild_fixtures::{FileSystem, root, scratch, skip};
use obuild_stores::{Memory, Options, RsyncMode, SnapshotId, Store, StoreUrl, open};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A kind of store on a kind of file system.
pub(crate) struct Subject {
    kind: Option<&'static str>,
    file_system: FileSystem,
    rsync: Option<Rsync>,
}

/// How an rsync store is made and opened.
#[derive(Clone, Copy)]
struct Rsync {
    mode: RsyncMode,
    program: bool,
}

pub(crate) const MEMORY: Subject = Subject {
    kind: None,
    file_system: FileSystem::Default,
    rsync: None,
};
pub(crate) const OVERLAY: Subject = Subject {
    kind: Some("overlay"),
    file_system: FileSystem::Default,
    rsync: None,
};
pub(crate) const OVERLAY_ON_XFS: Subject = Subject {
    kind: Some("overlay"),
    file_system: FileSystem::Xfs,
    rsync: None,
};
pub(crate) const OVERLAY_ON_BTRFS: Subject = Subject {
    kind: Some("overlay"),
    file_system: FileSystem::Btrfs,
    rsync: None,
};
pub(crate) const BTRFS: Subject = Subject {
    kind: Some("btrfs"),
    file_system: FileSystem::Btrfs,
    rsync: None,
};

pub(crate) const XFS: Subject = Subject {
    kind: Some("xfs"),
    file_system: FileSystem::Xfs,
    rsync: None,
};
pub(crate) const XFS_ON_BTRFS: Subject = Subject {
    kind: Some("xfs"),
    file_system: FileSystem::Btrfs,
    rsync: None,
};
pub(crate) const RSYNC_COPY: Subject = Subject {
    kind: Some("rsync"),
    file_system: FileSystem::Default,
    rsync: Some(Rsync {
        mode: RsyncMode::Copy,
        program: false,
    }),
};
pub(crate) const RSYNC_HARDLINK: Subject = Subject {
    kind: Some("rsync"),
    file_system: FileSystem::Default,
    rsync: Some(Rsync {
        mode: RsyncMode::Hardlink,
        program: false,
    }),
};
pub(crate) const RSYNC_HARDLINK_UNSAFE: Subject = Subject {
    kind: Some("rsync"),
    file_system: FileSystem::Default,
    rsync: Some(Rsync {
        mode: RsyncMode::HardlinkUnsafe,
        program: false,
    }),
};
pub(crate) const RSYNC_HARDLINK_BY_PROGRAM: Subject = Subject {
    kind: Some("rsync"),
    file_system: FileSystem::Default,
    rsync: Some(Rsync {
        mode: RsyncMode::Hardlink,
        program: true,
    }),
};

pub(crate) const ZFS: Subject = Subject {
    kind: Some("zfs"),
    file_system: FileSystem::Default,
    rsync: None,
};

#[cfg(feature = "docker")]
pub(crate) const DOCKER: Subject = Subject {
    kind: Some("docker"),
    file_system: FileSystem::Default,
    rsync: None,
};

/// An open store and its directory.
pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Store>,
    kind: Option<&'static str>,
    rsync: Option<Rsync>,
    directory: TempDir,
    dataset: Option<TestDataset>,
}

const RSYNC: &str = "/usr/bin/rsync";

/// Returns how a store that is there is opened.
pub(crate) fn options() -> Options {
    let mut options = Options::default();
    if let Some(socket) = std::env::var_os("OBUILD_TEST_DOCKER") {
        options.docker_socket = socket.into();
    }
    options
}

fn options_with(rsync: Option<Rsync>) -> Options {
    let program = rsync.is_some_and(|rsync| rsync.program);
    Options {
        rsync_program: program.then(|| RSYNC.into()),
        ..options()
    }
}

impl Subject {
    /// Makes an empty store; `None` after a loud skip.
    pub(crate) fn fixture(&self) -> Option<Fixture> {
        if !root() {
            return None;
        }
        if self.rsync.is_some_and(|rsync| rsync.program) && !Path::new(RSYNC).exists() {
            skip("needs /usr/bin/rsync (package rsync)");
            return None;
        }
        if self.kind == Some("docker") {
            obuild_fixtures::docker()?;
        }
        let directory = scratch(self.file_system)?;
        let dataset = match self.kind {
            Some("zfs") => Some(TestDataset::choose()?),
            _ => None,
        };
        let store: Arc<dyn Store> = match self.kind {
            Some("zfs") => {
                let url = dataset.as_ref().expect("it was chosen").url();
                open(&url, &Options::default()).unwrap()
            }
            None => Arc::new(Memory::create(directory.path()).unwrap()),
            Some(kind) => {
                let url = url(kind, &directory.path().join("store"));
                let options = Options {
                    rsync_mode: self.rsync.map(|rsync| rsync.mode),
                    ..options_with(self.rsync)
                };
                open(&url, &options).unwrap()
            }
        };
        Some(Fixture {
            store,
            kind: self.kind,
            rsync: self.rsync,
            directory,
            dataset,
        })
    }
}

impl Fixture {
    /// Returns the store's directory.
    pub(crate) fn path(&self) -> PathBuf {
        match self.kind {
            None => self.directory.path().to_owned(),
            // Where the dataset is mounted.
            Some("zfs") => self.store.state_dir().parent().unwrap().to_owned(),
            Some(_) => self.directory.path().join("store"),
        }
    }

    /// Returns the directory that the store's is in.
    pub(crate) fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// Returns whether snapshots are kept as layers, which are squashed when they grow many. Where each is a whole tree, no step differs from
    /// those before it.
    pub(crate) fn has_layers(&self) -> bool {
        matches!(self.kind, Some("overlay" | "docker"))
    }

    /// Returns whether a step takes a tenth of a second or two.
    pub(crate) fn is_slow(&self) -> bool {
        matches!(self.kind, Some("docker" | "zfs"))
    }

    pub(crate) fn url(&self) -> StoreUrl {
        if let Some(dataset) = &self.dataset {
            return dataset.url();
        }
        url(
            self.kind.expect("only persistent stores have one"),
            &self.path(),
        )
    }

    /// Returns what the store calls itself.
    pub(crate) fn named(&self) -> String {
        match self.kind {
            None => format!("memory:{}", self.path().display()),
            Some(_) => self.url().to_string(),
        }
    }

    /// Returns the URL of a store of the same kind that is not there yet, where `directory` is one that anybody may
    /// write to.
    pub(crate) fn another(&self, directory: PathBuf) -> StoreUrl {
        let there = self.url();
        let path = if self.dataset.is_some() {
            there.path.join("another")
        } else {
            directory
        };
        StoreUrl { path, ..there }
    }

    pub(crate) fn is_btrfs(&self) -> bool {
        self.kind == Some("btrfs")
    }

    pub(crate) fn is_overlay(&self) -> bool {
        matches!(self.kind, Some("overlay" | "docker"))
    }

    /// Returns whether each snapshot holds all of its tree by itself.
    pub(crate) fn shares_nothing(&self) -> bool {
        self.rsync
            .is_some_and(|rsync| rsync.mode == RsyncMode::Copy)
    }

    /// Returns the nanoseconds that a file keeps of those it was given: zfs-fuse keeps none (its daemon sets times by
    /// whole seconds), all others do, OpenZFS too.
    pub(crate) fn nanoseconds(&self, given: u64) -> u64 {
        if self.is_zfs_fuse() { 0 } else { given }
    }

    /// Returns whether the store is on zfs-fuse, which knows neither nanoseconds nor `chattr(1)`.
    pub(crate) fn is_zfs_fuse(&self) -> bool {
        self.dataset.is_some() && {
            let statfs = rustix::fs::statfs(self.path()).unwrap();
            // FUSE_SUPER_MAGIC: linux include/uapi/linux/magic.h.
            statfs.f_type == 0x6573_5546
        }
    }

    /// Opens the store once more.
    pub(crate) fn reopen(&self) -> Arc<dyn Store> {
        open(&self.url(), &options_with(self.rsync)).unwrap()
    }

    /// Opens it as after the boot `boot_id`.
    pub(crate) fn reopen_after_boot(&self, boot_id: &str) -> Arc<dyn Store> {
        let options = Options {
            boot_id: Some(boot_id.to_owned()),
            ..options_with(self.rsync)
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
        if let Some(dataset) = &self.dataset {
            assert_eq!(dataset.leftovers(&path), Vec::<String>::new());
        }
        #[cfg(feature = "docker")]
        if self.kind == Some("docker") {
            let client = obuild_docker::Client::new(options().docker_socket);
            let label = format!("obuild.store={}", path.display());
            assert_eq!(client.containers(&label).unwrap(), Vec::<String>::new());
            assert_eq!(client.images(&label).unwrap(), []);
        }
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
        "trees",
        "cache-trees",
        // Below all layers of a step: `OverlayMount::points`.
        "points",
        "points/etc",
        "points/etc/hosts",
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

pub(crate) fn url(kind: &str, path: &Path) -> StoreUrl {
    format!("{kind}:{}", path.display()).parse().unwrap()
}

/// Returns one of many ids.
pub(crate) fn id(number: u32) -> SnapshotId {
    let mut digest = [0xab; 32];
    digest[..4].copy_from_slice(&number.to_be_bytes());
    SnapshotId::from_digest(digest)
}
