// SPDX-License-Identifier: Apache-2.0
//! Deep chains: what a tree is does not depend on how many layers it is kept in.

use crate::subject::{Fixture, MEMORY, OVERLAY, id};
use crate::trees::{Tree, commit, tree};
use obuild_fixtures::{Privilege, may};
use obuild_stores::Rootfs;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

crate::suite!(all:
    hundreds_of_steps_are_one_tree
    random_changes_give_the_same_tree_everywhere
    attributes_survive_squashing
    what_was_deleted_does_not_haunt_directories
);

fn hundreds_of_steps_are_one_tree(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| {
        tree.make_directory("d");
        tree.write("log", "");
    });
    let last = if fixture.is_slow() { 250 } else { 500 };
    for step in 1..=last {
        commit(store, id(step), Some(id(step - 1)), |tree| {
            tree.append("log", &format!("{step}\n"));
            tree.write(&format!("d/{step}"), "");
            if step > 3 {
                tree.delete(&format!("d/{}", step - 3));
            }
        });
    }
    for step in [1, 62, 63, 64, 65, 66, 126, 127, 128, 129, last - 1, last] {
        let tree = tree(store, id(step));
        let lines: Vec<String> = (1..=step).map(|step| step.to_string()).collect();
        let log = lines.join("\n") + "\n";
        assert_eq!(tree.read("log").unwrap(), log);
        let mut names: Vec<String> = (1.max(step.saturating_sub(2))..=step)
            .map(|step| step.to_string())
            .collect();
        names.sort();
        assert_eq!(tree.names("d"), names, "step {step}");
    }
    let layers = |step: u32| match store.get(id(step)).unwrap().unwrap().rootfs {
        Rootfs::Directory(_) | Rootfs::Dataset(_) => 1,
        Rootfs::Overlay(overlay) => overlay.lower.len(),
    };
    assert!(
        (1..=last).all(|step| layers(step) <= 65),
        "no stack of layers is deep"
    );
    // From the tip, as pruning does.
    for step in (last - 100..=last).rev() {
        store.remove(id(step)).unwrap();
    }
    let tip = last - 101;
    let names = [tip - 2, tip - 1, tip].map(|step| step.to_string());
    assert_eq!(tree(store, id(tip)).names("d"), names);
}

/// A generator of numbers that are the same in every run (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// Returns one of few paths, so that things meet: up to three levels of three names.
    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let names: Vec<String> = (0..depth).map(|_| format!("n{}", self.below(3))).collect();
        names.join("/")
    }
}

/// Makes some changes that depend only on the numbers and the tree.
fn change(tree: &Tree, numbers: &mut Numbers, step: u32) {
    for _ in 0..4 {
        let (path, other) = (numbers.path(), numbers.path());
        let what = numbers.below(8);
        let stat = |path: &str| rustix::fs::statat(&tree.0, path, AtFlags::SYMLINK_NOFOLLOW);
        let parent_is_there = |path: &str| {
            path.rsplit_once('/')
                .is_none_or(|(parent, _)| tree_is_directory(tree, parent))
        };
        if !parent_is_there(&path) {
            continue;
        }
        match (what, stat(&path).is_ok()) {
            (0 | 1, true) => tree.delete(&path),
            (2, true) if tree_is_directory(tree, &path) => {
                // Anew at once: an opaque directory.
                tree.delete(&path);
                tree.make_directory(&path);
            }
            (3, true) => {
                let mode = Mode::from_raw_mode(0o700 + u32::from(step.is_multiple_of(2)));
                let _ = rustix::fs::chmodat(&tree.0, &path, mode, AtFlags::empty());
            }
            (4, true) if !tree_is_directory(tree, &path) => {
                if parent_is_there(&other) && stat(&other).is_err() {
                    let flags = AtFlags::empty();
                    rustix::fs::linkat(&tree.0, &path, &tree.0, &other, flags).unwrap();
                }
            }
            (5, true) if parent_is_there(&other) && stat(&other).is_err() => {
                // Directories of lower layers cannot be renamed (EXDEV), which programs know how to meet.
                if !tree_is_directory(tree, &path) {
                    rustix::fs::renameat(&tree.0, &path, &tree.0, &other).unwrap();
                }
            }
            (_, true) => {}
            (0 | 1, false) => rustix::fs::symlinkat(other, &tree.0, &path).unwrap(),
            (2, false) => tree.write(&path, &format!("{step}")),
            (_, false) => tree.make_directory(&path),
        }
    }
}

