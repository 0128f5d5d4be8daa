// SPDX-License-Identifier: Apache-2.0
//! Archives, directories, registries.

use super::support::{Area, Mounted, archive, gzip, open_store, zstd};
use crate::{Error, ErrorKind, FileDigests, FileStamp, ResolveOptions, Tools, import, resolve};
use obuild_fixtures::skip;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

#[test]
fn archives_are_imported_however_compressed() {
    let Some(area) = Area::new() else { return };
    let plain = archive(&[("etc/name", "tar"), ("etc/.wh.kept", "literal")]);
    fs_err::write(area.path("plain.tar"), &plain).expect("written");
    fs_err::write(area.path("a.tar.gz"), gzip(&plain)).expect("written");
    fs_err::write(area.path("a.tar.zst"), zstd(&plain)).expect("written");
    let mut names = vec!["plain.tar", "a.tar.gz", "a.tar.zst"];
    for (program, name) in [("xz", "plain.tar.xz"), ("bzip2", "plain.tar.bz2")] {
        match Command::new(program)
            .arg("-k")
            .arg(area.path("plain.tar"))
            .status()
        {
            Ok(status) if status.success() => names.push(name),
            _ => skip(&format!("needs {program}")),
        }
    }
    for name in names {
        let result = area.import(&format!("tar:{name}"));
        if name == "plain.tar.bz2" {
            let error = result.expect_err("not supported");
            assert!(
                matches!(
                    error,
                    Error::Compression {
                        method: "bzip2",
                        ..
                    }
                ),
                "{error:?}"
            );
            continue;
        }
        let tree = area.tree(result.expect(name));
        assert_eq!(
            (tree.text("etc/name"), tree.text("etc/.wh.kept")),
            ("tar".into(), "literal".into()),
            "{name}"
        );
    }
    // Two gzip members and two zstd frames, one after the other, are one stream.
    let (one, two) = plain.split_at(700);
    for (name, bytes) in [
        ("two.gz", [gzip(one), gzip(two)].concat()),
        ("two.zst", [zstd(one), zstd(two)].concat()),
    ] {
        fs_err::write(area.path(name), bytes).expect("written");
        let id = area.import(&format!("tar:{name}")).expect(name);
        assert_eq!(area.tree(id).text("etc/name"), "tar");
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let Some(area) = Area::new() else { return };
    fs_err::write(area.path("empty"), "").expect("written");
    fs_err::write(area.path("text"), "some text\n".repeat(1000)).expect("written");
    fs_err::write(area.path("cut.gz"), &gzip(&archive(&[("a", "b")]))[..60]).expect("written");
    let made = Command::new("mkfifo")
        .arg(area.path("pipe"))
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    for (name, expected) in [
        (
            "missing",
            "missing is not an archive of a root file system: there is no such file",
        ),
        (
            "empty",
            "empty is not an archive of a root file system: it is empty",
        ),
        (
            ".",
            ". is not an archive of a root file system: it is a directory (use dir:PATH)",
        ),
        (
            "pipe",
            "pipe is not an archive of a root file system: it is no file",
        ),
        ("text", "cannot unpack text"),
        ("cut.gz", "cannot unpack cut.gz"),
    ] {
        let error = area.import(&format!("tar:{name}")).expect_err(name);
        let text = error
            .to_string()
            .replace(&format!("{}/", area.directory.path().display()), "");
        assert_eq!(text, expected);
        area.assert_empty();
    }
}

#[derive(Default)]
struct Memory {
    known: RefCell<HashMap<FileStamp, [u8; 32]>>,
    hits: Cell<usize>,
}

impl FileDigests for Memory {
    fn get(&self, stamp: &FileStamp) -> Option<[u8; 32]> {
        let known = self.known.borrow().get(stamp).copied();
        self.hits
            .set(self.hits.get() + usize::from(known.is_some()));
        known
    }

    fn put(&self, stamp: &FileStamp, digest: [u8; 32]) {
        self.known.borrow_mut().insert(*stamp, digest);
    }
}

#[test]
fn digests_of_archives_are_remembered_and_never_trusted_for_long() {
    let Some(area) = Area::new() else { return };
    let memory = Memory::default();
    let options = ResolveOptions {
        remembered: None,
        base_dir: area.directory.path(),
        digests: &memory,
        tools: Tools::default(),
        cancelled: &|| false,
    };
    let reference = "tar:a.tar".parse().expect("a reference");
    fs_err::write(area.path("a.tar"), archive(&[("a", "1")])).expect("written");
    let first = resolve(&reference, &options).expect("resolves");
    // The file is so new that it may change once more within a tick of the clock.
    assert!(memory.known.borrow().is_empty());
    // A remembered digest that is wrong, as after an unnoticed change, is found out by the import.
    let stamp = FileStamp::of(&fs_err::metadata(area.path("a.tar")).expect("there"));
    memory.put(&stamp, [7; 32]);
    let wrong = resolve(&reference, &options).expect("resolves");
    assert_eq!(memory.hits.get(), 1);
    assert_ne!(wrong.id, first.id);
    let error = import(&wrong, &area.store, &mut |_| {}, &|| false)
        .expect_err("not the file that was resolved");
    assert!(matches!(error, Error::Digest { .. }), "{error:?}");
    area.assert_empty();
    import(&first, &area.store, &mut |_| {}, &|| false).expect("imports");
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(area) = Area::new() else { return };
    let disk = area.path("disk");
    fs_err::create_dir(&disk).expect("made");
    let Some(_mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=4m", "none"], &disk) else {
        return skip("cannot mount a tmpfs");
    };
    fs_err::write(
        area.path("big.tar"),
        archive(&[("big", &"x".repeat(8 << 20))]),
    )
    .expect("written");
    let store = open_store(&disk.join("store"));
    let resolved = area.resolve("tar:big.tar").expect("resolves");
    let error =
        import(&resolved, &*store, &mut |_| {}, &|| false).expect_err("8 MiB do not fit 4 MiB");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("disk is full")),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Host);
    assert!(store.list().expect("works").is_empty());
    fs_err::write(
        area.path("small.tar"),
        archive(&[("small", &"x".repeat(2 << 20))]),
    )
    .expect("written");
    let resolved = area.resolve("tar:small.tar").expect("resolves");
    import(&resolved, &*store, &mut |_| {}, &|| false).expect("there is room again");
}

