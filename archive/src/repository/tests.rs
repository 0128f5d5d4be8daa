// SPDX-License-Identifier: Apache-2.0
//! Repositories of every kind, compared through their public face; the other side is git itself.

use super::{Change, Commit, Error, Limits, Options, Reason, Repository};
use bstr::BString;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

type Files = BTreeMap<BString, (Vec<u8>, bool)>;

/// Runs git as a person would, and returns what it prints.
pub(super) fn git(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("git")
        .args(arguments)
        .current_dir(directory)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(["AUTHOR", "COMMITTER"].into_iter().flat_map(|who| {
            [
                (format!("GIT_{who}_NAME"), "A"),
                (format!("GIT_{who}_EMAIL"), "a@b"),
                (format!("GIT_{who}_DATE"), "1700000000 +0000"),
            ]
        }))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(input)
        .expect("git reads");
    let output = child.wait_with_output().expect("git ends");
    assert!(output.status.success(), "git {arguments:?}");
    String::from_utf8(output.stdout)
        .expect("text")
        .trim_end()
        .to_owned()
}

pub(super) fn commit_all(directory: &Path) -> Commit {
    git(directory, &["add", "-A"], b"");
    git(
        directory,
        &["commit", "-q", "--allow-empty", "-m", "x"],
        b"",
    );
    git(directory, &["rev-parse", "HEAD"], b"")
        .parse()
        .expect("a commit")
}

fn apply(
    repository: &mut Repository,
    from: Option<&Commit>,
    to: &Commit,
    files: &mut Files,
) -> Result<Vec<super::Skipped>, Error> {
    let mut last = BString::default();
    repository.changes(from, to, &mut |change: Change| {
        assert!(last < change.path, "in order: {last} {}", change.path);
        last = change.path.clone();
        match change.content {
            Some(content) => {
                files.insert(change.path, (content, change.executable));
            }
            None => {
                files.remove(&change.path);
            }
        }
        Ok::<(), Error>(())
    })
}

/// Changes some files, as `turn` says: new ones, other contents, other modes, removed ones, a file that becomes a directory.
fn edit(root: &Path, turn: usize) {
    use std::os::unix::fs::PermissionsExt;
    let write = |path: &str, content: &str| {
        let path = root.join(path);
        if path.is_dir() {
            fs_err::remove_dir_all(&path).expect("removed");
        }
        let parent = path.parent().expect("a parent");
        for above in parent.ancestors() {
            if above.is_file() {
                fs_err::remove_file(above).expect("removed");
            }
        }
        fs_err::create_dir_all(parent).expect("made");
        fs_err::write(&path, content).expect("written");
    };
    write("version", "0.9.0");
    write("repo", &format!("opam-version: \"2.0\"\n# {}\n", turn / 3));
    write("README.md", &format!("{turn}"));
    write("packages/.gitignore", "x");
    for package in 0..12 {
        let path = format!(
            "packages/p{}/p{}.{}/opam",
            package % 5,
            package % 5,
            package + turn % 4
        );
        write(&path, &format!("opam-version: \"2.0\" # {}", turn / 2));
    }
    write("packages/p1-x/p1-x.1/opam", "");
    if turn.is_multiple_of(2) {
        write("packages/odd", "a file");
    } else {
        write("packages/odd/odd.1/files/run", "a script");
        let script = root.join("packages/odd/odd.1/files/run");
        let mode = if turn % 4 == 1 { 0o755 } else { 0o644 };
        fs_err::set_permissions(script, std::fs::Permissions::from_mode(mode)).expect("set");
        fs_err::remove_dir_all(root.join("packages/p2")).expect("removed");
    }
}

/// What a repository of these files must give.
fn expected(root: &Path) -> Files {
    use std::os::unix::fs::PermissionsExt;
    let mut files = Files::new();
    let mut paths = vec![
        root.join("packages"),
        root.join("repo"),
        root.join("version"),
    ];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = fs_err::read_dir(&path).expect("listed");
            paths.extend(entries.map(|entry| entry.expect("listed").path()));
            continue;
        }
        let name = path
            .strip_prefix(root)
            .expect("below")
            .to_str()
            .expect("text");
        if name.contains(".git") {
            continue;
        }
        let executable = path.metadata().expect("there").permissions().mode() & 0o100 != 0;
        let content = fs_err::read(&path).expect("read");
        files.insert(name.into(), (content, executable));
    }
    files
}

