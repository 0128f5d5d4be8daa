// SPDX-License-Identifier: Apache-2.0
//! Trees written to directories and tars.

use super::*;
use rustix::fs::FileType;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    export_tar(tree.open().as_fd(), &mut bytes, None, &mut |_| {}, GO_ON).unwrap();
    bytes
}

fn unpack(bytes: &[u8]) -> Tree {
    let to = Tree::new();
    let mut archive = tar::Archive::new(bytes);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(me().0 == 0);
    archive.set_unpack_xattrs(true);
    archive.unpack(to.directory.path()).unwrap();
    to
}

/// A tree with something of everything that does not need privileges.
fn everything() -> Tree {
    let tree = Tree::new();
    tree.file("a/file", "content")
        .symlink("a/link", "../nowhere")
        .dir("a/empty");
    tree.hard_link("z", "a/file")
        .file("b/exe", "#!")
        .mode("b/exe", 0o4755);
    tree.mode("a/empty", 0o1777)
        .modified("a/file", 77)
        .modified("a/empty", 88);
    tree.file(
        &format!("{}/{}/f", "p".repeat(90), "q".repeat(120)),
        "split",
    );
    tree.file(&format!("{}{}", "long/".repeat(80), "f".repeat(180)), "pax");
    tree.symlink("long/link", &"t".repeat(300));
    fs_err::write(
        tree.directory
            .path()
            .join(std::ffi::OsStr::from_bytes(b"\xff\xfe")),
        vec![b'x'; 70_000],
    )
    .unwrap();
    tree.modified("b", 99)
        .modified("long", 5)
        .modified("a", 4)
        .modified(".", 3);
    tree
}

#[test]
fn a_directory_is_exported_faithfully() {
    let tree = everything();
    let fifo = FileType::Fifo;
    rustix::fs::mknodat(CWD, tree.path("a/pipe"), fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.path("a/socket")).unwrap();
    let root = me().0 == 0;
    if root {
        let device = rustix::fs::makedev(1, 3);
        let node = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, tree.path("a/null"), node, Mode::RUSR, device).unwrap();
        for path in ["a/file", "a/null", "a", "a/link"] {
            std::os::unix::fs::lchown(tree.path(path), Some(1000), Some(70_000)).unwrap();
        }
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.path("a/file"), c"user.colour", b"red", flags).unwrap();
    rustix::fs::setxattr(tree.path("a"), c"user.colour", b"blue", flags).unwrap();
    tree.mode(".", 0o711).modified("a", 4).modified(".", 3);
    let place = Tree::new();
    let to = place.path("export");
    let mut heard = 0;
    let stats = export_dir(tree.open().as_fd(), &to, &mut |_| heard += 1, GO_ON).unwrap();
    assert_eq!(heard, stats.entries);
    assert_eq!(listing(&to), tree.listing());
    assert_eq!(stats.entries, tree.listing().len() as u64);
    let stat = fs_err::metadata(&to).unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec()),
        (0o711, 3, 5)
    );
    let mut value = [0; 4];
    rustix::fs::getxattr(to.join("a"), c"user.colour", &mut value).unwrap();
    assert_eq!(&value, b"blue");
    assert_eq!(
        place
            .listing()
            .keys()
            .filter(|path| path.components().count() == 1)
            .count(),
        1
    );
}

#[test]
fn an_export_goes_into_nothing_or_an_empty_directory() {
    let tree = Tree::new();
    tree.file("f", "1");
    let place = Tree::new();
    place
        .dir("empty")
        .dir("full/x")
        .file("file", "1")
        .symlink("link", "empty");
    let export = |to: &str| export_dir(tree.open().as_fd(), &place.path(to), &mut |_| {}, GO_ON);
    export("link").unwrap();
    assert_eq!(place.read("empty/f"), "1");
    assert!(matches!(export("empty"), Err(ExportError::NotEmpty { .. })));
    assert!(matches!(export("full"), Err(ExportError::NotEmpty { .. })));
    assert!(matches!(
        export("file"),
        Err(ExportError::NotADirectory { .. })
    ));
    assert!(matches!(
        export("missing/x"),
        Err(ExportError::Place { .. })
    ));
    assert_eq!(place.listing().len(), 6);
}

