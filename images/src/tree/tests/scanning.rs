// SPDX-License-Identifier: Apache-2.0
//! What a source means, what is refused, and what the digest and the memo depend on.

use super::*;
use std::os::unix::net::UnixListener;
use std::time::Duration;

fn paths(manifest: &Manifest) -> Vec<String> {
    manifest.paths().map(|path| path.to_string()).collect()
}

fn refusal(tree: &Tree, src: &[&str]) -> String {
    message(&tree.scan(src).unwrap_err())
}

#[test]
fn a_source_is_split_at_slashes() {
    let tree = Tree::new();
    tree.file("a/b", "1").file("c", "2");
    for same in ["a/b", "/a/b", "//a//b", "./a/./b", "a/b/", "a/b/."] {
        assert_eq!(paths(&tree.scan(&[same]).unwrap()), ["a/b"], "{same}");
    }
    for all in [".", "/", "", "./", "//."] {
        let manifest = tree.scan(&[all]).unwrap();
        assert_eq!(paths(&manifest), [".", "a", "c", "a/b"], "{all}");
    }
}

#[test]
fn names_are_in_bytewise_order() {
    let tree = Tree::new();
    for name in ["b", "B", "a.b", "a-b", "a", "é", "Z", "10", "9"] {
        tree.file(name, name);
    }
    let manifest = tree.scan(&["."]).unwrap();
    let expected = [".", "10", "9", "B", "Z", "a", "a-b", "a.b", "b", "é"];
    assert_eq!(paths(&manifest), expected);
}

#[test]
fn refusals_name_what_is_wrong_and_in_which_source() {
    let tree = Tree::new();
    tree.file("file", "1")
        .dir("dir/sub")
        .symlink("link", "dir")
        .symlink("dir/broken", "/nowhere");
    assert_eq!(refusal(&tree, &[]), "no source items for copy");
    assert_eq!(
        refusal(&tree, &["dir/../file"]),
        r#"can't use .. in source paths (in "dir/../file")"#
    );
    assert_eq!(
        refusal(&tree, &["dir/missing"]),
        r#"source path "dir/missing" not found"#
    );
    assert_eq!(
        refusal(&tree, &["missing/x"]),
        r#"source path "missing/x" not found"#
    );
    assert_eq!(
        refusal(&tree, &["file/x"]),
        r#"not a directory: file (in "file/x")"#
    );
    assert_eq!(
        refusal(&tree, &["/link/sub"]),
        r#"not a regular file: link (in "/link/sub"; it is a symbolic link)"#
    );
    assert_eq!(
        refusal(&tree, &["dir/broken/x"]),
        r#"not a regular file: dir/broken (in "dir/broken/x"; it is a symbolic link)"#
    );
    // The first source that is wrong is the one that is told of.
    assert_eq!(
        refusal(&tree, &["file", "gone", "file/x", ".."]),
        r#"source path "gone" not found"#
    );
}

#[test]
fn what_cannot_be_copied_is_refused_by_name() {
    let tree = Tree::new();
    tree.file("a/b/c", "1");
    let _listener = UnixListener::bind(tree.path("a/b/socket")).unwrap();
    assert_eq!(
        refusal(&tree, &["."]),
        r#"unsupported file type for "a/b/socket": it is a socket"#
    );
    assert_eq!(
        refusal(&tree, &["a/b/socket"]),
        r#"unsupported file type for "a/b/socket": it is a socket"#
    );
    let manifest = tree.scan_kind(&["."], &["socket"], SourceKind::Build);
    assert_eq!(manifest.unwrap().len(), 4);
    let pipe = tree.path("a/pipe");
    rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    let error = tree.scan_kind(&["a"], &["socket"], SourceKind::Build);
    assert_eq!(
        message(&error.unwrap_err()),
        r#"unsupported file type for "a/pipe": it is a named pipe"#
    );
}

#[test]
fn links_are_taken_as_links() {
    let tree = Tree::new();
    tree.file("dir/file", "1").symlink("link", "dir");
    let manifest = tree.scan(&["link"]).unwrap();
    assert_eq!(paths(&manifest), ["link"]);
    let digest = manifest.digest();
    fs_err::remove_file(tree.path("link")).unwrap();
    tree.symlink("link", "dir/");
    assert_ne!(tree.scan(&["link"]).unwrap().digest(), digest);
}

