// SPDX-License-Identifier: Apache-2.0
//! Images of an archive in use: an opam client of what was pushed, and images whose making was killed or ran out of room.

use crate::archive_sync::{Mirror, sum};
use crate::harness::{Ran, SmallDisk, binary, free_port};
use obuild_fixtures::opam::opam_clients;
use obuild_fixtures::{Registry, registry};
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A name that no other test has.
fn image(host: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    format!("{host}/it/archive-{}:live", since.as_nanos())
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("it is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output.stdout
}

/// Fetches an image by skopeo, and unpacks it by umoci: others' code.
fn unpack(mirror: &Mirror, source: &str, to: &str) {
    let layout = mirror.path("fetched");
    for old in [&layout, &mirror.path(to)] {
        let _ = fs_err::remove_dir_all(old);
    }
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--src-tls-verify=false", source])
        .arg(format!("oci:{}:x", layout.display())));
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:x", layout.display()))
        .arg(mirror.path(to)));
}

/// The program of an unpacked image, serving what is in it.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(root: &Path, listen: &str) -> Self {
        let mut child = Command::new(root.join("usr/bin/obuild"))
            .args(["archive", "serve"])
            .arg(root.join("srv"))
            .args(["--listen", listen])
            .stderr(Stdio::piped())
            .spawn()
            .expect("the image's program runs");
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        // What it says later must go somewhere.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let address = line.trim().strip_prefix("listening on http://");
        Self {
            address: address.unwrap_or_else(|| panic!("{line}")).to_owned(),
            child,
        }
    }

    fn curl(&self, path: &str, options: &[&str]) -> Vec<u8> {
        run(Command::new("curl")
            .args(["-sS", "--max-time", "20"])
            .args(options)
            .arg(format!("http://{}{path}", self.address)))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn package(mirror: &Mirror, name: &str) {
    let script = format!(
        "mkdir -p {name}-1 && echo 'let () = print_endline \"{name}\"' > {name}-1/{name}.ml && tar -czf {name}.tgz {name}-1"
    );
    run(Command::new("sh")
        .args(["-c", &script])
        .current_dir(mirror.directory.path()));
    let data = fs_err::read(mirror.path(&format!("{name}.tgz"))).unwrap();
    mirror.package(name, &data);
    mirror.commit();
}

#[test]
fn opam_installs_from_an_image_that_serves_itself() {
    let (Some(host), Some(program)) =
        (registry(Registry::Plain), opam_clients().into_iter().next())
    else {
        return;
    };
    let name = image(&host);
    let mirror = Mirror::new();
    // Enough for several segments of the index.
    for number in 0..150 {
        let directory = mirror.path(&format!("repo/packages/filler/filler.{number}"));
        fs_err::create_dir_all(&directory).unwrap();
        let text = format!("opam-version: \"2.0\"\nsynopsis: \"number {number}\"\n");
        fs_err::write(directory.join("opam"), text).unwrap();
    }
    fs_err::write(mirror.path("repo/repo"), "opam-version: \"2.0\"\n").unwrap();
    package(&mirror, "first");
    let deploy = || {
        let ran = mirror.run(&[
            "deploy",
            "repo",
            "--to",
            "out",
            "--push",
            &name,
            "--program",
            binary(),
            "--format",
            "json",
        ]);
        assert_eq!(ran.status, 0, "{ran:#?}");
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        unpack(&mirror, &format!("docker://{name}"), "bundle");
        report
    };
    deploy();
    let root = mirror.path("bundle");
    assert!(!root.join("srv/index.tar.gz").exists(), "it is in parts");
    let index = || fs_err::read(mirror.path("out/index.tar.gz")).unwrap();
    let served = Served::start(&root, &format!("127.0.0.1:{}", free_port()));
    let address = served.address.clone();
    assert!(served.curl("/index.tar.gz", &[]) == index());
    assert!(served.curl("/index.tar.gz", &["--http2-prior-knowledge"]) == index());
    assert_eq!(
        served.curl("/index.tar.gz", &["--range", "100-1099"]),
        &index()[100..1100]
    );
    let head = String::from_utf8(served.curl("/index.tar.gz", &["--head"])).unwrap();
    let tag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap_or_else(|| panic!("{head}"));
    let unchanged = |served: &Served| {
        let condition = format!("If-None-Match: {tag}");
        let head = served.curl("/index.tar.gz", &["--head", "-H", &condition]);
        String::from_utf8(head).unwrap().contains(" 304 ")
    };
    assert!(unchanged(&served));
    drop(served);
    // Another server of the same image gives the same validator.
    let served = Served::start(&root, &address);
    assert!(unchanged(&served));
    assert_eq!(
        served.curl(
            "/index/segments",
            &["-o", "/dev/null", "-w", "%{http_code}"]
        ),
        b"404"
    );

    // Every upstream is gone.
    let upstream = |mirror: &Mirror| mirror.server.requests().len();
    let before = upstream(&mirror);
    let opam = |arguments: &[&str]| mirror.client(&program, arguments);
    let url = format!("http://{address}");
    opam(&[
        "init",
        "--bare",
        "-n",
        "--disable-sandboxing",
        "default",
        &url,
    ]);
    opam(&["switch", "create", "here", "--empty"]);
    opam(&["install", "first.1"]);
    assert_eq!(upstream(&mirror), before);
    drop(served);

    // A merge: what is pushed has it, and the client finds it at the same address.
    package(&mirror, "second");
    let report = deploy();
    let sent = report["image"]["pushed"][0]["sent_bytes"].as_u64().unwrap();
    assert!(sent < 64 << 10, "{report:#}");
    let served = Served::start(&root, &address);
    assert!(served.curl("/index.tar.gz", &[]) == index());
    assert!(!unchanged(&served));
    let before = upstream(&mirror);
    opam(&["update"]);
    opam(&["install", "second.1"]);
    opam(&["source", "second.1", "--dir", "source"]);
    assert!(mirror.path("source/second.ml").exists());
    assert!(opam(&["list", "--installed", "--short"]).contains("second"));
    assert_eq!(upstream(&mirror), before, "nobody went upstream");
}

/// Small numbers that look random, always the same ones.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length)
            .map(|_| self.below(256).to_le_bytes()[0])
            .collect()
    }
}

