// SPDX-License-Identifier: Apache-2.0
//! The zfs kind: every tree is a dataset, and a copy of it a clone; the `zfs` command does the work.
//!
//! ```text
//! POOL/DATASET                the store's directory, with what every store has in it
//! POOL/DATASET/trees/X        a tree of a snapshot or a draft, mounted at PATH/trees/X while it is used
//! POOL/DATASET/trees/X@X      what children are cloned from, and why X cannot change under them
//! POOL/DATASET/cache-trees/X  a tree of a cache or a lease
//! PATH/…/fs                   a symbolic link to the mount point, in place of the tree itself
//! ```
//!
//! The name X means nothing and never changes. What a dataset is *for* is said by the link to it, in a directory
//! that is renamed like that of any other kind. So a commit is the same atomic rename, after a `zfs snapshot`; no dataset
//! is renamed, which would unmount it. A link is made before its dataset and goes after it: no
//! dataset is ever without a link, and the sweep of directories is one of datasets too. Both are in one pool, which writes
//! all changes in one order.
//!
//! *Deletion.* A dataset goes only when no clone stands on it. Snapshots go after those that stand on them, but the content
//! of a cache goes when a clone of it replaces it, while others may be leased. Then `zfs promote` hands the snapshot on
//! to a clone, and `zfs destroy -d` has it go with the last of them (OBuilder `lib/zfs_store.ml` does the same).
//!
//! *Busy.* A dataset that is still used (read by a process, or mounted in another mount namespace) cannot be destroyed. It is
//! out of sight by then, and the next sweep tries again.

mod dataset;
mod home;
mod tool;

pub use dataset::Dataset;

use crate::disk::unique_name;
use crate::place::Place;
use crate::trees::{self, Layers, Trees};
use crate::{Error, Kind, Rootfs, SnapshotId, Space, StoreUrl, sys};
use dataset::{mounts_below, unmount_all};
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use tool::{Pauses, Trouble, turn, zfs, zfs_patiently};

/// The datasets that hold trees. Those of caches are apart, since to find the clones of a dataset is to list all.
const TREES: &str = "trees";
const CACHE_TREES: &str = "cache-trees";
/// The link from a slot to its tree.
const LINK: &str = "fs";

/// The zfs kind.
pub(crate) struct Zfs {
    /// The store's dataset.
    home: String,
    path: PathBuf,
    /// The first part of the names of trees that this process makes.
    name: String,
    counter: AtomicU64,
    /// The trees that are being written, by name; a descriptor keeps the mount.
    held: Mutex<HashMap<String, OwnedFd>>,
}

impl Zfs {
    /// Finds or makes the dataset of a store. Returns the directory where it is mounted too.
    pub(crate) fn open(url: &StoreUrl) -> Result<(Self, PathBuf), Error> {
        let path = home::locate(url)?;
        let zfs = Self {
            home: url.path.to_string_lossy().into_owned(),
            path: path.clone(),
            name: unique_name(),
            counter: AtomicU64::new(0),
            held: Mutex::default(),
        };
        zfs.tidy();
        zfs.show_mounts()?;
        Ok((zfs, path))
    }

    /// Has what is mounted in the store from now on appear in mount namespaces that are made from now on, and disappear there
    /// too (`mount_namespaces(7)`, shared subtrees). A sandbox keeps one from step to step. Where systemd runs all mounts are
    /// shared anyway.
    fn show_mounts(&self) -> Result<(), Error> {
        if !sys::is_root() {
            return Ok(());
        }
        rustix::mount::mount_change(&self.path, MountPropagationFlags::SHARED)
            .map_err(|errno| Error::io("share the mounts of", &self.path, errno))
    }

