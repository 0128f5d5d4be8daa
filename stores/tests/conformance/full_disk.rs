// SPDX-License-Identifier: Apache-2.0
//! A disk that fills up in the middle: nothing that was committed is lost, and room can be made.

use crate::subject::{id, url};
use crate::trees::{Tree, commit, tree};
use obuild_fixtures::{FileSystem, root, scratch};
use obuild_stores::{Error, Options, Store, open};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A small file system in a file.
struct SmallDisk {
    mount_point: PathBuf,
    _directory: TempDir,
}

impl SmallDisk {
    fn make(kind: &str, bytes: u64) -> Option<Self> {
        let directory = root().then(|| scratch(FileSystem::Default)).flatten()?;
        let image = directory.path().join("image");
        let mount_point = directory.path().join("mounted");
        fs_err::create_dir(&mount_point).unwrap();
        fs_err::File::create(&image)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            let output = Command::new(program).args(arguments).output();
            output.is_ok_and(|output| output.status.success())
        };
        let made = run(&format!("mkfs.{kind}"), &[Path::new("-q"), &image])
            && run(
                "mount",
                &[
                    Path::new("-o"),
                    Path::new("loop,commit=1"),
                    &image,
                    &mount_point,
                ],
            );
        if !made {
            obuild_fixtures::skip(&format!("needs mkfs.{kind} and loop devices"));
            return None;
        }
        Some(Self {
            mount_point,
            _directory: directory,
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mount_point).status();
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull)
}

/// Writes until nothing fits any more, down to single small files.
fn fill(tree: &Tree) {
    let mut number = 0;
    for size in [1 << 20, 1 << 14, 1, 0] {
        loop {
            number += 1;
            match tree.try_write(&format!("{number}"), &vec![1; size]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Tries steps until one is refused, and returns the refusal.
fn step_until_refused(store: &dyn Store) -> Error {
    for step in 100.. {
        match store
            .prepare(id(step), Some(id(1)))
            .and_then(|draft| store.commit(draft))
        {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    unreachable!("a full disk takes no endless number of steps")
}

#[test]
fn a_full_disk_loses_nothing() {
    let Some(disk) = SmallDisk::make("ext4", 12 << 20) else {
        return;
    };
    let store = open(&url("overlay", &disk.mount_point), &Options::default()).unwrap();
    commit(&*store, id(1), None, |tree| tree.write("kept", "kept"));
    store.sync().unwrap();
    commit(&*store, id(2), Some(id(1)), fill);
    let refused = step_until_refused(&*store);
    assert!(is_full(&refused), "{refused:?}");
    assert_eq!(tree(&*store, id(1)).read("kept").unwrap(), "kept");
    // Room is made by removal, which needs none itself, in a fresh process neither.
    drop(store);
    let store = open(&url("overlay", &disk.mount_point), &Options::default()).unwrap();
    store.remove(id(2)).unwrap();
    commit(&*store, id(3), Some(id(1)), |tree| tree.write("new", "new"));
    assert_eq!(tree(&*store, id(3)).read("kept").unwrap(), "kept");
    store.sync().unwrap();
    drop(store);
    let store = open(&url("overlay", &disk.mount_point), &Options::default()).unwrap();
    assert!(store.get(id(3)).unwrap().is_some());
}

#[test]
fn a_full_btrfs_loses_nothing() {
    let Some(disk) = SmallDisk::make("btrfs", 128 << 20) else {
        return;
    };
    let store = open(&url("btrfs", &disk.mount_point), &Options::default()).unwrap();
    commit(&*store, id(1), None, |tree| tree.write("kept", "kept"));
    store.sync().unwrap();
    let draft = store.prepare(id(2), Some(id(1))).unwrap();
    fill(&Tree::open(draft.rootfs()));
    // btrfs keeps metadata apart, so that a step without data may still be taken.
    if let Err(error) = store.commit(draft) {
        assert!(is_full(&error), "{error:?}");
    }
    assert_eq!(tree(&*store, id(1)).read("kept").unwrap(), "kept");
    store.remove(id(2)).unwrap();
    drop(store);
    // btrfs frees the space of a subvolume later, in a thread that wakes once in a commit interval.
    let end = Instant::now() + Duration::from_secs(30);
    let store = loop {
        let opened = open(&url("btrfs", &disk.mount_point), &Options::default());
        let stepped = opened.and_then(|store| {
            let draft = store.prepare(id(3), Some(id(1)))?;
            store.commit(draft)?;
            Ok(store)
        });
        match stepped {
            Ok(store) => break store,
            Err(error) => assert!(is_full(&error) && Instant::now() < end, "{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(tree(&*store, id(3)).read("kept").unwrap(), "kept");
}
