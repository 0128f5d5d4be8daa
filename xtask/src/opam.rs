// SPDX-License-Identifier: Apache-2.0
//! The opam clients that tests read an index with: this Debian's, and those of newer Debian suites, unpacked privately and run with
//! their own C library.

use crate::cmd::{Cmd, again};
use crate::{debian, packages, workspace};
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The suites and what opam is there; the oldest first.
const SUITES: [(&str, &str); 2] = [("trixie", "2.3"), ("sid", "2.6")];

/// opam's package and the libraries that its program is linked with.
const PACKAGES: [&str; 11] = [
    "opam",
    "libc6",
    "libstdc++6",
    "libgcc-s1",
    "libglpk40",
    "libgmp10",
    "libamd3",
    "libcolamd3",
    "libsuitesparseconfig7",
    "libltdl7",
    "libgomp1",
];

/// The package of this Debian.
const OWN: &[packages::Need] = &[
    (packages::Sign::Program("opam"), "opam"),
    (packages::Sign::Program("git"), "git"),
    (packages::Sign::Program("curl"), "curl"),
];

/// Returns the opam of this Debian.
pub(crate) fn own() -> Result<PathBuf> {
    packages::ensure(OWN)?;
    workspace::find_program("opam").context("opam is installed, but not found")
}

/// Returns the newer ones that could be had, and why others could not. They are made once and kept.
pub(crate) fn newer() -> (Vec<PathBuf>, Vec<String>) {
    let (mut programs, mut lacking) = (Vec::new(), Vec::new());
    for (suite, version) in SUITES {
        match unpacked(suite) {
            Ok(program) => programs.push(program),
            Err(error) => lacking.push(format!("opam {version} of {suite}: {error:#}")),
        }
    }
    (programs, lacking)
}

/// Returns a script that runs the opam of a suite.
fn unpacked(suite: &str) -> Result<PathBuf> {
    let fixtures = workspace::target().join("fixtures");
    fs_err::create_dir_all(&fixtures)?;
    let lock = fs_err::File::create(fixtures.join("opam.lock"))?;
    lock.file().lock().context("lock the opam fixtures")?;
    let place = fixtures.join(format!("opam-{suite}"));
    let program = place.join("opam");
    if program.exists() {
        return Ok(program);
    }
    let unfinished = fixtures.join(format!("opam-{suite}.unfinished"));
    if unfinished.exists() {
        fs_err::remove_dir_all(&unfinished)?;
    }
    download(suite, &unfinished)?;
    let root = place.join("root");
    // The program's own loader and libraries: this system's C library may be older than it wants.
    let script = format!(
        "#!/bin/sh\nexec '{loader}' --library-path '{libraries}' '{program}' \"$@\"\n",
        loader = loader(&unfinished.join("root"), &root)?.display(),
        libraries = libraries(&unfinished.join("root"), &root)?.display(),
        program = root.join("usr/bin/opam").display(),
    );
    fs_err::write(unfinished.join("opam"), script)?;
    fs_err::set_permissions(
        unfinished.join("opam"),
        std::fs::Permissions::from_mode(0o755),
    )?;
    if place.exists() {
        fs_err::remove_dir_all(&place)?;
    }
    fs_err::rename(&unfinished, &place)?;
    Cmd::new(&program).arg("--version").output()?;
    Ok(program)
}

/// Gets the packages of a suite with an apt that knows nothing else, and unpacks them.
fn download(suite: &str, place: &Path) -> Result<()> {
    for directory in [
        "state/lists/partial",
        "cache/archives/partial",
        "debs",
        "root",
    ] {
        fs_err::create_dir_all(place.join(directory))?;
    }
    let mirror = debian::mirror();
    let mirror = mirror.as_deref().unwrap_or("http://deb.debian.org/debian");
    let list = place.join("sources.list");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs_err::write(
        &list,
        format!("deb [signed-by={keyring}] {mirror} {suite} main\n"),
    )?;
    let status = place.join("status");
    fs_err::write(&status, "")?;
    let apt = |arguments: &[&str]| {
        // It downloads to where it is.
        let mut command = Cmd::new("env")
            .arg("-C")
            .arg(place.join("debs"))
            .args(["apt-get", "-q"])
            .deadline(Duration::from_mins(5));
        for (name, path) in [
            ("Dir::Etc::sourcelist", list.as_path()),
            ("Dir::Etc::sourceparts", Path::new("/dev/null")),
            ("Dir::State", &place.join("state")),
            ("Dir::State::status", &status),
            ("Dir::Cache", &place.join("cache")),
        ] {
            command = command.arg("-o").arg(format!("{name}={}", path.display()));
        }
        // Another suite's InRelease is no news, and root's downloads need no user of apt's own.
        let plain = [
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Acquire::Languages=none",
        ];
        command.args(plain).args(arguments).output()
    };
    again(|| {
        apt(&["update"])?;
        apt(&[&["download"], &PACKAGES[..]].concat())
    })?;
    for entry in fs_err::read_dir(place.join("debs"))? {
        Cmd::new("dpkg-deb")
            .arg("-x")
            .arg(entry?.path())
            .arg(place.join("root"))
            .output()?;
    }
    for directory in ["state", "cache", "debs"] {
        fs_err::remove_dir_all(place.join(directory))?;
    }
    Ok(())
}

/// Finds the loader below `now`, and returns where it will be below `root`.
fn loader(now: &Path, root: &Path) -> Result<PathBuf> {
    find(now, |name| name.starts_with("ld-linux"))
        .map(|path| root.join(path))
        .context("the C library has no loader")
}

/// Finds the directory of the libraries.
fn libraries(now: &Path, root: &Path) -> Result<PathBuf> {
    let path = find(now, |name| name.starts_with("libc.so."));
    let directory = path.as_deref().and_then(Path::parent);
    Ok(root.join(directory.context("there is no C library")?))
}

/// Returns the first file below `root/usr` with such a name, relative to `root`.
fn find(root: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let mut left = vec![root.join("usr")];
    while let Some(directory) = left.pop() {
        for entry in fs_err::read_dir(&directory).ok()?.flatten() {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_directory {
                left.push(entry.path());
            } else if entry.file_name().to_str().is_some_and(&wanted) {
                return entry.path().strip_prefix(root).ok().map(Path::to_owned);
            }
        }
    }
    None
}
