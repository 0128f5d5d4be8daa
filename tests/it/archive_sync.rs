// SPDX-License-Identifier: Apache-2.0
//! `obuild archive sync` and what looks after its result, against a local server that misbehaves on demand.

use crate::harness::{Ran, binary, wait_for};
use obuild_fixtures::server::{Behaviour, Server};
use obuild_fixtures::{FileSystem, scratch};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A git repository of packages, a server that has their archives, and an archive to sync them into.
pub(crate) struct Mirror {
    pub(crate) directory: TempDir,
    pub(crate) server: Server,
}

/// The checksums of some bytes, by the programs of coreutils: nobody's word for it but theirs.
pub(crate) fn sum(kind: &str, data: &[u8]) -> String {
    let mut child = Command::new(format!("{kind}sum"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), data).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

impl Mirror {
    /// Runs opam as a client with a root of its own.
    pub(crate) fn client(&self, program: &Path, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.directory.path())
            .env("OPAMROOT", self.path("opam"))
            .env("OPAMROOTISOK", "1")
            .env("OPAMYES", "1")
            .env("OPAMCOLOR", "never")
            .env("HOME", self.directory.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}{errors}");
        text
    }

    pub(crate) fn new() -> Self {
        let mirror = Self {
            directory: scratch(FileSystem::Default).expect("there is a default"),
            server: Server::start(),
        };
        fs_err::create_dir(mirror.path("repo")).unwrap();
        mirror.git(&["init", "-q", "-b", "master"]);
        mirror
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn git(&self, arguments: &[&str]) {
        let status = Command::new("git")
            .arg("-C")
            .arg(self.path("repo"))
            .args(["-c", "user.name=a", "-c", "user.email=a@a.example"])
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success(), "{arguments:?}");
    }

    pub(crate) fn commit(&self) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "a merge"]);
    }

    pub(crate) fn opam(&self, name: &str, text: &str) {
        let directory = self.path(&format!("repo/packages/{name}/{name}.1"));
        fs_err::create_dir_all(&directory).unwrap();
        let text = format!("opam-version: \"2.0\"\n{text}\n");
        fs_err::write(directory.join("opam"), text).unwrap();
    }

    /// Adds a package whose archive has these checksums, and is at `/NAME.tgz`.
    pub(crate) fn declare(&self, name: &str, checksums: &[String], rest: &str) {
        let url = self.server.url(&format!("/{name}.tgz"));
        let checksums: String = checksums.iter().map(|sum| format!(" \"{sum}\"")).collect();
        let text = format!("url {{ src: \"{url}\" checksum: [{checksums} ] {rest} }}");
        self.opam(name, &text);
    }

    /// Adds a package and serves its archive; returns its md5 and sha512.
    pub(crate) fn package(&self, name: &str, data: &[u8]) -> [String; 2] {
        let sums = [
            format!("md5={}", sum("md5", data)),
            format!("sha512={}", sum("sha512", data)),
        ];
        self.declare(name, &sums, "");
        self.server.put(&format!("/{name}.tgz"), data);
        sums
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("archive")
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("the binary runs"))
    }

    /// Syncs with short times, and gives the report.
    pub(crate) fn sync(&self, more: &[&str]) -> (i32, Value) {
        let ran = self.run(&[&SYNC[..], &["--format", "json"], more].concat());
        let report = serde_json::from_str(&ran.stdout);
        (ran.status, report.unwrap_or_else(|_| panic!("{ran:#?}")))
    }

    fn start(&self, more: &[&str]) -> Child {
        self.command(&[&SYNC[..], more].concat()).spawn().unwrap()
    }

    /// Where the archive with a checksum is.
    pub(crate) fn cached(&self, sum: &str) -> PathBuf {
        let (kind, digest) = sum.split_once('=').unwrap();
        self.path(&format!("out/cache/{kind}/{}/{digest}", &digest[..2]))
    }

    pub(crate) fn verify(&self) -> Value {
        let ran = self.run(&["verify", "out", "--format", "json"]);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:#?}"))
    }

    fn status(&self) -> Value {
        let ran = self.run(&["status", "out", "--format", "json"]);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:#?}"))
    }
}

