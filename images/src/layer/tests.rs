// SPDX-License-Identifier: Apache-2.0
//! Random changes in every kind of store: the layers are the same bytes, and unpacked they give the same trees.

use super::*;
use crate::tree::{ListOptions, Listing, list};
use crate::unpack::{Whiteouts, unpack};
use obuild_fixtures::{FileSystem, Privilege, may, root, scratch, zfs_pool};
use obuild_stores::{Kind, Options, RsyncMode, StoreUrl, open};
use proptest::prelude::*;
use rustix::fs::AtFlags;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, openat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// An open store of a kind, in a directory of its own.
struct Place {
    store: Arc<dyn Store>,
    name: String,
    dataset: Option<String>,
    _directory: TempDir,
}

impl Place {
    fn new(kind: Kind, file_system: FileSystem) -> Option<Self> {
        let directory = scratch(file_system)?;
        let dataset = match kind {
            Kind::Zfs => {
                let name = directory.path().file_name()?.to_str()?.to_owned();
                Some(format!("{}/layers-{name}", zfs_pool()?))
            }
            _ => None,
        };
        let path = match &dataset {
            Some(dataset) => dataset.into(),
            None => directory.path().join("store"),
        };
        let options = Options {
            rsync_mode: (kind == Kind::Rsync).then_some(RsyncMode::Hardlink),
            ..Options::default()
        };
        let store = open(&StoreUrl { kind, path }, &options).unwrap();
        Some(Self {
            store,
            name: format!("{kind:?} on {file_system:?}"),
            dataset,
            _directory: directory,
        })
    }

    /// Every kind that the machine has.
    fn all() -> Vec<Self> {
        if !root() {
            return Vec::new();
        }
        let mut kinds = vec![
            (Kind::Overlay, FileSystem::Default),
            (Kind::Btrfs, FileSystem::Btrfs),
            (Kind::Xfs, FileSystem::Xfs),
            (Kind::Rsync, FileSystem::Default),
        ];
        // zfs-fuse keeps neither nanoseconds nor holes, so its trees are others.
        if zfs_pool().is_some() && Path::new("/sys/module/zfs").exists() {
            kinds.push((Kind::Zfs, FileSystem::Default));
        }
        kinds
            .into_iter()
            .filter_map(|(kind, file_system)| Self::new(kind, file_system))
            .collect()
    }

    fn make(&self, number: u8, parent: Option<u8>, change: impl FnOnce(&Path)) {
        forget_layers_of(&*self.store, id(number)).unwrap();
        let draft = self.store.prepare(id(number), parent.map(id)).unwrap();
        {
            let top = readable(&draft.rootfs().open().unwrap());
            change(Path::new(&format!("/proc/self/fd/{}", top.as_raw_fd())));
        }
        self.store.commit(draft).unwrap();
    }

    fn layer(&self, earlier: Option<u8>, later: u8, times: Times) -> Option<(Vec<u8>, LayerBlob)> {
        let options = LayerOptions {
            times,
            compression: Compression::None,
            threads: 1,
        };
        let made = layer(&*self.store, earlier.map(id), id(later), &options, &|| {
            false
        });
        let blob = made.unwrap_or_else(|error| panic!("{}: {error:?}", self.name))?;
        Some((fs_err::read(&blob.path).unwrap(), blob))
    }

    fn list(&self, number: u8) -> Listing {
        let rootfs = self.store.get(id(number)).unwrap().unwrap().rootfs;
        let options = ListOptions {
            contents: true,
            known: None,
        };
        list(
            rootfs.open().unwrap().as_fd(),
            &options,
            &mut |_| {},
            &|| false,
        )
        .unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(dataset) = &self.dataset {
            let gone = std::process::Command::new("zfs")
                .args(["destroy", "-R", dataset])
                .status();
            assert!(gone.is_ok_and(|status| status.success()) || std::thread::panicking());
        }
    }
}

fn id(number: u8) -> SnapshotId {
    SnapshotId::from_digest([number; 32])
}

fn readable(top: &OwnedFd) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(top, ".", flags, Mode::empty()).unwrap()
}