fn tree_is_directory(tree: &Tree, path: &str) -> bool {
    let stat = rustix::fs::statat(&tree.0, path, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| stat.st_mode & 0o170_000 == 0o040_000)
}

fn random_changes_give_the_same_tree_everywhere(fixture: &Fixture) {
    let plain = MEMORY.fixture().unwrap();
    let (mut here, mut there) = (
        Numbers(88_172_645_463_325_252),
        Numbers(88_172_645_463_325_252),
    );
    let steps: u32 = if fixture.has_layers() { 210 } else { 61 };
    for step in 0..steps {
        let parent = step.checked_sub(1).map(id);
        commit(&*fixture.store, id(step), parent, |tree| {
            change(tree, &mut here, step);
        });
        commit(&*plain.store, id(step), parent, |tree| {
            change(tree, &mut there, step);
        });
        let (is, should) = (
            tree(&*fixture.store, id(step)),
            tree(&*plain.store, id(step)),
        );
        assert_eq!(without_links(&is), without_links(&should), "step {step}");
    }
}

/// Describes a tree without saying which paths are one file: an overlay breaks hard links when it copies a file
/// up (overlayfs.rst, "Non-standard behavior").
fn without_links(tree: &Tree) -> Vec<(String, String)> {
    tree.describe()
        .into_iter()
        .filter(|(path, _)| path.ends_with('/'))
        .collect()
}

fn attributes_survive_squashing(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| tree.make_directory("old"));
    commit(store, id(1), Some(id(0)), |tree| {
        tree.make_directory("new");
        tree.write("new/program", "#!");
        tree.write("new/name", "");
        let top = &tree.0;
        rustix::fs::linkat(top, "new/name", top, "new/other name", AtFlags::empty()).unwrap();
        for path in ["new", "old", "new/program"] {
            let flags = rustix::fs::OFlags::RDONLY;
            let file = rustix::fs::openat(top, path, flags, Mode::empty()).unwrap();
            if may(Privilege::Ids) {
                let owner = (Some(Uid::from_raw(11)), Some(Gid::from_raw(12)));
                rustix::fs::fchown(&file, owner.0, owner.1).unwrap();
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o2711)).unwrap();
            rustix::fs::fsetxattr(&file, "user.x", b"y", XattrFlags::empty()).unwrap();
        }
        // VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective: linux include/uapi/linux/capability.h.
        let capability = [
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        let flags = rustix::fs::OFlags::RDONLY;
        let file = rustix::fs::openat(top, "new/program", flags, Mode::empty()).unwrap();
        let empty = XattrFlags::empty();
        rustix::fs::fsetxattr(&file, "security.capability", &capability, empty).unwrap();
        let long_ago = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 7,
        };
        let times = Timestamps {
            last_access: long_ago,
            last_modification: long_ago,
        };
        for path in ["new/program", "new", "old"] {
            rustix::fs::utimensat(top, path, &times, AtFlags::empty()).unwrap();
        }
    });
    let before = tree(store, id(1)).describe();
    for step in 2..140 {
        commit(store, id(step), Some(id(step - 1)), |_| {});
    }
    let squashed = tree(store, id(139));
    assert_eq!(squashed.describe(), before);
    for path in ["new", "old", "new/program"] {
        let flags = rustix::fs::OFlags::RDONLY;
        let file = rustix::fs::openat(&squashed.0, path, flags, Mode::empty()).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!(
            (stat.st_mtime, stat.st_mtime_nsec),
            (1_000_000_000, fixture.nanoseconds(7)),
            "{path}"
        );
        let mut value = [0; 1];
        rustix::fs::fgetxattr(&file, "user.x", &mut value[..]).unwrap();
        assert_eq!(&value, b"y");
    }
    let flags = rustix::fs::OFlags::RDONLY;
    let file = rustix::fs::openat(&squashed.0, "new/program", flags, Mode::empty()).unwrap();
    let mut value = [0; 20];
    rustix::fs::fgetxattr(&file, "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[5], 0x20);
}

