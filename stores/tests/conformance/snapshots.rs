// SPDX-License-Identifier: Apache-2.0
//! Drafts, commits, removal: what holds for every store.

use crate::subject::{Fixture, id};
use crate::trees::{Tree, commit, tree};
use obuild_stores::{Error, Rootfs};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid};

crate::suite!(all:
    a_tree_comes_back_as_it_was_written
    a_child_sees_its_parent_and_does_not_change_it
    an_empty_tree_is_a_plain_directory
    what_cannot_be_prepared_says_why
    a_discarded_draft_leaves_nothing
    a_parent_cannot_be_removed
    the_first_of_two_commits_stays
    the_top_directory_keeps_its_attributes
    everything_is_listed_and_measured
    many_threads_work_at_once
    odd_trees_can_be_thrown_away
    subvolumes_made_by_builds_go_too
);

/// Writes one of everything.
fn furnish(tree: &Tree) {
    tree.make_directory("etc");
    tree.write("etc/hosts", "127.0.0.1 localhost\n");
    tree.write("etc/secret", "x");
    let top = &tree.0;
    rustix::fs::linkat(top, "etc/hosts", top, "hosts", AtFlags::empty()).unwrap();
    rustix::fs::symlinkat("../etc/hosts", top, "link").unwrap();
    rustix::fs::mkfifoat(top, "pipe", Mode::RUSR).unwrap();
    rustix::fs::mknodat(top, "null", FileType::CharacterDevice, Mode::RUSR, 0x103).unwrap();
    let owner = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(2000)));
    rustix::fs::chownat(top, "etc/secret", owner.0, owner.1, AtFlags::empty()).unwrap();
    rustix::fs::chownat(top, "link", owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let mode = Mode::from_raw_mode(0o4750);
    rustix::fs::chmodat(top, "etc/secret", mode, AtFlags::empty()).unwrap();
    let long_ago = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: long_ago,
        last_modification: long_ago,
    };
    rustix::fs::utimensat(top, "etc", &times, AtFlags::empty()).unwrap();
}

fn a_tree_comes_back_as_it_was_written(fixture: &Fixture) {
    let store = &*fixture.store;
    let draft = store.prepare(id(1), None).unwrap();
    let writing = Tree::open(draft.rootfs());
    furnish(&writing);
    let written = writing.describe();
    drop(writing);
    assert!(
        store.get(id(1)).unwrap().is_none(),
        "a draft is not visible"
    );
    let snapshot = store.commit(draft).unwrap();
    assert_eq!(snapshot.id, id(1));
    assert_eq!(tree(store, id(1)).describe(), written);
    assert_eq!(written["/etc/secret/"], "RegularFile 4750 1000:2000 \"x\"");
    assert!(written.contains_key("/etc/hosts = /hosts"));

    // The same through a child that adds one file.
    commit(store, id(2), Some(id(1)), |tree| tree.write("new", ""));
    let child = tree(store, id(2));
    let mut expected = written;
    expected.insert("/new/".to_owned(), "RegularFile 644 0:0 \"\"".to_owned());
    assert_eq!(child.describe(), expected);
    let stat = rustix::fs::statat(&child.0, "etc", AtFlags::empty()).unwrap();
    assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (1_000_000_000, 5));
}

fn a_child_sees_its_parent_and_does_not_change_it(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| {
        furnish(tree);
        tree.make_directory("d");
        tree.write("d/a", "a");
        tree.write("d/b", "b");
    });
    let before = tree(store, id(1)).describe();
    commit(store, id(2), Some(id(1)), |tree| {
        tree.append("etc/secret", "y");
        tree.delete("d/a");
        tree.delete("etc/hosts");
        tree.delete("link");
        tree.make_directory("link");
        tree.delete("null");
        tree.write("null", "a file now");
    });
    let child = tree(store, id(2));
    assert_eq!(child.read("etc/secret").unwrap(), "xy");
    assert_eq!(child.names("d"), ["b"]);
    assert_eq!(child.names("link"), [""; 0]);
    assert_eq!(child.read("null").unwrap(), "a file now");
    assert_eq!(child.read("hosts").unwrap(), "127.0.0.1 localhost\n");
    assert_eq!(tree(store, id(1)).describe(), before);

    // A directory that replaces one does not show the old one's files, now or later.
    commit(store, id(3), Some(id(2)), |tree| {
        tree.delete("d");
        tree.make_directory("d");
        tree.write("d/c", "c");
    });
    commit(store, id(4), Some(id(3)), |tree| tree.write("d/e", "e"));
    assert_eq!(tree(store, id(4)).names("d"), ["c", "e"]);
    assert_eq!(tree(store, id(1)).describe(), before);
}