const SYNC: [&str; 6] = ["sync", "repo", "--to", "out", "--attempts", "2"];

#[test]
fn what_changed_is_fetched_once_and_nothing_more() {
    let mirror = Mirror::new();
    let a = mirror.package("a", b"the archive of a");
    mirror.package("b", b"the archive of b");
    // Two packages, one archive.
    mirror.declare("c", &a, "");
    mirror.server.put("/c.tgz", b"the archive of a");
    mirror.commit();
    let (status, report) = mirror.sync(&[]);
    assert_eq!(status, 0, "{report:#}");
    assert_eq!(report["packages"]["read"], 3);
    assert_eq!(report["archives"]["fetched"], 2);
    let data = fs_err::read(mirror.cached(&a[0])).unwrap();
    assert_eq!(data, b"the archive of a");
    // Also under a kind that nobody declares.
    let sha256 = format!("sha256={}", sum("sha256", &data));
    assert_eq!(fs_err::read(mirror.cached(&sha256)).unwrap(), data);

    let before = mirror.server.requests().len();
    let (status, report) = mirror.sync(&[]);
    assert_eq!((status, &report["nothing_new"]), (0, &Value::Bool(true)));
    // The index names this commit; another way to make it, or none to be found, is something to do.
    let repo = fs_err::read_to_string(mirror.path("out/repo")).unwrap();
    assert!(repo.contains(report["to"].as_str().unwrap()), "{repo}");
    assert!(repo.contains("archive-mirrors: \"cache\""), "{repo}");
    mirror.sync(&["--archive-mirror", "https://a.example/cache"]);
    let other = fs_err::read_to_string(mirror.path("out/repo")).unwrap();
    assert!(other.contains("https://a.example/cache"), "{other}");
    fs_err::remove_file(mirror.path("out/index.tar.gz")).unwrap();
    mirror.sync(&[]);
    assert!(mirror.path("out/index.tar.gz").exists());
    assert_eq!(
        fs_err::read_to_string(mirror.path("out/repo")).unwrap(),
        repo
    );
    let d = mirror.package("d", b"the archive of d");
    mirror.commit();
    let (status, report) = mirror.sync(&[]);
    assert_eq!((status, &report["packages"]["read"]), (0, &Value::from(1)));
    assert_eq!(mirror.server.requests().len(), before + 1);
    assert_eq!(
        fs_err::read(mirror.cached(&d[1])).unwrap(),
        b"the archive of d"
    );

    // A package that has gone keeps its archive until `gc` has waited.
    fs_err::remove_dir_all(mirror.path("repo/packages/d")).unwrap();
    mirror.commit();
    let (_, report) = mirror.sync(&[]);
    assert_eq!(report["packages"]["removed"], 1);
    assert_eq!(mirror.status()["unnamed"], 1);
    let gc = |grace: &str, dry: &[&str]| {
        let arguments = [&["gc", "out", "--grace", grace, "--format", "json"], dry].concat();
        let ran = mirror.run(&arguments);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        report["removed"].as_array().unwrap().len()
    };
    assert_eq!(gc("1d", &[]), 0);
    assert_eq!(gc("0s", &["--dry-run"]), 1);
    assert!(mirror.cached(&d[1]).exists());
    assert_eq!(gc("0s", &[]), 1);
    assert!(!mirror.cached(&d[0]).exists() && !mirror.cached(&d[1]).exists());
    assert!(mirror.cached(&a[0]).exists());
}

