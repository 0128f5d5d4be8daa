// SPDX-License-Identifier: Apache-2.0
//! Honest archives: unpacked as tar does it, and layers as the image specification has it.

use super::{Builder, exists, listing, target, text, xattr};
use crate::unpack::tree::open_root;
use crate::unpack::{Whiteouts, unpack};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

#[test]
fn what_tar_writes_is_unpacked_as_tar_does() {
    let Some(area) = target() else { return };
    let tree = area.path().join("tree");
    let script = r#"set -e; mkdir -p tree/a/b tree/empty tree/sticky; cd tree
        echo one > a/one; ln a/one a/b/again; ln -s /a/one a/absolute; ln -s ../a/one a/relative; mkfifo a/pipe
        mknod a/null c 1 3; mknod a/disk b 7 300; chmod 4755 a/one; chmod 1777 sticky; chmod 2750 a/b; chmod 000 empty
        chown 1234:70000 a/one; chown -h 5:6 a/relative; chown 7:8 a/b
        dd if=/dev/zero of=sparse bs=1 count=0 seek=3000000 2>/dev/null
        for place in 0 100000 1000000 2500000; do printf data | dd of=sparse bs=1 seek=$place conv=notrunc 2>/dev/null; done
        long=$(printf 'x%.0s' $(seq 200)); mkdir -p $long/$long; echo long > $long/$long/$long; ln -s $long/$long/$long long
        printf odd > "$(printf 'not\377utf8\nnew')"; : > nothing
        head -c 700000 /dev/urandom > big
        touch -d '2001-02-03 04:05:06.789' a/one big; touch -hd 1999-01-01 a/relative; find . -type d -exec touch -d 2005-05-05 {} +"#;
    let made = Command::new("bash")
        .arg("-c")
        .arg(script)
        .current_dir(area.path())
        .status()
        .expect("bash runs");
    assert!(made.success());
    for attribute in [
        ("user.note", &b"line\nline\0"[..]),
        (
            "security.capability",
            b"\x01\0\0\x02\x0a\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    ] {
        rustix::fs::lsetxattr(
            tree.join("big"),
            attribute.0,
            attribute.1,
            rustix::fs::XattrFlags::empty(),
        )
        .expect("the test's file system takes attributes");
    }
    rustix::fs::lsetxattr(
        tree.join("sticky"),
        "user.dir",
        b"d",
        rustix::fs::XattrFlags::empty(),
    )
    .expect("taken");
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--xattrs", "--xattrs-include=*"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ] {
        let archive = area.path().join("a.tar");
        let tar = |arguments: &[&str]| {
            let status = Command::new("tar")
                .current_dir(area.path())
                .args(arguments)
                .status()
                .expect("tar runs");
            assert!(status.success(), "{arguments:?}");
        };
        tar(&[format, &["-cf", "a.tar", "-C", "tree", "."]].concat());
        for name in ["theirs", "ours"] {
            let _ = fs_err::remove_dir_all(area.path().join(name));
            fs_err::create_dir(area.path().join(name)).expect("made");
        }
        tar(&[
            "-xpf",
            "a.tar",
            "-C",
            "theirs",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--same-owner",
        ]);
        let ours = area.path().join("ours");
        let input = std::io::BufReader::new(fs_err::File::open(&archive).expect("there"));
        unpack(input, open_root(&ours), Whiteouts::Literal).expect("unpacks");
        assert_eq!(
            listing(&ours),
            listing(&area.path().join("theirs")),
            "{format:?}"
        );
        assert_eq!(listing(&ours).len(), listing(&tree).len());
        if format.contains(&"--xattrs") {
            for (path, name) in [
                ("big", "user.note"),
                ("big", "security.capability"),
                ("sticky", "user.dir"),
            ] {
                let value = xattr(&tree.join(path), name);
                assert!(
                    value.is_some() && xattr(&ours.join(path), name) == value,
                    "{name}"
                );
            }
        }
        if format.contains(&"--sparse") {
            let blocks = fs_err::metadata(ours.join("sparse"))
                .expect("there")
                .blocks();
            assert!(
                blocks * 512 < 1_000_000,
                "{format:?}: the holes were written"
            );
        }
    }
}

#[test]
fn the_root_and_missing_parents_get_fixed_attributes() {
    let Some(area) = target() else { return };
    Builder::default()
        .file("a/b/c", "x")
        .unpack(area.path(), Whiteouts::Literal)
        .expect("unpacks");
    for path in ["", "a", "a/b"] {
        let metadata = fs_err::metadata(area.path().join(path)).expect("there");
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.mtime(), metadata.uid()),
            (0o755, 0, 0),
            "{path}"
        );
    }
    let root_entry = |header: &mut tar::Header| header.set_mode(0o700);
    Builder::default()
        .raw(b'5', b"./", b"", b"", root_entry)
        .file("x", "")
        .unpack(area.path(), Whiteouts::Literal)
        .expect("unpacks");
    let metadata = fs_err::metadata(area.path()).expect("there");
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.mtime()),
        (0o700, 1_000_000)
    );
}

