// SPDX-License-Identifier: Apache-2.0
//! What opam has installed: every switch in the tree, wherever its root is, has a directory `.opam-switch` with `switch-state` and the opam
//! files of what is installed (opam manual, "Switches"; opam's src/state/switch).

mod syntax;

use super::files::Files;
use super::licence;
use super::{Algorithm, Checksum, Found, Package, SbomError, package_url, warn_of_records};
use crate::tree::{Step, TreeError, Walk, read_failed};
use bstr::{BString, ByteSlice};
use rustix::fs::FileType;
use std::collections::BTreeSet;
use syntax::Fields;

/// The longest opam file that is looked into; the longest published ones have some tens of kilobytes.
const OPAM_FILE: u64 = 1 << 20;

const SWITCH: &[u8] = b".opam-switch";

pub(super) fn read(files: &Files<'_>, found: &mut Found) -> Result<(), SbomError> {
    for switch in switches(files)? {
        let mut wrong = 0;
        let state = [&switch[..], b"switch-state"].join(&b'/');
        for package in installed(files, &switch, &state)? {
            match package_of(files, &switch, &package)? {
                Some(package) => found.add(package)?,
                None => wrong += 1,
            }
        }
        warn_of_records(&state, wrong);
    }
    Ok(())
}

/// Finds the switches' directories.
fn switches(files: &Files<'_>) -> Result<Vec<BString>, SbomError> {
    let mut switches = Vec::new();
    let mut walk = Walk::new(files.root).map_err(read_failed("open", b"/".as_bstr()))?;
    loop {
        let step = walk.next();
        match step.map_err(|error| read_failed("read", walk.path())(error))? {
            None => return Ok(switches),
            Some(Step::Left) => {}
            Some(Step::Entry(stat)) => {
                if (files.cancelled)() {
                    return Err(TreeError::Cancelled.into());
                }
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    continue;
                }
                if walk.name() == SWITCH {
                    switches.push(walk.path().to_owned());
                    // Sources and builds in it have nothing of their own.
                    continue;
                }
                let entered = walk.enter();
                entered.map_err(|error| read_failed("open", walk.path())(error))?;
            }
        }
    }
}

/// Returns the installed packages as `NAME.VERSION`: by the switch's state, else by the opam files that are there.
fn installed(
    files: &Files<'_>,
    switch: &[u8],
    state: &[u8],
) -> Result<BTreeSet<String>, SbomError> {
    if let Some(state) = files.database(state)? {
        return Ok(Fields::parse(&state)
            .all("installed")
            .iter()
            .cloned()
            .collect());
    }
    let names = files.names(&[switch, b"packages"].join(&b'/'))?;
    Ok(names
        .iter()
        .map(|name| name.to_str_lossy().into_owned())
        .collect())
}

/// Makes a record of an installed package; `None` if it is not written `NAME.VERSION`.
fn package_of(
    files: &Files<'_>,
    switch: &[u8],
    package: &str,
) -> Result<Option<Package>, SbomError> {
    // opam manual, "Package names" and "Versions"; besides, this becomes a path.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_+.~".contains(&byte);
    let Some((name, version)) = package.split_once('.') else {
        return Ok(None);
    };
    if name.is_empty() || !package.bytes().all(fits) {
        return Ok(None);
    }
    let Some(url) = package_url("opam", None, name, version, &[]) else {
        return Ok(None);
    };
    let mut record = Package {
        url,
        name: name.to_owned(),
        version: version.to_owned(),
        ..Package::default()
    };
    // What was pinned is described apart.
    for path in [
        format!("packages/{package}/opam"),
        format!("overlay/{name}/opam"),
    ] {
        let path = [switch, path.as_bytes()].join(&b'/');
        if let Some(text) = files.document(&path, OPAM_FILE)? {
            describe(&mut record, &Fields::parse(&text));
            break;
        }
    }
    Ok(Some(record))
}

fn describe(package: &mut Package, fields: &Fields) {
    let first = |name: &str| fields.all(name).first().cloned();
    // opam manual, "license": several apply together.
    let licences = fields.all("license").iter().cloned().collect();
    package.licence = licence::all_of(licences);
    package.maintainer = first("maintainer");
    package.summary = first("synopsis");
    package.homepage = first("homepage");
    package.source = first("url.src").or_else(|| first("url.archive"));
    let sums = fields.all("url.checksum").iter();
    package.checksums = sums.filter_map(|text| checksum(text)).collect();
    package.checksums.sort();
    package.checksums.dedup();
}

/// `md5=…`, `sha256=…` or `sha512=…`; without a name it is MD5 (opam manual, "url section").
fn checksum(text: &str) -> Option<Checksum> {
    let (algorithm, digits) = match text.split_once('=') {
        None => (Algorithm::Md5, text),
        Some(("md5", digits)) => (Algorithm::Md5, digits),
        Some(("sha256", digits)) => (Algorithm::Sha256, digits),
        Some(("sha512", digits)) => (Algorithm::Sha512, digits),
        Some(_) => return None,
    };
    Checksum::parse(algorithm, digits)
}
