// SPDX-License-Identifier: Apache-2.0
//! Directories and URLs that cannot be opened, and what is said of them.

use crate::subject::url;
use obuild_fixtures::{FileSystem, root, scratch};
use obuild_stores::{Error, Kind, Options, StoreUrl, best, open};
use std::path::Path;

fn refusal(url: &StoreUrl) -> Error {
    open(url, &Options::default()).err().expect("it is refused")
}

fn reason(error: Error) -> String {
    match error {
        Error::Unsuitable { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn a_directory_with_other_things_is_refused_and_left_alone() {
    let Some(directory) = root().then(|| scratch(FileSystem::Default)).flatten() else {
        return;
    };
    fs_err::write(directory.path().join("thesis.tex"), "").unwrap();
    let reason = reason(refusal(&url("overlay", directory.path())));
    assert!(
        reason.contains("thesis.tex") && reason.contains("empty directory"),
        "{reason}"
    );
    assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_file_is_refused() {
    let Some(directory) = root().then(|| scratch(FileSystem::Default)).flatten() else {
        return;
    };
    let file = directory.path().join("file");
    fs_err::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        assert!(reason(refusal(&url("overlay", &path))).contains("not a directory"));
    }
}

#[test]
fn the_top_of_a_fresh_file_system_will_do() {
    let Some(directory) = root().then(|| scratch(FileSystem::Default)).flatten() else {
        return;
    };
    fs_err::create_dir(directory.path().join("lost+found")).unwrap();
    open(&url("overlay", directory.path()), &Options::default()).unwrap();
}

#[test]
fn stores_of_another_kind_or_version_are_refused() {
    let Some(directory) = root().then(|| scratch(FileSystem::Default)).flatten() else {
        return;
    };
    let url = url("overlay", &directory.path().join("not/there/yet"));
    drop(open(&url, &Options::default()).unwrap());
    let format = url.path.join("obuild-store");
    let text = fs_err::read_to_string(&format).unwrap();
    assert!(text.starts_with("overlay 1\n"), "{text}");
    let other = StoreUrl {
        kind: Kind::Btrfs,
        ..url.clone()
    };
    let said = reason(refusal(&other));
    assert!(said.contains(&format!("use {url}")), "{said}");
    fs_err::write(&format, "overlay 2\n").unwrap();
    let newer = refusal(&url);
    assert!(
        matches!(
            newer,
            Error::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{newer}"
    );
    fs_err::write(&format, "").unwrap();
    assert!(reason(refusal(&url)).contains("damaged"));
}

#[test]
fn btrfs_elsewhere_is_refused() {
    let Some(directory) = root().then(|| scratch(FileSystem::Default)).flatten() else {
        return;
    };
    if best(directory.path()).kind == Kind::Btrfs {
        return obuild_fixtures::skip("needs a default file system that is not btrfs");
    }
    let error = refusal(&url("btrfs", directory.path()));
    assert_eq!(
        error
            .to_string()
            .split(": ")
            .next()
            .unwrap()
            .matches(" a btrfs store")
            .count(),
        1
    );
    let reason = reason(error);
    assert!(
        reason.contains("not on btrfs") && reason.contains("overlay:/"),
        "{reason}"
    );
    assert_eq!(
        fs_err::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing is left"
    );
}

#[test]
fn a_file_system_that_cannot_hold_layers_is_refused() {
    if !root() {
        return;
    }
    // proc takes no directories, and is never full.
    let error = refusal(&url("overlay", Path::new("/proc/obuild")));
    assert!(
        matches!(
            error,
            Error::Io {
                action: "create",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn the_best_kind_follows_the_file_system() {
    let kind = |file_system| {
        scratch(file_system).map(|directory| {
            let missing = directory.path().join("not/there/yet");
            let url = best(&missing);
            assert_eq!(url.path, missing);
            url.kind
        })
    };
    assert!(kind(FileSystem::Btrfs).is_none_or(|kind| kind == Kind::Btrfs));
    assert!(kind(FileSystem::Xfs).is_none_or(|kind| kind == Kind::Overlay));
}
