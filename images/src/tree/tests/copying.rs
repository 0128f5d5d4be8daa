// SPDX-License-Identifier: Apache-2.0
//! Where a copy's sources land, what they become there, and what is left alone.

use super::*;
use crate::tree::destination::make_directories;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

fn refusal(copied: Result<CopyStats, CopyError>) -> String {
    message(&copied.unwrap_err())
}

#[test]
fn a_destination_without_slash_names_the_one_source() {
    let tree = Tree::new();
    tree.file("f", "1").file("d/e/g", "2");
    let to = Tree::new();
    tree.copy(&["f"], &to, "/x/y").unwrap();
    assert_eq!(to.read("x/y"), "1");
    tree.copy(&["d"], &to, "/x/z").unwrap();
    assert_eq!(to.read("x/z/e/g"), "2");
    tree.copy(&["d/e"], &to, "//x/./w/.").unwrap();
    assert_eq!(to.read("x/w/g"), "2");
    assert_eq!(
        refusal(tree.copy(&["f", "d"], &to, "/x")),
        r#"when copying multiple items, the destination must end with '/' (it is "/x")"#
    );
}

#[test]
fn a_destination_with_slash_is_a_directory_to_copy_into() {
    let tree = Tree::new();
    tree.file("f", "1").file("d/e/g", "2");
    let to = Tree::new();
    let stats = tree.copy(&["f", "d/e", "d"], &to, "/x/y/").unwrap();
    assert_eq!((stats.files, stats.directories), (3, 3));
    assert_eq!(stats.bytes, 3);
    assert_eq!(to.read("x/y/f"), "1");
    assert_eq!(to.read("x/y/e/g"), "2");
    assert_eq!(to.read("x/y/d/e/g"), "2");
    tree.copy(&["f"], &to, "/").unwrap();
    assert_eq!(to.read("f"), "1");
}

#[test]
fn the_content_of_the_root_goes_into_the_destination_either_way() {
    let tree = Tree::new();
    tree.file("f", "1").file("d/g", "2").modified(".", 1234);
    let to = Tree::new();
    tree.mode(".", 0o700);
    for (dst, place) in [("/", ""), ("/x", "x/"), ("/y/z/", "y/z/")] {
        tree.copy(&["."], &to, dst).unwrap();
        assert_eq!(to.read(&format!("{place}f")), "1");
        assert_eq!(to.read(&format!("{place}d/g")), "2");
    }
    // A destination that is made has the mode of one that nothing describes, and the source's time.
    assert_eq!(to.stat("x").mode() & 0o7777, 0o755);
    assert_eq!(to.stat("x").mtime(), 1234);
    assert_eq!(to.stat("y").mtime(), 0);
}

