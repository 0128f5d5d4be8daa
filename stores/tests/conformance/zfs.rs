// SPDX-License-Identifier: Apache-2.0
//! Datasets to test on, and what only a store of datasets can get wrong.

use crate::subject::{ZFS, id};
use crate::trees::{Tree, commit, tree};
use obuild_fixtures::{root, zfs_pool};
use obuild_stores::{Error, Options, StoreUrl, open};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A dataset that no other test uses. It is destroyed when dropped.
///
/// Tests of this program have theirs one after the other: many clients at once are more than zfs-fuse bears.
pub(crate) struct TestDataset(
    String,
    #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl TestDataset {
    /// Chooses a name in the pool of `OBUILD_TEST_ZFS`; `None` after a loud skip.
    pub(crate) fn choose() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static TURN: Mutex<()> = Mutex::new(());
        let pool = zfs_pool()?;
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        Some(Self(format!("{pool}/stores-{process}-{number}"), turn))
    }

    pub(crate) fn url(&self) -> StoreUrl {
        format!("zfs:{}", self.0).parse().unwrap()
    }

    /// Returns what an empty, closed store at `path` does not have: datasets, snapshots, mounts.
    pub(crate) fn leftovers(&self, path: &Path) -> Vec<String> {
        let mut found: Vec<String> = mounts(path)
            .into_iter()
            .map(|mount| format!("mount {mount}"))
            .collect();
        let all = zfs(&["list", "-H", "-r", "-t", "all", "-o", "name", &self.0]).unwrap();
        let usual = ["", "/trees", "/cache-trees"].map(|usual| format!("{}{usual}", self.0));
        found.extend(
            all.lines()
                .filter(|name| !usual.iter().any(|usual| usual == name))
                .map(str::to_owned),
        );
        found
    }
}

impl Drop for TestDataset {
    fn drop(&mut self) {
        let end = Instant::now() + Duration::from_secs(20);
        while zfs(&["list", "-H", &self.0]).is_ok() && Instant::now() < end {
            if zfs(&["destroy", "-R", "-f", &self.0]).is_err() {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Runs `zfs` as a person would, but not at the same time as a store mounts something (see `takes_turns` in the
/// store's `tool`).
fn zfs(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("flock");
    command.args(["/usr/sbin/zfs", "zfs"]).args(arguments);
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Returns what is mounted below a directory.
fn mounts(below: &Path) -> Vec<String> {
    let table = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let below = format!("{}/", below.display());
    points
        .filter(|point| point.starts_with(&below))
        .map(str::to_owned)
        .collect()
}

fn reason(url: &str) -> String {
    match open(&url.parse().unwrap(), &Options::default()).err() {
        Some(Error::Unsuitable { reason, .. }) => reason,
        Some(other) => panic!("{other}"),
        None => panic!("{url} was opened"),
    }
}

#[test]
fn few_trees_stay_mounted() {
    let Some(fixture) = ZFS.fixture() else { return };
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| tree.write("base", ""));
    for number in 1..=40 {
        commit(store, id(number), Some(id(number - 1)), |_| {});
    }
    assert_eq!(mounts(&fixture.path()), [""; 0], "a commit unmounts");
    let open: Vec<Tree> = (0..=30).map(|number| tree(store, id(number))).collect();
    for tree in &open {
        assert_eq!(
            tree.names("."),
            ["base"],
            "a tree that is open stays mounted"
        );
    }
    drop(open);
    for number in 0..=40 {
        assert_eq!(tree(store, id(number)).names("."), ["base"]);
    }
    let mounted = mounts(&fixture.path()).len();
    assert!((1..=17).contains(&mounted), "{mounted}");
    fixture.finish();
}

#[test]
fn a_committed_tree_is_mounted_read_only_or_not_written() {
    let Some(fixture) = ZFS.fixture() else { return };
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| tree.write("file", "old"));
    let written = tree(store, id(1)).try_write("file", b"new");
    // Whoever gets round the mount's flag (zfs-fuse ignores it) does not change what children see.
    commit(store, id(2), Some(id(1)), |tree| {
        assert_eq!(tree.read("file").unwrap(), "old");
    });
    assert!(written.is_err() || fixture.is_zfs_fuse());
    fixture.finish();
}

#[test]
fn a_tree_that_is_read_is_deleted_later() {
    let Some(fixture) = ZFS.fixture() else { return };
    let store = &*fixture.store;
    commit(store, id(1), None, |tree| tree.write("file", "content"));
    let reading = tree(store, id(1));
    store.remove(id(1)).unwrap();
    assert!(store.get(id(1)).unwrap().is_none());
    assert_eq!(reading.read("file").unwrap(), "content");
    drop(reading);
    // The sweep that `finish` asks for does it.
    fixture.finish();
}

#[test]
fn a_store_that_is_not_mounted_is_mounted() {
    let Some(dataset) = root().then(TestDataset::choose).flatten() else {
        return;
    };
    let store = open(&dataset.url(), &Options::default()).unwrap();
    commit(&*store, id(1), None, |tree| tree.write("file", "content"));
    let path = store.state_dir().parent().unwrap().to_owned();
    drop(store);
    // As after a boot. The question before keeps zfs-fuse from hanging, as in the store.
    rustix::fs::statfs(&path).unwrap();
    zfs(&["unmount", &dataset.0]).unwrap();
    assert!(!path.join("obuild-store").exists());
    let store = open(&dataset.url(), &Options::default()).unwrap();
    assert_eq!(tree(&*store, id(1)).read("file").unwrap(), "content");
}

#[test]
fn datasets_that_cannot_be_stores_are_refused() {
    let Some(pool) = root().then(zfs_pool).flatten() else {
        return;
    };
    let said = reason("zfs:obuild-nowhere/x");
    assert!(
        said.contains("no pool obuild-nowhere")
            && said.contains(&pool)
            && said.contains("zpool import"),
        "{said}"
    );
    let dataset = TestDataset::choose().unwrap();
    let name = &dataset.0;
    zfs(&["create", name]).unwrap();
    zfs(&["create", &format!("{name}/thesis")]).unwrap();
    let said = reason(&format!("zfs:{name}"));
    assert!(
        said.contains("not empty") && said.contains("thesis"),
        "{said}"
    );
    zfs(&["set", "mountpoint=none", &format!("{name}/thesis")]).unwrap();
    let said = reason(&format!("zfs:{name}"));
    assert!(
        said.contains("not empty") && said.contains("thesis"),
        "{said}"
    );
    let said = reason(&format!("zfs:{name}/thesis"));
    assert!(said.contains("zfs set mountpoint="), "{said}");
    // What is in the way was left alone.
    let all = zfs(&["list", "-H", "-r", "-o", "name", name]).unwrap();
    assert_eq!(
        all.lines().collect::<Vec<_>>(),
        [name.clone(), format!("{name}/thesis")]
    );
}
