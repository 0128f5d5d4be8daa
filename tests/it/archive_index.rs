// SPDX-License-Identifier: Apache-2.0
//! `obuild archive index`, read by real opam clients over HTTP, and compared with `opam admin index`.

use crate::harness::binary;
use flate2::read::GzDecoder;
use obuild_fixtures::opam::{History, git, opam_clients};
use obuild_fixtures::server::Server;
use obuild_fixtures::{FileSystem, scratch};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes or updates the index, and returns what the command reports.
fn index(history: &History, out: &Path, extra: &[&str]) -> serde_json::Value {
    let output = Command::new(binary())
        .args(["archive", "index", "--format", "json", "--out"])
        .arg(out)
        .args(extra)
        .arg(&history.repository)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// An opam with a root of its own.
struct Client {
    program: PathBuf,
    root: PathBuf,
}

impl Client {
    fn all(directory: &Path) -> Vec<Self> {
        let clients = opam_clients().into_iter().enumerate();
        let client = |(number, program)| Self {
            program,
            root: directory.join(format!("opam{number}")),
        };
        clients.map(client).collect()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("OPAMROOT", &self.root)
            .env("OPAMROOTISOK", "1")
            .env("OPAMYES", "1")
            .env("OPAMNOENVNOTICE", "1")
            .env("OPAMCOLOR", "never")
            .env("HOME", self.root.parent().unwrap())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let program = self.program.display();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {stdout}{stderr}"
        );
        stdout
    }

    fn init(&self, url: &str) {
        self.run(&[
            "init",
            "--bare",
            "--no-setup",
            "--disable-sandboxing",
            "default",
            url,
        ]);
    }

    /// Returns the packages, as `NAME.VERSION`.
    fn packages(&self) -> BTreeSet<String> {
        let list = [
            "list",
            "--all-versions",
            "--columns=package",
            "--short",
            "--all",
        ];
        let list = self.run(&list);
        list.lines().map(|line| line.trim().to_owned()).collect()
    }
}

fn packages(paths: &[String]) -> BTreeSet<String> {
    let package = |path: &String| {
        path.strip_suffix("/opam")?
            .rsplit('/')
            .next()
            .map(str::to_owned)
    };
    paths.iter().filter_map(package).collect()
}

#[test]
fn clients_follow_ten_merges() {
    let Some(directory) = scratch(FileSystem::Default) else {
        return;
    };
    let clients = Client::all(directory.path());
    if clients.is_empty() {
        return;
    }
    let history = History::generated(directory.path(), 10);
    let out = directory.path().join("out");
    let server = Server::start();
    server.directory(&out);
    let url = server.url("");
    let url = url.trim_end_matches('/');
    for (turn, commit) in history.commits.iter().enumerate() {
        history.set(commit);
        let report = index(&history, &out, &["--archive-mirror", "cache"]);
        assert_eq!(report["commit"], commit.as_str());
        assert_eq!(report["from"].is_null(), turn == 0);
        let repo = fs_err::read_to_string(out.join("repo")).unwrap();
        assert!(repo.contains(&format!("stamp: \"{commit}\"")), "{repo}");
        assert!(repo.contains("archive-mirrors: \"cache\""), "{repo}");
        let paths = history.paths(commit);
        let expected = packages(&paths);
        for client in &clients {
            if turn == 0 {
                client.init(url);
            } else {
                client.run(&["update"]);
            }
            assert_eq!(client.packages(), expected, "merge {turn}");
            if turn > 0 {
                // What the merge added reads as it was committed.
                let package = format!("p{:03}.0", 300 + turn);
                let path = format!("packages/p{:03}/{package}/opam", 300 + turn);
                let object = format!("{commit}:{path}");
                let committed = git(&history.repository, &["cat-file", "blob", &object], b"");
                let committed = String::from_utf8(committed).unwrap();
                let synopsis = committed.lines().nth(1).unwrap();
                let raw = client.run(&["show", "--raw", &package]);
                assert!(raw.contains(synopsis), "{raw}");
            }
        }
    }
}

/// Unpacks an index by tar and gzip of other people.
fn unpack(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(GzDecoder::new(fs_err::File::open(path).unwrap()));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_dir() {
            continue;
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        files.insert(path, content);
    }
    files
}

#[test]
fn it_holds_what_the_index_of_opam_admin_holds() {
    let Some(directory) = scratch(FileSystem::Default) else {
        return;
    };
    let clients = Client::all(directory.path());
    let Some(client) = clients.first() else {
        return;
    };
    let real = History::real(directory.path());
    let is_real = real.is_some();
    let history = real.unwrap_or_else(|| History::generated(directory.path(), 3));
    let out = directory.path().join("out");
    let last = history.commits.last().unwrap();
    history.set(last);
    index(&history, &out, &[]);
    let tree = directory.path().join("tree");
    fs_err::create_dir(&tree).unwrap();
    let repository = history.repository.to_str().unwrap();
    git(
        &tree,
        &["clone", "-q", "-b", "replay", repository, "."],
        b"",
    );
    let admin = Command::new(&client.program)
        .args(["admin", "index"])
        .current_dir(&tree)
        .env("OPAMROOTISOK", "1")
        .env("HOME", directory.path())
        .output()
        .unwrap();
    assert!(admin.status.success(), "{admin:?}");
    let mut theirs = unpack(&tree.join("index.tar.gz"));
    let mut ours = unpack(&out.join("index.tar.gz"));
    theirs.remove("repo");
    ours.remove("repo");
    assert!(ours == theirs, "the same files with the same contents");
    if is_real {
        let size = |path: PathBuf| fs_err::metadata(path).unwrap().len();
        let (ours, theirs) = (
            size(out.join("index.tar.gz")),
            size(tree.join("index.tar.gz")),
        );
        assert!(
            ours <= 3_990_000,
            "{ours} bytes, {theirs} by opam admin index"
        );

        // The newest client is the strictest. Two of the packages are the same version for opam.
        let server = Server::start();
        server.directory(&out);
        let client = clients.last().unwrap();
        client.init(server.url("").trim_end_matches('/'));
        let expected = packages(&history.paths(last));
        assert_eq!(client.packages().len(), expected.len() - 1);
    }
}

#[test]
fn what_is_wrong_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(binary())
            .args(["archive", "index", "--out", "out"])
            .args(arguments)
            .current_dir(&directory)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    };
    fs_err::create_dir(directory.path().join("plain")).unwrap();
    fs_err::write(directory.path().join("fields"), "nonsense: 1").unwrap();
    let (code, stderr) = run(&["nowhere"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("is no directory and no URL"), "{stderr}");
    let (code, stderr) = run(&["--fields", "fields", "plain"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("there is no field nonsense"), "{stderr}");
    // A directory without packages has an index without packages.
    let (code, stderr) = run(&["plain"]);
    assert_eq!(code, Some(0), "{stderr}");
    let files = unpack(&directory.path().join("out/index.tar.gz"));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["repo"]);
    // A file in the place of the directory.
    fs_err::write(directory.path().join("file"), "").unwrap();
    let (code, stderr) = run(&["plain", "--state", "file"]);
    assert_eq!(code, Some(3), "{stderr}");
}
