// SPDX-License-Identifier: Apache-2.0
//! Indexes made step by step are those made from nothing, and hold what the repository holds.

use super::{Fields, Index, Parts, Report};
use crate::repository::{Options, Repository};
use flate2::read::GzDecoder;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn fields() -> Fields {
    let mut fields = Fields::default();
    fields.set("archive-mirrors", &["cache".to_owned()]);
    fields
}

/// Updates the index in `state` to what is in the plain directory.
fn update(repository: &Path, state: &Path) -> (Index, Report) {
    let location = repository.to_str().expect("text");
    let mut repository =
        Repository::open(location, &state.join("repository"), Options::default()).expect("opened");
    let commit = repository.head().expect("a head");
    let cancel = CancellationToken::new();
    Index::update(state, &mut repository, &commit, &fields(), None, &cancel).expect("updated")
}

/// Returns the whole of `index.tar.gz`.
fn file(index: &Index) -> Vec<u8> {
    let mut file = Vec::new();
    index.write(&mut file).expect("written");
    assert_eq!(index.bytes(), file.len() as u64);
    file
}

/// Unpacks an index by another's code.
fn unpack(file: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut archive = ::tar::Archive::new(GzDecoder::new(file));
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("an entry");
        assert_eq!(entry.header().entry_type(), ::tar::EntryType::Regular);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("read");
        let path = String::from_utf8(entry.path_bytes().into_owned()).expect("text");
        assert!(files.insert(path, content).is_none(), "no file twice");
    }
    files
}

/// What an edit does with a package of a small world.
#[derive(Clone, Debug)]
enum Edit {
    Write {
        package: u8,
        version: u8,
        lines: u16,
    },
    Remove {
        package: u8,
        version: Option<u8>,
    },
}

fn edits() -> impl Strategy<Value = Vec<Vec<Edit>>> {
    let edit = prop_oneof![
        5 => (0..30_u8, 0..6_u8, 0..400_u16)
            .prop_map(|(package, version, lines)| Edit::Write { package, version, lines }),
        2 => (0..30_u8, proptest::option::of(0..6_u8))
            .prop_map(|(package, version)| Edit::Remove { package, version }),
    ];
    proptest::collection::vec(proptest::collection::vec(edit, 0..25), 1..7)
}