/// Whatever an image layout names is there, and is what it is called.
fn assert_whole(layout: &Path) {
    let Ok(index) = fs_err::read(layout.join("index.json")) else {
        return;
    };
    let blob = |value: &Value| {
        let digest = value["digest"]
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap();
        let bytes = fs_err::read(layout.join("blobs/sha256").join(digest)).unwrap();
        assert_eq!(sum("sha256", &bytes), digest);
        bytes
    };
    let index: Value = serde_json::from_slice(&index).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
    blob(&manifest["config"]);
    manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .for_each(|layer| drop(blob(layer)));
}

/// An unpacked image has every archive of the repository, and the index.
fn assert_complete(mirror: &Mirror, packages: &[(String, Vec<u8>)], bundle: &str) {
    for (name, data) in packages {
        for kind in ["md5", "sha256", "sha512"] {
            let digest = sum(kind, data);
            let path = mirror.path(&format!(
                "{bundle}/srv/cache/{kind}/{}/{digest}",
                &digest[..2]
            ));
            assert!(
                fs_err::read(&path).is_ok_and(|there| there == *data),
                "{name}: {kind}"
            );
        }
    }
    let root = mirror.path(bundle);
    let listed = root.join("srv/index/segments").exists();
    assert!(listed != root.join("srv/index.tar.gz").exists());
}