#[test]
fn every_pair_of_states_leads_from_one_to_the_other() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("repository");
    fs_err::create_dir(&root).expect("made");
    git(&root, &["init", "-q", "-b", "main"], b"");
    let url = format!("file://{}", root.display());
    let work = directory.path().join("work");
    let mut states: Vec<(Commit, Files)> = Vec::new();
    for turn in 0..6 {
        edit(&root, turn);
        let commit = commit_all(&root);
        let all = expected(&root);
        for (location, revision) in [
            (root.to_str().expect("text"), None),
            (root.to_str().expect("text"), Some("main")),
            (url.as_str(), Some("main")),
            (url.as_str(), None),
        ] {
            let options = Options {
                revision: revision.map(str::to_owned),
                ..Options::default()
            };
            let mut repository = Repository::open(location, &work, options).expect("opened");
            assert_eq!(repository.head().expect("a head"), commit);
            // Twice: the second look finds nothing new.
            assert_eq!(repository.head().expect("a head"), commit);
            let mut files = Files::new();
            let skipped = apply(&mut repository, None, &commit, &mut files).expect("read");
            assert_eq!((files, skipped.len()), (all.clone(), 0));
            for (before, files) in &states {
                let mut there = files.clone();
                apply(&mut repository, Some(before), &commit, &mut there).expect("compared");
                assert_eq!(there, all, "{location} {turn}");
                let mut back = all.clone();
                apply(&mut repository, Some(&commit), before, &mut back).expect("compared");
                assert_eq!(back, *files, "{location} {turn}");
            }
        }
        states.push((commit, all));
    }
    // A commit by name, and the first of them, which a server gives only because it is in a branch's history.
    git(
        &root,
        &["config", "uploadpack.allowAnySHA1InWant", "true"],
        b"",
    );
    let (first, files) = &states[0];
    let options = Options {
        revision: Some(first.to_string()),
        ..Options::default()
    };
    let mut repository =
        Repository::open(&url, &directory.path().join("other"), options).expect("opened");
    assert_eq!(repository.head().expect("a head"), *first);
    let mut read = Files::new();
    apply(&mut repository, None, first, &mut read).expect("read");
    assert_eq!(read, *files);
}

#[test]
fn packed_loose_and_of_forms_that_only_git_knows() {
    for form in ["sha1", "sha256"] {
        let directory = TempDir::new().expect("a directory");
        let root = directory.path().join("repository");
        fs_err::create_dir(&root).expect("made");
        let format = format!("--object-format={form}");
        git(&root, &["init", "-q", "-b", "main", &format], b"");
        let mut states = Vec::new();
        for turn in 0..4 {
            edit(&root, turn);
            states.push((commit_all(&root), expected(&root)));
            if turn == 2 {
                git(&root, &["gc", "-q"], b"");
            }
        }
        let linked = directory.path().join("linked");
        let linked = linked.to_str().expect("text");
        git(&root, &["worktree", "add", "-q", "--detach", linked], b"");
        let (last, all) = states.last().expect("there is one");
        for location in [root.to_str().expect("text"), linked] {
            let mut repository =
                Repository::open(location, &root, Options::default()).expect("opened");
            assert_eq!(&repository.head().expect("a head"), last, "{form}");
            for (commit, files) in &states {
                let mut files = files.clone();
                apply(&mut repository, Some(commit), last, &mut files).expect("compared");
                assert_eq!(&files, all, "{form} {location}");
            }
            let mut files = Files::new();
            apply(&mut repository, None, last, &mut files).expect("read");
            assert_eq!(&files, all, "{form} {location}");
        }
    }
}

#[test]
fn a_plain_directory_is_compared_with_what_is_remembered() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("repository");
    fs_err::create_dir(&root).expect("made");
    let work = directory.path().join("work");
    let location = root.to_str().expect("text");
    let mut states: Vec<(Commit, Files)> = Vec::new();
    for turn in 0..4 {
        edit(&root, turn);
        std::os::unix::fs::symlink("/etc/passwd", root.join(format!("packages/link{turn}")))
            .expect("a link");
        let mut repository = Repository::open(location, &work, Options::default()).expect("opened");
        let commit = repository.head().expect("a head");
        assert_eq!(repository.head().expect("a head"), commit);
        let mut all = expected(&root);
        all.retain(|path, _| !path.starts_with(b"packages/link"));
        for (before, files) in &states {
            let mut there = files.clone();
            let skipped =
                apply(&mut repository, Some(before), &commit, &mut there).expect("compared");
            assert_eq!(there, all);
            assert_eq!(skipped.len(), turn + 1);
            assert!(skipped.iter().all(|skipped| skipped.reason == Reason::Link));
        }
        let mut files = Files::new();
        apply(&mut repository, None, &commit, &mut files).expect("read");
        assert_eq!(files, all);
        states.push((commit, all));
    }
    let mut repository = Repository::open(location, &work, Options::default()).expect("opened");
    let head = repository.head().expect("a head");
    assert_eq!(head, states[3].0);
    let unknown: Commit = "0".repeat(64).parse().expect("a commit");
    let error = apply(&mut repository, Some(&unknown), &head, &mut Files::new());
    assert!(matches!(error, Err(Error::NoSuchCommit { .. })));
    fs_err::write(root.join("version"), "changed behind its back").expect("written");
    let error = apply(&mut repository, None, &head, &mut Files::new());
    assert!(matches!(error, Err(Error::Changing { .. })));
}

