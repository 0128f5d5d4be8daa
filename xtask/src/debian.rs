// SPDX-License-Identifier: Apache-2.0
//! The Debian root file system that tests and benchmarks use: made once by debootstrap, kept as a tar.

use crate::cmd::{Cmd, again};
use crate::filesystems::Scratch;
use crate::workspace;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The Debian release that is used.
const SUITE: &str = "bookworm";

/// Returns the tar, after making it if it is not there yet. Needs root the first time.
///
/// Two runs at once wait for each other; a run that dies leaves no half-written tar.
pub(crate) fn tar() -> Result<PathBuf> {
    let directory = workspace::target().join("fixtures");
    fs_err::create_dir_all(&directory)?;
    let tar = directory.join(format!("debian-{SUITE}-minbase.tar"));
    let lock = fs_err::File::create(directory.join("debian.lock"))?;
    lock.file().lock().context("lock the Debian fixture")?;
    if !tar.exists() {
        make(&tar)?;
    }
    Ok(tar)
}

fn make(tar: &Path) -> Result<()> {
    anyhow::ensure!(workspace::is_root(), "debootstrap needs root");
    let scratch = Scratch::create(Path::new("/var/tmp"))?;
    let root = scratch.path().join("root");
    again(|| {
        Cmd::new("debootstrap")
            .args(["--variant=minbase", SUITE])
            .arg(&root)
            // Without one debootstrap takes Debian's own default.
            .args(mirror())
            .deadline(Duration::from_mins(15))
            .output()
    })
    .context("make a Debian root with debootstrap")?;
    let unfinished = tar.with_extension("tar.unfinished");
    Cmd::new("tar")
        .args(["--sort=name", "--numeric-owner"])
        // Device nodes and downloaded packages are of no use to a build.
        .args([
            "--exclude=./dev/*",
            "--exclude=./var/cache/apt/archives/*.deb",
        ])
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&unfinished)
        .arg(".")
        .output()?;
    fs_err::rename(&unfinished, tar)?;
    scratch.close()
}

/// Returns the package mirror that this host's own apt uses for Debian.
pub(crate) fn mirror() -> Option<String> {
    workspace::find_program("apt-get")?;
    let listing = Cmd::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Created-By: Packages",
        ])
        .quiet()
        .output()
        .ok()?;
    choose_mirror(&listing)
}

/// Takes the mirror of our release, else any whose path is Debian's.
fn choose_mirror(listing: &str) -> Option<String> {
    let mut entries = listing.lines().filter_map(|line| line.split_once(' '));
    let is_debian = |uri: &str| uri.trim_end_matches('/').ends_with("/debian");
    let exact = entries
        .clone()
        .find(|(uri, release)| *release == SUITE && is_debian(uri));
    exact
        .or_else(|| entries.find(|(uri, _)| is_debian(uri)))
        .map(|(uri, _)| uri.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_of_the_release_comes_first() {
        let listing =
            "http://a/other/ bookworm\nhttp://b/debian/ trixie\nhttp://c/debian/ bookworm\n";
        assert_eq!(choose_mirror(listing).as_deref(), Some("http://c/debian"));
        let listing = "http://a/ubuntu/ noble\nhttp://b/debian/ trixie\n";
        assert_eq!(choose_mirror(listing).as_deref(), Some("http://b/debian"));
        assert_eq!(choose_mirror("http://a/ubuntu/ noble\n"), None);
    }
}