fn apply(root: &Path, edit: &Edit) {
    match edit {
        Edit::Write {
            package,
            version,
            lines,
        } => {
            let directory = root.join(format!("packages/p{package}/p{package}.{version}"));
            fs_err::create_dir_all(&directory).expect("made");
            let text: Vec<String> = (0..*lines)
                .map(|line| format!("depends: \"p{}\" # {line} {package}", line * 7 % 31))
                .collect();
            fs_err::write(directory.join("opam"), text.join("\n")).expect("written");
        }
        Edit::Remove { package, version } => {
            let mut path = root.join(format!("packages/p{package}"));
            if let Some(version) = version {
                path.push(format!("p{package}.{version}"));
            }
            let _ = fs_err::remove_dir_all(path);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn step_by_step_is_as_from_nothing(steps in edits()) {
        let directory = TempDir::new().expect("a directory");
        let root = directory.path().join("root");
        fs_err::create_dir_all(root.join("packages")).expect("made");
        fs_err::write(root.join("repo"), "opam-version: \"2.0\"").expect("written");
        let parts = directory.path().join("parts");
        for (turn, step) in steps.iter().enumerate() {
            for edit in step {
                apply(&root, edit);
            }
            let (index, report) = update(&root, &directory.path().join("kept"));
            prop_assert_eq!(report.from.is_some(), turn > 0);
            let (fresh, report) = update(&root, &directory.path().join(format!("fresh{turn}")));
            prop_assert!(report.from.is_none());
            prop_assert!(file(&index) == file(&fresh));
            prop_assert!(index.segments().eq(fresh.segments()));

            index.write_parts(&parts).expect("written");
            let parts = Parts::open(&parts).expect("read");
            let mut together = Vec::new();
            parts.write(&mut together).expect("written");
            prop_assert!(together == file(&index));
            prop_assert_eq!(parts.bytes(), together.len() as u64);

            let unpacked = unpack(&together);
            prop_assert_eq!(unpacked.get("repo").map(Vec::as_slice), Some(index.repo().as_bytes()));
            let mut count = 1;
            for package in 0..30 {
                for version in 0..6 {
                    let path = format!("packages/p{package}/p{package}.{version}/opam");
                    let there = fs_err::read(root.join(&path)).ok();
                    count += usize::from(there.is_some());
                    prop_assert_eq!(unpacked.get(&path), there.as_ref());
                }
            }
            prop_assert_eq!(unpacked.len(), count);
        }
    }
}

/// A small repository with enough in it for several segments.
fn repository(directory: &Path) -> std::path::PathBuf {
    let root = directory.join("root");
    fs_err::create_dir_all(root.join("packages")).expect("made");
    fs_err::write(root.join("version"), "0.9.0").expect("written");
    for package in 0..30 {
        for version in 0..5 {
            let lines = u16::from(version) * 40;
            apply(
                &root,
                &Edit::Write {
                    package,
                    version,
                    lines,
                },
            );
        }
    }
    root
}

#[test]
fn a_damaged_state_is_made_anew() {
    let directory = TempDir::new().expect("a directory");
    let root = repository(directory.path());
    let state = directory.path().join("state");
    let (good, _) = update(&root, &state);
    let change = |turn: u8| {
        apply(
            &root,
            &Edit::Write {
                package: 3,
                version: 1,
                lines: u16::from(turn),
            },
        );
        let (fresh, _) = update(&root, &directory.path().join(format!("fresh{turn}")));
        fresh
    };
    let find = |extension: &str| {
        let entries = fs_err::read_dir(&state).expect("listed");
        let mut paths = entries.map(|entry| entry.expect("listed").path());
        paths
            .find(|path| path.extension().is_some_and(|found| found == extension))
            .expect("a file")
    };
    let garble = |path: &Path, keep: usize| {
        let mut bytes = fs_err::read(path).expect("read");
        bytes.truncate(keep);
        for byte in bytes.iter_mut().skip(100) {
            *byte ^= 0x55;
        }
        fs_err::write(path, bytes).expect("written");
    };
    let mut turn = 0;
    let mut damage: Vec<Box<dyn Fn()>> = Vec::new();
    for keep in [usize::MAX, 3000, 0] {
        damage.push(Box::new(move || {
            garble(&find("raw"), keep);
        }));
        damage.push(Box::new(move || garble(&find("deflated"), keep)));
        let table = state.join("table");
        damage.push(Box::new(move || garble(&table, keep)));
    }
    damage.push(Box::new(|| {
        fs_err::remove_file(find("raw")).expect("removed");
    }));
    damage.push(Box::new(|| {
        fs_err::remove_file(find("deflated")).expect("removed");
    }));
    for damage in damage {
        damage();
        turn += 1;
        let fresh = change(turn);
        let (index, report) = update(&root, &state);
        assert!(report.from.is_none(), "turn {turn}");
        assert!(file(&index) == file(&fresh));
        assert!(file(&index) != file(&good));
        let (_, report) = update(&root, &state);
        assert!(report.from.is_some() && report.files == 0, "turn {turn}");
    }
}

#[test]
fn a_new_stamp_changes_one_segment() {
    let directory = TempDir::new().expect("a directory");
    let root = repository(directory.path());
    let (before, report) = update(&root, &directory.path().join("state"));
    assert!(report.segments > 5);
    fs_err::write(root.join("repo"), "browse: \"https://x\"").expect("written");
    let (after, report) = update(&root, &directory.path().join("state"));
    assert_eq!((report.files, report.compressed), (1, 0));
    let differing = before
        .segments()
        .zip(after.segments())
        .filter(|(before, after)| before != after);
    assert_eq!(differing.count(), 1);
}

#[test]
fn the_files_do_not_grow_for_ever() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("root");
    let state = directory.path().join("state");
    for turn in 0..60 {
        for version in 0..6 {
            let lines = 8000 + turn;
            apply(
                &root,
                &Edit::Write {
                    package: 1,
                    version,
                    lines,
                },
            );
        }
        let (_, report) = update(&root, &state);
        assert_eq!(report.from.is_some(), turn > 0);
    }
    let entries = fs_err::read_dir(&state).expect("listed");
    let sizes = entries.map(|entry| entry.expect("listed").metadata().expect("there").len());
    let sum: u64 = sizes.sum();
    let (index, _) = update(&root, &state);
    let raw: u64 = index.segments().map(|segment| segment.raw_bytes).sum();
    assert!(sum < 5 * raw + (4 << 20), "{sum} for {raw}");
    let (fresh, _) = update(&root, &directory.path().join("fresh"));
    assert!(file(&index) == file(&fresh));
}

#[test]
fn publishing_the_same_again_touches_nothing() {
    use std::os::unix::fs::MetadataExt;
    let directory = TempDir::new().expect("a directory");
    let root = repository(directory.path());
    let out = directory.path().join("out");
    let (index, _) = update(&root, &directory.path().join("state"));
    index.publish(&out).expect("published");
    let stamp = || {
        let metadata = fs_err::metadata(out.join("index.tar.gz")).expect("there");
        (metadata.ino(), metadata.ctime_nsec())
    };
    let before = stamp();
    index.publish(&out).expect("published");
    assert_eq!(stamp(), before);
    assert_eq!(
        fs_err::read_to_string(out.join("repo")).expect("read"),
        index.repo()
    );
    let unpacked = unpack(&fs_err::read(out.join("index.tar.gz")).expect("read"));
    assert_eq!(unpacked["version"], b"0.9.0");
    assert_eq!(unpacked.len(), 2 + 150);
}
