// SPDX-License-Identifier: Apache-2.0
//! Several processes on one store, and processes that die.
//!
//! A test starts this program again with the name of [`child`] as its only test and a role in the environment.

use crate::subject::{Fixture, id};
use crate::trees::{Tree, commit, tree};
use obuild_fixtures::{Privilege, copy_program, may};
use obuild_stores::{Error, Store, open};
use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

crate::suite!(persistent:
    a_living_process_keeps_its_drafts
    what_a_killed_process_left_is_swept
    processes_share_a_store
    killed_at_any_moment_a_store_is_whole
    without_root_a_store_is_refused
);

const ROLE: &str = "OBUILD_TEST_ROLE";
const URL: &str = "OBUILD_TEST_URL";
const NUMBER: &str = "OBUILD_TEST_NUMBER";

/// Starts a process that plays `role`. It is killed when dropped.
struct Actor(Child);

impl Actor {
    fn start(fixture: &Fixture, role: &str, number: u32) -> Self {
        Self::command(
            &std::env::current_exe().unwrap(),
            &fixture.url().to_string(),
            role,
            number,
        )
    }

    fn command(program: &Path, url: &str, role: &str, number: u32) -> Self {
        Self::spawn(&mut Command::new(program), url, role, number)
    }

    fn spawn(command: &mut Command, url: &str, role: &str, number: u32) -> Self {
        let child = command
            .args(["--exact", "processes::child", "--ignored", "--nocapture"])
            .env(ROLE, role)
            .env(URL, url)
            .env(NUMBER, number.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits until it says that it is ready.
    fn wait_until_ready(&mut self) {
        let output = self.0.stdout.take().unwrap();
        let mut lines = BufReader::new(output).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("ready")),
            "the actor died"
        );
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: the other process of the tests here.
#[test]
#[ignore = "played by processes that other tests start"]
fn child() {
    let (Ok(role), Ok(url)) = (std::env::var(ROLE), std::env::var(URL)) else {
        return;
    };
    let number: u32 = std::env::var(NUMBER).unwrap().parse().unwrap();
    let opened = open(&url.parse().unwrap(), &crate::subject::options());
    if role == "be refused" {
        println!("refused: {}", opened.err().unwrap());
        return;
    }
    let store = opened.unwrap();
    match role.as_str() {
        "hold" => {
            let draft = store.prepare(id(number), Some(id(0))).unwrap();
            Tree::open(draft.rootfs()).write("half", "");
            let lease = store.lease_cache(b"held", (0, 0)).unwrap();
            Tree::open(&lease.rootfs).write("half", "");
            println!("ready");
            std::thread::sleep(Duration::from_mins(5));
        }
        "chain" => chain(&*store, number, 15),
        "chain until killed" => {
            println!("ready");
            chain(&*store, number, u32::MAX);
        }
        other => panic!("no role {other}"),
    }
}

/// Commits one step after the other, each with a file that names it, and adds to a cache.
fn chain(store: &dyn Store, number: u32, steps: u32) {
    let mut parent = id(0);
    for step in 1..=steps {
        let next = id(number + step);
        commit(store, next, Some(parent), |tree| {
            tree.write("a", &next.to_string());
            tree.write("b", &next.to_string());
        });
        let lease = store.lease_cache(b"shared", (0, 0)).unwrap();
        let cache = Tree::open(&lease.rootfs);
        let count: u32 = cache
            .read("count")
            .map_or(0, |count| count.parse().unwrap());
        cache.write("count", &(count + 1).to_string());
        cache.write(&format!("file-{count}"), "");
        drop(cache);
        store.release_cache(lease).unwrap();
        parent = next;
    }
}

/// Checks that every snapshot is whole and that the cache is what some chain of winners made.
fn check(store: &dyn Store) {
    let all = store.list().unwrap();
    for (id, parent) in &all {
        if let Some(parent) = parent {
            assert!(
                all.iter().any(|(id, _)| id == parent),
                "the parent of {id} is there"
            );
            let tree = tree(store, *id);
            assert_eq!(tree.read("a"), Some(id.to_string()));
            assert_eq!(tree.read("b"), Some(id.to_string()));
        }
    }
    let lease = store.lease_cache(b"shared", (0, 0)).unwrap();
    let cache = Tree::open(&lease.rootfs);
    let count: usize = cache
        .read("count")
        .map_or(0, |count| count.parse().unwrap());
    let files = cache
        .names(".")
        .into_iter()
        .filter(|name| name.starts_with("file-"))
        .count();
    assert_eq!(files, count);
}

fn a_living_process_keeps_its_drafts(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| tree.write("base", ""));
    let mut actor = Actor::start(fixture, "hold", 7);
    actor.wait_until_ready();
    store.sweep().unwrap();
    drop(fixture.reopen());
    assert!(matches!(
        store.remove(id(0)),
        Err(Error::HasChildren { .. })
    ));
    let drafts = fs_err::read_dir(fixture.path().join("drafts")).unwrap();
    let slots: usize = drafts
        .map(|owner| fs_err::read_dir(owner.unwrap().path()).unwrap().count())
        .sum();
    assert_eq!(slots, 2, "its draft and its lease are there");
    actor.kill();
    // Without a sweep: a dead process's draft does not hold its parent.
    store.remove(id(0)).unwrap();
}

fn what_a_killed_process_left_is_swept(fixture: &Fixture) {
    let store = &*fixture.store;
    commit(store, id(0), None, |tree| tree.write("base", ""));
    let ours = store.prepare(id(1), Some(id(0))).unwrap();
    let mut actor = Actor::start(fixture, "hold", 7);
    actor.wait_until_ready();
    actor.kill();
    // Opening is enough.
    drop(fixture.reopen());
    let drafts = fs_err::read_dir(fixture.path().join("drafts")).unwrap();
    let drafts: Vec<_> = drafts.map(|owner| owner.unwrap().path()).collect();
    assert_eq!(drafts.len(), 1, "only our own: {drafts:?}");
    assert_eq!(fs_err::read_dir(&drafts[0]).unwrap().count(), 1);
    assert_eq!(
        fs_err::read_dir(fixture.path().join("trash"))
            .unwrap()
            .count(),
        0
    );
    assert!(store.get(id(7)).unwrap().is_none());
    Tree::open(ours.rootfs()).write("still usable", "");
    store.commit(ours).unwrap();
    store.remove(id(1)).unwrap();
    store.remove(id(0)).unwrap();
    let held = store.lease_cache(b"held", (0, 0)).unwrap();
    assert_eq!(Tree::open(&held.rootfs).names("."), [""; 0]);
}

fn processes_share_a_store(fixture: &Fixture) {
    commit(&*fixture.store, id(0), None, |tree| tree.write("base", ""));
    let actors: Vec<_> = (1..=4)
        .map(|number| Actor::start(fixture, "chain", number * 1000))
        .collect();
    for mut actor in actors {
        // Read to the end, so that it is not held up.
        BufReader::new(actor.0.stdout.take().unwrap())
            .lines()
            .for_each(drop);
        assert!(actor.0.wait().unwrap().success());
    }
    assert_eq!(fixture.store.list().unwrap().len(), 1 + 4 * 15);
    check(&*fixture.store);
}

fn killed_at_any_moment_a_store_is_whole(fixture: &Fixture) {
    commit(&*fixture.store, id(0), None, |tree| tree.write("base", ""));
    for round in 1..=6 {
        let mut actor = Actor::start(fixture, "chain until killed", round * 100_000);
        actor.wait_until_ready();
        // Until it has got somewhere; where it is killed is up to the scheduler.
        let before = fixture.store.list().unwrap().len();
        while fixture.store.list().unwrap().len() < before + round as usize {
            std::thread::yield_now();
        }
        actor.kill();
        let store = fixture.reopen();
        check(&*store);
        commit(&*store, id(round), Some(id(0)), |tree| {
            tree.write("a", &id(round).to_string());
            tree.write("b", &id(round).to_string());
        });
    }
    check(&*fixture.store);
}

fn without_root_a_store_is_refused(fixture: &Fixture) {
    if !may(Privilege::HostUsers) {
        return;
    }
    // The program must be where anyone can run it.
    let all = Permissions::from_mode(0o755);
    fs_err::set_permissions(fixture.scratch(), all).unwrap();
    let program = fixture.scratch().join("program");
    copy_program(&std::env::current_exe().unwrap(), &program);
    let own = fixture.scratch().join("own");
    fs_err::create_dir(&own).unwrap();
    fs_err::set_permissions(&own, Permissions::from_mode(0o777)).unwrap();
    for url in [fixture.url(), fixture.another(own)] {
        let mut command = Command::new(&program);
        command.uid(65534).gid(65534);
        let mut actor = Actor::spawn(&mut command, &url.to_string(), "be refused", 0);
        let mut said = String::new();
        actor
            .0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(
            said.contains("refused: ") && said.contains("run it as root"),
            "{said}"
        );
    }
}
