// SPDX-License-Identifier: Apache-2.0
//! Destinations whose links try to lead a copy astray.

use super::*;

fn refusal(tree: &Tree, to: &Tree, src: &str, dst: &str) -> String {
    message(&tree.copy(&[src], to, dst).unwrap_err())
}

#[test]
fn links_in_the_destination_are_resolved_inside_its_root() {
    let outside = Tree::new();
    outside.dir("target").file("target/x", "outside");
    let absolute = outside.path("target");
    let tree = Tree::new();
    tree.file("x", "1").file("d/x", "2");
    let links = [
        absolute.to_str().unwrap().to_owned(),
        "../../../../../../../../../etc".into(),
        "/../../etc".into(),
        "/proc/self/root/etc".into(),
    ];
    for target in &links {
        let to = Tree::new();
        // What the link means inside the tree.
        let inside = target.trim_start_matches("../").trim_start_matches('/');
        let inside = inside.trim_start_matches("../");
        to.dir(inside).symlink("link", target);
        for dst in ["/link/x", "/link/", "/./link//x", "/link/../link/"] {
            if dst.contains("..") && inside.contains('/') {
                // There the link's own parent is elsewhere.
                continue;
            }
            tree.copy(&["x"], &to, dst).unwrap();
            assert_eq!(to.read(&format!("{inside}/x")), "1", "{target} {dst}");
            fs_err::remove_file(to.path(&format!("{inside}/x"))).unwrap();
        }
        tree.copy(&["d/x"], &to, "/link/new/deep/x").unwrap();
        assert_eq!(to.read(&format!("{inside}/new/deep/x")), "2");
        // A directory of the source that meets a link to a directory fills that one.
        let to = Tree::new();
        to.dir(inside).symlink("d", target);
        tree.copy(&["d"], &to, "/").unwrap();
        assert_eq!(to.read(&format!("{inside}/x")), "2");
        assert!(to.stat("d").is_symlink());
    }
    assert_eq!(outside.read("target/x"), "outside");
    assert_eq!(outside.listing().len(), 2);
    assert!(!Path::new("/etc/x").exists() && !Path::new("/etc/new").exists());
}

#[test]
fn dots_in_the_destination_do_not_lead_out() {
    let tree = Tree::new();
    tree.file("x", "1");
    let to = Tree::new();
    let inner = to.dir("inner").path("inner");
    let request = CopyRequest {
        dst: b"/../../escaped/x",
        owner: me(),
        upper: None,
    };
    let manifest = tree.scan(&["x"]).unwrap();
    let root = open(&inner);
    copy(
        &manifest,
        tree.open().as_fd(),
        root.as_fd(),
        &request,
        GO_ON,
    )
    .unwrap();
    assert_eq!(to.read("inner/escaped/x"), "1");
    assert!(!to.exists("escaped"));
}

#[test]
fn merged_usr_is_followed() {
    let tree = Tree::new();
    tree.file("root/bin/tool", "1")
        .file("root/usr/bin/tool", "2")
        .file("root/lib/a/b", "3");
    let to = Tree::new();
    to.dir("usr/bin")
        .dir("usr/lib")
        .symlink("bin", "usr/bin")
        .symlink("lib", "/usr/lib");
    for path in ["usr/bin", "usr/lib", "usr"] {
        to.modified(path, 1000);
    }
    tree.copy(&["root"], &to, "/root").unwrap();
    tree.copy(&["root/bin", "root/usr", "root/lib"], &to, "/")
        .unwrap();
    // Both tools are one file here; the later one wins.
    assert_eq!(to.read("bin/tool"), "2");
    assert_eq!(to.read("usr/lib/a/b"), "3");
    assert!(to.stat("bin").is_symlink() && to.stat("lib").is_symlink());
    assert_eq!(to.stat("usr/bin").mtime(), 1000);
    assert_eq!(to.stat("usr/lib").mtime(), 1000);
}

#[test]
fn a_link_to_an_ancestor_is_survived() {
    let tree = Tree::new();
    tree.file("a/a/a/f", "1")
        .file("a/a/g", "2")
        .file("a/h", "3");
    let to = Tree::new();
    to.dir("a").symlink("a/a", ".").modified("a", 1000);
    tree.copy(&["a"], &to, "/").unwrap();
    for (name, content) in [("f", "1"), ("g", "2"), ("h", "3")] {
        assert_eq!(to.read(&format!("a/{name}")), content);
    }
    assert_eq!(to.stat("a").mtime(), 1000);
}

#[test]
fn links_to_nothing_and_in_circles_are_told() {
    let tree = Tree::new();
    tree.file("x", "1").file("d/x", "2");
    let to = Tree::new();
    to.symlink("dangling", "/nowhere")
        .symlink("circle", "circle")
        .symlink("one", "two")
        .symlink("two", "one")
        .file("file", "1")
        .symlink("to-file", "file")
        .dir("sub")
        .symlink("sub/d", "gone");
    let before = to.listing();
    let dangling = |path: &str| {
        format!(
            "{path:?} in the destination is a symbolic link that points nowhere inside the tree"
        )
    };
    let circle = |path: &str| {
        format!("there are too many symbolic links on the way to {path:?} in the destination")
    };
    assert_eq!(refusal(&tree, &to, "x", "/dangling/"), dangling("dangling"));
    assert_eq!(
        refusal(&tree, &to, "x", "/dangling/y/z"),
        dangling("dangling")
    );
    assert_eq!(refusal(&tree, &to, "x", "/circle/x"), circle("circle"));
    assert_eq!(refusal(&tree, &to, ".", "/one"), circle("one"));
    assert_eq!(
        refusal(&tree, &to, "x", "/to-file/"),
        r#""to-file" in the destination is not a directory"#
    );
    assert_eq!(refusal(&tree, &to, "d", "/sub/"), dangling("/sub/d"));
    assert_eq!(
        refusal(&tree, &to, "d", "/to-file"),
        r#""/to-file" in the destination is not a directory"#
    );
    assert_eq!(to.listing(), before);
    // As the name of a file a link of any kind is simply replaced.
    for name in ["dangling", "circle", "to-file"] {
        tree.copy(&["x"], &to, &format!("/{name}")).unwrap();
        assert!(to.stat(name).is_file(), "{name}");
    }
    assert_eq!(to.read("file"), "1");
}

#[test]
fn devices_and_pipes_in_the_destination_are_replaced_not_opened() {
    let tree = Tree::new();
    tree.file("x", "1");
    let to = Tree::new();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, to.path("x"), fifo, Mode::RUSR, 0).unwrap();
    tree.copy(&["x"], &to, "/").unwrap();
    assert_eq!(to.read("x"), "1");
}

#[test]
fn names_of_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let tree = Tree::new();
    for name in [
        &b"\xff\xfe"[..],
        b"new\nline",
        b" blank ",
        b"-rf",
        b"\x1b[31m",
    ] {
        let name = std::ffi::OsStr::from_bytes(name);
        fs_err::write(tree.directory.path().join(name), "1").unwrap();
    }
    let to = Tree::new();
    let manifest = tree.scan(&["."]).unwrap();
    tree.copy_manifest(&manifest, &to, "/").unwrap();
    assert_eq!(to.scan(&["."]).unwrap().digest(), manifest.digest());
}
