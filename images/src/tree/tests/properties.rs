// SPDX-License-Identifier: Apache-2.0
//! Random trees, copied and exported and taken down again.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::os::fd::AsRawFd;

/// One thing to be made; what cannot be made where an earlier one is in its way is left out.
#[derive(Clone, Debug)]
enum Thing {
    File(Vec<u8>, u32),
    Directory(u32),
    Symlink(String),
    HardLink(usize),
}

fn thing() -> impl Strategy<Value = Thing> {
    let content = prop_oneof![
        vec(any::<u8>(), 0..20),
        (60_000..140_000_usize, any::<u8>()).prop_map(|(size, byte)| vec![byte; size]),
    ];
    prop_oneof![
        4 => (content, 0..0o10_000_u32).prop_map(|(content, mode)| Thing::File(content, mode)),
        2 => (0..0o10_000_u32).prop_map(Thing::Directory),
        1 => "[a-c/.]{1,12}".prop_map(Thing::Symlink),
        2 => any::<usize>().prop_map(Thing::HardLink),
    ]
}

fn path() -> impl Strategy<Value = String> {
    vec("[a-c]|\u{e9}|[a-z]{1,3}( [a-z])?|x{90,130}", 1..5).prop_map(|names| names.join("/"))
}

fn make(things: &[(String, Thing)]) -> Tree {
    let tree = Tree::new();
    let mut files = Vec::new();
    let mut modes = Vec::new();
    for (path, thing) in things {
        let full = tree.path(path);
        let parent = full.parent().unwrap();
        let inside = parent
            .ancestors()
            .take_while(|directory| *directory != tree.directory.path())
            .all(|directory| {
                fs_err::symlink_metadata(directory).map_or(true, |stat| stat.is_dir())
            });
        if !inside || fs_err::symlink_metadata(&full).is_ok() {
            continue;
        }
        fs_err::create_dir_all(parent).unwrap();
        match thing {
            Thing::File(content, mode) => {
                fs_err::write(&full, content).unwrap();
                modes.push((full.clone(), *mode));
                files.push(full);
            }
            Thing::Directory(mode) => {
                fs_err::create_dir(&full).unwrap();
                modes.push((full, *mode));
            }
            Thing::Symlink(target) => std::os::unix::fs::symlink(target, &full).unwrap(),
            Thing::HardLink(choice) => {
                if !files.is_empty() {
                    let first = &files[choice % files.len()];
                    fs_err::hard_link(first, &full).unwrap();
                }
            }
        }
    }
    let owned = if me().0 == 0 { 0 } else { 0o700 };
    for (path, mode) in modes {
        let permissions = std::fs::Permissions::from_mode(mode | owned);
        fs_err::set_permissions(path, permissions).unwrap();
    }
    tree
}

/// Mounts an overlay of the two; `None` where that cannot be.
fn overlay(lower: &Tree, upper: &Tree) -> Option<OwnedFd> {
    let root = obuild_fixtures::root().then(|| copying::open_overlay(lower, upper))?;
    if root.is_none() {
        obuild_fixtures::skip("needs overlayfs on the scratch directory");
    }
    root
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_has_the_digest_of_its_source(things in vec((path(), thing()), 0..40)) {
        let tree = make(&things);
        let manifest = tree.scan(&["."]).unwrap();
        let to = Tree::new();
        tree.copy_manifest(&manifest, &to, "/").unwrap();
        prop_assert_eq!(to.scan(&["."]).unwrap().digest(), manifest.digest());
        let before = to.listing();
        // A second copy changes nothing.
        let stats = tree.copy_manifest(&manifest, &to, "/").unwrap();
        prop_assert_eq!(stats.directories, 0);
        prop_assert_eq!(to.listing(), before);
    }

    #[test]
    fn filled_in_its_upper_layer_an_overlay_is_the_same(
        below in vec((path(), thing()), 0..12),
        things in vec((path(), thing()), 0..30),
        src in prop_oneof![Just(vec!["."]), Just(vec!["a"]), Just(vec!["a", "b"])],
        dst in prop_oneof![Just("/"), Just("/new/"), Just("/a/"), Just("/a/new/"), Just("/b")],
    ) {
        let lower = make(&below);
        let tree = make(&things);
        let Ok(manifest) = tree.scan(&src) else { return Ok(()) };
        let outcome = |in_upper: bool| {
            let place = Tree::new();
            place.dir("upper").dir("work");
            let root = overlay(&lower, &place)?;
            let upper = in_upper.then(|| open(&place.path("upper")));
            let request = CopyRequest { dst: dst.as_bytes(), owner: me(), upper: upper.as_ref().map(AsFd::as_fd) };
            let copied = copy(&manifest, tree.open().as_fd(), root.as_fd(), &request, GO_ON);
            drop(root);
            let told = copied.map(|stats| CopyStats { in_upper: 0, ..stats }).map_err(|error| error.to_string());
            let seen = told.is_ok().then(|| {
                let root = overlay(&lower, &place).expect("it could be mounted before");
                listing(Path::new(&format!("/proc/self/fd/{}/.", root.as_raw_fd())))
            });
            Some((told, seen))
        };
        let Some(through) = outcome(false) else { return Ok(()) };
        prop_assert_eq!(outcome(true), Some(through));
    }

    #[test]
    fn a_tar_has_the_digest_of_its_source(things in vec((path(), thing()), 0..40)) {
        let tree = make(&things);
        let mut bytes = Vec::new();
        export_tar(tree.open().as_fd(), &mut bytes, None, &mut |_| {}, GO_ON).unwrap();
        let to = Tree::new();
        let mut archive = tar::Archive::new(&*bytes);
        archive.set_preserve_permissions(true);
        archive.unpack(to.directory.path()).unwrap();
        prop_assert_eq!(
            to.scan(&["."]).unwrap().digest(),
            tree.scan(&["."]).unwrap().digest()
        );
    }

    #[test]
    fn an_exported_directory_is_its_source(things in vec((path(), thing()), 0..40)) {
        let tree = make(&things);
        let place = Tree::new();
        let to = place.path("to");
        export_dir(tree.open().as_fd(), &to, &mut |_| {}, GO_ON).unwrap();
        prop_assert_eq!(listing(&to), tree.listing());
    }

    #[test]
    fn a_memo_reads_no_bytes_wrong(bytes in vec(any::<u8>(), 0..400)) {
        let memo = DigestMemo::from_bytes(&bytes);
        prop_assert!(memo.is_empty());
    }

    #[test]
    fn no_source_and_no_destination_panics_or_escapes(src in "[a-c./]{0,8}", dst in "[a-c./]{0,8}") {
        let tree = Tree::new();
        tree.file("a/b/c", "1").file("b", "2").symlink("c", "a");
        let outer = Tree::new();
        outer.dir("in/a").symlink("in/b", "../../..").symlink("in/c", "/a").file("in/a/a", "0");
        let before: Vec<_> = fs_err::read_dir(outer.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        if let Ok(manifest) = tree.scan(&[&src]) {
            let request = CopyRequest { dst: dst.as_bytes(), owner: me(), upper: None };
            let root = open(&outer.path("in"));
            let _ = copy(&manifest, tree.open().as_fd(), root.as_fd(), &request, GO_ON);
        }
        let after: Vec<_> = fs_err::read_dir(outer.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert_eq!(before, after);
    }
}