fn an_empty_tree_is_a_plain_directory(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    let empty = tree(store, id(1)).describe();
    assert_eq!(empty.len(), 1);
    assert_eq!(empty["/"], "Directory 755 0:0");
    commit(store, id(2), Some(id(1)), |_| {});
    assert_eq!(tree(store, id(2)).describe(), empty);
}

fn what_cannot_be_prepared_says_why(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    let missing = store.prepare(id(3), Some(id(2))).unwrap_err();
    assert!(matches!(missing, Error::NoSuchSnapshot(missing) if missing == id(2)));
    let again = store.prepare(id(1), None).unwrap_err();
    assert!(matches!(again, Error::Exists(there) if there == id(1)));
    assert!(store.get(id(2)).unwrap().is_none());
    assert!(matches!(
        store.size(id(2)).unwrap_err(),
        Error::NoSuchSnapshot(_)
    ));
}

fn a_discarded_draft_leaves_nothing(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| tree.write("base", ""));
    for round in 0..2 {
        let draft = store.prepare(id(2), Some(id(1))).unwrap();
        assert_eq!((draft.id(), draft.parent()), (id(2), Some(id(1))));
        Tree::open(draft.rootfs()).write("dirty", "");
        if round == 0 {
            store.discard(draft).unwrap();
        } else {
            drop(draft);
        }
        assert!(store.get(id(2)).unwrap().is_none());
    }
    commit(store, id(2), Some(id(1)), |tree| {
        assert_eq!(tree.names("."), ["base"]);
    });
    assert_eq!(tree(store, id(2)).names("."), ["base"]);
}

fn a_parent_cannot_be_removed(fixture: &Fixture) {
    let store = &*fixture.store;
    let children = |error: Error| match error {
        Error::HasChildren {
            id: parent,
            mut children,
        } => {
            assert_eq!(parent, id(1));
            children.sort();
            children
        }
        other => panic!("{other}"),
    };
    commit(store, id(1), None, |_| {});
    commit(store, id(2), Some(id(1)), |_| {});
    let draft = store.prepare(id(3), Some(id(1))).unwrap();
    assert_eq!(children(store.remove(id(1)).unwrap_err()), [id(2), id(3)]);
    store.remove(id(2)).unwrap();
    assert_eq!(children(store.remove(id(1)).unwrap_err()), [id(3)]);
    assert!(store.get(id(1)).unwrap().is_some());
    drop(draft);
    store.remove(id(1)).unwrap();
    assert!(store.get(id(1)).unwrap().is_none());
    store.remove(id(1)).unwrap();
    assert!(store.list().unwrap().is_empty());
}

fn the_first_of_two_commits_stays(fixture: &Fixture) {
    let store = &*fixture.store;
    let (first, second) = (
        store.prepare(id(1), None).unwrap(),
        store.prepare(id(1), None).unwrap(),
    );
    Tree::open(first.rootfs()).write("first", "");
    Tree::open(second.rootfs()).write("second", "");
    store.commit(first).unwrap();
    let snapshot = store.commit(second).unwrap();
    assert_eq!(Tree::open(&snapshot.rootfs).names("."), ["first"]);
    assert_eq!(store.list().unwrap(), [(id(1), None)]);
}

fn the_top_directory_keeps_its_attributes(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| {
        let top =
            rustix::fs::openat(&tree.0, ".", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::fchown(&top, Some(Uid::from_raw(7)), Some(Gid::from_raw(8))).unwrap();
        rustix::fs::fchmod(&top, Mode::from_raw_mode(0o1751)).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&top, "user.colour", b"red", flags).unwrap();
        let long_ago = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: long_ago,
            last_modification: long_ago,
        };
        rustix::fs::futimens(&top, &times).unwrap();
    });
    commit(store, id(2), Some(id(1)), |_| {});
    let draft = store.prepare(id(3), Some(id(2))).unwrap();
    for tree in [tree(store, id(2)), Tree::open(draft.rootfs())] {
        assert_eq!(tree.describe()["/"], "Directory 1751 7:8");
        let top =
            rustix::fs::openat(&tree.0, ".", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(rustix::fs::fstat(&top).unwrap().st_mtime, 1_000_000_000);
        let mut value = [0; 3];
        rustix::fs::fgetxattr(&top, "user.colour", &mut value[..]).unwrap();
        assert_eq!(&value, b"red");
    }
}