/// Writes a tree object as it stands, whatever git thinks of it.
fn tree(root: &Path, entries: &[(&str, &[u8], &str)]) -> String {
    let mut content = Vec::new();
    for (mode, name, id) in entries {
        content.extend_from_slice(format!("{mode} ").as_bytes());
        content.extend_from_slice(name);
        content.push(0);
        content.extend_from_slice(&hex::decode(id).expect("digits"));
    }
    let arguments = ["hash-object", "-w", "--literally", "-t", "tree", "--stdin"];
    git(root, &arguments, &content)
}

fn blob(root: &Path, content: &[u8]) -> String {
    git(root, &["hash-object", "-w", "--stdin"], content)
}

fn commit_tree(root: &Path, tree: &str) -> Commit {
    let id = git(root, &["commit-tree", tree, "-m", "x"], b"");
    git(root, &["update-ref", "refs/heads/main", &id], b"");
    id.parse().expect("a commit")
}

#[test]
fn hostile_trees_are_reported_and_not_followed() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path();
    git(root, &["init", "-q", "-b", "main"], b"");
    let file = blob(root, b"content");
    let large = blob(root, &[b'x'; 2000]);
    let target = blob(root, b"/etc/passwd");
    let version = tree(root, &[("100644", b"opam", &file)]);
    let package = tree(
        root,
        &[
            ("40000", b"..", &version),
            ("40000", b".", &version),
            ("40000", b"", &version),
            ("40000", b".git", &version),
            ("40000", b"a/../../b", &version),
            ("40000", b"a\\b", &version),
            ("40000", b"bad\xff", &version),
            ("40000", b"good.1", &version),
            ("40000", b"Good.1", &version),
            ("100644", b"good.1", &file),
            ("100644", b"large", &large),
            ("120000", b"link", &target),
            ("160000", b"sub", &"1".repeat(40)),
            ("10644", b"strange", &file),
            ("100755", &[b'n'; 300], &file),
        ],
    );
    let packages = tree(root, &[("40000", b"good", &package)]);
    let top = [
        ("40000", &b"packages"[..], packages.as_str()),
        ("120000", b"repo", &target),
        ("40000", b"version", &version),
        ("40000", b"..", &version),
    ];
    let commit = commit_tree(root, &tree(root, &top));
    let options = Options {
        limits: Limits {
            file_bytes: 1000,
            ..Limits::default()
        },
        ..Options::default()
    };
    let location = root.to_str().expect("text");
    let mut repository = Repository::open(location, root, options).expect("opened");
    assert_eq!(repository.head().expect("a head"), commit);
    let mut files = Files::new();
    let skipped = apply(&mut repository, None, &commit, &mut files).expect("read");
    let paths: Vec<String> = files.keys().map(ToString::to_string).collect();
    assert_eq!(
        paths,
        ["packages/good/Good.1/opam", "packages/good/good.1/opam"]
    );
    let mut reasons: Vec<String> = skipped.iter().map(ToString::to_string).collect();
    reasons.sort();
    insta::assert_snapshot!(reasons.join("\n").replace(&"n".repeat(300), "n…"), @r"
    packages/good/..: its name is not safe
    packages/good/.: its name is not safe
    packages/good/: its name is not safe
    packages/good/Good.1: another name differs from it only in case
    packages/good/a/../../b: its name is not safe
    packages/good/a\\b: its name is not safe
    packages/good/bad\xFF: its name is not safe
    packages/good/good.1: another name differs from it only in case
    packages/good/good.1: the name is there twice
    packages/good/large: it is too large (2000 bytes)
    packages/good/link: a symbolic link
    packages/good/n…: its name is too long
    packages/good/strange: no plain file
    packages/good/sub: a submodule
    repo: a symbolic link
    version: no plain file
    ");

    // What becomes hostile is gone.
    let packages = tree(root, &[("40000", b"good", &version)]);
    let good = commit_tree(root, &tree(root, &[("40000", b"packages", &packages)]));
    let package = tree(root, &[("120000", b"opam", &target)]);
    let packages = tree(root, &[("40000", b"good", &package)]);
    let link = commit_tree(root, &tree(root, &[("40000", b"packages", &packages)]));
    let mut files = Files::new();
    apply(&mut repository, None, &good, &mut files).expect("read");
    assert_eq!(files.len(), 1);
    apply(&mut repository, Some(&good), &link, &mut files).expect("read");
    assert_eq!(files.len(), 0);
}