#[test]
fn a_directory_is_copied_as_it_is() {
    let Some(area) = Area::new() else { return };
    let script = r"set -e; mkdir -p tree/usr/bin tree/home/user tree/dev tree/proc; cd tree
        echo tool > usr/bin/tool; chmod 4755 usr/bin/tool; ln usr/bin/tool usr/bin/other; ln -s usr/bin bin
        echo mine > home/user/file; chown -R 1000:1001 home/user; chown -h 3:4 bin; chmod 700 home/user
        mknod dev/null c 1 3; mkfifo dev/pipe; touch -d 2003-03-03 usr/bin/tool; touch -d 2004-04-04 home usr .; touch -hd 2002-02-02 bin";
    let made = Command::new("bash")
        .arg("-c")
        .arg(script)
        .current_dir(area.directory.path())
        .status()
        .expect("bash runs");
    assert!(made.success());
    let file = area.path("tree/home/user/file");
    rustix::fs::lsetxattr(&file, "user.note", b"n", rustix::fs::XattrFlags::empty())
        .expect("taken");
    let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rustix::fs::lsetxattr(
        &file,
        "security.capability",
        capability,
        rustix::fs::XattrFlags::empty(),
    )
    .expect("taken");
    // A tree in use may have the kernel's file systems mounted.
    let mounted = Mounted::new(&["-t", "proc", "proc"], &area.path("tree/proc"));
    let id = area.import("dir:tree").expect("imports");
    drop(mounted);
    let tree = area.tree(id);
    for name in [
        "usr/bin/tool",
        "home/user/file",
        "home/user",
        "home",
        "usr",
        "bin",
        "dev/null",
        "dev/pipe",
        ".",
    ] {
        let describe = |path| {
            let metadata = fs_err::symlink_metadata(path).expect("there");
            let size = if metadata.is_dir() {
                0
            } else {
                metadata.size()
            };
            let rdev = metadata.rdev();
            (
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                size,
                rdev,
            )
        };
        assert_eq!(
            describe(tree.path(name)),
            describe(area.path("tree").join(name)),
            "{name}"
        );
    }
    let inode = |name| fs_err::metadata(tree.path(name)).expect("there").ino();
    assert_eq!(inode("usr/bin/tool"), inode("usr/bin/other"));
    assert_eq!(tree.names("proc"), [] as [&str; 0]);
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(
        tree.path("home/user/file"),
        "security.capability",
        &mut value[..],
    )
    .expect("there");
    assert_eq!(&value[..length], capability);
}

#[test]
fn all_of_a_directory_but_its_times_is_its_identity() {
    let Some(area) = Area::new() else { return };
    let id = || area.resolve("dir:tree").expect("resolves").id;
    fs_err::create_dir_all(area.path("tree/d")).expect("made");
    fs_err::write(area.path("tree/d/a"), "content").expect("written");
    let mut seen = vec![id()];
    fs_err::write(area.path("tree/d/a"), "content").expect("written");
    assert_eq!(id(), seen[0], "only times have changed");
    for change in [
        "echo x > d/a",
        "chmod 600 d/a",
        "chown 1:0 d/a",
        "chown 1:2 d/a",
        "mv d/a d/b",
        "ln d/b d/c",
        "ln -s x d/l",
        "ln -sf y d/l",
        "mkfifo d/p",
        "mkdir d/e",
        "mv d/p d/e/p",
        "chmod 711 d/e",
        "chmod 700 .",
        "mknod n c 1 3",
        "rm n; mknod n c 1 5",
        "rm n; mknod n b 1 5",
    ] {
        let status = Command::new("bash")
            .arg("-c")
            .arg(change)
            .current_dir(area.path("tree"))
            .status()
            .expect("bash runs");
        assert!(status.success(), "{change}");
        let id = id();
        assert!(!seen.contains(&id), "{change}");
        seen.push(id);
    }
}

#[test]
fn a_directory_that_changes_after_it_was_resolved_is_refused() {
    let Some(area) = Area::new() else { return };
    fs_err::create_dir(area.path("tree")).expect("made");
    fs_err::write(area.path("tree/a"), "1").expect("written");
    let resolved = area.resolve("dir:tree").expect("resolves");
    fs_err::write(area.path("tree/a"), "2").expect("written");
    let error = import(&resolved, &area.store, &mut |_| {}, &|| false).expect_err("changed");
    assert!(
        error
            .to_string()
            .ends_with("it was changed while it was read"),
        "{error}"
    );
    area.assert_empty();
    symlink("nowhere", area.path("link")).expect("made");
    for (reference, expected) in [
        ("dir:missing", "there is no such directory"),
        ("dir:link", "there is no such directory"),
        (
            "dir:tree/a",
            "it is no directory (use tar:FILE for an archive)",
        ),
    ] {
        let error = area.resolve(reference).expect_err(reference);
        assert!(error.to_string().ends_with(expected), "{error}");
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}

#[test]
fn a_registry_needs_a_client() {
    let Some(area) = Area::new() else { return };
    let error = area.resolve("registry.example/x:1").expect_err("no client");
    assert!(
        error
            .to_string()
            .contains("registry.example/x:1 is not here"),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Usage);
}