#[test]
fn excluded_names_are_left_out_at_every_level_but_not_a_source_itself() {
    let tree = Tree::new();
    tree.file("x/keep", "1")
        .file("x/x/lost", "2")
        .file("y/x", "3")
        .file("y/z/x/lost", "4");
    let exclude = |src| paths(&tree.scan_kind(src, &["x"], SourceKind::Context).unwrap());
    assert_eq!(exclude(&["x"]), ["x", "x/keep"]);
    assert_eq!(exclude(&["y"]), ["y", "y/z"]);
    assert_eq!(exclude(&["."]), [".", "y", "y/z"]);
    assert_eq!(exclude(&["y/x"]), ["y/x"]);
}

#[test]
fn the_digest_is_that_of_the_copy() {
    let tree = Tree::new();
    tree.file("d/f", "content").dir("d/e").symlink("d/l", "f");
    tree.mode("d", 0o755).mode("d/e", 0o755).mode("d/f", 0o644);
    let before = tree.scan(&["d"]).unwrap().digest();
    let same = |why: &str| assert_eq!(tree.scan(&["d"]).unwrap().digest(), before, "{why}");
    let differs = |why: &str| assert_ne!(tree.scan(&["d"]).unwrap().digest(), before, "{why}");

    tree.modified("d/f", 1_000_000).modified("d", 2_000_000);
    same("times do not count");
    for (mode, why) in [
        (0o755, "executable bits"),
        (0o640, "other bits"),
        (0o4644, "set-id bits"),
    ] {
        tree.mode("d/f", mode);
        differs(why);
    }
    tree.mode("d/f", 0o644);
    same("the mode is back");
    tree.mode("d/e", 0o700);
    differs("a directory's mode");
    tree.mode("d/e", 0o755);
    same("the directory's mode is back");
    tree.file("d/f", "CONTENT");
    differs("content");
    tree.file("d/f", "content");
    same("the content is back");
    tree.file("d/e/new", "");
    differs("a new file");
    fs_err::remove_file(tree.path("d/e/new")).unwrap();
    fs_err::rename(tree.path("d/f"), tree.path("d/g")).unwrap();
    differs("a new name");
}

#[test]
fn the_digest_depends_on_what_the_destination_will_call_it() {
    let tree = Tree::new();
    tree.file("a/f", "1").file("b/f", "1").file("b/g", "1");
    let digest = |src: &[&str]| tree.scan(src).unwrap().digest();
    assert_eq!(digest(&["a/f"]), digest(&["b/f"]));
    assert_ne!(digest(&["b/f"]), digest(&["b/g"]));
    assert_ne!(digest(&["a"]), digest(&["a/f"]));
    assert_ne!(digest(&["b/f", "b/g"]), digest(&["b/g", "b/f"]));
    let other = Tree::new();
    other.file("f", "1").mode(".", 0o700);
    tree.mode("a", 0o750);
    assert_ne!(digest(&["a"]), other.scan(&["."]).unwrap().digest());
    // Where the content has come from makes no difference, nor has the root's mode.
    let whole = Tree::new();
    whole.file("f", "1");
    assert_eq!(
        whole.scan(&["."]).unwrap().digest(),
        other.scan(&["/"]).unwrap().digest()
    );
}

#[test]
fn hard_links_are_part_of_the_digest_if_both_names_are_copied() {
    let linked = Tree::new();
    linked
        .file("d/a", "same")
        .hard_link("d/b", "d/a")
        .hard_link("outside", "d/a");
    let single = Tree::new();
    single.file("d/a", "same").file("d/b", "same");
    let digest = |tree: &Tree, src| tree.scan(&[src]).unwrap().digest();
    assert_ne!(digest(&linked, "d"), digest(&single, "d"));
    assert_eq!(digest(&linked, "d/a"), digest(&single, "d/a"));
    // Which names belong together, not only how many.
    let one = Tree::new();
    let other = Tree::new();
    for tree in [&one, &other] {
        tree.file("a", "same").file("b", "same");
    }
    one.hard_link("c", "a").hard_link("d", "b");
    other.hard_link("c", "b").hard_link("d", "a");
    assert_ne!(digest(&one, "."), digest(&other, "."));
}