#[test]
fn a_cancelled_export_leaves_nothing() {
    let tree = everything();
    let place = Tree::new();
    place.dir("empty");
    for to in ["empty", "new"] {
        for limit in [0, 3, 20] {
            let calls = std::sync::atomic::AtomicU32::new(0);
            let cancelled = || calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= limit;
            let root = tree.open();
            let exported = export_dir(root.as_fd(), &place.path(to), &mut |_| {}, &cancelled);
            assert!(
                matches!(exported, Err(ExportError::Cancelled)),
                "{to} {limit}"
            );
            assert_eq!(place.listing().len(), 1, "{to} {limit}");
        }
    }
    let mut bytes = Vec::new();
    let exported = export_tar(tree.open().as_fd(), &mut bytes, None, &mut |_| {}, &|| true);
    assert!(matches!(exported, Err(ExportError::Cancelled)));
}

#[test]
fn a_tar_unpacks_to_the_same_tree() {
    let tree = everything();
    let root = me().0 == 0;
    if root {
        std::os::unix::fs::lchown(tree.path("a/file"), Some(3_000_000), Some(70_000)).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(tree.path("a/file"), c"user.colour", b"red", flags).unwrap();
    let bytes = archive(&tree);
    let to = unpack(&bytes);
    let drop_times_of_links = |tree: &Tree| {
        let mut listing = tree.listing();
        // The unpacker sets no times on links, and makes directories before their content.
        listing.retain(|_, text| !text.contains("->") && !text.contains("directory"));
        listing
    };
    assert_eq!(drop_times_of_links(&to), drop_times_of_links(&tree));
    assert_eq!(
        to.scan(&["."]).unwrap().digest(),
        tree.scan(&["."]).unwrap().digest()
    );
    let mut value = [0; 3];
    rustix::fs::getxattr(to.path("a/file"), c"user.colour", &mut value).unwrap();
    assert_eq!(&value, b"red");
}

#[test]
fn gnu_tar_reads_it_too() {
    let tree = everything();
    let bytes = archive(&tree);
    let to = Tree::new();
    let place = Tree::new();
    fs_err::write(place.path("x.tar"), &bytes).unwrap();
    let status = std::process::Command::new("tar")
        .args(["--xattrs", "-xpf"])
        .arg(place.path("x.tar"))
        .arg("-C")
        .arg(to.directory.path())
        .status();
    let Ok(status) = status else {
        obuild_fixtures::skip("needs tar");
        return;
    };
    assert!(status.success());
    assert_eq!(to.listing(), tree.listing());
}

#[test]
fn the_same_tree_gives_the_same_tar() {
    let tree = everything();
    let first = archive(&tree);
    assert_eq!(archive(&tree), first);
    let place = Tree::new();
    let copy = place.path("copy");
    export_dir(tree.open().as_fd(), &copy, &mut |_| {}, GO_ON).unwrap();
    let mut second = Vec::new();
    export_tar(open(&copy).as_fd(), &mut second, None, &mut |_| {}, GO_ON).unwrap();
    assert_eq!(first, second);
    assert_eq!(first.len() % 512, 0);
    assert_eq!(first[first.len() - 1024..], [0; 1024]);
}

#[test]
fn headers_say_what_a_reader_must_know() {
    let tree = Tree::new();
    tree.file("f", "1")
        .mode("f", 0o4711)
        .modified("f", 50)
        .modified(".", 1);
    tree.hard_link("g", "f").file("h", "").modified("h", 500);
    tree.file("old", "").modified("old", -5);
    let mut bytes = Vec::new();
    let mut heard = Vec::new();
    let stats = export_tar(
        tree.open().as_fd(),
        &mut bytes,
        Some(100),
        &mut |stats| heard.push(stats.entries),
        GO_ON,
    )
    .unwrap();
    assert_eq!((stats.entries, stats.bytes), (4, 1));
    assert_eq!(heard, [1, 2, 3, 4]);
    let mut archive = tar::Archive::new(&*bytes);
    let mut entries = archive.entries().unwrap();
    let mut next = || entries.next().unwrap().unwrap();
    let mut first = next();
    assert_eq!(first.header().mode().unwrap(), 0o4711);
    assert_eq!(first.header().mtime().unwrap(), 50);
    assert_eq!(first.header().username().unwrap(), Some(""));
    let mut content = String::new();
    first.read_to_string(&mut content).unwrap();
    assert_eq!(content, "1");
    drop(first);
    let second = next();
    assert!(second.header().entry_type().is_hard_link());
    assert_eq!(&*second.link_name_bytes().unwrap(), b"f");
    assert_eq!(second.size(), 0);
    drop(second);
    assert_eq!(next().header().mtime().unwrap(), 100, "clamped");
    let mut old = next();
    let records = old.pax_extensions().unwrap().unwrap();
    let records: Vec<_> = records.map(|record| record.unwrap()).collect();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].key().unwrap(), "mtime");
    assert_eq!(records[0].value().unwrap(), "-5");
}