#[test]
fn times_of_directories_hold_in_any_order_of_entries() {
    let Some(area) = target() else { return };
    let mut archive = Builder::default();
    archive
        .file("d/e/early", "")
        .directory("d/e")
        .directory("d")
        .file("other", "")
        .file("d/e/late", "")
        .file("d/late", "");
    archive
        .unpack(area.path(), Whiteouts::Literal)
        .expect("unpacks");
    for path in ["d", "d/e"] {
        assert_eq!(
            fs_err::metadata(area.path().join(path))
                .expect("there")
                .mtime(),
            1_000_000,
            "{path}"
        );
    }
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let Some(area) = target() else { return };
    let path = |name: &str| area.path().join(name);
    let mut archive = Builder::default();
    archive.file("a", "old").file("a", "new");
    archive.directory("b").file("b/c/d", "x").file("b", "file");
    archive.file("c", "file").file("c/d", "below");
    archive.file("e", "e").directory("e");
    archive.symlink("f", "a").file("f", "no link");
    archive
        .file("g", "kept")
        .hard_link("h", "g")
        .file("h", "own");
    archive.hard_link("g", "g").hard_link("./g", "/g");
    archive
        .directory("i")
        .symlink("i", "a")
        .symlink("k", "i")
        .directory("k");
    archive
        .unpack(area.path(), Whiteouts::Literal)
        .expect("unpacks");
    assert_eq!(text(path("a")), "new");
    assert_eq!(text(path("b")), "file");
    assert_eq!(text(path("c/d")), "below");
    assert!(path("e").is_dir());
    assert_eq!(text(path("f")), "no link");
    assert_eq!(
        (text(path("g")).as_str(), text(path("h")).as_str()),
        ("kept", "own")
    );
    assert!(
        fs_err::symlink_metadata(path("i"))
            .expect("there")
            .is_symlink()
    );
    assert!(fs_err::symlink_metadata(path("k")).expect("there").is_dir());
}

#[test]
fn whiteouts_hide_what_lower_layers_have_and_only_that() {
    let Some(area) = target() else { return };
    let path = |name: &str| area.path().join(name);
    let mut lower = Builder::default();
    lower
        .file("a/old", "")
        .file("a/sub/deep", "")
        .file("b/old", "")
        .file("c", "")
        .file("d/old", "")
        .file("e/old", "")
        .file("f/old", "");
    lower.file(".wh.ghost", "").file("x/.wh..wh..opq", "");
    lower
        .unpack(area.path(), Whiteouts::Ignored)
        .expect("unpacks");
    assert!(!exists(path(".wh.ghost")));
    let mut upper = Builder::default();
    // Entries of the same layer survive, whether they come before the whiteout or after it.
    upper
        .file("a/before", "")
        .file("a/sub/kept", "")
        .file("a/.wh..wh..opq", "")
        .file("a/after", "");
    upper
        .file("b/.wh.old", "")
        .file(".wh.c", "")
        .file("c", "again");
    upper.file("d/new", "").file(".wh.d", "");
    upper.file(".wh.e", "").file("e/new", "");
    upper
        .file("nowhere/.wh.x", "")
        .file(".wh..wh.plnk", "")
        .directory(".wh..wh.plnk/1.2")
        .file(".wh.missing", "");
    upper
        .unpack(area.path(), Whiteouts::Applied)
        .expect("unpacks");
    let names: Vec<String> = listing(area.path())
        .iter()
        .map(|line| line.split(' ').next().unwrap_or("").replace('"', ""))
        .collect();
    assert_eq!(
        names,
        [
            "a",
            "a/after",
            "a/before",
            "a/sub",
            "a/sub/kept",
            "b",
            "c",
            "d",
            "d/new",
            "e",
            "e/new",
            "f",
            "f/old"
        ]
    );
    // In a root file system these are names like others.
    Builder::default()
        .file(".wh.a", "literal")
        .unpack(area.path(), Whiteouts::Literal)
        .expect("unpacks");
    assert_eq!(text(path(".wh.a")), "literal");
    assert!(exists(path("a")));
}

#[test]
fn devices_and_pipes_are_made() {
    let Some(area) = target() else { return };
    let mut archive = Builder::default();
    archive.raw(b'3', b"null", b"", b"", |header| {
        header.set_device_major(1).expect("fits");
        header.set_device_minor(3).expect("fits");
    });
    archive.raw(b'6', b"pipe", b"", b"", |_| {});
    archive
        .unpack(area.path(), Whiteouts::Literal)
        .expect("unpacks");
    assert_eq!(
        fs_err::metadata(area.path().join("null"))
            .expect("there")
            .rdev(),
        rustix::fs::makedev(1, 3)
    );
    assert!(
        fs_err::metadata(area.path().join("pipe"))
            .expect("there")
            .file_type()
            .is_fifo()
    );
}
