// SPDX-License-Identifier: Apache-2.0
//! Caches: private while leased, and the first to finish wins. After OBuilder's `stress/stress.ml`.

use crate::subject::{Fixture, id};
use crate::trees::{Tree, commit};
use obuild_fixtures::{Privilege, may};
use obuild_stores::{CacheLease, Store};

crate::suite!(all:
    a_new_cache_is_empty_and_belongs_to_its_user
    a_cache_keeps_what_was_put_into_it
    leases_are_private_and_the_first_to_finish_wins
    a_deleted_cache_does_not_come_back
    a_dropped_lease_changes_nothing
    names_are_only_names
    many_releases_add_up
    a_lease_outlives_what_it_stands_on
);

fn names(lease: &CacheLease) -> Vec<String> {
    Tree::open(&lease.rootfs).names(".")
}

/// Adds a file to a cache and gives it back.
fn add(store: &dyn Store, cache: &str, file: &str) {
    let lease = store.lease_cache(cache.as_bytes(), (0, 0)).unwrap();
    Tree::open(&lease.rootfs).write(file, file);
    store.release_cache(lease).unwrap();
}

fn content(store: &dyn Store, cache: &str) -> Vec<String> {
    names(&store.lease_cache(cache.as_bytes(), (0, 0)).unwrap())
}

fn a_new_cache_is_empty_and_belongs_to_its_user(fixture: &Fixture) {
    if !may(Privilege::Ids) {
        return;
    }
    let store = &*fixture.store;
    let lease = store.lease_cache(b"new", (1000, 2000)).unwrap();
    let described = Tree::open(&lease.rootfs).describe();
    assert_eq!(described.len(), 1);
    assert_eq!(described["/"], "Directory 755 1000:2000");
    store.release_cache(lease).unwrap();
    // The next user gets the top directory, and only that.
    add(store, "new", "root's");
    let lease = store.lease_cache(b"new", (7, 8)).unwrap();
    let described = Tree::open(&lease.rootfs).describe();
    assert_eq!(described["/"], "Directory 755 7:8");
    assert_eq!(described["/root's/"], "RegularFile 644 0:0 \"root's\"");
}

fn a_cache_keeps_what_was_put_into_it(fixture: &Fixture) {
    let store = &*fixture.store;
    add(store, "a", "one");
    add(store, "b", "two");
    add(store, "a", "three");
    let lease = store.lease_cache(b"a", (0, 0)).unwrap();
    let tree = Tree::open(&lease.rootfs);
    assert_eq!(tree.names("."), ["one", "three"]);
    tree.delete("one");
    tree.append("three", "!");
    drop(tree);
    store.release_cache(lease).unwrap();
    let lease = store.lease_cache(b"a", (0, 0)).unwrap();
    let tree = Tree::open(&lease.rootfs);
    assert_eq!(tree.names("."), ["three"]);
    assert_eq!(tree.read("three").unwrap(), "three!");
    assert_eq!(content(store, "b"), ["two"]);
    let mut caches: Vec<_> = store
        .caches()
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    caches.sort();
    assert_eq!(caches, [b"a", b"b"]);
}

fn leases_are_private_and_the_first_to_finish_wins(fixture: &Fixture) {
    let store = &*fixture.store;
    add(store, "c", "old");
    let first = store.lease_cache(b"c", (0, 0)).unwrap();
    let second = store.lease_cache(b"c", (0, 0)).unwrap();
    let third = store.lease_cache(b"c", (0, 0)).unwrap();
    Tree::open(&first.rootfs).write("first", "");
    Tree::open(&second.rootfs).write("second", "");
    assert_eq!(names(&first), ["first", "old"]);
    assert_eq!(names(&second), ["old", "second"]);
    store.release_cache(second).unwrap();
    assert_eq!(names(&first), ["first", "old"]);
    assert_eq!(content(store, "c"), ["old", "second"]);
    let fourth = store.lease_cache(b"c", (0, 0)).unwrap();
    Tree::open(&fourth.rootfs).write("fourth", "");
    store.release_cache(first).unwrap();
    assert_eq!(content(store, "c"), ["old", "second"]);
    // The losers do not count as changes.
    store.release_cache(fourth).unwrap();
    assert_eq!(content(store, "c"), ["fourth", "old", "second"]);
    store.release_cache(third).unwrap();
    assert_eq!(content(store, "c"), ["fourth", "old", "second"]);
}

fn a_deleted_cache_does_not_come_back(fixture: &Fixture) {
    let store = &*fixture.store;
    add(store, "d", "old");
    let lease = store.lease_cache(b"d", (0, 0)).unwrap();
    store.delete_cache(b"d").unwrap();
    assert!(store.caches().unwrap().is_empty());
    assert_eq!(names(&lease), ["old"], "a lease stays usable");
    add(store, "d", "new");
    store.release_cache(lease).unwrap();
    assert_eq!(content(store, "d"), ["new"]);
    let lease = store.lease_cache(b"d", (0, 0)).unwrap();
    store.delete_cache(b"d").unwrap();
    store.release_cache(lease).unwrap();
    assert!(store.caches().unwrap().is_empty());
    store.delete_cache(b"d").unwrap();
    store.delete_cache(b"never there").unwrap();
}

fn a_dropped_lease_changes_nothing(fixture: &Fixture) {
    let store = &*fixture.store;
    add(store, "e", "old");
    let lease = store.lease_cache(b"e", (0, 0)).unwrap();
    Tree::open(&lease.rootfs).write("new", "");
    drop(lease);
    assert_eq!(content(store, "e"), ["old"]);
}

fn names_are_only_names(fixture: &Fixture) {
    let store = &*fixture.store;
    let long = "long/".repeat(200);
    let names = [
        "../../../escaped",
        "..",
        ".",
        "",
        "a/b",
        "a%2fb",
        "/etc",
        "\n\0",
        long.as_str(),
    ];
    for name in names {
        add(store, name, "x");
    }
    let mut found: Vec<_> = store
        .caches()
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    found.sort();
    let mut expected: Vec<_> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    expected.sort();
    assert_eq!(found, expected);
    let around = fs_err::read_dir(fixture.scratch()).unwrap();
    let around: Vec<_> = around.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!around.iter().any(|name| name == "escaped"), "{around:?}");
}

fn many_releases_add_up(fixture: &Fixture) {
    let store = &*fixture.store;
    let mut expected = Vec::new();
    for round in 0..60 {
        add(store, "f", &format!("{round:02}"));
        expected.push(format!("{round:02}"));
        if round % 7 == 6 {
            let lease = store.lease_cache(b"f", (0, 0)).unwrap();
            let gone = expected.remove(round / 2);
            Tree::open(&lease.rootfs).delete(&gone);
            store.release_cache(lease).unwrap();
        }
        assert_eq!(content(store, "f"), expected);
    }
    let (_, size) = store.caches().unwrap().remove(0);
    assert!(size < 10 << 20, "{size}");
}

fn a_lease_outlives_what_it_stands_on(fixture: &Fixture) {
    let store = &*fixture.store;
    add(store, "g", "old");
    let lease = store.lease_cache(b"g", (0, 0)).unwrap();
    for round in 0..40 {
        add(store, "g", &format!("{round}"));
    }
    // Opened only now: the layers must still be there.
    assert_eq!(names(&lease), ["old"]);
    store.release_cache(lease).unwrap();
    assert_eq!(content(store, "g").len(), 41);
    // A cache and a snapshot of like names do not meet.
    commit(store, id(1), None, |_| {});
}