#[test]
fn what_is_wrong_is_kept_out_reported_and_tried_on_a_schedule() {
    let mirror = Mirror::new();
    let good = mirror.package("good", b"the good archive");
    mirror.package("lied", b"what it should be");
    mirror.server.always("/lied.tgz", Behaviour::Lie);
    mirror.package("html", b"not html");
    mirror.server.always("/html.tgz", Behaviour::Html);
    mirror.package("gone", b"not there");
    mirror
        .server
        .always("/gone.tgz", Behaviour::Status(410, None));
    // Says of the good archive that it has another sha512; `opam admin cache` loses the good one over this.
    let evil = [good[0].clone(), format!("sha512={}", "0".repeat(128))];
    mirror.declare("evil", &evil, "");
    mirror.server.put("/evil.tgz", b"the good archive");
    // One whose mirror has it.
    let other = mirror.server.url("/other.tgz");
    let sums = [format!("sha256={}", sum("sha256", b"mirrored"))];
    mirror.declare("mirrored", &sums, &format!("mirrors: \"{other}\""));
    mirror.server.always("/mirrored.tgz", Behaviour::Html);
    mirror.server.put("/other.tgz", b"mirrored");
    mirror.declare("weak", &[format!("md5={}", sum("md5", b"weak"))], "");
    mirror.server.put("/weak.tgz", b"weak");
    mirror.declare("none", &[], "");
    mirror.opam(
        "vcs",
        "url { src: \"git+https://a.example/a\" checksum: \"md5=00\" }",
    );
    mirror.opam("broken", "url { src: \"http://a.example/\" checksum: [ ");
    mirror.commit();
    let (status, report) = mirror.sync(&[]);
    assert_eq!(status, 1, "{report:#}");
    assert_eq!(report["archives"]["fetched"], 3, "{report:#}");
    assert_eq!(report["archives"]["missing"], 4, "{report:#}");
    let reason = |name: &str| {
        let failed = report["failed"].as_array().unwrap();
        let path = format!("packages/{name}/{name}.1/opam");
        let failure = failed
            .iter()
            .find(|failure| failure["packages"][0] == path.as_str());
        let failure = failure.unwrap_or_else(|| panic!("{name}: {report:#}"));
        failure["attempts"].to_string()
    };
    // Both values.
    assert!(reason("lied").contains(&format!("md5={}", sum("md5", b"what it should be"))));
    assert!(reason("lied").contains(&format!("md5={}", sum("md5", &[b'?'; 17]))));
    assert!(reason("html").contains("a page of HTML"));
    assert!(reason("gone").contains("410 Gone"));
    assert!(reason("evil").contains(&evil[1]) && reason("evil").contains(&good[1]));
    let codes = report["problems"].to_string();
    for code in ["only-md5", "no-checksum", "version-control", "syntax"] {
        assert!(codes.contains(code), "{code}: {report:#}");
    }
    assert_eq!(
        fs_err::read(mirror.cached(&good[0])).unwrap(),
        b"the good archive"
    );
    assert_eq!(fs_err::read(mirror.cached(&sums[0])).unwrap(), b"mirrored");
    assert_eq!(mirror.verify()["damaged"], Value::Array(Vec::new()));

    // Nothing is tried before its time, even when something else changed.
    let before = mirror.server.requests().len();
    mirror.commit();
    assert_eq!(mirror.sync(&[]).0, 0);
    assert_eq!(mirror.server.requests().len(), before);
    let status = mirror.status();
    assert_eq!(status["missing"].as_array().unwrap().len(), 4);
    let first = &status["missing"][0];
    assert!(
        first["next"].as_u64() > first["tried"].as_u64(),
        "{first:#}"
    );
    mirror.server.always("/gone.tgz", Behaviour::Good);
    let (status, report) = mirror.sync(&["--retry"]);
    assert_eq!(
        (status, &report["archives"]["missing"]),
        (1, &Value::from(3))
    );
}

#[test]
fn other_mirrors_are_asked_first_or_last() {
    let mirror = Mirror::new();
    let data = b"an archive";
    let sums = mirror.package("a", data);
    // As `opam admin cache` 2.1 makes it: under the first declared checksum only.
    let (_, md5) = sums[0].split_once('=').unwrap();
    let cached = format!("/up/md5/{}/{md5}", &md5[..2]);
    mirror.server.put(&cached, data);
    mirror.commit();
    let cache = mirror.server.url("/up");
    let (status, _) = mirror.sync(&["--upstream-cache", &cache, "--cache-first"]);
    assert_eq!((status, mirror.server.hits("/a.tgz")), (0, 0));
    assert_eq!(mirror.server.hits(&cached), 1);

    fs_err::remove_dir_all(mirror.path("out")).unwrap();
    mirror.server.always("/a.tgz", Behaviour::Status(404, None));
    let (status, _) = mirror.sync(&["--upstream-cache", &cache]);
    assert_eq!((status, mirror.server.hits("/a.tgz")), (0, 1));
    assert_eq!(mirror.server.hits(&cached), 2);

    // Adopting what another directory has needs no server at all.
    let ran = mirror.run(&["import", "out/cache", "--to", "two", "--format", "json"]);
    assert!(ran.stdout.contains("\"archives\": 1"), "{ran:#?}");
    let before = mirror.server.requests().len();
    let arguments = ["sync", "repo", "--to", "two", "--format", "json"];
    let ran = mirror.run(&arguments);
    assert_eq!(ran.status, 0, "{ran:#?}");
    assert_eq!(mirror.server.requests().len(), before);
}

