// SPDX-License-Identifier: Apache-2.0
//! Real merges replayed: after each, the index is what one made from nothing would be. Without opam-repository's history
//! (`OBUILD_TEST_OPAM_DATA`) a generated one is replayed.

use flate2::read::GzDecoder;
use obuild_archive::index::{Fields, Index, Report};
use obuild_archive::repository::{Commit, Options, Repository};
use obuild_fixtures::opam::History;
use std::collections::BTreeSet;
use std::path::Path;
use tokio_util::sync::CancellationToken;

fn update(history: &History, commit: &str, state: &Path) -> (Index, Report) {
    let location = history.repository.to_str().expect("text");
    let mut repository = Repository::open(location, state, Options::default()).expect("opened");
    let commit: Commit = commit.parse().expect("a commit");
    let (fields, cancel) = (Fields::default(), CancellationToken::new());
    Index::update(state, &mut repository, &commit, &fields, None, &cancel).expect("updated")
}

/// Returns the whole of `index.tar.gz`.
fn file(index: &Index) -> Vec<u8> {
    let mut file = Vec::new();
    index.write(&mut file).expect("written");
    file
}

/// Returns the paths of what is in an index.
fn paths(index: &Index) -> BTreeSet<String> {
    let file = file(index);
    let mut archive = tar::Archive::new(GzDecoder::new(&file[..]));
    let entries = archive.entries().expect("a tar");
    let path = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let entry = entry.expect("an entry");
        String::from_utf8(entry.path_bytes().into_owned()).expect("text")
    };
    entries.map(path).collect()
}

#[test]
fn every_merge_gives_what_nothing_gives() {
    let directory = tempfile::tempdir().expect("a directory");
    let generated = || History::generated(directory.path(), 300, 60);
    let history = History::real(directory.path()).unwrap_or_else(generated);
    let state = directory.path().join("state");
    let last = history.commits.len() - 1;
    let mut raw_bytes = 0;
    for (turn, commit) in history.commits.iter().enumerate() {
        let (index, report) = update(&history, commit, &state);
        assert_eq!(report.from.is_some(), turn > 0, "merge {turn}");
        if turn > 0 {
            raw_bytes += report.raw_bytes;
        }
        // Each would take minutes; what may differ differs in the later ones too.
        if turn % 50 == 0 || turn == last {
            let fresh = directory.path().join(format!("fresh{turn}"));
            let (fresh, _) = update(&history, commit, &fresh);
            assert!(file(&index) == file(&fresh), "merge {turn}");
            let mut expected: BTreeSet<String> = history.paths(commit).into_iter().collect();
            expected.insert("repo".to_owned());
            assert_eq!(paths(&index), expected, "merge {turn}");
        }
    }
    // A merge touches what it touches.
    assert!(raw_bytes / (last as u64) < 1 << 20, "{raw_bytes}");

    // And back again in one step, by the reverse of all of them.
    let (back, report) = update(&history, &history.commits[0], &state);
    assert!(report.from.is_some());
    let (fresh, _) = update(
        &history,
        &history.commits[0],
        &directory.path().join("back"),
    );
    assert!(file(&back) == file(&fresh));
}
