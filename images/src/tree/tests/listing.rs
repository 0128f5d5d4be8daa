// SPDX-License-Identifier: Apache-2.0
//! Tests of listings, their digests, and differences found and applied.

use super::*;
use proptest::prelude::*;
use rustix::fs::{FileType, XattrFlags, makedev, mknodat, setxattr};

const CONTENTS: ListOptions<'static> = ListOptions {
    contents: true,
    known: None,
};

fn listing(tree: &Tree) -> Listing {
    list(tree.open().as_fd(), &CONTENTS, &mut |_| {}, GO_ON).unwrap()
}

/// Does to a tree what was changed in another.
fn replay(now: &Listing, changes: &[Change], source: &Tree, target: &Tree) {
    let (source, target) = (source.open(), target.open());
    apply(
        now,
        changes,
        source.as_fd(),
        target.as_fd(),
        &mut |_| {},
        GO_ON,
    )
    .unwrap();
}

/// A tree with one of everything.
fn everything() -> Tree {
    let tree = Tree::new();
    tree.file("etc/passwd", "root")
        .mode("etc/passwd", 0o640)
        .file("bin/tool", "#!/bin/sh")
        .mode("bin/tool", 0o4755)
        .symlink("bin/sh", "tool")
        .hard_link("etc/again", "etc/passwd")
        .file("empty", "")
        .dir("none")
        .mode("none", 0o1777);
    rustix::fs::mkfifoat(CWD, tree.path("pipe"), Mode::RUSR).unwrap();
    setxattr(
        tree.path("empty"),
        c"user.note",
        b"kept",
        XattrFlags::empty(),
    )
    .unwrap();
    tree
}

/// Makes a tree that is equal, by another way of copying than the one under test.
fn copied(tree: &Tree) -> Tree {
    let copy = Tree::new();
    let exported = export_dir(tree.open().as_fd(), &copy.path("."), &mut |_| {}, GO_ON);
    exported.unwrap();
    copy
}

fn told(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|change| {
            let sign = match change.kind() {
                ChangeKind::Added => '+',
                ChangeKind::Changed => '~',
                ChangeKind::Deleted => '-',
            };
            let link = change.link.as_ref().map(|link| format!(" = {link}"));
            format!("{sign}{}{}", change.path, link.unwrap_or_default())
        })
        .collect()
}

/// Applies what is different between two trees to a copy of the first, and expects the second.
fn convert(from: &Tree, to: &Tree) {
    let (was, now) = (listing(from), listing(to));
    let changes = now.changes_since(&was);
    let work = copied(from);
    replay(&now, &changes, to, &work);
    let made = listing(&work);
    assert_eq!(told(&made.changes_since(&now)), Vec::<String>::new());
    assert_eq!(made.digest(), now.digest());
    let (_, found) = diff(from.open().as_fd(), to.open().as_fd(), false, GO_ON).unwrap();
    assert_eq!(told(&found), told(&changes));
}

#[test]
fn a_digest_is_of_the_tree_and_not_of_its_place() {
    let tree = everything();
    let digest = listing(&tree).digest();
    assert_eq!(listing(&copied(&tree)).digest(), digest);
    // What belongs to the file system changes nothing.
    tree.file("none/x", "");
    fs_err::remove_file(tree.path("none/x")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.path("none/socket")).unwrap();
    assert_eq!(listing(&tree).digest(), digest);
    drop(socket);
}

/// Does something to a tree.
type Edit<'a> = &'a dyn Fn(&Tree);