#[test]
fn damage_is_found_and_fetched_again() {
    let mirror = Mirror::new();
    let sums = mirror.package("a", b"an archive");
    mirror.commit();
    mirror.sync(&[]);
    let file = mirror.cached(&sums[1]);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs_err::set_permissions(&file, mode).unwrap();
    fs_err::write(&file, "rot").unwrap();
    let ran = mirror.run(&["verify", "out"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    assert!(!file.exists(), "nobody gets the damaged one");
    let (status, report) = mirror.sync(&[]);
    assert_eq!(
        (status, &report["archives"]["fetched"]),
        (0, &Value::from(1))
    );
    assert_eq!(fs_err::read(&file).unwrap(), b"an archive");
    assert_eq!(mirror.run(&["verify", "out"]).status, 0);
}

/// Adds packages with an archive each of some kilobytes, all different.
pub(crate) fn many(mirror: &Mirror, count: usize) {
    for index in 0..count {
        let data: Vec<u8> = (0..20_000_usize)
            .map(|byte| u8::try_from((byte * 7 + index * 13 + byte / 251) % 251).unwrap())
            .collect();
        mirror.package(&format!("p{index}"), &data);
    }
    mirror.commit();
}

#[test]
fn killed_at_any_moment_it_goes_on() {
    let mirror = Mirror::new();
    many(&mirror, 40);
    for index in 0..40 {
        let path = format!("/p{index}.tgz");
        mirror
            .server
            .always(&path, Behaviour::Late(Duration::from_millis(20)));
    }
    let mut killed = 0;
    for round in 0..12_u64 {
        let mut child = mirror.start(&[]);
        // Spread over start, reading, fetching and writing; the moments differ from run to run by themselves.
        std::thread::sleep(Duration::from_millis(8 + round * 23));
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        if mirror.path("out/cache").exists() {
            let verified = mirror.verify();
            assert_eq!(
                verified["damaged"],
                Value::Array(Vec::new()),
                "round {round}"
            );
        }
    }
    assert!(killed >= 3, "it was killed {killed} times only");
    let (status, report) = mirror.sync(&[]);
    assert_eq!(status, 0, "{report:#}");
    let verified = mirror.verify();
    assert_eq!(verified["archives"], 40);
    assert_eq!(verified["repaired"], Value::Array(Vec::new()));
    let left = fs_err::read_dir(mirror.path("out/.obuild/incoming")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn killed_in_the_middle_of_a_large_archive_it_goes_on_there() {
    let mirror = Mirror::new();
    let data: Vec<u8> = (0..6_000_000_usize)
        .map(|byte| u8::try_from((byte * 7 + byte / 251) % 251).unwrap())
        .collect();
    let sums = mirror.package("large", &data);
    mirror.commit();
    let incoming = mirror.path("out/.obuild/incoming");
    for damaged in [false, true] {
        mirror
            .server
            .behave("/large.tgz", [Behaviour::Stall(3_000_000)]);
        // Patient, since the server is to be the one that waits.
        let mut command = mirror.command(&["sync", "repo", "--to", "out"]);
        let mut child = command.spawn().unwrap();
        let long = || {
            let mut entries = fs_err::read_dir(&incoming).into_iter().flatten();
            entries.find_map(|entry| {
                let path = entry.ok()?.path();
                let note = path.with_extension("of").exists() && path.extension().is_none();
                (note && path.metadata().ok()?.len() > 2_000_000).then_some(path)
            })
        };
        let beginning = loop {
            if let Some(path) = long() {
                break path;
            }
            assert!(child.try_wait().unwrap().is_none(), "it waits for more");
            std::thread::sleep(Duration::from_millis(5));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        if damaged {
            // As a power failure may leave it.
            fs_err::write(&beginning, vec![0; 2_500_000]).unwrap();
        }
        let before = mirror.server.requests().len();
        let (status, report) = mirror.sync(&[]);
        assert_eq!(status, 0, "{report:#}");
        assert_eq!(report["archives"]["fetched"], 1, "{report:#}");
        let requests = mirror.server.requests();
        // Between the look at the file and the kill the rest of what the server sends may have come.
        let range = requests[before].headers["range"].as_str();
        let from = range
            .strip_prefix("bytes=")
            .and_then(|range| range.strip_suffix('-'));
        let from = from.and_then(|from| from.parse::<u64>().ok());
        assert!(
            from.is_some_and(|from| (2_000_000..=3_000_000).contains(&from)),
            "{range}"
        );
        // Only what turns out to be wrong is fetched from the beginning.
        assert_eq!(requests.len() - before, if damaged { 2 } else { 1 });
        assert_eq!(mirror.verify()["damaged"], Value::Array(Vec::new()));
        assert_eq!(fs_err::read_dir(&incoming).unwrap().count(), 0);
        fs_err::remove_dir_all(mirror.path("out")).unwrap();
    }
    assert!(!mirror.cached(&sums[0]).exists());
}

#[test]
fn two_syncs_at_once_are_one_after_the_other() {
    let mirror = Mirror::new();
    many(&mirror, 10);
    mirror
        .server
        .always("/p0.tgz", Behaviour::Late(Duration::from_secs(4)));
    let first = mirror.start(&[]);
    wait_for("the first to ask", || mirror.server.hits("/p0.tgz") > 0);
    let refused = mirror.run(&[&SYNC[..], &["--no-wait"]].concat());
    assert_eq!(refused.status, 3, "{refused:#?}");
    assert!(
        refused
            .stderr
            .contains("another obuild works on this archive")
    );
    let (status, second) = mirror.sync(&[]);
    assert_eq!((status, &second["nothing_new"]), (0, &Value::Bool(true)));
    assert!(first.wait_with_output().unwrap().status.success());
    assert_eq!(mirror.server.requests().len(), 10, "each came once");
}

/// A small tmpfs, unmounted when dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(path: &Path, size: &str) -> Option<Self> {
        fs_err::create_dir(path).unwrap();
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(path)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        if !status.success() {
            obuild_fixtures::skip("no tmpfs can be mounted");
            return None;
        }
        Some(Self(path.to_owned()))
    }

    pub(crate) fn enlarge(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_loses_nothing_and_it_goes_on_when_there_is_room() {
    let mirror = Mirror::new();
    many(&mirror, 40);
    let Some(small) = Small::mount(&mirror.path("out"), "600k") else {
        return;
    };
    let ran = mirror.run(&SYNC);
    assert_eq!(ran.status, 3, "{ran:#?}");
    assert!(ran.stderr.contains("the disk is full"), "{ran:#?}");
    let verified = mirror.verify();
    assert_eq!(verified["damaged"], Value::Array(Vec::new()));
    let kept = verified["archives"].as_u64().unwrap();
    small.enlarge("4m");
    let (status, report) = mirror.sync(&[]);
    assert_eq!(status, 0, "{report:#}");
    // What was whole and had no name yet is found, too.
    assert!(
        report["archives"]["fetched"].as_u64().unwrap() <= 40 - kept,
        "{report:#}"
    );
    assert_eq!(mirror.verify()["archives"], 40);
}

#[test]
fn git_reaches_servers_the_way_its_user_does() {
    let mirror = Mirror::new();
    let proxy = mirror.server.url("");
    let url = "http://behind-a-proxy.example/repository.git";
    let mut command = mirror.command(&["sync", url, "--to", "out"]);
    let ran = Ran::from(command.env("http_proxy", proxy).output().unwrap());
    // The proxy has no such repository, but it was asked, and nobody else was.
    assert_eq!(ran.status, 3, "{ran:#?}");
    let asked = mirror.server.requests();
    assert!(
        asked
            .iter()
            .any(|request| request.path == "/repository.git/info/refs?service=git-upload-pack"),
        "{asked:#?}"
    );
}

#[test]
fn servers_that_cut_crawl_or_turn_in_circles_hold_nothing_up() {
    let mirror = Mirror::new();
    let good = mirror.package("good", b"the good archive");
    for (name, behaviour) in [
        ("short", Behaviour::Short(5)),
        ("stalls", Behaviour::Stall(5)),
        ("crawls", Behaviour::Crawl(Duration::from_millis(300))),
        ("circles", Behaviour::Redirect("/circles.tgz".to_owned())),
        ("endless", Behaviour::Endless),
    ] {
        mirror.package(name, format!("what {name} should be").as_bytes());
        mirror.server.always(&format!("/{name}.tgz"), behaviour);
    }
    mirror.commit();
    let (status, report) = mirror.sync(&["--largest", "4m", "--stall-timeout", "1s"]);
    assert_eq!(status, 1, "{report:#}");
    assert_eq!(report["archives"]["missing"], 5, "{report:#}");
    let failed = report["failed"].to_string();
    for reason in ["bytes in 1 seconds", "too many redirects", "more than"] {
        assert!(failed.contains(reason), "{reason}: {report:#}");
    }
    assert!(mirror.cached(&good[0]).exists());
    assert_eq!(mirror.verify()["archives"], 1);
    let left = fs_err::read_dir(mirror.path("out/.obuild/incoming")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_hostile_repository_does_no_harm() {
    let mirror = Mirror::new();
    let good = mirror.package("good", b"the good archive");
    let outside = mirror.path("outside");
    fs_err::write(&outside, "secret").unwrap();
    let secret = format!("sha256={}", sum("sha256", b"secret"));
    // A file of this machine whose hash somebody knows; a name that leads out; links; a checksum with a path in it.
    let url = format!("file://{}", outside.display());
    mirror.opam(
        "file",
        &format!("url {{ src: \"{url}\" checksum: \"{secret}\" }}"),
    );
    mirror.opam(
        "zero",
        "url { src: \"file:///dev/zero\" checksum: \"md5=00000000000000000000000000000000\" }",
    );
    mirror.opam(
        "dots",
        "url { src: \"http://a.example/a\" checksum: \"sha256=../../../../etc/passwd\" }",
    );
    mirror.opam("deep", &"[".repeat(100_000));
    // A digest of another kind's length, beside a good one, which counts.
    let sum = sum("sha256", b"lengths");
    mirror.declare(
        "lengths",
        &[format!("sha512={sum}"), format!("sha256={sum}")],
        "",
    );
    mirror.server.put("/lengths.tgz", b"lengths");
    // Two files under one checksum: the second cannot be what it says.
    mirror.declare("twin", &[good[1].clone()], "");
    mirror.server.put("/twin.tgz", b"another archive");
    // Larger than any opam file.
    mirror.opam("huge", &"# nothing\n".repeat(1 << 20));
    mirror.opam(
        "scheme",
        "url { src: \"ftp://127.0.0.1/a\" checksum: \"md5=00000000000000000000000000000001\" }",
    );
    let link = mirror.path("repo/packages/link");
    fs_err::create_dir_all(&link).unwrap();
    fs_err::os::unix::fs::symlink("/", link.join("link.1")).unwrap();
    mirror.commit();
    // Over a URL, as anybody's repository comes.
    let url = format!("file://{}", mirror.path("repo").display());
    let ran = mirror.run(&["sync", &url, "--to", "out", "--format", "json"]);
    assert_eq!(ran.status, 1, "{ran:#?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["archives"]["fetched"], 2, "{report:#}");
    assert_eq!(report["archives"]["missing"], 3, "{report:#}");
    let problems = report["problems"].to_string();
    assert!(problems.contains("checksum-length"), "{report:#}");
    assert_eq!(
        fs_err::read(mirror.cached(&good[1])).unwrap(),
        b"the good archive"
    );
    assert!(
        report["failed"]
            .to_string()
            .contains("file: URLs are followed")
    );
    assert!(
        report["failed"]
            .to_string()
            .contains("ftp: URLs are not fetched")
    );
    assert!(!mirror.cached(&secret).exists());
    assert!(mirror.cached(&good[0]).exists());
    assert_eq!(mirror.status()["skipped"][0][1], "a symbolic link");
}