#[test]
fn killed_at_any_moment_the_next_run_goes_on() {
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let name = image(&host);
    let mirror = Mirror::new();
    let mut random = Random(0x0dd_ba11);
    let mut packages = Vec::new();
    let (image, deploy): (&[&str], &[&str]) = (
        &["image", "out", "--to", "layout", "--index", "parts"],
        &[
            "deploy", "repo", "--to", "out", "--push", &name, "--index", "parts",
        ],
    );
    let mut longest = Duration::from_millis(50);
    for round in 0..36 {
        let data = {
            let length = 1000 + random.below(400_000);
            random.bytes(length)
        };
        let package = format!("p{round}");
        mirror.package(&package, &data);
        packages.push((package, data));
        mirror.commit();
        // First what makes the archive; then they take turns, and some are left to finish.
        let arguments = if round % 2 == 0 { deploy } else { image };
        let began = Instant::now();
        let mut child = mirror.command(arguments).spawn().unwrap();
        if round % 6 == 0 {
            let ran = Ran::from(child.wait_with_output().unwrap());
            assert_eq!(ran.status, 0, "round {round}: {ran:#?}");
            longest = began.elapsed();
        } else {
            let milliseconds = u64::try_from(longest.as_millis()).unwrap();
            std::thread::sleep(Duration::from_millis(random.below(milliseconds)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_whole(&mirror.path("layout"));
    }
    for arguments in [deploy, image] {
        let ran = mirror.run(arguments);
        assert_eq!(ran.status, 0, "{ran:#?}");
    }
    unpack(&mirror, &format!("docker://{name}"), "bundle");
    assert_complete(&mirror, &packages, "bundle");
    assert_whole(&mirror.path("layout"));
    unpack(
        &mirror,
        &format!("oci:{}", mirror.path("layout").display()),
        "bundle",
    );
    assert_complete(&mirror, &packages, "bundle");
    // And what a deployment says of itself is true: there is nothing left to do.
    let ran = mirror.run(&[deploy, &["--format", "json"]].concat());
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["skipped"], true, "{report:#}");
}

#[test]
fn on_a_full_disk_it_fails_and_goes_on_when_there_is_room() {
    let Some(host) = registry(Registry::Plain) else {
        return;
    };
    let name = image(&host);
    let mirror = Mirror::new();
    let Some(disk) = SmallDisk::mount(mirror.directory.path()) else {
        return;
    };
    let place = |name: &str| disk.path().join(name).display().to_string();
    let (out, layout) = (place("out"), place("layout"));
    let image: &[&str] = &["image", &out, "--to", &layout, "--index", "parts"];
    let deploy: &[&str] = &[
        "deploy", "repo", "--to", &out, "--push", &name, "--index", "parts",
    ];
    let mut random = Random(0xf011);
    let mut packages = Vec::new();
    let mut failures = 0;
    // So many KiB of room.
    for room in [0_u64, 4, 40, 400, 1500] {
        for arguments in [deploy, image] {
            let data = random.bytes(300_000);
            let package = format!("p{}", packages.len());
            mirror.package(&package, &data);
            packages.push((package, data));
            mirror.commit();
            if arguments == image {
                // The archive has it; only the image lacks room.
                let ran = mirror.run(&["sync", "repo", "--to", &out]);
                assert_eq!(ran.status, 0, "{ran:#?}");
            }
            let fill = disk.fill(room);
            let ran = mirror.run(arguments);
            assert!(ran.status == 0 || ran.status == 3, "{room} KiB: {ran:#?}");
            if ran.status == 3 {
                failures += 1;
                assert!(ran.stderr.contains("hint: the disk is full"), "{ran:#?}");
            }
            assert_whole(Path::new(&layout));
            fs_err::remove_file(fill).unwrap();
            let ran = mirror.run(arguments);
            assert_eq!(ran.status, 0, "{room} KiB: {ran:#?}");
            assert_whole(Path::new(&layout));
        }
    }
    assert!(failures >= 4, "{failures}");
    unpack(&mirror, &format!("docker://{name}"), "bundle");
    let all = packages.len();
    assert_complete(&mirror, &packages[..all - 1], "bundle");
    unpack(&mirror, &format!("oci:{layout}"), "bundle");
    assert_complete(&mirror, &packages, "bundle");
}