#[test]
fn a_tree_bomb_and_a_missing_object_end_it() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path();
    git(root, &["init", "-q", "-b", "main"], b"");
    let mut bomb = tree(root, &[("100644", b"opam", &blob(root, b"boom"))]);
    for _ in 0..20 {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let entries: Vec<(&str, &[u8], &str)> = names
            .iter()
            .map(|name| ("40000", name.as_bytes(), bomb.as_str()))
            .collect();
        bomb = tree(root, &entries);
    }
    let commit = commit_tree(root, &tree(root, &[("40000", b"packages", &bomb)]));
    let location = root.to_str().expect("text");
    let options = Options {
        limits: Limits {
            files: 10_000,
            ..Limits::default()
        },
        ..Options::default()
    };
    let mut repository = Repository::open(location, root, options).expect("opened");
    let error = apply(&mut repository, None, &commit, &mut Files::new());
    assert!(matches!(error, Err(Error::TooMany { .. })), "{error:?}");

    let absent = "2".repeat(40);
    let packages = tree(root, &[("100644", b"x", &absent)]);
    let commit = commit_tree(root, &tree(root, &[("40000", b"packages", &packages)]));
    let error = apply(&mut repository, None, &commit, &mut Files::new());
    assert!(matches!(error, Err(Error::Broken { .. })), "{error:?}");
    let absent: Commit = absent.parse().expect("a commit");
    let error = apply(&mut repository, Some(&absent), &commit, &mut Files::new());
    assert!(matches!(error, Err(Error::NoSuchCommit { .. })));
}

#[test]
fn a_server_that_says_nothing_is_left_when_it_is_cancelled() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("git://{}/x", listener.local_addr().expect("an address"));
    let work = TempDir::new().expect("a directory");
    let options = Options::default();
    let cancel = options.cancel.clone();
    let mut repository = Repository::open(&url, work.path(), options).expect("opened");
    let canceller = std::thread::spawn(move || {
        let peer = listener.accept().expect("git comes");
        cancel.cancel();
        peer
    });
    let started = Instant::now();
    assert!(matches!(repository.head(), Err(Error::Cancelled)));
    assert!(started.elapsed() < obuild_fixtures::PATIENCE);
    drop(canceller.join().expect("it ends"));
}

#[test]
fn locations_and_revisions_are_no_options() {
    let work = TempDir::new().expect("a directory");
    for location in [
        "--upload-pack=x",
        "ext::sh -c true",
        "no-such-directory",
        "",
    ] {
        let opened = Repository::open(location, work.path(), Options::default());
        assert!(matches!(opened, Err(Error::Location { .. })), "{location}");
    }
    let options = Options {
        revision: Some("--all".to_owned()),
        ..Options::default()
    };
    let opened = Repository::open("https://localhost/x", work.path(), options);
    assert!(matches!(opened, Err(Error::NoSuchRevision { .. })));
}

#[test]
fn a_fetch_gets_over_the_locks_of_a_killed_one() {
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("repository");
    fs_err::create_dir(&root).expect("made");
    git(&root, &["init", "-q", "-b", "main"], b"");
    edit(&root, 0);
    commit_all(&root);
    let url = format!("file://{}", root.display());
    let work = directory.path().join("work");
    let mut repository = Repository::open(&url, &work, Options::default()).expect("opened");
    repository.head().expect("a head");
    for lock in ["refs/heads/head.lock", "shallow.lock", "packed-refs.lock"] {
        fs_err::write(work.join("repository.git").join(lock), "").expect("written");
    }
    edit(&root, 1);
    let commit = commit_all(&root);
    assert_eq!(repository.head().expect("a head"), commit);
    let mut files = Files::new();
    apply(&mut repository, None, &commit, &mut files).expect("read");
    assert_eq!(files, expected(&root));
}