#[test]
fn everything_that_a_program_could_see_changes_the_digest() {
    let changes: [(&str, Edit); 11] = [
        ("content", &|tree| {
            tree.file("bin/tool", "#!/bin/sx");
        }),
        ("mode", &|tree| {
            tree.mode("bin/tool", 0o755);
        }),
        ("mode of a directory", &|tree| {
            tree.mode("none", 0o755);
        }),
        ("time", &|tree| {
            tree.modified("empty", 1);
        }),
        ("name", &|tree| {
            fs_err::rename(tree.path("empty"), tree.path("full")).unwrap();
        }),
        ("target", &|tree| {
            fs_err::remove_file(tree.path("bin/sh")).unwrap();
            tree.symlink("bin/sh", "tooI");
        }),
        ("attribute", &|tree| {
            setxattr(
                tree.path("empty"),
                c"user.note",
                b"lost",
                XattrFlags::empty(),
            )
            .unwrap();
        }),
        ("hard link", &|tree| {
            fs_err::remove_file(tree.path("etc/again")).unwrap();
            fs_err::copy(tree.path("etc/passwd"), tree.path("etc/again")).unwrap();
            let time = tree.stat("etc/passwd").mtime();
            tree.modified("etc/again", time);
        }),
        ("kind", &|tree| {
            fs_err::remove_file(tree.path("pipe")).unwrap();
            tree.file("pipe", "");
        }),
        ("mode of the root", &|tree| {
            tree.mode(".", 0o711);
        }),
        ("one more", &|tree| {
            tree.dir("none/more");
        }),
    ];
    let base = everything();
    for name in ["etc/passwd", "bin/tool", "empty", "pipe"] {
        base.modified(name, 1_000_000);
    }
    let digest = listing(&base).digest();
    for (what, change) in changes {
        let tree = copied(&base);
        assert_eq!(listing(&tree).digest(), digest);
        change(&tree);
        if what == "content" {
            tree.modified("bin/tool", 1_000_000);
        }
        assert_ne!(listing(&tree).digest(), digest, "{what}");
        convert(&base, &tree);
        convert(&tree, &base);
    }
}

#[test]
fn changes_are_told_once_and_deletions_at_their_top() {
    let tree = everything();
    let base = listing(&tree);
    tree.file("new/deep/file", "x");
    fs_err::remove_dir_all(tree.path("bin")).unwrap();
    fs_err::remove_dir(tree.path("none")).unwrap();
    tree.file("none", "a file now");
    tree.modified(".", 5);
    tree.mode("etc/passwd", 0o600);
    let changes = listing(&tree).changes_since(&base);
    assert_eq!(
        told(&changes),
        [
            "~",
            "-bin",
            "~etc/again",
            "~etc/passwd = etc/again",
            "+new",
            "+new/deep",
            "+new/deep/file",
            "~none"
        ]
    );
}

#[test]
fn a_link_that_is_broken_or_made_is_a_change() {
    let one = Tree::new();
    one.file("a", "x").hard_link("b", "a").hard_link("c", "a");
    let two = copied(&one);
    fs_err::remove_file(two.path("b")).unwrap();
    fs_err::copy(two.path("a"), two.path("b")).unwrap();
    two.modified("b", two.stat("a").mtime());
    convert(&one, &two);
    convert(&two, &one);
    let three = copied(&one);
    three.hard_link("0", "a");
    convert(&one, &three);
    convert(&three, &one);
}

#[test]
fn untouched_files_are_not_read_again_and_touched_ones_are() {
    let tree = Tree::new();
    tree.file("a", "old").file("b", "old");
    // Files of the last moments are read in any case.
    std::thread::sleep(std::time::Duration::from_millis(50));
    tree.file("newest", "n");
    let known = listing(&tree);
    tree.file("b", "new");
    let mut bytes = 0;
    let options = ListOptions {
        contents: true,
        known: Some(&known),
    };
    let now = list(
        tree.open().as_fd(),
        &options,
        &mut |count| bytes += count,
        GO_ON,
    )
    .unwrap();
    assert_eq!(bytes, 4, "b and newest");
    assert_eq!(now.digest(), listing(&tree).digest());
    let (_, changes) = diff(tree.open().as_fd(), tree.open().as_fd(), true, GO_ON).unwrap();
    assert_eq!(told(&changes), Vec::<String>::new());
}