    /// Unmounts all trees that nobody uses.
    fn tidy(&self) {
        if !sys::is_root() {
            return;
        }
        for group in [TREES, CACHE_TREES] {
            unmount_all(&mounts_below(&self.path.join(group)));
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, OwnedFd>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dataset(&self, group: &str, name: &str) -> Dataset {
        Dataset {
            name: format!("{}/{group}/{name}", self.home),
            mount_point: self.path.join(group).join(name),
        }
    }

    /// Follows the link `name`; returns `None` when there is none.
    fn follow(&self, place: &Place, name: &str) -> Result<Option<Dataset>, Error> {
        let target = match rustix::fs::readlinkat(place.descriptor(), name, Vec::new()) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(place.error("read", name, errno)),
        };
        // Only the last two names count: the store may have been mounted elsewhere when the link was made.
        let target = target.to_str().unwrap_or_default();
        let mut names = target.rsplit('/');
        match (names.next(), names.next()) {
            (Some(tree), Some(group)) if [TREES, CACHE_TREES].contains(&group) => {
                Ok(Some(self.dataset(group, tree)))
            }
            _ => {
                let damaged = io::Error::new(ErrorKind::InvalidData, "it is damaged");
                Err(place.error("follow", name, damaged))
            }
        }
    }

    /// The same for a link that must be there.
    fn tree(&self, place: &Place, name: &str) -> Result<Dataset, Error> {
        self.follow(place, name)?
            .ok_or_else(|| place.error("open", name, Errno::NOENT))
    }

    fn make(&self, place: &Place, dataset: &Dataset, below: Option<&String>) -> Result<(), Error> {
        // Without a value for canmount a boot, or an import, would mount all trees.
        let made = match below {
            Some(source) => {
                let source = snapshot_of(&self.tree(place, source)?);
                zfs_patiently(&["clone", "-o", "canmount=noauto", &source, &dataset.name])
            }
            None => zfs_patiently(&["create", "-o", "canmount=noauto", &dataset.name]),
        };
        made?;
        // zfs-fuse mounts a clone at once, whatever canmount says.
        let descriptor = dataset.open_writable()?;
        if below.is_none() {
            // Whatever the umask is.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&descriptor, ".", flags, Mode::empty())
                .and_then(|top| rustix::fs::fchmod(top, Mode::from_raw_mode(0o755)))
                .map_err(|errno| Error::io("create", &dataset.mount_point, errno))?;
        }
        self.held().insert(dataset.name.clone(), descriptor);
        Ok(())
    }

    /// Destroys a tree. Returns `false` when it is still in use.
    fn destroy_tree(&self, tree: &Dataset) -> Result<bool, Error> {
        drop(self.held().remove(&tree.name));
        let mut pauses = Pauses::new();
        let mut waited = false;
        loop {
            let destroyed = if tree.unmount()? {
                zfs(&["destroy", "-r", &tree.name]).map_err(|failure| (failure.trouble, failure))
            } else if pauses.pause() {
                continue;
            } else {
                return Ok(false);
            };
            match destroyed {
                // A killed process's command may be about to make it.
                Err((Trouble::Missing, _)) if !waited => {
                    waited = true;
                    drop(turn(true));
                }
                Ok(_) | Err((Trouble::Missing, _)) => break,
                Err((Trouble::HasClones, _)) => {
                    if !hand_on(tree)? && !pauses.pause() {
                        return Ok(false);
                    }
                }
                Err((Trouble::Busy, _)) => {
                    if !pauses.pause() {
                        return Ok(false);
                    }
                }
                Err((_, failure)) => return Err(failure.into()),
            }
        }
        // zfs removes the mount point of what was mounted.
        let _ = rustix::fs::rmdir(&tree.mount_point);
        Ok(true)
    }

    fn unsuitable(&self, reason: String) -> Error {
        Error::Unsuitable {
            path: PathBuf::from(&self.home),
            kind: Kind::Zfs.name(),
            reason,
        }
    }
}

impl Drop for Zfs {
    fn drop(&mut self) {
        self.held().clear();
        self.tidy();
    }
}

impl Trees for Zfs {
    fn kind(&self) -> Kind {
        Kind::Zfs
    }

