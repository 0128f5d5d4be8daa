// SPDX-License-Identifier: Apache-2.0
//! Tests of the unpacking: faithful, layered, hostile, random.

use super::tree::open_root;
use super::{Error, Whiteouts, unpack};
use obuild_fixtures::{FileSystem, root, scratch, skip};
use proptest::prelude::*;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Writes archives entry by entry, also such as no tar would write.
#[derive(Default)]
struct Builder(Vec<u8>);

impl Builder {
    fn raw(
        &mut self,
        flag: u8,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> &mut Self {
        self.entry(flag, name, link, data, Box::new(change))
    }

    fn entry(
        &mut self,
        flag: u8,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: Box<dyn FnOnce(&mut tar::Header) + '_>,
    ) -> &mut Self {
        for (flag, text) in [(b'L', name), (b'K', link)] {
            if text.len() > 100 {
                let mut record = text.to_vec();
                record.push(0);
                self.entry(flag, b"././@LongLink", b"", &record, Box::new(|_| {}));
            }
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
            let length = text.len().min(100);
            field[..length].copy_from_slice(&text[..length]);
        }
        header.as_mut_bytes()[156] = flag;
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(&mut self, name: &str, data: &str) -> &mut Self {
        self.raw(b'0', name.as_bytes(), b"", data.as_bytes(), |_| {})
    }

    fn directory(&mut self, name: &str) -> &mut Self {
        self.raw(b'5', name.as_bytes(), b"", b"", |header| {
            header.set_mode(0o755)
        })
    }

    fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'2', name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'1', name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").expect("a vector takes it");
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", &data, |_| {})
    }

    fn end(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    fn unpack(&self, target: &Path, whiteouts: Whiteouts) -> Result<(), Error> {
        unpack(self.end().as_slice(), open_root(target), whiteouts)
    }
}

fn text(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(path.as_ref()).expect("the file is there")
}

fn exists(path: impl AsRef<Path>) -> bool {
    fs_err::symlink_metadata(path.as_ref()).is_ok()
}

/// Describes everything below a directory, one line an entry.
fn listing(directory: &Path) -> Vec<String> {
    fn walk(directory: &Path, base: &Path, lines: &mut Vec<String>) {
        let mut entries: Vec<_> = fs_err::read_dir(directory)
            .expect("readable")
            .map(|entry| entry.expect("readable").path())
            .collect();
        entries.sort();
        for path in entries {
            let metadata = fs_err::symlink_metadata(&path).expect("readable");
            let kind = metadata.file_type();
            let content = if kind.is_file() {
                hex::encode(fs_err::read(&path).expect("readable"))
            } else if kind.is_symlink() {
                format!("{:?}", fs_err::read_link(&path).expect("readable"))
            } else {
                format!("{:x}", metadata.rdev())
            };
            let size = if kind.is_dir() { 0 } else { metadata.size() };
            let links = if kind.is_dir() { 0 } else { metadata.nlink() };
            lines.push(format!(
                "{:?} {:o} {}:{} {}.{} {size} {links} {content}",
                path.strip_prefix(base).expect("below the base"),
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            ));
            if kind.is_dir() {
                walk(&path, base, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(directory, directory, &mut lines);
    lines
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1000];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn target() -> Option<tempfile::TempDir> {
    if root() {
        scratch(FileSystem::Default)
    } else {
        None
    }
}

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
            header.as_mut_bytes()[124..136].fill(0xff)
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
            header.as_old_mut().mode = *b"0009999\0"
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

/// Names that collide, climb, hide and escape.
fn nasty_name() -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "l", "m"]).prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::sample::select(vec!["..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", ".wh.l", "outside", "proc"])
            .prop_map(|name| name.as_bytes().to_vec()),
        1 => prop::collection::vec(1_u8.., 1..6),
    ];
    prop::collection::vec(component, 1..6).prop_map(|components| components.join(&b'/'))
}

fn nasty_entry() -> impl Strategy<Value = (u8, Vec<u8>, Vec<u8>, Vec<u8>, u32)> {
    let escape = prop::sample::select(vec![
        "..",
        "/",
        "../outside",
        "../../outside/victim",
        "/outside",
        ".",
        "a",
        "l",
        "/proc/self/root",
        "/proc/self/cwd",
        "@",
    ]);
    let link = prop_oneof![
        escape.prop_map(|link| link.as_bytes().to_vec()),
        nasty_name()
    ];
    let flag = prop::sample::select(b"0000055222211136xSg7".to_vec());
    (
        flag,
        nasty_name(),
        link,
        prop::collection::vec(any::<u8>(), 0..20),
        0_u32..0o10000,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the entries are, nothing outside the root changes, and there is no panic.
    #[test]
    fn nothing_outside_the_root_changes(
        entries in prop::collection::vec(nasty_entry(), 1..25),
        whiteouts in prop::sample::select(vec![Whiteouts::Literal, Whiteouts::Ignored, Whiteouts::Applied]),
    ) {
        let Some(area) = target() else { return Ok(()) };
        let outside = area.path().join("outside");
        fs_err::create_dir_all(outside.join("victim/a")).expect("made");
        fs_err::write(outside.join("victim/file"), "precious").expect("written");
        fs_err::write(area.path().join("a"), "neighbour").expect("written");
        let tree = area.path().join("root");
        fs_err::create_dir(&tree).expect("made");
        let state = || {
            let mut lines = listing(&outside);
            let top = fs_err::read_dir(area.path()).expect("readable").count();
            let area_metadata = fs_err::metadata(area.path()).expect("there");
            lines.push(format!("{top} {} {}", area_metadata.mtime(), area_metadata.mtime_nsec()));
            lines.push(text(area.path().join("a")));
            lines
        };
        let before = state();
        // One archive after another into the same tree: entries meet what earlier ones have planted.
        for half in entries.chunks(entries.len().div_ceil(2)) {
            for (flag, name, link, data, mode) in half {
                let link = if link == b"@" { outside.as_os_str().as_bytes() } else { link };
                let data: &[u8] = if b"1236".contains(flag) { b"" } else { data };
                let mut archive = Builder::default();
                archive.raw(*flag, name, link, data, |header| {
                    header.set_mode(*mode);
                    header.set_device_minor(1).expect("fits");
                    header.set_device_major(5).expect("fits");
                });
                // Errors are fine; the next entry is tried all the same.
                let _ = archive.unpack(&tree, whiteouts);
            }
            let mut archive = Builder::default();
            for (flag, name, link, data, mode) in half {
                archive.raw(*flag, name, link, data, |header| header.set_mode(*mode));
            }
            let _ = archive.unpack(&tree, whiteouts);
        }
        prop_assert_eq!(before, state());
        // So that the temporary directory can be removed.
        fs_err::set_permissions(&tree, std::fs::Permissions::from_mode(0o755)).expect("set");
    }

    /// No bytes make the reader panic, and damage to a good archive does not either.
    #[test]
    fn no_bytes_make_the_reader_panic(
        noise in prop::collection::vec(any::<u8>(), 0..4096),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        fix in any::<bool>(),
    ) {
        let Some(area) = target() else { return Ok(()) };
        let _ = unpack(noise.as_slice(), open_root(area.path()), Whiteouts::Applied);
        let mut archive = Builder::default();
        archive.pax(&[("path", b"p/q"), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"\n")]).file("x", "content");
        archive.pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"600")]).file("s", &format!("{:\0<512}ab", "1\n2\n2\n"));
        archive.raw(b'S', b"gnu", b"", b"12", |header| header.as_gnu_mut().expect("gnu").isextended[0] = 1);
        archive.symlink("l", "p").hard_link("h", "x").directory("d");
        let mut bytes = archive.end();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if fix {
            // Valid checksums let the damage through to the parsers behind.
            for block in bytes.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    let sum: u32 = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        bytes.truncate(cut.index(bytes.len() * 2));
        let _ = unpack(bytes.as_slice(), open_root(area.path()), Whiteouts::Literal);
    }
}
