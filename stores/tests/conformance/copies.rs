// SPDX-License-Identifier: Apache-2.0
//! What a child keeps of its parent's tree, and the kinds that copy it file by file.

use crate::subject::{Fixture, RSYNC_COPY, RSYNC_HARDLINK, RSYNC_HARDLINK_UNSAFE, id, url};
use crate::trees::{Tree, commit, tree};
use obuild_fixtures::{FileSystem, Privilege, may, root, scratch};
use obuild_stores::{Error, Options, RsyncMode, open};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

crate::suite!(all:
    a_child_keeps_everything_of_every_file
    names_that_are_one_file_in_the_parent_can_be_two_in_a_child
    unusual_names_come_through
);

const HOLE: u64 = 1 << 20;

/// `VFS_CAP_REVISION_2` with `CAP_NET_RAW` permitted and effective: linux include/uapi/linux/capability.h.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// `system.posix_acl_access`, version 2: owner rw-, user 7 r--, group r--, mask r--, others none (linux
/// `include/uapi/linux/posix_acl_xattr.h`).
const LIST: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
    255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

fn open_file(tree: &Tree, path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::openat(&tree.0, path, flags, Mode::empty()).unwrap()
}

fn stat(tree: &Tree, path: &str) -> Stat {
    rustix::fs::statat(&tree.0, path, AtFlags::SYMLINK_NOFOLLOW).unwrap()
}

fn set_time(tree: &Tree, path: &str, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(&tree.0, path, &times, nofollow).unwrap();
}

fn set(tree: &Tree, path: &str, name: &str, value: &[u8]) {
    let file = open_file(tree, path, OFlags::RDONLY);
    rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()).unwrap();
}

fn get(tree: &Tree, path: &str, name: &str) -> Vec<u8> {
    let mut value = vec![0; 256];
    let file = open_file(tree, path, OFlags::RDONLY);
    let length = rustix::fs::fgetxattr(&file, name, &mut value[..]).unwrap();
    value.truncate(length);
    value
}

fn a_child_keeps_everything_of_every_file(fixture: &Fixture) {
    // It clones, and keeps neither nanoseconds nor holes.
    if fixture.is_zfs_fuse() {
        return;
    }
    // Without devices there are no attributes of the host's either: a user namespace has neither.
    if !may(Privilege::Devices) {
        return;
    }
    let store = &*fixture.store;
    let names = [
        "d", "d/file", "d/link", "d/pipe", "d/device", "d/socket", "sparse", "empty", "large",
    ];
    commit(store, id(1), None, |tree| {
        let top = &tree.0;
        tree.make_directory("d");
        tree.write("d/file", "content");
        tree.write("empty", "");
        // More than one piece in every way of copying, and no whole number of blocks.
        tree.write("large", &"0123456789".repeat(70_001));
        rustix::fs::symlinkat("/nowhere", top, "d/link").unwrap();
        rustix::fs::mkfifoat(top, "d/pipe", Mode::RUSR).unwrap();
        let mode = Mode::RUSR | Mode::WGRP;
        rustix::fs::mknodat(top, "d/device", FileType::BlockDevice, mode, 0x702).unwrap();
        rustix::fs::mknodat(top, "d/socket", FileType::Socket, mode, 0).unwrap();
        tree.write("sparse", "");
        let sparse = open_file(tree, "sparse", OFlags::WRONLY);
        rustix::io::pwrite(&sparse, b"middle", HOLE).unwrap();
        rustix::fs::ftruncate(&sparse, 2 * HOLE + 1).unwrap();
        for (owner, path) in (500..).zip(names) {
            let ids = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner + 50)));
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(top, path, ids.0, ids.1, nofollow).unwrap();
        }
        for (path, mode) in [("d", 0o3511), ("d/file", 0o6755), ("d/device", 0o606)] {
            let mode = Mode::from_raw_mode(mode);
            rustix::fs::chmodat(top, path, mode, AtFlags::empty()).unwrap();
        }
        set(tree, "d/file", "security.capability", &CAPABILITY);
        set(tree, "d/file", "user.colour", b"red");
        set(tree, "d", "trusted.colour", b"blue");
        set(tree, "large", "user.long", &[b'x'; 200]);
        set(tree, "empty", "system.posix_acl_access", &LIST);
        for (seconds, path) in (1_000_000_000..).zip(names) {
            set_time(tree, path, seconds, seconds % 1000 + 7);
        }
    });
    commit(store, id(2), Some(id(1)), |tree| tree.write("new", ""));
    commit(store, id(3), Some(id(2)), |_| {});
    let (first, last) = (tree(store, id(1)), tree(store, id(3)));
    let mut described = last.describe();
    assert_eq!(
        described.remove("/new/").unwrap(),
        "RegularFile 644 0:0 \"\""
    );
    assert_eq!(described, first.describe());
    for path in names {
        let (was, is) = (stat(&first, path), stat(&last, path));
        let facts = |stat: &Stat| {
            let stat = *stat;
            let times = (stat.st_mtime, stat.st_mtime_nsec);
            (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, times)
        };
        assert_eq!(facts(&is), facts(&was), "{path}");
    }
    for path in ["d", "d/file", "d/link", "sparse", "empty"] {
        assert_ne!(stat(&last, path).st_mtime_nsec, 0, "{path}");
    }
    assert_eq!(get(&last, "d/file", "security.capability"), CAPABILITY);
    assert_eq!(get(&last, "d/file", "user.colour"), b"red");
    assert_eq!(get(&last, "d", "trusted.colour"), b"blue");
    assert_eq!(get(&last, "large", "user.long").len(), 200);
    assert_eq!(get(&last, "empty", "system.posix_acl_access"), LIST);
    let sparse = open_file(&last, "sparse", OFlags::RDONLY);
    assert_eq!(rustix::fs::seek(&sparse, SeekFrom::Data(0)).unwrap(), HOLE);
    let blocks = u64::try_from(stat(&last, "sparse").st_blocks).unwrap();
    assert!(blocks * 512 < HOLE, "{blocks}");
}