fn everything_is_listed_and_measured(fixture: &Fixture) {
    let store = &*fixture.store;
    let mebibyte = "x".repeat(1 << 20);
    commit(store, id(1), None, |tree| tree.write("big", &mebibyte));
    commit(store, id(2), Some(id(1)), |tree| tree.write("small", "x"));
    commit(store, id(3), Some(id(2)), |tree| {
        tree.write("one", &mebibyte);
        rustix::fs::linkat(&tree.0, "one", &tree.0, "two", AtFlags::empty()).unwrap();
    });
    let mut all = store.list().unwrap();
    all.sort();
    assert_eq!(
        all,
        [(id(1), None), (id(2), Some(id(1))), (id(3), Some(id(2)))]
    );
    store.sync().unwrap();
    let about = |low: u64, high: u64, size: u64| assert!((low..high).contains(&size), "{size}");
    about(1 << 20, 3 << 19, store.size(id(1)).unwrap());
    let big = if fixture.shares_nothing() { 1 << 20 } else { 0 };
    about(big, big + (1 << 17), store.size(id(2)).unwrap());
    about(big + (1 << 20), big + (3 << 19), store.size(id(3)).unwrap());
    let space = store.space().unwrap();
    assert!(space.available > 0 && space.available < space.total);
    assert!(store.state_dir().is_dir());
    assert!(
        store.url().ends_with(fixture.path().to_str().unwrap()),
        "{}",
        store.url()
    );
}

fn many_threads_work_at_once(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| tree.write("base", ""));
    std::thread::scope(|scope| {
        for thread in 1..=8 {
            scope.spawn(move || {
                let mut parent = id(0);
                for step in 0..10 {
                    let next = id(thread * 100 + step);
                    commit(store, next, Some(parent), |tree| {
                        tree.write(&format!("{thread}-{step}"), "");
                    });
                    parent = next;
                }
                // Some of it goes again, while others begin from the same base.
                store.remove(parent).unwrap();
                assert!(matches!(
                    store.remove(id(0)),
                    Err(Error::HasChildren { .. })
                ));
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 1 + 8 * 9);
    for thread in 1..=8 {
        let names = tree(store, id(thread * 100 + 8)).names(".");
        let mut expected: Vec<String> = (0..9).map(|step| format!("{thread}-{step}")).collect();
        expected.push("base".to_owned());
        assert_eq!(names, expected);
    }
}

fn odd_trees_can_be_thrown_away(fixture: &Fixture) {
    let store = &*fixture.store;
    let draft = store.prepare(id(1), None).unwrap();
    let top = Tree::open(draft.rootfs());
    // Deeper than a path can be long (PATH_MAX is 4096) and than descriptors may be open.
    let name = "directory-with-a-long-name";
    let mut below = rustix::io::dup(&top.0).unwrap();
    for _ in 0..1500 {
        rustix::fs::mkdirat(&below, name, Mode::empty()).unwrap();
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        below = rustix::fs::openat(&below, name, flags, Mode::empty()).unwrap();
    }
    Tree(below).write("at the bottom", "");
    top.write("immutable", "");
    let flags = rustix::fs::OFlags::RDONLY;
    let file = rustix::fs::openat(&top.0, "immutable", flags, Mode::empty()).unwrap();
    rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE).unwrap();
    drop((file, top));
    store.commit(draft).unwrap();
    store.size(id(1)).unwrap();
    store.remove(id(1)).unwrap();
}

fn subvolumes_made_by_builds_go_too(fixture: &Fixture) {
    if !fixture.is_btrfs() {
        return;
    }
    let store = &*fixture.store;
    let btrfs = |arguments: &[&str]| {
        let output = std::process::Command::new("btrfs")
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let nest = |rootfs: &Rootfs| {
        let Rootfs::Directory(top) = rootfs else {
            panic!("{rootfs:?}")
        };
        let path = |name: &str| top.join(name).to_str().unwrap().to_owned();
        Tree::open(rootfs).make_directory("d");
        btrfs(&["subvolume", "create", &path("d/outer")]);
        btrfs(&["subvolume", "create", &path("d/outer/inner")]);
        fs_err::write(path("d/outer/inner/file"), "").unwrap();
        btrfs(&[
            "subvolume",
            "snapshot",
            "-r",
            &path("d/outer"),
            &path("read-only"),
        ]);
    };
    let draft = store.prepare(id(1), None).unwrap();
    nest(draft.rootfs());
    store.commit(draft).unwrap();
    let draft = store.prepare(id(2), Some(id(1))).unwrap();
    assert_eq!(Tree::open(draft.rootfs()).names("."), ["d", "read-only"]);
    store.discard(draft).unwrap();
    store.remove(id(1)).unwrap();
    let draft = store.prepare(id(1), None).unwrap();
    nest(draft.rootfs());
    store.discard(draft).unwrap();
    let lease = store.lease_cache(b"nested", (0, 0)).unwrap();
    nest(&lease.rootfs);
    drop(lease);
}
