// SPDX-License-Identifier: Apache-2.0
//! What a store tells of itself, and how it mends its books. For the kinds that keep books of their own.

use crate::subject::{Fixture, id};
use crate::trees::{commit, tree};
use obuild_stores::{FindingKind, Store};

crate::suite!(persistent:
    a_sound_store_has_no_findings
    a_draft_is_told_with_its_process
    books_are_mended_and_damage_is_not
    a_damaged_snapshot_does_not_hide_the_others
    a_cache_that_lost_its_content_is_emptied
);

/// Returns what an audit has found, in order.
fn audit(store: &dyn Store, mend: bool) -> Vec<(FindingKind, String)> {
    let upkeep = store.upkeep().expect("it keeps books");
    let mut found: Vec<_> = upkeep
        .audit(mend)
        .unwrap()
        .into_iter()
        .map(|finding| (finding.kind, finding.message))
        .collect();
    found.sort_by(|left, right| left.1.cmp(&right.1));
    found
}

fn a_sound_store_has_no_findings(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    commit(store, id(2), Some(id(1)), |tree| tree.write("file", ""));
    let draft = store.prepare(id(3), Some(id(2))).unwrap();
    let lease = store.lease_cache(b"cache", (0, 0)).unwrap();
    // Another that has the store open must not take what is being made for left behind.
    let other = fixture.reopen();
    for store in [store, &*other] {
        assert_eq!(audit(store, true), []);
    }
    store.commit(draft).unwrap();
    store.release_cache(lease).unwrap();
    assert_eq!(audit(&*other, true), []);
}

fn a_draft_is_told_with_its_process(fixture: &Fixture) {
    let draft = fixture.store.prepare(id(1), None).unwrap();
    let status = fixture.reopen().upkeep().unwrap().status().unwrap();
    let [told] = status.drafts.as_slice() else {
        panic!("{status:?}")
    };
    assert_eq!(told.id, Some(id(1)));
    assert_eq!(told.process, Some(std::process::id()));
    assert!(told.alive);
    drop(draft);
    let status = fixture.store.upkeep().unwrap().status().unwrap();
    assert_eq!(status.drafts.len(), 0);
}

fn books_are_mended_and_damage_is_not(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    commit(store, id(2), Some(id(1)), |tree| tree.write("file", "x"));
    commit(store, id(3), Some(id(2)), |tree| tree.write("more", "x"));
    let place = fixture.path().join("snapshots");
    let mark = place
        .join(id(1).to_string())
        .join(format!("child.{}", id(2)));
    fs_err::remove_file(&mark).unwrap();
    assert_eq!(audit(store, false).len(), 1);
    assert!(!mark.exists(), "nothing was changed");
    assert_eq!(audit(store, true).len(), 1);
    assert!(mark.exists());
    assert_eq!(audit(store, true), []);
    // A parent that is gone cannot be made up for.
    let aside = fixture.path().join("trash/aside");
    fs_err::rename(place.join(id(2).to_string()), aside).unwrap();
    for mend in [false, true] {
        let found = audit(store, mend);
        let damage = found
            .iter()
            .filter(|(kind, message)| *kind == FindingKind::Damage && message.contains("parent"));
        assert_eq!(damage.count(), 1, "{found:?}");
    }
    store.remove(id(3)).unwrap();
    assert_eq!(audit(store, true), []);
}

fn a_damaged_snapshot_does_not_hide_the_others(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| tree.write("file", "x"));
    commit(store, id(2), None, |_| {});
    let meta = fixture
        .path()
        .join("snapshots")
        .join(id(2).to_string())
        .join("meta");
    fs_err::write(meta, "nonsense\n").unwrap();
    let listed: Vec<_> = store
        .list()
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(listed, [id(1)]);
    let found = audit(store, true);
    assert!(
        matches!(found.as_slice(), [(FindingKind::Damage, message)] if message.contains("damaged")),
        "{found:?}"
    );
    store.remove(id(2)).unwrap();
    assert_eq!(audit(store, true), []);
    assert_eq!(tree(store, id(1)).read("file").unwrap(), "x");
}

fn a_cache_that_lost_its_content_is_emptied(fixture: &Fixture) {
    let store = &*fixture.store;
    let lease = store.lease_cache(b"cache", (0, 0)).unwrap();
    store.release_cache(lease).unwrap();
    let caches = fixture.path().join("caches");
    let cache = fs_err::read_dir(caches)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    for entry in fs_err::read_dir(&cache).unwrap() {
        let layer = entry.unwrap();
        if layer.file_type().unwrap().is_dir() {
            let aside = fixture.path().join("trash").join(layer.file_name());
            fs_err::rename(layer.path(), aside).unwrap();
        }
    }
    let found = audit(store, true);
    assert!(found[0].1.contains("\"cache\" has lost"), "{found:?}");
    assert_eq!(audit(store, true), []);
    let lease = store.lease_cache(b"cache", (0, 0)).unwrap();
    store.release_cache(lease).unwrap();
}