fn what_was_deleted_does_not_haunt_directories(fixture: &Fixture) {
    let store = &*fixture.store;
    // Step by step: directories that only middle layers have, that replace a file, a directory, or nothing; and in
    // each a file that is deleted in a later layer.
    let steps: [&dyn Fn(&Tree); 6] = [
        &|tree| {
            tree.make_directory("base");
            tree.make_directory("replaced");
            tree.write("replaced/gone", "");
            tree.write("file", "");
            tree.write("base/kept", "");
            tree.write("base/gone", "");
        },
        &|tree| {
            tree.delete("replaced");
            tree.delete("file");
            for path in [
                "replaced",
                "file",
                "new",
                "new/deep",
                "base/deep",
                "fleeting",
            ] {
                tree.make_directory(path);
                tree.write(&format!("{path}/gone"), "");
                tree.write(&format!("{path}/kept"), "");
            }
        },
        &|tree| {
            for path in [
                "base",
                "replaced",
                "file",
                "new",
                "new/deep",
                "base/deep",
                "fleeting",
            ] {
                tree.delete(&format!("{path}/gone"));
            }
        },
        &|tree| tree.delete("fleeting"),
        &|tree| tree.make_directory("fleeting"),
        &|tree| tree.delete("fleeting"),
    ];
    let check = |tree: &Tree, when: &str| {
        assert_eq!(
            tree.names("."),
            ["base", "file", "new", "replaced"],
            "{when}"
        );
        assert_eq!(tree.names("base"), ["deep", "kept"], "{when}");
        assert_eq!(tree.names("new"), ["deep", "kept"], "{when}");
        for path in ["base/deep", "new/deep", "replaced", "file"] {
            assert_eq!(tree.names(path), ["kept"], "{path} {when}");
        }
    };
    let (many, rounds) = if fixture.has_layers() {
        (200_u32, 40)
    } else {
        (21, 10)
    };
    for step in 0..many {
        let parent = step.checked_sub(1).map(id);
        commit(store, id(step), parent, |tree| {
            match steps.get(step as usize) {
                Some(change) => change(tree),
                None => tree.write("new/last", ""),
            }
        });
        // Around the squashes at 64 and 127, and now and then.
        if step > 6 && (step % 10 == 0 || (63..67).contains(&step) || (126..140).contains(&step)) {
            let draft = store.prepare(id(1000), Some(id(step))).unwrap();
            let tree = Tree::open(draft.rootfs());
            tree.delete("new/last");
            check(&tree, &format!("after step {step}"));
        }
    }
    for round in 0..rounds {
        let lease = store.lease_cache(b"haunted", (0, 0)).unwrap();
        let tree = Tree::open(&lease.rootfs);
        match steps.get(round) {
            Some(change) => change(&tree),
            None => check(&tree, &format!("in round {round}")),
        }
        drop(tree);
        store.release_cache(lease).unwrap();
    }
}

#[test]
fn large_layers_are_not_squashed_again_and_again() {
    let Some(fixture) = OVERLAY.fixture() else {
        return;
    };
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| tree.write("base", ""));
    commit(store, id(1), Some(id(0)), |tree| {
        for file in 0..1000 {
            tree.write(&format!("file-{file}"), "");
        }
    });
    for step in 2..300 {
        commit(store, id(step), Some(id(step - 1)), |tree| {
            tree.write(&format!("step-{step}"), "");
        });
    }
    let last = tree(store, id(299));
    assert_eq!(last.names(".").len(), 1 + 1000 + 298);
    // Each squash that takes the file in adds a name to it.
    let stat = rustix::fs::statat(&last.0, "file-500", AtFlags::empty()).unwrap();
    assert!(stat.st_nlink <= 2, "{}", stat.st_nlink);
    drop(last);
    fixture.finish();
}