#[test]
fn attributes_count_for_builds_only() {
    let tree = Tree::new();
    tree.file("f", "1");
    let digest = |kind| tree.scan_kind(&["."], &[], kind).unwrap().digest();
    let (context, build) = (digest(SourceKind::Context), digest(SourceKind::Build));
    assert_eq!(context, build);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.path("f"), c"user.colour", b"red", flags).unwrap();
    assert_eq!(digest(SourceKind::Context), context);
    assert_ne!(digest(SourceKind::Build), build);
}

#[test]
fn a_memo_saves_reading_what_has_not_changed() {
    let tree = Tree::new();
    tree.file("old", "1").file("changed", "1").file("d/x", "1");
    // Only what is older than two seconds can be trusted.
    std::thread::sleep(Duration::from_millis(2100));
    tree.file("new", "1");
    let src = [BString::from(".")];
    let request = ScanRequest {
        src: &src,
        exclude: &[],
        kind: SourceKind::Context,
    };
    let mut memo = DigestMemo::default();
    let root = tree.open();
    let digest =
        |memo: &mut DigestMemo| scan(root.as_fd(), &request, memo, GO_ON).unwrap().digest();
    let first = digest(&mut memo);
    assert_eq!(memo.len(), 3);
    assert!(memo.changed());

    let mut memo = DigestMemo::from_bytes(&memo.to_bytes());
    assert_eq!(digest(&mut memo), first);
    assert!(!memo.changed());

    // Same size, and the modification time put back: the change time tells.
    let stat = tree.stat("changed");
    tree.file("changed", "2");
    tree.modified("changed", stat.mtime());
    assert_ne!(digest(&mut memo), first);
    assert_eq!(digest(&mut DigestMemo::default()), digest(&mut memo));
}

#[test]
fn digests_of_a_build_are_not_remembered() {
    let tree = Tree::new();
    tree.file("f", "1");
    std::thread::sleep(Duration::from_millis(2100));
    let src = [BString::from(".")];
    let request = ScanRequest {
        src: &src,
        exclude: &[],
        kind: SourceKind::Build,
    };
    let mut memo = DigestMemo::default();
    scan(tree.open().as_fd(), &request, &mut memo, GO_ON).unwrap();
    assert!(memo.is_empty());
}

#[test]
fn a_scan_can_be_cancelled() {
    let tree = Tree::new();
    for directory in 0..20 {
        tree.file(&format!("{directory}/file"), "1");
    }
    let src = [BString::from(".")];
    let request = ScanRequest {
        src: &src,
        exclude: &[],
        kind: SourceKind::Context,
    };
    for limit in [0, 1, 10, 30] {
        let calls = std::sync::atomic::AtomicU32::new(0);
        let cancelled = || calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= limit;
        let scanned = scan(
            tree.open().as_fd(),
            &request,
            &mut DigestMemo::default(),
            &cancelled,
        );
        assert!(matches!(scanned, Err(ScanError::Cancelled)), "{limit}");
    }
}

#[test]
fn a_file_that_changes_without_end_is_an_error() {
    let tree = Tree::new();
    let path = tree.path("log");
    fs_err::write(&path, vec![b'x'; 8 << 20]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let scanned = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::{Seek, Write};
            let mut file = fs_err::OpenOptions::new().write(true).open(&path).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                file.rewind().unwrap();
                file.write_all(b"y").unwrap();
            }
        });
        // The writer may be held up for the whole of one scan, but not of all.
        let scanned = (0..100).map(|_| tree.scan(&["."])).find(Result::is_err);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        scanned
    });
    let error = scanned.expect("a change is noticed").unwrap_err();
    assert_eq!(message(&error), r#""log" changes while it is read"#);
}

#[test]
fn ten_thousand_files_in_one_directory() {
    let tree = Tree::new();
    for file in 0..10_000 {
        tree.file(&format!("d/{file}"), "");
    }
    let manifest = tree.scan(&["d"]).unwrap();
    assert_eq!(manifest.len(), 10_001);
    let to = Tree::new();
    let stats = tree.copy_manifest(&manifest, &to, "/").unwrap();
    assert_eq!((stats.files, stats.directories), (10_000, 1));
    assert_eq!(to.scan(&["d"]).unwrap().digest(), manifest.digest());
}
