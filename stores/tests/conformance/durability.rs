// SPDX-License-Identifier: Apache-2.0
//! What a crash of the machine leaves.

use crate::subject::{Fixture, id};
use crate::trees::{Tree, commit, tree};

crate::suite!(persistent:
    snapshots_are_there_when_the_store_is_opened_again
    after_a_boot_only_what_was_synced_is_left
    any_process_may_sync_for_all
    a_draft_under_way_is_not_made_durable_by_a_sync
    a_cache_that_was_not_synced_is_dropped
    what_is_provisional_is_told
    a_snapshot_that_lost_its_files_is_made_again
    a_snapshot_that_lost_its_description_is_made_again
    the_rest_of_a_snapshot_is_swept
);

fn snapshots_are_there_when_the_store_is_opened_again(fixture: &Fixture) {
    commit(&*fixture.store, id(1), None, |tree| {
        tree.write("file", "content");
    });
    let again = fixture.reopen();
    assert_eq!(tree(&*again, id(1)).read("file").unwrap(), "content");
    // Both at once.
    commit(&*again, id(2), Some(id(1)), |_| {});
    assert_eq!(
        fixture.store.get(id(2)).unwrap().unwrap().parent,
        Some(id(1))
    );
    drop(again);
    // Within one boot, what was not synced stays.
    assert_eq!(fixture.reopen().list().unwrap().len(), 2);
}

fn after_a_boot_only_what_was_synced_is_left(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    commit(store, id(2), Some(id(1)), |_| {});
    store.sync().unwrap();
    commit(store, id(3), Some(id(2)), |_| {});
    commit(store, id(4), Some(id(3)), |_| {});
    commit(store, id(5), None, |_| {});
    let rebooted = fixture.reopen_after_boot("second boot");
    let mut left: Vec<_> = rebooted
        .list()
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    left.sort();
    assert_eq!(left, [id(1), id(2)]);
    // They can be made again, and stay when they are synced.
    commit(&*rebooted, id(3), Some(id(2)), |tree| {
        tree.write("again", "");
    });
    rebooted.sync().unwrap();
    drop(rebooted);
    let rebooted = fixture.reopen_after_boot("third boot");
    assert_eq!(tree(&*rebooted, id(3)).names("."), ["again"]);
    rebooted.remove(id(3)).unwrap();
    // No mark of a child that is gone holds the parent.
    rebooted.remove(id(2)).unwrap();
}

fn any_process_may_sync_for_all(fixture: &Fixture) {
    let other = fixture.reopen();
    commit(&*other, id(1), None, |_| {});
    drop(other);
    fixture.store.sync().unwrap();
    assert!(
        fixture
            .reopen_after_boot("second boot")
            .get(id(1))
            .unwrap()
            .is_some()
    );
}

fn a_draft_under_way_is_not_made_durable_by_a_sync(fixture: &Fixture) {
    let store = &*fixture.store;
    let draft = store.prepare(id(1), None).unwrap();
    Tree::open(draft.rootfs()).write("file", "");
    store.sync().unwrap();
    store.commit(draft).unwrap();
    assert!(
        fixture
            .reopen_after_boot("second boot")
            .get(id(1))
            .unwrap()
            .is_none()
    );
}

fn a_cache_that_was_not_synced_is_dropped(fixture: &Fixture) {
    let store = &*fixture.store;
    let add = |name: &str| {
        let lease = store.lease_cache(name.as_bytes(), (0, 0)).unwrap();
        Tree::open(&lease.rootfs).write("file", "");
        store.release_cache(lease).unwrap();
    };
    add("safe");
    add("torn");
    store.sync().unwrap();
    add("torn");
    let rebooted = fixture.reopen_after_boot("second boot");
    let caches = rebooted.caches().unwrap();
    assert_eq!(
        caches.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(),
        [b"safe"]
    );
}

fn what_is_provisional_is_told(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    store.sync().unwrap();
    commit(store, id(2), Some(id(1)), |_| {});
    assert_eq!(store.provisional().unwrap(), [id(2)]);
    store.sync().unwrap();
    assert_eq!(store.provisional().unwrap(), []);
}

fn a_snapshot_that_lost_its_files_is_made_again(fixture: &Fixture) {
    let store = &*fixture.store;
    let make = |name: &str| {
        commit(store, id(1), None, |tree| tree.write(name, ""));
    };
    make("old");
    commit(store, id(2), Some(id(1)), |_| {});
    let files = fixture.path().join(format!("snapshots/{}/fs", id(1)));
    // On zfs it is a link, whose dataset stays behind.
    if files.is_symlink() {
        fs_err::remove_file(files).unwrap();
    } else {
        fs_err::remove_dir_all(files).unwrap();
    }
    assert!(store.get(id(1)).unwrap().is_none());
    assert!(matches!(
        store.prepare(id(3), Some(id(1))),
        Err(obuild_stores::Error::NoSuchSnapshot(_))
    ));
    if store.get(id(2)).unwrap().is_some() {
        store.size(id(2)).unwrap();
    }
    make("new");
    assert_eq!(tree(store, id(1)).names("."), ["new"]);
    // What stood on the lost one has its own files or is gone; it never shows another's.
    if store.get(id(2)).unwrap().is_some() {
        assert_eq!(tree(store, id(2)).names("."), ["old"]);
        store.remove(id(2)).unwrap();
    }
    store.remove(id(1)).unwrap();
}

fn a_snapshot_that_lost_its_description_is_made_again(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| tree.write("base", ""));
    commit(store, id(2), Some(id(1)), |tree| tree.write("old", ""));
    let directory = fixture.path().join(format!("snapshots/{}", id(2)));
    fs_err::remove_file(directory.join("meta")).unwrap();
    assert!(store.get(id(2)).unwrap().is_none());
    commit(store, id(2), Some(id(1)), |tree| tree.write("new", ""));
    assert_eq!(tree(store, id(2)).names("."), ["base", "new"]);
}

fn the_rest_of_a_snapshot_is_swept(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(1), None, |_| {});
    let directory = fixture.path().join(format!("snapshots/{}", id(1)));
    fs_err::remove_file(directory.join("meta")).unwrap();
    store.sweep().unwrap();
    assert!(!directory.exists());
}