fn names_that_are_one_file_in_the_parent_can_be_two_in_a_child(fixture: &Fixture) {
    let store = &*fixture.store;
    let twins = [("a", "b"), ("c", "d")];
    let age = |tree: &Tree| {
        for name in ["a", "b", "c", "d"] {
            set_time(tree, name, 1_000_000_000, 0);
        }
    };
    commit(store, id(1), None, |tree| {
        // a and b are one file, c and d two that look alike.
        tree.write("a", "same");
        rustix::fs::linkat(&tree.0, "a", &tree.0, "b", AtFlags::empty()).unwrap();
        tree.write("c", "same");
        tree.write("d", "same");
        age(tree);
    });
    commit(store, id(2), Some(id(1)), |tree| {
        // Now it is the other way round.
        tree.delete("b");
        tree.write("b", "same");
        tree.delete("d");
        rustix::fs::linkat(&tree.0, "c", &tree.0, "d", AtFlags::empty()).unwrap();
        age(tree);
    });
    commit(store, id(3), Some(id(2)), |tree| {
        for (name, twin) in twins {
            tree.append(name, " no more");
            let content = tree.read(twin).unwrap();
            // An overlay takes a file apart when it is first written to (overlayfs.rst, "Non-standard behavior").
            let one = name == "c" && !fixture.is_overlay();
            let expected = if one { "same no more" } else { "same" };
            assert_eq!(content, expected, "{twin}");
        }
    });
    for (name, twin) in twins {
        assert_eq!(tree(store, id(2)).read(name).unwrap(), "same");
        assert_eq!(tree(store, id(1)).read(twin).unwrap(), "same");
    }
    let first = tree(store, id(1));
    let inode = |name| stat(&first, name).st_ino;
    assert_eq!(inode("a"), inode("b"));
    assert_ne!(inode("c"), inode("d"));
}