/// One edit; paths are numbers of few names, so that edits meet.
#[derive(Clone, Debug)]
enum Edit {
    Write(u8, u16, u8),
    Append(u8),
    Directory(u8, u16),
    Symlink(u8, u8),
    Link(u8, u8),
    Rename(u8, u8),
    Delete(u8),
    Replace(u8),
    Mode(u8, u16),
    Owner(u8, u32),
    Attribute(u8, bool, u8),
    Touch(u8, i64),
    Node(u8, u8),
    Sparse(u8),
    Same(u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    let path = || any::<u8>();
    let mode = || 0..0o10_000_u16;
    prop_oneof![
        4 => (path(), mode(), any::<u8>()).prop_map(|(path, mode, byte)| Edit::Write(path, mode, byte)),
        2 => path().prop_map(Edit::Append),
        3 => (path(), mode()).prop_map(|(path, mode)| Edit::Directory(path, mode)),
        1 => (path(), path()).prop_map(|(path, to)| Edit::Symlink(path, to)),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Link(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
        2 => path().prop_map(Edit::Delete),
        1 => path().prop_map(Edit::Replace),
        1 => (path(), mode()).prop_map(|(path, mode)| Edit::Mode(path, mode)),
        1 => (path(), 0..5_000_000_u32).prop_map(|(path, owner)| Edit::Owner(path, owner)),
        1 => (path(), any::<bool>(), any::<u8>()).prop_map(|(path, capability, byte)| Edit::Attribute(path, capability, byte)),
        1 => (path(), -5..2_000_000_000_i64).prop_map(|(path, time)| Edit::Touch(path, time)),
        1 => (path(), 0..3_u8).prop_map(|(path, kind)| Edit::Node(path, kind)),
        1 => path().prop_map(Edit::Sparse),
        1 => path().prop_map(Edit::Same),
    ]
}

/// A path of one to three names; some are not UTF-8, some are too long for a tar header.
fn path(number: u8) -> Vec<u8> {
    let long = [b'x'; 120];
    let names: [&[u8]; 6] = [b"a", b"b", b"\xff\xfe", b"a.c", &long, b"d"];
    let number = usize::from(number);
    let parts = [number % 6, number / 6 % 6, number / 36 % 6];
    let depth = 1 + number % 3;
    let names: Vec<&[u8]> = parts[..depth].iter().map(|part| names[*part]).collect();
    names.join(&b'/')
}

/// The attribute of a file that has had several names.
const LINKED: &str = "user.linked";

/// Makes edits; what cannot be made where others are in the way is left out, in every store alike.
fn make(top: &Path, edits: &[Edit]) {
    let full = |number: u8| top.join(OsStr::from_bytes(&path(number)));
    // An overlay goes on counting a name in a lower layer that is deleted: so a file that ever had two is told by a mark.
    let alone = |path: &Path| {
        fs_err::symlink_metadata(path).is_ok_and(|stat| stat.is_file() && stat.nlink() == 1)
            && rustix::fs::lgetxattr(path, LINKED, &mut [0_u8; 0]).is_err()
    };
    let set = |path: &Path, mode: u16| {
        let _ = fs_err::set_permissions(path, PermissionsExt::from_mode(u32::from(mode)));
    };
    for edit in edits {
        match edit {
            Edit::Write(number, mode, byte) => {
                let path = full(*number);
                let size = usize::from(*byte) * 100;
                if fs_err::symlink_metadata(&path).is_err()
                    && fs_err::write(&path, vec![*byte; size]).is_ok()
                {
                    set(&path, *mode);
                }
            }
            Edit::Append(number) => {
                let path = full(*number);
                if alone(&path) {
                    let mut content = fs_err::read(&path).unwrap();
                    content.push(b'+');
                    fs_err::write(&path, content).unwrap();
                }
            }
            Edit::Directory(number, mode) => {
                let path = full(*number);
                if fs_err::create_dir(&path).is_ok() {
                    set(&path, *mode);
                }
            }
            Edit::Symlink(number, to) => {
                let _ = std::os::unix::fs::symlink(OsStr::from_bytes(&path(*to)), full(*number));
            }
            Edit::Link(from, to) => {
                if alone(&full(*from)) {
                    rustix::fs::setxattr(full(*from), LINKED, b"", XattrFlags::empty()).unwrap();
                    let _ = fs_err::hard_link(full(*from), full(*to));
                }
            }
            Edit::Rename(from, to) => {
                // A directory of a lower layer cannot be renamed in an overlay (EXDEV); `mv` copies it then.
                if fs_err::symlink_metadata(full(*from)).is_ok_and(|stat| !stat.is_dir())
                    && fs_err::symlink_metadata(full(*to)).is_err()
                {
                    let _ = fs_err::rename(full(*from), full(*to));
                }
            }
            Edit::Delete(number) => {
                let path = full(*number);
                if fs_err::remove_file(&path).is_err() {
                    let _ = fs_err::remove_dir_all(&path);
                }
            }
            Edit::Replace(number) => {
                let path = full(*number);
                if fs_err::symlink_metadata(&path).is_ok_and(|stat| stat.is_dir()) {
                    fs_err::remove_dir_all(&path).unwrap();
                    fs_err::create_dir(&path).unwrap();
                    fs_err::write(path.join("a"), "new").unwrap();
                }
            }
            Edit::Mode(number, mode) => {
                let path = full(*number);
                if alone(&path) || path.is_dir() {
                    set(&path, *mode);
                }
            }
            Edit::Owner(number, owner) => {
                let path = full(*number);
                if alone(&path) && may(Privilege::Ids) {
                    let (uid, gid) = (Uid::from_raw(*owner), Gid::from_raw(owner / 2));
                    let _ = rustix::fs::chownat(
                        CWD,
                        &path,
                        Some(uid),
                        Some(gid),
                        AtFlags::SYMLINK_NOFOLLOW,
                    );
                }
            }
            Edit::Attribute(number, capability, byte) => {
                let path = full(*number);
                if alone(&path) {
                    // struct vfs_cap_data, revision 2: linux include/uapi/linux/capability.h.
                    let mut value = vec![0, 0, 0, 2];
                    value.extend([*byte, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                    let name = if *capability {
                        "security.capability"
                    } else {
                        "user.x"
                    };
                    rustix::fs::setxattr(&path, name, &value, XattrFlags::empty()).unwrap();
                }
            }
            Edit::Touch(number, time) => {
                let path = full(*number);
                if alone(&path) {
                    let time = Timespec {
                        tv_sec: *time,
                        tv_nsec: 7,
                    };
                    let times = Timestamps {
                        last_access: time,
                        last_modification: time,
                    };
                    rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
                }
            }
            Edit::Node(number, kind) => {
                let kind = match kind {
                    0 => FileType::Fifo,
                    _ if !may(Privilege::Devices) => continue,
                    1 => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let _ = rustix::fs::mknodat(
                    CWD,
                    full(*number),
                    kind,
                    Mode::RWXU,
                    rustix::fs::makedev(300, 70_000),
                );
            }
            Edit::Sparse(number) => {
                let path = full(*number);
                if fs_err::symlink_metadata(&path).is_err()
                    && let Ok(file) = fs_err::File::create(&path)
                {
                    file.file().write_all_at(b"end", 300_000).unwrap();
                }
            }
            // Written anew as it was: no layer tells of it.
            Edit::Same(number) => {
                let path = full(*number);
                if alone(&path) {
                    let content = fs_err::read(&path).unwrap();
                    let time = fs_err::metadata(&path).unwrap().mtime();
                    let attributes = fs_err::metadata(&path).unwrap().permissions();
                    let owner = fs_err::metadata(&path).unwrap();
                    let mut kept = [0; 64];
                    let capability =
                        rustix::fs::getxattr(&path, "security.capability", &mut kept[..]);
                    fs_err::write(&path, content).unwrap();
                    rustix::fs::chownat(
                        CWD,
                        &path,
                        Some(Uid::from_raw(owner.uid())),
                        None,
                        AtFlags::empty(),
                    )
                    .unwrap();
                    fs_err::set_permissions(&path, attributes).unwrap();
                    if let Ok(length) = capability {
                        rustix::fs::setxattr(
                            &path,
                            "security.capability",
                            &kept[..length],
                            XattrFlags::empty(),
                        )
                        .unwrap();
                    }
                    let time = Timespec {
                        tv_sec: time,
                        tv_nsec: 0,
                    };
                    let times = Timestamps {
                        last_access: time,
                        last_modification: time,
                    };
                    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
                }
            }
        }
    }
    settle(top);
}

/// Gives everything that has no time of its own one that does not depend on when the test runs.
fn settle(top: &Path) {
    let set = |path: &Path, flags| {
        let time = Timespec {
            tv_sec: 1_500_000_000,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, path, &times, flags).unwrap();
    };
    set(top, AtFlags::empty());
    let mut open = vec![top.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs_err::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs_err::symlink_metadata(&path).unwrap();
            if stat.is_dir() {
                open.push(path.clone());
            }
            if stat.mtime() > 1_700_000_000 {
                set(&path, AtFlags::SYMLINK_NOFOLLOW);
            }
        }
    }
}

/// Says which names the entries of a layer have.
fn names(layer: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned())
        .collect()
}

#[test]
fn layers_are_the_same_in_every_store_and_give_the_same_trees() {
    let places = Place::all();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let edits = || proptest::collection::vec(edit(), 1..40);
    let number = std::cell::Cell::new(0_u8);
    let keep_times = Times::Latest(i64::MAX);
    runner
        .run(&(edits(), edits(), edits()), |(base, first, second)| {
            // Ids are used once, so that a failing case can be run again with smaller ones.
            let start = number.get();
            number.set((start + 8) % 240);
            let mut bytes: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
            for place in &places {
                for old in (0..8).rev() {
                    place.store.remove(id(start + old)).unwrap();
                }
                place.make(start, None, |top| make(top, &base));
                place.make(start + 1, Some(start), |top| make(top, &first));
                place.make(start + 2, Some(start + 1), |top| make(top, &second));
                let (b, c, d) = (start, start + 1, start + 2);
                let wanted = [
                    ("base", place.layer(None, b, keep_times)),
                    ("first", place.layer(Some(b), c, keep_times)),
                    ("second", place.layer(Some(c), d, keep_times)),
                    ("both", place.layer(Some(b), d, keep_times)),
                    ("fixed", place.layer(Some(b), d, Times::default())),
                ];
                let wanted =
                    wanted.map(|(name, layer)| (name, layer.map_or(Vec::new(), |layer| layer.0)));
                for (name, layer) in &wanted {
                    let other = bytes.entry(*name).or_insert_with(|| layer.clone());
                    prop_assert!(
                        other == layer,
                        "{name} is another in {}:\n{:#?}\n{:#?}",
                        place.name,
                        names(other),
                        names(layer)
                    );
                }
                let apply = |parent: Option<u8>, to: u8, layer: &[u8]| {
                    let whiteouts = parent.map_or(Whiteouts::Ignored, |_| Whiteouts::Applied);
                    let draft = place.store.prepare(id(to), parent.map(id)).unwrap();
                    unpack(layer, readable(&draft.rootfs().open().unwrap()), whiteouts).unwrap();
                    place.store.commit(draft).unwrap();
                };
                apply(None, start + 3, &wanted[0].1);
                prop_assert_eq!(
                    place.list(start + 3).digest(),
                    place.list(b).digest(),
                    "{}",
                    &place.name
                );
                apply(Some(start + 3), start + 4, &wanted[1].1);
                prop_assert_eq!(
                    place.list(start + 4).digest(),
                    place.list(c).digest(),
                    "{}",
                    &place.name
                );
                apply(Some(start + 4), start + 5, &wanted[2].1);
                prop_assert_eq!(
                    place.list(start + 5).digest(),
                    place.list(d).digest(),
                    "{}",
                    &place.name
                );
                apply(Some(start + 3), start + 6, &wanted[3].1);
                prop_assert_eq!(
                    place.list(start + 6).digest(),
                    place.list(d).digest(),
                    "{}",
                    &place.name
                );
            }
            Ok(())
        })
        .unwrap();
}