#[test]
fn a_layer_over_a_listing_is_the_tree_that_it_makes() {
    if !obuild_fixtures::root() {
        return;
    }
    let below = everything();
    below
        .file("opaque/old", "o")
        .file("opaque/sub/old", "o")
        .file("kept/one", "1");
    let base = listing(&below);
    let layer = Tree::new();
    let whiteout = |name: &str| {
        let device = makedev(0, 0);
        mknodat(
            CWD,
            layer.path(name),
            FileType::CharacterDevice,
            Mode::empty(),
            device,
        )
        .unwrap();
    };
    layer
        .file("etc/passwd", "new")
        .file("opaque/new", "n")
        .file("bin", "a file now");
    layer.dir("empty/but/not").dir("kept");
    whiteout("none");
    whiteout("kept/one");
    setxattr(
        layer.path("opaque"),
        c"trusted.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    let upper = list_layer(&base, layer.open().as_fd(), &mut |_| {}, GO_ON).unwrap();
    let paths: Vec<&[u8]> = upper
        .nodes()
        .iter()
        .map(|node| node.path.as_slice())
        .collect();
    let wanted: Vec<&[u8]> = [
        "",
        "bin",
        "empty",
        "empty/but",
        "empty/but/not",
        "etc",
        "etc/again",
        "etc/passwd",
        "kept",
        "opaque",
        "opaque/new",
        "pipe",
    ]
    .map(str::as_bytes)
    .to_vec();
    assert_eq!(paths, wanted);
    // The same tree made by hand, with the layer's times.
    let (was, now) = (base, upper);
    let work = copied(&below);
    let changes = now.changes_since(&was);
    replay(&now, &changes, &layer, &work);
    assert_eq!(listing(&work).digest(), now.digest());
}

#[test]
fn deeper_than_any_path_may_be() {
    let tree = Tree::new();
    let mut directory = tree.open();
    for _ in 0..1200 {
        rustix::fs::mkdirat(&directory, c"down", Mode::RWXU).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = openat(&directory, c"down", flags, Mode::empty()).unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    drop(openat(&directory, c"file", flags, Mode::RUSR).unwrap());
    let now = listing(&tree);
    let empty = Tree::new();
    let changes = now.changes_since(&listing(&empty));
    replay(&now, &changes, &tree, &empty);
    assert_eq!(listing(&empty).digest(), now.digest());
}

/// One thing to do to a tree.
#[derive(Clone, Debug)]
enum Deed {
    File(String, u8),
    Directory(String),
    Remove(String),
    Link(String, String),
    Symlink(String, u8),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    // Few names, so that deeds meet.
    let path = "[ab](/[ab.]a?){0,2}".prop_map(|path| path.replace("/.", "/a"));
    let deed = prop_oneof![
        (path.clone(), any::<u8>()).prop_map(|(path, byte)| Deed::File(path, byte)),
        path.clone().prop_map(Deed::Directory),
        path.clone().prop_map(Deed::Remove),
        (path.clone(), path.clone()).prop_map(|(path, first)| Deed::Link(path, first)),
        (path, any::<u8>()).prop_map(|(path, byte)| Deed::Symlink(path, byte)),
    ];
    prop::collection::vec(deed, 0..16)
}

fn perform(tree: &Tree, deeds: &[Deed]) {
    // What cannot be done here is left undone.
    for deed in deeds {
        let make_room = |path: &str| {
            let _ = fs_err::create_dir_all(tree.path(path).parent().unwrap());
        };
        match deed {
            Deed::File(path, byte) => {
                make_room(path);
                let _ = fs_err::write(tree.path(path), [*byte]);
            }
            Deed::Directory(path) => {
                let _ = fs_err::create_dir_all(tree.path(path));
            }
            Deed::Remove(path) => {
                let _ = fs_err::remove_file(tree.path(path));
                let _ = fs_err::remove_dir_all(tree.path(path));
            }
            Deed::Link(path, first) => {
                make_room(path);
                let _ = fs_err::hard_link(tree.path(first), tree.path(path));
            }
            Deed::Symlink(path, byte) => {
                make_room(path);
                let _ = std::os::unix::fs::symlink(format!("{byte}"), tree.path(path));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_becomes_any_other(first in deeds(), second in deeds()) {
        let one = Tree::new();
        perform(&one, &first);
        let two = copied(&one);
        perform(&two, &second);
        convert(&one, &two);
        convert(&two, &one);
    }
}
