// SPDX-License-Identifier: Apache-2.0
//! Archives made to harm.

use super::{Builder, listing, target, text, xattr};
use crate::unpack::tree::open_root;
use crate::unpack::{Error, Whiteouts, unpack};
use obuild_fixtures::skip;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn links_in_a_path_are_followed_inside_the_root() {
    let Some(area) = target() else { return };
    let tree = area.path().join("root");
    fs_err::create_dir(&tree).expect("made");
    let outside = area.path().join("outside");
    fs_err::create_dir(&outside).expect("made");
    let mut archive = Builder::default();
    archive
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/so", "in usr");
    archive
        .symlink("up", "../../../../outside")
        .file("up/file", "1");
    archive
        .symlink("away", outside.to_str().expect("a plain name"))
        .file("away/file", "2");
    archive.symlink("var/run", "/run").file("var/run/pid", "3");
    archive
        .symlink("x", "y")
        .symlink("y", "usr/../usr/./lib")
        .file("x/z", "4");
    archive
        .symlink("self", ".")
        .file("self/self/top", "5")
        .hard_link("lib/top", "self/self/top");
    archive.unpack(&tree, Whiteouts::Literal).expect("unpacks");
    assert_eq!(text(tree.join("usr/lib/so")), "in usr");
    assert_eq!(text(tree.join("outside/file")), "1");
    assert_eq!(
        text(
            tree.join(outside.strip_prefix("/").expect("absolute"))
                .join("file")
        ),
        "2"
    );
    assert_eq!(text(tree.join("run/pid")), "3");
    assert_eq!(text(tree.join("usr/lib/z")), "4");
    assert_eq!(text(tree.join("usr/lib/top")), "5");
    assert!(listing(&outside).is_empty());

    let mut endless = Builder::default();
    endless.symlink("a", "b").symlink("b", "a").file("a/x", "");
    assert!(matches!(
        endless.unpack(&tree, Whiteouts::Literal),
        Err(Error::Write { .. })
    ));
}