#[test]
fn a_destination_must_be_a_usable_absolute_path() {
    let tree = Tree::new();
    tree.file("f", "1").dir("d");
    let to = Tree::new();
    to.file("file", "1");
    for (src, dst, expected) in [
        ("f", "x", r#"the destination "x" is not absolute"#),
        ("f", "", r#"the destination "" is not absolute"#),
        (
            "f",
            "/a\0b",
            r#"the destination "/a\0b" contains a zero byte"#,
        ),
        ("f", "/a/..", r#"the destination "/a/.." ends in '..'"#),
        ("f", "/.", r#"the destination "/." has no name in it"#),
        (
            "f",
            "/file/",
            r#""file" in the destination is not a directory"#,
        ),
        (
            "f",
            "/file/x/y",
            r#""file" in the destination is not a directory"#,
        ),
        (
            ".",
            "/file",
            r#""file" in the destination is not a directory"#,
        ),
    ] {
        assert_eq!(refusal(tree.copy(&[src], &to, dst)), expected, "{dst}");
    }
    assert_eq!(to.listing().len(), 1);
}

#[test]
fn directories_that_are_there_keep_owner_mode_and_time() {
    let tree = Tree::new();
    tree.file("d/sub/f", "1")
        .file("d/g", "2")
        .symlink("d/sub/l", "f");
    tree.mode("d", 0o700).mode("d/sub", 0o711);
    let to = Tree::new();
    to.dir("usr/local/d/sub").file("usr/local/d/sub/f", "old");
    for (path, mode) in [
        ("usr", 0o750),
        ("usr/local", 0o2755),
        ("usr/local/d/sub", 0o1777),
    ] {
        to.mode(path, mode);
    }
    for path in ["usr/local/d/sub", "usr/local/d", "usr/local", "usr", "."] {
        to.modified(path, 1000);
    }
    let before = to.listing();
    tree.copy(&["d", "d/g"], &to, "/usr/local/").unwrap();
    let after = to.listing();
    for path in ["usr", "usr/local", "usr/local/d", "usr/local/d/sub"] {
        let path = Path::new(path);
        assert_eq!(before[path], after[path], "{}", path.display());
        assert_eq!(to.stat(path.to_str().unwrap()).mtime_nsec(), 5);
    }
    assert_eq!(to.stat(".").mtime(), 1000);
    assert_eq!(to.read("usr/local/d/sub/f"), "1");
    assert_eq!(to.read("usr/local/g"), "2");
}

#[test]
fn what_is_made_belongs_to_the_steps_user() {
    if !obuild_fixtures::root() {
        return;
    }
    let tree = Tree::new();
    tree.file("d/f", "1").symlink("d/l", "f").dir("d/e");
    tree.hard_link("d/h", "d/f").mode("d/f", 0o6755);
    let to = Tree::new();
    to.dir("usr").mode("usr", 0o2775);
    let manifest = tree.scan(&["d"]).unwrap();
    let request = CopyRequest {
        dst: b"/usr/local/bin/",
        owner: (1000, 1001),
        upper: None,
    };
    copy(
        &manifest,
        tree.open().as_fd(),
        to.open().as_fd(),
        &request,
        GO_ON,
    )
    .unwrap();
    for made in [
        "local",
        "local/bin",
        "local/bin/d",
        "local/bin/d/f",
        "local/bin/d/l",
    ] {
        let stat = to.stat(&format!("usr/{made}"));
        assert_eq!((stat.uid(), stat.gid()), (1000, 1001), "{made}");
    }
    assert_eq!(to.stat("usr").uid(), 0);
    // The set-id bits outlive the change of owner, and the parent's set-group-id bit is not inherited.
    assert_eq!(to.stat("usr/local/bin/d/f").mode() & 0o7777, 0o6755);
    assert_eq!(to.stat("usr/local").mode() & 0o7777, 0o755);
    assert_eq!(to.stat("usr/local/bin/d/e").mode() & 0o7777, 0o755);
}

#[test]
fn modes_and_whole_seconds_are_kept_whatever_the_umask() {
    let tree = Tree::new();
    tree.file("d/open", "1")
        .file("d/closed", "2")
        .dir("d/sticky");
    tree.mode("d/open", 0o666)
        .mode("d/closed", 0o000)
        .mode("d/sticky", 0o1777);
    tree.modified("d/open", 77)
        .modified("d/sticky", -5)
        .modified("d", 99);
    if me().0 != 0 {
        tree.mode("d/closed", 0o400);
    }
    let to = Tree::new();
    let manifest = tree.scan(&["d"]).unwrap();
    tree.copy_manifest(&manifest, &to, "/d").unwrap();
    assert_eq!(to.scan(&["d"]).unwrap().digest(), manifest.digest());
    for path in ["d", "d/open", "d/closed", "d/sticky"] {
        let (from, to) = (tree.stat(path), to.stat(path));
        assert_eq!(
            (from.mode(), from.mtime()),
            (to.mode(), to.mtime()),
            "{path}"
        );
        assert_eq!(to.mtime_nsec(), 0);
    }
}

#[test]
fn files_replace_files_and_links_but_not_what_shares_their_inode() {
    let tree = Tree::new();
    tree.file("d/a", "new a")
        .file("d/b", "new b")
        .symlink("d/c", "anywhere");
    let to = Tree::new();
    to.file("d/a", "old").hard_link("kept", "d/a");
    to.file("victim", "untouched").symlink("d/b", "../victim");
    to.file("d/c", "old");
    tree.copy(&["d"], &to, "/").unwrap();
    assert_eq!(to.read("d/a"), "new a");
    assert_eq!(to.read("kept"), "old");
    assert_eq!(to.read("victim"), "untouched");
    assert!(to.stat("d/b").is_file());
    assert!(to.stat("d/c").is_symlink());
}

#[test]
fn a_file_does_not_replace_a_directory_but_the_reverse_does() {
    let tree = Tree::new();
    tree.file("f", "1").file("d/x", "2");
    let to = Tree::new();
    to.dir("f/x").file("d", "old");
    assert_eq!(
        refusal(tree.copy(&["f"], &to, "/")),
        "cannot replace the directory \"/f\" in the destination with a file \
         (a destination that ends with '/' copies into it)"
    );
    tree.copy(&["d"], &to, "/").unwrap();
    assert_eq!(to.read("d/x"), "2");
}

#[test]
fn a_later_source_wins() {
    let tree = Tree::new();
    for source in ["a", "b", "c"] {
        for file in 0..200 {
            tree.file(&format!("{source}/d/{file}"), source);
        }
        tree.file(&format!("{source}/d/only-{source}"), source);
    }
    let to = Tree::new();
    tree.copy(&["a/d", "b/d", "c/d"], &to, "/").unwrap();
    for file in 0..200 {
        assert_eq!(to.read(&format!("d/{file}")), "c");
    }
    assert!(to.exists("d/only-a") && to.exists("d/only-b") && to.exists("d/only-c"));
    // The content of the root counts by its names.
    let to = Tree::new();
    tree.file("top/f", "late").file("f", "early");
    tree.copy(&[".", "top/f"], &to, "/").unwrap();
    assert_eq!(to.read("f"), "late");
    tree.copy(&["top/f", "."], &to, "/").unwrap();
    assert_eq!(to.read("f"), "early");
}

#[test]
fn hard_links_stay_one_file() {
    let tree = Tree::new();
    tree.file("d/a", "1")
        .hard_link("d/z", "d/a")
        .hard_link("d/sub/deep/y", "d/a");
    tree.hard_link("outside", "d/a")
        .file("d/b", "1")
        .hard_link("d/c", "d/b");
    let to = Tree::new();
    to.file("d/z", "old");
    let stats = tree.copy(&["d", "outside"], &to, "/").unwrap();
    assert_eq!((stats.files, stats.hard_links), (2, 4));
    assert_eq!(stats.bytes, 2);
    let inode = |path: &str| to.stat(path).ino();
    assert_eq!(inode("d/a"), inode("d/z"));
    assert_eq!(inode("d/a"), inode("d/sub/deep/y"));
    assert_eq!(inode("d/a"), inode("outside"));
    assert_eq!(inode("d/b"), inode("d/c"));
    assert_ne!(inode("d/a"), inode("d/b"));
    assert_eq!(to.stat("d/a").nlink(), 4);
}

#[test]
fn a_hard_link_whose_first_name_was_replaced_gets_the_right_content() {
    let tree = Tree::new();
    tree.file("a/x", "linked")
        .hard_link("c/y", "a/x")
        .hard_link("c/z", "a/x");
    tree.file("b/x", "other");
    let to = Tree::new();
    tree.copy(&["a/x", "b/x", "c"], &to, "/").unwrap();
    assert_eq!(to.read("x"), "other");
    assert_eq!(to.read("c/y"), "linked");
    assert_eq!(to.stat("c/y").ino(), to.stat("c/z").ino());
}

#[test]
fn attributes_of_a_build_are_copied() {
    let tree = Tree::new();
    tree.file("d/f", "1")
        .file("d/g", "2")
        .hard_link("d/h", "d/g");
    let flags = rustix::fs::XattrFlags::empty();
    for path in ["d", "d/f", "d/h"] {
        rustix::fs::setxattr(tree.path(path), c"user.colour", path.as_bytes(), flags).unwrap();
    }
    let manifest = tree.scan_kind(&["d"], &[], SourceKind::Build).unwrap();
    let to = Tree::new();
    tree.copy_manifest(&manifest, &to, "/").unwrap();
    let copied = to.scan_kind(&["d"], &[], SourceKind::Build).unwrap();
    assert_eq!(copied.digest(), manifest.digest());
    assert!(rustix::fs::getxattr(to.path("d"), c"user.colour", &mut [0; 8]).is_ok());
}

#[test]
fn file_capabilities_of_a_build_are_copied() {
    if !obuild_fixtures::root() {
        return;
    }
    let tree = Tree::new();
    tree.file("f", "1").mode("f", 0o755);
    // struct vfs_cap_data, revision 2, CAP_NET_RAW permitted and effective: linux/capability.h.
    let value: [u8; 20] = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.path("f"), c"security.capability", &value, flags).unwrap();
    let to = Tree::new();
    let request = CopyRequest {
        dst: b"/",
        owner: (1000, 1000),
        upper: None,
    };
    for (kind, expected) in [(SourceKind::Build, true), (SourceKind::Context, false)] {
        let manifest = tree.scan_kind(&["f"], &[], kind).unwrap();
        copy(
            &manifest,
            tree.open().as_fd(),
            to.open().as_fd(),
            &request,
            GO_ON,
        )
        .unwrap();
        let mut found = [0; 20];
        let got = rustix::fs::getxattr(to.path("f"), c"security.capability", &mut found);
        assert_eq!(got.is_ok() && found == value, expected, "{kind:?}");
    }
}

#[test]
fn holes_stay_holes() {
    let tree = Tree::new();
    let path = tree.path("sparse");
    let file = fs_err::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(file.file(), b"middle", 32 << 20).unwrap();
    drop(file);
    let to = Tree::new();
    let manifest = tree.scan(&["sparse"]).unwrap();
    tree.copy_manifest(&manifest, &to, "/").unwrap();
    assert!(
        to.stat("sparse").blocks() <= 64,
        "{}",
        to.stat("sparse").blocks()
    );
    assert_eq!(to.scan(&["sparse"]).unwrap().digest(), manifest.digest());
}

#[test]
fn files_of_every_size_are_copied_whole() {
    let tree = Tree::new();
    let sizes = [
        0, 1, 4095, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 3_000_001,
    ];
    for size in sizes {
        let content: Vec<u8> = (0..size).map(|byte: u32| (byte * 7 % 251) as u8).collect();
        fs_err::write(tree.path(&size.to_string()), content).unwrap();
    }
    for kind in [
        obuild_fixtures::FileSystem::Default,
        obuild_fixtures::FileSystem::Btrfs,
        obuild_fixtures::FileSystem::Xfs,
    ] {
        let Some(directory) = obuild_fixtures::scratch(kind) else {
            continue;
        };
        let to = Tree { directory };
        let manifest = tree.scan(&["."]).unwrap();
        tree.copy_manifest(&manifest, &to, "/").unwrap();
        assert_eq!(to.scan(&["."]).unwrap().digest(), manifest.digest());
        // Again within the one file system, where blocks can be shared.
        let manifest = to.scan(&["."]).unwrap();
        let again = Tree {
            directory: obuild_fixtures::scratch(kind).unwrap(),
        };
        to.copy_manifest(&manifest, &again, "/x/").unwrap();
        assert_eq!(again.scan(&["x"]).unwrap().len(), manifest.len());
        for size in sizes {
            let (one, other) = (size.to_string(), format!("x/{size}"));
            assert_eq!(
                fs_err::read(to.path(&one)).unwrap(),
                fs_err::read(again.path(&other)).unwrap()
            );
        }
    }
}

#[test]
fn a_source_that_changed_since_the_scan_is_noticed() {
    type Change = fn(&Tree);
    let change: [(&str, Change); 6] = [
        ("content", |tree| _ = tree.file("d/f", "other")),
        ("same size", |tree| _ = tree.file("d/f", "2")),
        ("gone", |tree| {
            fs_err::remove_file(tree.path("d/f")).unwrap();
        }),
        ("another file", |tree| {
            tree.file("other", "1");
            fs_err::rename(tree.path("other"), tree.path("d/f")).unwrap();
        }),
        ("a link", |tree| {
            fs_err::remove_file(tree.path("d/f")).unwrap();
            tree.symlink("d/f", "/etc/passwd");
        }),
        ("a pipe", |tree| {
            fs_err::remove_file(tree.path("d/f")).unwrap();
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(CWD, tree.path("d/f"), fifo, Mode::RUSR, 0).unwrap();
        }),
    ];
    for (what, change) in change {
        let tree = Tree::new();
        tree.file("d/f", "1").file("d/g", "2");
        let manifest = tree.scan(&["d"]).unwrap();
        // Beyond the tick of the file system's clock.
        std::thread::sleep(Duration::from_millis(20));
        change(&tree);
        let to = Tree::new();
        assert_eq!(
            refusal(tree.copy_manifest(&manifest, &to, "/")),
            r#""d/f" was changed while it was being copied"#,
            "{what}"
        );
    }
    let tree = Tree::new();
    tree.file("d/e/f", "1");
    let manifest = tree.scan(&["d"]).unwrap();
    fs_err::rename(tree.path("d/e"), tree.path("e")).unwrap();
    tree.symlink("d/e", "../e");
    assert_eq!(
        refusal(tree.copy_manifest(&manifest, &Tree::new(), "/")),
        r#""d/e" was changed while it was being copied"#
    );
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let tree = Tree::new();
    let path = tree.path("big");
    fs_err::write(&path, vec![b'x'; 4 << 20]).unwrap();
    let manifest = tree.scan(&["big"]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    // The question whether to stop comes between two reads, so this is in the middle of the file.
    let calls = AtomicU32::new(0);
    let cancelled = || {
        if calls.fetch_add(1, Ordering::Relaxed) == 5 {
            let file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(file.file(), b"y", 3 << 20).unwrap();
        }
        false
    };
    let request = CopyRequest {
        dst: b"/",
        owner: me(),
        upper: None,
    };
    let to = Tree::new();
    let copied = copy(
        &manifest,
        tree.open().as_fd(),
        to.open().as_fd(),
        &request,
        &cancelled,
    );
    if calls.into_inner() <= 5 {
        // The file system has cloned the file at one blow: there is no middle.
        assert_eq!(copied.unwrap().bytes, 4 << 20);
        return;
    }
    assert_eq!(
        message(&copied.unwrap_err()),
        r#""big" was changed while it was being copied"#
    );
}

#[test]
fn a_copy_can_be_cancelled_at_any_point() {
    let tree = Tree::new();
    for file in 0..300 {
        tree.file(&format!("{}/{file}", file % 7), "1");
    }
    fs_err::write(tree.path("big"), vec![b'x'; 4 << 20]).unwrap();
    let manifest = tree.scan(&["."]).unwrap();
    let request = CopyRequest {
        dst: b"/",
        owner: me(),
        upper: None,
    };
    for limit in [0, 1, 2, 17, 100, 300] {
        let to = Tree::new();
        let calls = AtomicU32::new(0);
        let cancelled = || calls.fetch_add(1, Ordering::Relaxed) >= limit;
        let copied = copy(
            &manifest,
            tree.open().as_fd(),
            to.open().as_fd(),
            &request,
            &cancelled,
        );
        assert!(matches!(copied, Err(CopyError::Cancelled)), "{limit}");
    }
}

#[test]
fn trees_deeper_than_any_path_and_any_limit_of_descriptors() {
    const DEPTH: usize = 3000;
    let tree = Tree::new();
    let mut directory = tree.open();
    for level in 0..DEPTH {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        if level % 500 == 0 {
            drop(openat(&directory, "file", flags, Mode::RUSR).unwrap());
        }
        rustix::fs::mkdirat(&directory, "deep", Mode::RWXU).unwrap();
        directory = openat(&directory, "deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    drop(directory);
    let manifest = tree.scan(&["deep"]).unwrap();
    assert_eq!(manifest.len(), DEPTH + 5);
    let to = Tree::new();
    let stats = tree.copy_manifest(&manifest, &to, "/").unwrap();
    assert_eq!((stats.files, stats.directories), (5, DEPTH as u64));
    let copied = to.scan(&["deep"]).unwrap();
    assert_eq!(copied.digest(), manifest.digest());
    // Times come last, from the bottom up.
    for index in 0..copied.entries.len() {
        let time = |manifest: &Manifest| manifest.entries[index].stamp.modified.seconds;
        assert_eq!(time(&copied), time(&manifest), "{index}");
    }
    // Onto itself: nothing new, and the directories keep their times.
    tree.copy_manifest(&manifest, &to, "/").unwrap();
    let again = to.scan(&["deep"]).unwrap();
    for (one, other) in copied.entries.iter().zip(&again.entries) {
        if matches!(one.node, super::super::manifest::Node::Directory { .. }) {
            assert_eq!(one.stamp.modified, other.stamp.modified);
        }
    }
}

#[test]
fn a_deep_tree_enters_the_upper_layer_where_it_is_new() {
    // More than are open at once, above and below.
    const THERE: usize = 80;
    const NEW: usize = 90;
    if !obuild_fixtures::root() {
        return;
    }
    let path = |depth: usize| vec!["deep"; depth].join("/");
    let (lower, place, tree) = (Tree::new(), Tree::new(), Tree::new());
    lower.dir(&path(THERE)).modified(&path(THERE), 1000);
    place.dir("upper").dir("work");
    tree.dir(&path(THERE + NEW));
    for depth in (1..=THERE + NEW).step_by(7) {
        tree.file(&format!("{}/file", path(depth)), &depth.to_string());
    }
    let manifest = tree.scan(&["deep"]).unwrap();
    let Some(root) = open_overlay(&lower, &place) else {
        obuild_fixtures::skip("needs overlayfs on the scratch directory");
        return;
    };
    let upper = open(&place.path("upper"));
    let request = CopyRequest {
        dst: b"/",
        owner: me(),
        upper: Some(upper.as_fd()),
    };
    let source = tree.open();
    let stats = copy(&manifest, source.as_fd(), root.as_fd(), &request, GO_ON).unwrap();
    assert_eq!(
        (stats.directories, stats.in_upper),
        (NEW as u64, NEW as u64)
    );
    drop(root);
    let root = open_overlay(&lower, &place).unwrap();
    let copied = scan_at(&root, &["deep"], &[], SourceKind::Context).unwrap();
    assert_eq!(copied.digest(), manifest.digest());
    assert_eq!(
        place.stat(&format!("upper/{}", path(THERE))).mtime(),
        1000,
        "it was there, and keeps its time"
    );
}

pub(super) fn open_overlay(lower: &Tree, upper: &Tree) -> Option<OwnedFd> {
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    for (key, path) in [
        ("lowerdir", lower.path("")),
        ("upperdir", upper.path("upper")),
        ("workdir", upper.path("work")),
    ] {
        fsconfig_set_string(&overlay, key, path).ok()?;
    }
    fsconfig_create(&overlay).ok()?;
    let attributes = MountAttrFlags::empty();
    fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes).ok()
}

#[test]
fn what_is_made_in_an_overlay_is_found_in_its_upper_layer() {
    if !obuild_fixtures::root() {
        return;
    }
    let (lower, upper) = (Tree::new(), Tree::new());
    lower.dir("usr/there").dir("both").symlink("link", "usr");
    upper.dir("upper/both").dir("work");
    let Some(root) = open_overlay(&lower, &upper) else {
        obuild_fixtures::skip("needs overlayfs on the scratch directory");
        return;
    };
    let layer = open(&upper.path("upper"));
    let enter = |path: &str| {
        let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        let made = make_directories(root.as_fd(), &names, me(), 0);
        let mut target = made.unwrap_or_else(|_| panic!("{path} can be made"));
        target.enter_upper(layer.as_fd(), path.as_bytes())
    };
    assert!(enter("new"));
    assert!(enter("usr/new/below"));
    for there in ["usr/there", "both"] {
        assert!(!enter(there), "{there} may have something of a lower layer");
    }
    assert!(!enter("link/other"), "the link is not in the upper layer");
    assert!(upper.exists("upper/usr/other"));
}

#[test]
fn a_detached_overlay_can_be_source_and_destination() {
    if !obuild_fixtures::root() {
        return;
    }
    let (lower, upper) = (Tree::new(), Tree::new());
    lower
        .file("usr/lib/old", "lower")
        .file("usr/lib/replaced", "lower");
    lower.symlink("lib", "usr/lib").modified("usr/lib", 1000);
    upper.dir("upper").dir("work");
    let Some(root) = open_overlay(&lower, &upper) else {
        obuild_fixtures::skip("needs overlayfs on the scratch directory");
        return;
    };
    let tree = Tree::new();
    tree.file("lib/replaced", "new")
        .file("lib/sub/added", "new")
        .hard_link("lib/twin", "lib/replaced");
    let manifest = tree.scan(&["lib"]).unwrap();
    let request = CopyRequest {
        dst: b"/",
        owner: (7, 7),
        upper: None,
    };
    copy(
        &manifest,
        tree.open().as_fd(),
        root.as_fd(),
        &request,
        GO_ON,
    )
    .unwrap();
    let manifest = scan_at(&root, &["usr"], &[], SourceKind::Build).unwrap();
    let to = Tree::new();
    let request = CopyRequest {
        dst: b"/",
        owner: me(),
        upper: None,
    };
    copy(&manifest, root.as_fd(), to.open().as_fd(), &request, GO_ON).unwrap();
    assert_eq!(to.read("usr/lib/old"), "lower");
    assert_eq!(to.read("usr/lib/replaced"), "new");
    assert_eq!(to.read("usr/lib/sub/added"), "new");
    assert_eq!(
        to.stat("usr/lib/twin").ino(),
        to.stat("usr/lib/replaced").ino()
    );
    assert_eq!(to.stat("usr/lib").mtime(), 1000);
    assert_eq!(lower.read("usr/lib/replaced"), "lower");
    // Only what was touched is in the layer.
    assert!(!upper.exists("upper/usr/lib/old"));
    assert!(!upper.exists("upper/lib"));
}