    fn probe(&self, place: &Place) -> Result<(), Error> {
        if !sys::is_root() {
            let reason = "mounting and making datasets needs root: run it as root";
            return Err(self.unsuitable(reason.to_owned()));
        }
        let arguments = [
            "list",
            "-H",
            "-r",
            "-o",
            "name",
            "-t",
            "filesystem",
            &self.home,
        ];
        let there = zfs(&arguments)?;
        let ours = [TREES, CACHE_TREES].map(|group| format!("{}/{group}", self.home));
        let stranger = there
            .lines()
            .find(|name| **name != *self.home && !ours.iter().any(|ours| ours == name));
        if let Some(stranger) = stranger {
            return Err(self.unsuitable(format!(
                "it is not a store, and not empty (it holds the dataset {stranger}): name a new or empty one"
            )));
        }
        let try_out = c"user.obuild";
        match rustix::fs::fsetxattr(place.descriptor(), try_out, b"", XattrFlags::empty()) {
            Ok(()) => {
                let _ = rustix::fs::fremovexattr(place.descriptor(), try_out);
            }
            Err(errno) => tracing::warn!(
                dataset = %self.home, %errno,
                "files lose their extended attributes, capabilities among them: start zfs-fuse with \
                 --enable-xattr, or set xattr=sa"
            ),
        }
        for group in [TREES, CACHE_TREES] {
            // Only root may enter, as in the store's other directories.
            place.make_directory(group, 0o700)?;
            let name = format!("{}/{group}", self.home);
            match zfs(&["create", "-o", "canmount=off", &name]) {
                Ok(_) => {}
                Err(failure) if failure.trouble == Trouble::Exists => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        Ok(())
    }

    fn layers(&self) -> Option<Layers> {
        None
    }

    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let dataset = self.dataset(group_of(slot), &format!("{}-{number}", self.name));
        let link = format!("{slot}/{LINK}");
        rustix::fs::symlinkat(&dataset.mount_point, place.descriptor(), &link)
            .map_err(|errno| place.error("create", &link, errno))?;
        self.make(place, &dataset, below.first())?;
        Ok(Rootfs::Directory(dataset.mount_point))
    }

    /// Takes the snapshot that children are cloned from.
    fn finish(
        &self,
        place: &Place,
        slot: &str,
        _parent: Option<&str>,
        _id: Option<SnapshotId>,
    ) -> Result<(), Error> {
        let tree = self.tree(place, &format!("{slot}/{LINK}"))?;
        let held = self.held().remove(&tree.name);
        if let Some(held) = held {
            // What is mapped into memory may not have been written yet, and another mount namespace may keep the unmount
            // below from having it written.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(&held, ".", flags, Mode::empty())
                .and_then(rustix::fs::syncfs)
                .map_err(|errno| Error::io("write out", &tree.mount_point, errno))?;
        }
        // If it is still read, whoever tidies later unmounts it.
        tree.unmount()?;
        match zfs_patiently(&["snapshot", &snapshot_of(&tree)]) {
            Ok(_) => Ok(()),
            Err(failure) if failure.trouble == Trouble::Exists => Ok(()),
            Err(failure) => Err(failure.into()),
        }
    }

    fn readable(&self, place: &Place, layers: &[String]) -> Result<Rootfs, Error> {
        Ok(Rootfs::Dataset(self.tree(place, &layers[0])?))
    }

    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error> {
        let mut busy = 0;
        for link in links(place, name, 3)? {
            let Some(tree) = self.follow(place, &link)? else {
                continue;
            };
            if self.destroy_tree(&tree)? {
                place.unlink(&link)?;
            } else {
                busy += 1;
            }
        }
        if busy > 0 {
            tracing::info!(
                busy,
                "trees that are in use cannot be deleted yet; the next sweep tries again"
            );
            return Ok(());
        }
        trees::destroy(place, name, None)
    }

    fn size(&self, place: &Place, name: &str, _parent: Option<&str>) -> Result<u64, Error> {
        // What was written since the clone was made.
        bytes("used", &self.tree(place, name)?.name)
    }

    fn whole_size(&self, place: &Place, name: &str) -> Result<u64, Error> {
        bytes("referenced", &self.tree(place, name)?.name)
    }

    fn space(&self, _place: &Place) -> Result<Space, Error> {
        // A file system in a pool has no size; a quota on the way to the store makes less available.
        let pool = home::pool_of(&self.home);
        let total = bytes("used", pool)? + bytes("available", pool)?;
        let available = bytes("available", &self.home)?;
        Ok(Space { total, available })
    }

    fn strays(&self, place: &Place, delete: bool) -> Result<usize, Error> {
        if !sys::is_root() {
            return Ok(0);
        }
        let mut datasets = Vec::new();
        for group in [TREES, CACHE_TREES] {
            let name = format!("{}/{group}", self.home);
            let list = zfs(&["list", "-H", "-r", "-t", "filesystem", "-o", "name", &name])?;
            let inside = list
                .lines()
                .filter_map(|line| line.strip_prefix(&name)?.strip_prefix('/'));
            datasets.extend(inside.map(|tree| self.dataset(group, tree)));
        }
        // In the order in which a link goes through them, after the listing: none is missed on its way.
        let mut known = HashSet::new();
        for (directory, depth) in [("drafts", 2), ("snapshots", 1), ("caches", 2), ("trash", 4)] {
            for link in links(place, directory, depth)? {
                known.extend(self.follow(place, &link)?.map(|tree| tree.name));
            }
        }
        datasets.retain(|dataset| !known.contains(&dataset.name));
        if delete {
            for dataset in &datasets {
                self.destroy_tree(dataset)?;
            }
        }
        Ok(datasets.len())
    }

    fn sync(&self, place: &Place) -> Result<(), Error> {
        rustix::fs::syncfs(place.descriptor())
            .map_err(|errno| place.error("write out", ".", errno))?;
        // A change of a property returns when the pool's current transaction group is on the disk, and with it all that came
        // before. zfs-fuse does nothing on syncfs(2), and has no `zpool sync`.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let property = format!("obuild:synced={}", now.as_millis());
        zfs_patiently(&["set", &property, &self.home])?;
        Ok(())
    }
}

/// Hands a tree's snapshots on to a clone of it. Returns whether it did.
fn hand_on(tree: &Dataset) -> Result<bool, Error> {
    let (group, _) = tree.name.rsplit_once('/').expect("it is in a group");
    let list = zfs(&[
        "list",
        "-H",
        "-r",
        "-t",
        "filesystem",
        "-o",
        "name,origin",
        group,
    ])?;
    let mine = format!("{}@", tree.name);
    let clone = list.lines().find_map(|line| {
        let (name, origin) = line.split_once('\t')?;
        origin.starts_with(&mine).then_some(name)
    });
    let Some(clone) = clone else {
        return Ok(false);
    };
    match zfs_patiently(&["promote", clone]) {
        Ok(_) => {}
        // It has gone meanwhile, or is going.
        Err(failure) if matches!(failure.trouble, Trouble::Missing | Trouble::Busy) => {
            return Ok(false);
        }
        Err(failure) => return Err(failure.into()),
    }
    tracing::debug!(from = %tree.name, to = clone, "handed the snapshots of a tree on");
    // They are needed as long as clones stand on them, of which the tree that goes is one.
    let arguments = ["list", "-H", "-r", "-t", "snapshot", "-o", "name", clone];
    let snapshots = zfs(&arguments).unwrap_or_default();
    let own = snapshot_of(&Dataset {
        name: clone.to_owned(),
        mount_point: PathBuf::new(),
    });
    for snapshot in snapshots.lines().filter(|snapshot| *snapshot != own) {
        // What fails here goes with the clone.
        if let Err(failure) = zfs_patiently(&["destroy", "-d", snapshot]) {
            tracing::debug!(error = %Error::from(failure), "a snapshot stays");
        }
    }
    Ok(true)
}

/// Returns a property that is a number of bytes.
fn bytes(property: &str, dataset: &str) -> Result<u64, Error> {
    // Both implementations know `zfs get -p`; only OpenZFS knows `zfs list -p`.
    let arguments = ["get", "-Hp", "-o", "value", property, dataset];
    let value = zfs(&arguments)?;
    value.trim().parse().map_err(|_| Error::Tool {
        command: format!("zfs {}", arguments.join(" ")),
        said: format!("it answered {:?}, which is no number", value.trim()),
    })
}

/// Returns where the tree of a slot belongs.
fn group_of(slot: &str) -> &'static str {
    let last = slot.rsplit('/').next().unwrap_or(slot);
    if slot.starts_with("caches/") || last.starts_with("c-") {
        CACHE_TREES
    } else {
        TREES
    }
}

/// Returns the snapshot that a finished tree has. Its name is the tree's, so that no other comes to meet it when
/// it is handed on.
fn snapshot_of(tree: &Dataset) -> String {
    let name = tree.name.rsplit('/').next().unwrap_or(&tree.name);
    format!("{}@{name}", tree.name)
}

/// Returns the links in a directory of the store, down to `depth` directories below it.
fn links(place: &Place, directory: &str, depth: u32) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    for name in place.names(directory)? {
        let path = format!("{directory}/{name}");
        if name == LINK {
            found.push(path);
        } else if depth > 0 && is_directory(place, Path::new(&path)) {
            found.extend(links(place, &path, depth - 1)?);
        }
    }
    Ok(found)
}

fn is_directory(place: &Place, path: &Path) -> bool {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statat(place.descriptor(), path, flags).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_caches_are_kept_apart() {
        for (slot, group) in [
            ("drafts/18a-1-0/5e88.7", TREES),
            ("drafts/18a-1-0/c-apt.7", CACHE_TREES),
            ("caches/c-apt/18a-1-0-3", CACHE_TREES),
        ] {
            assert_eq!(group_of(slot), group, "{slot}");
        }
    }

    #[test]
    fn a_snapshot_is_named_for_its_tree() {
        let tree = Dataset {
            name: "tank/obuild/trees/18a-1-0-3".to_owned(),
            mount_point: "/tank/obuild/trees/18a-1-0-3".into(),
        };
        assert_eq!(snapshot_of(&tree), "tank/obuild/trees/18a-1-0-3@18a-1-0-3");
    }
}