fn unusual_names_come_through(fixture: &Fixture) {
    let store = &*fixture.store;
    let names: [&[u8]; 5] = [b"\xff\xfe", b"new\nline", b" ", b"-rf", &[b'n'; 255]];
    commit(store, id(1), None, |tree| {
        for name in names {
            let name = OsStr::from_bytes(name);
            rustix::fs::mkdirat(&tree.0, name, Mode::RWXU).unwrap();
            let directory = rustix::fs::openat(&tree.0, name, OFlags::RDONLY, Mode::empty());
            let flags = OFlags::WRONLY | OFlags::CREATE;
            rustix::fs::openat(directory.unwrap(), name, flags, Mode::RUSR).unwrap();
        }
    });
    commit(store, id(2), Some(id(1)), |_| {});
    let child = tree(store, id(2));
    for name in names {
        let name = OsStr::from_bytes(name);
        let directory = rustix::fs::openat(&child.0, name, OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Commits a child of a few files whose names say what becomes of them, and returns which are still the parent's.
fn kept(fixture: &Fixture) -> Vec<&'static str> {
    let store = &*fixture.store;
    let names = [
        "untouched",
        "disguised",
        "touched",
        "mode",
        "owner",
        "attribute",
        "longer",
        "twin-1",
        "twin-2",
    ];
    commit(store, id(1), None, |tree| {
        for name in names {
            if name != "twin-2" {
                tree.write(name, "content");
            }
        }
        rustix::fs::linkat(&tree.0, "twin-1", &tree.0, "twin-2", AtFlags::empty()).unwrap();
        tree.make_directory("d");
        tree.write("d/inside", "content");
        set_time(tree, "d", 1_000_000_000, 5);
        for name in names {
            set_time(tree, name, 1_000_000_000, 5);
        }
    });
    commit(store, id(2), Some(id(1)), |tree| {
        tree.write("disguised", "CONTENT");
        set_time(tree, "disguised", 1_000_000_000, 5);
        set_time(tree, "touched", 1_000_000_000, 6);
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::chmodat(&tree.0, "mode", mode, AtFlags::empty()).unwrap();
        let owner = Some(Uid::from_raw(1));
        rustix::fs::chownat(&tree.0, "owner", owner, None, AtFlags::empty()).unwrap();
        set(tree, "attribute", "user.x", b"y");
        tree.append("longer", "!");
        set_time(tree, "longer", 1_000_000_000, 5);
    });
    let (parent, child) = (tree(store, id(1)), tree(store, id(2)));
    assert_eq!(stat(&child, "d").st_mtime_nsec, 5, "its time is kept");
    assert_eq!(stat(&child, "touched").st_mtime_nsec, 6);
    assert_eq!(stat(&child, "mode").st_mode & 0o777, 0o600);
    assert_eq!(stat(&child, "owner").st_uid, 1);
    assert_eq!(get(&child, "attribute", "user.x"), b"y");
    assert_eq!(child.read("longer").unwrap(), "content!");
    assert_eq!(parent.read("disguised").unwrap(), "content");
    let same = |name: &&str| stat(&parent, name).st_ino == stat(&child, name).st_ino;
    names.into_iter().chain(["d/inside"]).filter(same).collect()
}

#[test]
fn an_rsync_store_links_what_is_the_same_and_nothing_else() {
    for (subject, kept_files) in [
        (RSYNC_COPY, &[][..]),
        (
            RSYNC_HARDLINK,
            &["untouched", "twin-1", "twin-2", "d/inside"][..],
        ),
        (
            RSYNC_HARDLINK_UNSAFE,
            &["untouched", "disguised", "twin-1", "twin-2", "d/inside"][..],
        ),
    ] {
        let Some(fixture) = subject.fixture() else {
            return;
        };
        assert_eq!(kept(&fixture), kept_files);
        // A draft is never linked to anything.
        let draft = fixture.store.prepare(id(3), Some(id(2))).unwrap();
        let tree = Tree::open(draft.rootfs());
        assert_eq!(stat(&tree, "untouched").st_nlink, 1);
        assert_eq!(stat(&tree, "twin-1").st_nlink, 2);
        drop((tree, draft));
        fixture.finish();
    }
}

#[test]
fn an_rsync_store_remembers_its_mode() {
    let Some(directory) = root().then(|| scratch(FileSystem::Default)).flatten() else {
        return;
    };
    let url = url("rsync", &directory.path().join("store"));
    let with = |rsync_mode| Options {
        rsync_mode,
        ..Options::default()
    };
    let refusal = |mode| match open(&url, &with(mode)) {
        Err(error @ Error::RsyncMode { .. }) => error.to_string(),
        other => panic!("{:?}", other.err()),
    };
    assert!(refusal(None).contains("a new store needs one: hardlink"));
    drop(open(&url, &with(Some(RsyncMode::HardlinkUnsafe))).unwrap());
    drop(open(&url, &with(Some(RsyncMode::HardlinkUnsafe))).unwrap());
    drop(open(&url, &with(None)).unwrap());
    assert!(refusal(Some(RsyncMode::Copy)).contains("made with mode hardlink-unsafe, not copy"));
    let format = directory.path().join("store/obuild-store");
    assert_eq!(
        fs_err::read_to_string(&format).unwrap(),
        "rsync 1\nmode hardlink-unsafe\n"
    );
    fs_err::write(&format, "rsync 1\n").unwrap();
    assert!(refusal(None).contains("is damaged"));
}

#[test]
fn a_mode_is_refused_by_other_kinds() {
    let options = Options {
        rsync_mode: Some(RsyncMode::Copy),
        ..Options::default()
    };
    let refused = open(&"overlay:/nowhere/at/all".parse().unwrap(), &options);
    let text = refused.err().unwrap().to_string();
    assert!(text.contains("only rsync stores have one"), "{text}");
}

#[test]
fn a_program_that_fails_or_is_not_there_says_so() {
    let Some(fixture) = RSYNC_COPY.fixture() else {
        return;
    };
    commit(&*fixture.store, id(1), None, |_| {});
    for (program, expected) in [
        ("/nowhere/rsync", "run /nowhere/rsync"),
        ("/bin/false", "copy"),
    ] {
        let options = Options {
            rsync_program: Some(program.into()),
            ..Options::default()
        };
        let store = open(&fixture.url(), &options).unwrap();
        let error = store.prepare(id(2), Some(id(1))).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(store.get(id(2)).unwrap().is_none());
    }
    fixture.finish();
}

#[test]
fn where_blocks_cannot_be_shared_the_remedy_is_named() {
    // tmpfs has no reflinks anywhere.
    let directory = std::path::Path::new("/dev/shm");
    if !root() || !directory.is_dir() {
        return;
    }
    let directory = tempfile::tempdir_in(directory).unwrap();
    let store = directory.path().join("store");
    let error = open(&url("xfs", &store), &Options::default())
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(text.contains("cannot be an xfs store"), "{text}");
    assert!(text.contains("use overlay:/dev/shm"), "{text}");
    let left: Vec<_> = fs_err::read_dir(&store).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
