// SPDX-License-Identifier: Apache-2.0
//! Installs the system programs that a task needs, on Debian and its relatives.

use crate::cmd::{Cmd, again};
use crate::workspace::{find_program, is_root};
use anyhow::{Result, bail};
use std::path::Path;

/// How a missing package shows.
#[derive(Clone, Copy)]
pub(crate) enum Sign {
    /// The program is not on the search path.
    Program(&'static str),
    /// The file does not exist.
    File(&'static str),
}

/// A Debian package that a task needs, and how to tell that it is there.
pub(crate) type Need = (Sign, &'static str);

/// What the tests use.
pub(crate) const TEST: &[Need] = &[
    (Sign::Program("btrfs"), "btrfs-progs"),
    (Sign::Program("mkfs.xfs"), "xfsprogs"),
    (Sign::Program("rsync"), "rsync"),
    (Sign::Program("zfs"), "zfs-fuse"),
    (Sign::Program("flock"), "util-linux"),
    (Sign::Program("runc"), "runc"),
    (Sign::Program("dockerd"), "docker.io"),
    (Sign::File("/bin/busybox"), "busybox-static"),
    (Sign::Program("debootstrap"), "debootstrap"),
    (
        Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        "debian-archive-keyring",
    ),
    (Sign::Program("openssl"), "openssl"),
    (Sign::Program("curl"), "curl"),
    (Sign::Program("tar"), "tar"),
    (Sign::Program("xz"), "xz-utils"),
    (Sign::Program("mkfs.ext4"), "e2fsprogs"),
    (Sign::Program("kill"), "procps"),
    (Sign::Program("setpriv"), "util-linux"),
    (Sign::Program("losetup"), "mount"),
    (Sign::Program("newuidmap"), "uidmap"),
    (Sign::Program("useradd"), "passwd"),
    (Sign::Program("tidy"), "tidy"),
    (Sign::Program("pebble"), "pebble"),
    (
        Sign::Program("chromium-headless-shell"),
        "chromium-headless-shell",
    ),
    (Sign::Program("docker-registry"), "docker-registry"),
    (Sign::Program("htpasswd"), "apache2-utils"),
    (Sign::Program("skopeo"), "skopeo"),
    (Sign::Program("umoci"), "umoci"),
];

/// What the demonstration uses.
pub(crate) const DEMO: &[Need] = &[
    (Sign::Program("debootstrap"), "debootstrap"),
    (
        Sign::File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        "debian-archive-keyring",
    ),
];

/// What the benchmark uses beside that.
pub(crate) const BENCH: &[Need] = &[(Sign::Program("mkfs.xfs"), "xfsprogs")];

/// The builders that the benchmark compares with, installed only on request.
pub(crate) const PEERS: &[Need] = &[
    (Sign::Program("btrfs"), "btrfs-progs"),
    (Sign::Program("runc"), "runc"),
    (Sign::Program("dockerd"), "docker.io"),
    (Sign::Program("buildah"), "buildah"),
    (Sign::Program("ocamlfind"), "ocaml-findlib"),
    (
        Sign::File("/usr/lib/ocaml/opam-file-format/META"),
        "libopam-file-format-ocaml-dev",
    ),
    (Sign::Program("docker-registry"), "docker-registry"),
    (Sign::Program("skopeo"), "skopeo"),
];

/// Returns the packages of `needs` that are not there.
pub(crate) fn missing(needs: &[Need]) -> Vec<&'static str> {
    let absent = |sign: &Sign| match sign {
        Sign::Program(name) => find_program(name).is_none(),
        Sign::File(path) => !Path::new(path).exists(),
    };
    let mut packages: Vec<_> = needs
        .iter()
        .filter(|(sign, _)| absent(sign))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    packages
}

/// Installs what is missing of `needs`; does nothing, and asks nobody, when all is there.
///
/// # Errors
///
/// When something is missing and we are not root, this is no Debian, or `apt-get` fails.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !is_root() {
        bail!("missing packages; install them as root: apt-get install {list}");
    }
    if find_program("apt-get").is_none() {
        bail!("missing, and there is no apt-get to install it with: {list}");
    }
    let apt = || {
        Cmd::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Others may be at it: apt-daily.
            .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
    };
    again(|| {
        apt().arg("update").run()?;
        apt()
            .args(["-y", "--no-install-recommends", "install"])
            .args(&packages)
            .run()
    })?;
    let still = missing(needs);
    if !still.is_empty() {
        bail!("installed, but still not found: {}", still.join(" "));
    }
    Ok(())
}