#[test]
fn hostile_entries_are_refused() {
    let Some(area) = target() else { return };
    let refused = |what: &str, archive: &Builder| {
        let result = archive.unpack(area.path(), Whiteouts::Applied);
        assert!(
            matches!(result, Err(Error::Refused { .. } | Error::Malformed { .. })),
            "{what}: {result:?}"
        );
    };
    for name in ["../x", "a/../../x", "..", "/..", "a/.."] {
        refused(name, Builder::default().file(name, "x"));
        refused(name, Builder::default().file("f", "").hard_link("l", name));
    }
    refused("deep", Builder::default().file(&"d/".repeat(300), ""));
    refused(
        "long",
        Builder::default().file(&"dddddddd/".repeat(500), ""),
    );
    refused(
        "root as file",
        Builder::default().file("./", "x").symlink(".", "x"),
    );
    refused(
        "link to nothing",
        Builder::default().hard_link("l", "missing"),
    );
    refused(
        "link to a directory",
        Builder::default().directory("d").hard_link("l", "d"),
    );
    refused("link to the root", Builder::default().hard_link("l", "/"));
    refused("empty link", Builder::default().symlink("l", ""));
    refused(
        "overlay whiteout",
        Builder::default().raw(b'3', b"w", b"", b"", |header| {
            header.set_device_major(0).expect("fits");
            header.set_device_minor(0).expect("fits");
        }),
    );
    refused(
        "whiteout of dot dot",
        Builder::default().file("a/.wh...", ""),
    );
    refused("whiteout of nothing", Builder::default().file("a/.wh.", ""));
    refused("file in a whiteout", Builder::default().file(".wh.a/b", ""));
    refused(
        "unknown type",
        Builder::default().raw(b'Q', b"q", b"", b"", |_| {}),
    );
    refused(
        "negative size",
        Builder::default().raw(b'0', b"n", b"", b"", |header| {
            header.as_mut_bytes()[124..136].fill(0xff);
        }),
    );
    refused(
        "size that lies",
        Builder::default().raw(b'0', b"n", b"", b"", |header| header.set_size(1 << 50)),
    );
    refused(
        "owner out of range",
        Builder::default()
            .pax(&[("uid", b"4294967295")])
            .file("u", ""),
    );
    refused(
        "bad octal",
        Builder::default().raw(b'0', b"n", b"", b"", |header| {
            header.as_old_mut().mode = *b"0009999\0";
        }),
    );
    refused(
        "NUL in a PAX path",
        Builder::default().pax(&[("path", b"a\0b")]).file("u", ""),
    );
    refused(
        "bad PAX number",
        Builder::default().pax(&[("size", b"-1")]).file("u", ""),
    );
    refused(
        "two extension headers",
        Builder::default()
            .pax(&[("uid", b"1")])
            .pax(&[("uid", b"1")])
            .file("u", ""),
    );
    refused(
        "extension header of nothing",
        Builder::default().pax(&[("uid", b"1")]),
    );
    assert!(matches!(
        unpack(
            &b"this is not an archive, and more than a block of nothing to look at".repeat(20)[..],
            open_root(area.path()),
            Whiteouts::Literal
        ),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn huge_extension_headers_are_refused_before_they_are_read() {
    struct Endless;
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            buffer.fill(b'a');
            Ok(buffer.len())
        }
    }
    let Some(area) = target() else { return };
    for flag in *b"xLK" {
        let mut archive = Builder::default();
        archive.raw(flag, b"bomb", b"", b"", |header| header.set_size(1 << 40));
        let input = std::io::Read::chain(archive.0.as_slice(), Endless);
        let result = unpack(
            std::io::BufReader::new(input),
            open_root(area.path()),
            Whiteouts::Literal,
        );
        assert!(matches!(result, Err(Error::Malformed { .. })), "{result:?}");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let Some(area) = target() else { return };
    for (map, size) in [
        ("0,4,2,4", "10"),
        ("0,9", "8"),
        ("8,4,0,4", "20"),
        ("0,4,18446744073709551615,4", "20"),
        ("0", "9"),
        ("0,5", "9"),
    ] {
        let mut archive = Builder::default();
        let records: [(&str, &[u8]); 2] = [
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        archive.pax(&records).file("s", "12345678");
        let result = archive.unpack(area.path(), Whiteouts::Literal);
        assert!(
            matches!(result, Err(Error::Malformed { .. })),
            "{map}: {result:?}"
        );
    }
    let mut archive = Builder::default();
    archive
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")])
        .file("s", "999999999\n0\n");
    assert!(matches!(
        archive.unpack(area.path(), Whiteouts::Literal),
        Err(Error::Malformed { .. })
    ));
    // Larger than any file may be, but without data: an error of the file system, at no cost.
    let mut archive = Builder::default();
    archive
        .pax(&[
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.map", b"0,1"),
        ])
        .file("s", "1");
    assert!(matches!(
        archive.unpack(area.path(), Whiteouts::Literal),
        Err(Error::Write { .. })
    ));
}

#[test]
fn attributes_that_the_overlay_reads_are_left_out() {
    let Some(area) = target() else { return };
    let mut archive = Builder::default();
    archive
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.user.kept", b"yes"),
        ])
        .directory("d");
    archive
        .pax(&[("SCHILY.xattr.user.never", b"x")])
        .symlink("l", "d");
    archive
        .unpack(area.path(), Whiteouts::Applied)
        .expect("unpacks");
    let directory = area.path().join("d");
    for name in [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.opaque",
    ] {
        assert_eq!(xattr(&directory, name), None, "{name}");
    }
    assert_eq!(xattr(&directory, "user.kept").as_deref(), Some(&b"yes"[..]));
}

#[test]
fn a_link_does_not_lead_whiteouts_or_removals_out() {
    let Some(area) = target() else { return };
    let outside = area.path().join("outside");
    let tree = area.path().join("root");
    fs_err::create_dir_all(outside.join("keep")).expect("made");
    fs_err::create_dir(&tree).expect("made");
    fs_err::write(outside.join("keep/file"), "precious").expect("written");
    symlink(&outside, tree.join("out")).expect("made");
    symlink("../outside", tree.join("rel")).expect("made");
    let before = listing(&outside);
    let mut archive = Builder::default();
    for name in [
        "out/.wh.keep",
        "rel/.wh.keep",
        "out/.wh..wh..opq",
        "rel/keep/.wh.file",
        "out",
        "rel",
    ] {
        archive.file(name, "");
    }
    archive.unpack(&tree, Whiteouts::Applied).expect("unpacks");
    assert_eq!(listing(&outside), before);
}

#[test]
fn a_full_disk_is_an_error_of_its_kind() {
    let Some(area) = target() else { return };
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(area.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        return skip("cannot mount a tmpfs");
    }
    let mut archive = Builder::default();
    archive.raw(b'0', b"big", b"", &vec![1; 3 << 20], |_| {});
    let result = archive.unpack(area.path(), Whiteouts::Literal);
    let unmounted = Command::new("umount")
        .arg(area.path())
        .status()
        .expect("umount runs");
    assert!(unmounted.success());
    let error = result.expect_err("3 MiB do not fit 1 MiB");
    assert_eq!(
        error.io().map(std::io::Error::kind),
        Some(std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
}
