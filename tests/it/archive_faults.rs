// SPDX-License-Identifier: Apache-2.0
//! `obuild archive index`, `import`, `verify` and `gc` killed at any moment, an index on a full disk, and repositories that turn in circles.
//! What `sync`, `image` and `deploy` do then is tested with them.

use crate::archive_sync::{Mirror, Small, many, sum};
use crate::harness::Ran;
use fs_err::os::unix::fs::symlink;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs a command of `obuild archive` again and again and kills it, each time a little later, from its start to past its usual end; `check`
/// looks at what each left. Returns how often it was killed, and not done.
fn kill(
    mirror: &Mirror,
    arguments: &[&str],
    mut usual: Duration,
    mut check: impl FnMut(u32),
) -> usize {
    const ROUNDS: u32 = 15;
    let mut killed = 0;
    for round in 0..ROUNDS {
        let mut child = mirror.command(arguments).spawn().unwrap();
        std::thread::sleep(usual * round / ROUNDS);
        if child.try_wait().unwrap().is_none() {
            killed += 1;
        } else {
            // The machine was slower when the usual time was taken.
            usual = usual * 2 / 3;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        check(round);
    }
    killed
}

/// Runs a command to its end and returns how long that took.
fn timed(mirror: &Mirror, arguments: &[&str]) -> Duration {
    let began = Instant::now();
    let ran = mirror.run(arguments);
    assert_eq!(ran.status, 0, "{ran:#?}");
    began.elapsed()
}

/// Packages without archives, of some kilobytes each that are not alike.
fn described(mirror: &Mirror, packages: usize, turn: usize) {
    for package in 0..packages {
        let words = (0..200).map(|word| format!("{:x} ", word * (package + 7) * (turn + 3) * 7919));
        let words: String = words.collect();
        mirror.opam(&format!("p{package}"), &format!("synopsis: \"{words}\""));
    }
    mirror.commit();
}

/// Returns the paths of the files in an index, which must be whole.
fn listed(index: &Path) -> Vec<String> {
    let output = Command::new("tar").arg("tzf").arg(index).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn an_index_whose_making_is_killed_is_the_old_or_the_new_one() {
    let mirror = Mirror::new();
    described(&mirror, 300, 0);
    let index: &[&str] = &["index", "repo", "--out", "web"];
    let usual = timed(&mirror, index);
    let mut killed = 0;
    for from_nothing in [false, true] {
        for turn in 1..3 {
            described(&mirror, 40 * turn, turn);
            killed += kill(&mirror, index, usual, |round| {
                assert_eq!(listed(&mirror.path("web/index.tar.gz")).len(), 301);
                if from_nothing && round % 3 == 0 {
                    fs_err::remove_dir_all(mirror.path("web/.obuild")).unwrap();
                }
            });
            timed(&mirror, index);
            timed(&mirror, &["index", "repo", "--out", "fresh"]);
            for file in ["index.tar.gz", "repo"] {
                let read = |place: &str| fs_err::read(mirror.path(place).join(file)).unwrap();
                assert!(read("web") == read("fresh"), "{file}, turn {turn}");
            }
            fs_err::remove_dir_all(mirror.path("fresh")).unwrap();
        }
    }
    assert!(killed >= 8, "it was killed {killed} times only");
}

#[test]
fn an_index_on_a_full_disk_stays_and_comes_when_there_is_room() {
    let mirror = Mirror::new();
    described(&mirror, 20, 0);
    let Some(small) = Small::mount(&mirror.path("web"), "300k") else {
        return;
    };
    let index: &[&str] = &["index", "repo", "--out", "web"];
    timed(&mirror, index);
    described(&mirror, 300, 1);
    let ran = mirror.run(index);
    assert_eq!(ran.status, 3, "{ran:#?}");
    assert!(
        ran.stderr.contains("full") || ran.stderr.contains("No space"),
        "{ran:#?}"
    );
    assert_eq!(listed(&mirror.path("web/index.tar.gz")).len(), 21);
    small.enlarge("20m");
    timed(&mirror, index);
    timed(&mirror, &["index", "repo", "--out", "fresh"]);
    let read = |place: &str| fs_err::read(mirror.path(place)).unwrap();
    assert!(read("web/index.tar.gz") == read("fresh/index.tar.gz"));
}

#[test]
fn import_verify_and_gc_may_be_killed() {
    let mirror = Mirror::new();
    many(&mirror, 60);
    // What another mirror's cache looks like.
    let data = |index: usize| fs_err::read(mirror.path(&format!("theirs/{index}"))).unwrap();
    fs_err::create_dir(mirror.path("theirs")).unwrap();
    for index in 0..300_usize {
        let content: Vec<u8> = (0..9_000)
            .map(|byte| (byte * 31 + index * 17 + byte / 97) % 253)
            .map(|byte| u8::try_from(byte).unwrap())
            .chain(index.to_le_bytes())
            .collect();
        fs_err::write(mirror.path(&format!("theirs/{index}")), content).unwrap();
    }
    let whole = |round| {
        if mirror.path("out/cache").exists() {
            let verified = mirror.verify();
            assert_eq!(
                verified["damaged"],
                Value::Array(Vec::new()),
                "round {round}"
            );
        }
    };
    let import: &[&str] = &["import", "theirs", "--to", "out", "--all", "--copy"];
    let usual = timed(
        &mirror,
        &["import", "theirs", "--to", "first", "--all", "--copy"],
    );
    let mut killed = kill(&mirror, import, usual, whole);
    timed(&mirror, import);
    assert_eq!(mirror.verify()["archives"], 300);

    // Packages name sixty others; the three hundred and, after a merge, half of those go.
    assert_eq!(mirror.sync(&[]).0, 0);
    assert_eq!(mirror.verify()["archives"], 360);
    for index in 0..30 {
        fs_err::remove_dir_all(mirror.path(&format!("repo/packages/p{index}"))).unwrap();
    }
    mirror.commit();
    assert_eq!(mirror.sync(&[]).0, 0);
    let gc: &[&str] = &["gc", "out", "--grace", "0s"];
    killed += kill(&mirror, gc, Duration::from_millis(60), |round| {
        whole(round);
        assert!(mirror.verify()["archives"].as_u64() >= Some(30));
    });
    timed(&mirror, gc);
    let verified = mirror.verify();
    assert_eq!(verified["archives"], 30, "{verified:#}");
    assert_eq!(mirror.sync(&["--no-index"]).1["archives"]["fetched"], 0);

    // Damage is found, whenever a verify before was killed, and what is whole is left alone.
    timed(&mirror, import);
    let verify: &[&str] = &["verify", "out"];
    let usual = timed(&mirror, verify);
    for index in 0..20 {
        let path = mirror.cached(&format!("sha256={}", sum("sha256", &data(index))));
        fs_err::write(path, "damaged").unwrap();
    }
    killed += kill(&mirror, verify, usual, |_| {});
    assert_eq!(mirror.run(verify).stderr.matches("panicked").count(), 0);
    let verified = mirror.verify();
    assert_eq!(
        verified["damaged"],
        Value::Array(Vec::new()),
        "all found before"
    );
    assert_eq!(verified["archives"], 310, "{verified:#}");
    assert!(killed >= 12, "they were killed {killed} times only");
}

#[test]
fn packages_and_links_that_turn_in_circles_end() {
    let mirror = Mirror::new();
    let mut sums = Vec::new();
    for (name, needs) in [("egg", "hen"), ("hen", "egg"), ("self", "self")] {
        let data = name.as_bytes();
        let digest = format!("sha256={}", sum("sha256", data));
        let url = mirror.server.url(&format!("/{name}.tgz"));
        let text =
            format!("depends: [ \"{needs}\" ]\nurl {{ src: \"{url}\" checksum: \"{digest}\" }}");
        mirror.opam(name, &text);
        mirror.server.put(&format!("/{name}.tgz"), data);
        sums.push((digest, data));
    }
    let packages = mirror.path("repo/packages");
    for (target, link) in [
        ("..", "hen/up"),
        (".", "here"),
        ("left", "right"),
        ("right", "left"),
        ("../../../packages", "egg/egg.1/files"),
        ("opam", "self/self.1/opam.link"),
    ] {
        symlink(target, packages.join(link)).unwrap();
    }
    fs_err::create_dir(packages.join("loop")).unwrap();
    symlink("loop.1", packages.join("loop/loop.1")).unwrap();
    mirror.commit();
    // The same as a plain directory, without git.
    let copied = Command::new("cp")
        .args(["-a", "repo", "plain"])
        .current_dir(mirror.directory.path())
        .status();
    assert!(copied.unwrap().success());
    fs_err::remove_dir_all(mirror.path("plain/.git")).unwrap();

    let mut indexes = Vec::new();
    for repository in ["repo", "plain"] {
        let out = format!("of-{repository}");
        let ran = mirror.run(&["sync", repository, "--to", &out, "--format", "json"]);
        assert_eq!(ran.status, 0, "{ran:#?}");
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(report["archives"]["fetched"], 3, "{report:#}");
        for (digest, data) in &sums {
            let digits = digest.strip_prefix("sha256=").unwrap();
            let path = format!("{out}/cache/sha256/{}/{digits}", &digits[..2]);
            assert_eq!(&fs_err::read(mirror.path(&path)).unwrap(), data);
        }
        let web = format!("web-{repository}");
        let ran: Ran = mirror.run(&["index", repository, "--out", &web, "--stamp", "x"]);
        assert_eq!(ran.status, 0, "{ran:#?}");
        assert_eq!(ran.stdout.matches("a symbolic link").count(), 7, "{ran:#?}");
        indexes.push(fs_err::read(mirror.path(&format!("{web}/index.tar.gz"))).unwrap());
        assert_eq!(
            listed(&mirror.path(&format!("{web}/index.tar.gz"))),
            [
                "repo",
                "packages/egg/egg.1/opam",
                "packages/hen/hen.1/opam",
                "packages/self/self.1/opam"
            ]
        );
    }
    assert!(indexes[0] == indexes[1]);
}