#[test]
fn devices_pipes_and_sockets_in_a_tar() {
    let tree = Tree::new();
    tree.file("a", "1");
    let fifo = FileType::Fifo;
    rustix::fs::mknodat(CWD, tree.path("pipe"), fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.path("socket")).unwrap();
    let root = obuild_fixtures::root();
    if root {
        let device = rustix::fs::makedev(259, 70_000);
        let node = FileType::BlockDevice;
        rustix::fs::mknodat(CWD, tree.path("disk"), node, Mode::RUSR, device).unwrap();
    }
    let mut bytes = Vec::new();
    let stats = export_tar(tree.open().as_fd(), &mut bytes, None, &mut |_| {}, GO_ON).unwrap();
    assert_eq!(stats.sockets_left_out, 1);
    let mut archive = tar::Archive::new(&*bytes);
    let found: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            (
                String::from_utf8(entry.path_bytes().into_owned()).unwrap(),
                header.entry_type(),
                header.device_major().unwrap(),
                header.device_minor().unwrap(),
            )
        })
        .collect();
    let mut expected = vec![
        ("a".to_owned(), tar::EntryType::Regular, Some(0), Some(0)),
        (
            "disk".to_owned(),
            tar::EntryType::Block,
            Some(259),
            Some(70_000),
        ),
        ("pipe".to_owned(), tar::EntryType::Fifo, Some(0), Some(0)),
    ];
    if !root {
        expected.remove(1);
    }
    assert_eq!(found, expected);
}

#[test]
fn a_writer_that_fails_is_an_error() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let tree = everything();
    for room in [0, 512, 5000, 60_000] {
        let exported = export_tar(
            tree.open().as_fd(),
            &mut Full(room),
            None,
            &mut |_| {},
            GO_ON,
        );
        assert!(matches!(exported, Err(ExportError::Write(_))), "{room}");
    }
}

#[test]
fn deep_trees_are_exported() {
    const DEPTH: usize = 1500;
    let tree = Tree::new();
    let mut directory = tree.open();
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&directory, "deep", Mode::RWXU).unwrap();
        directory = openat(&directory, "deep", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    drop(openat(&directory, "a", flags, Mode::RUSR).unwrap());
    rustix::fs::linkat(
        &directory,
        "a",
        &directory,
        "b",
        rustix::fs::AtFlags::empty(),
    )
    .unwrap();
    let to = Tree::new();
    let stats = export_dir(tree.open().as_fd(), &to.path("x"), &mut |_| {}, GO_ON).unwrap();
    assert_eq!(stats.entries, DEPTH as u64 + 2);
    assert_eq!(
        to.scan(&["x/deep"]).unwrap().digest(),
        tree.scan(&["deep"]).unwrap().digest()
    );
    assert_eq!(archive(&tree), {
        let mut bytes = Vec::new();
        let root = open(&to.path("x"));
        export_tar(root.as_fd(), &mut bytes, None, &mut |_| {}, GO_ON).unwrap();
        bytes
    });
}
