// SPDX-License-Identifier: Apache-2.0
//! What opam has installed: every switch in the tree, wherever its root is, has a directory `.opam-switch` with `switch-state` and the opam
//! files of what is installed (opam manual, "Switches"; opam's src/state/switch).

use super::files::Files;
use super::licence;
use super::{Algorithm, Checksum, Found, Package, SbomError, package_url, warn_of_records};
use crate::tree::{Step, TreeError, Walk, read_failed};
use bstr::{BString, ByteSlice};
use obuild_opam::tree::Kind;
use obuild_opam::{Item, Value, parse};
use rustix::fs::FileType;
use std::collections::BTreeSet;

/// The longest opam file that is looked into; the longest published ones have some tens of kilobytes.
const OPAM_FILE: u64 = 1 << 20;

/// The longest state of a switch that is looked into: some hundred thousand packages. Of a longer one the opam files tell what is installed.
const STATE: u64 = 4 << 20;

/// What is kept of one string; more is cut off.
const LONGEST: usize = 4 << 10;

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
    if let Some(state) = files.document(state, STATE)? {
        let parsed = parse(&state);
        return Ok(strings(&parsed.items, "installed").into_iter().collect());
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
            describe(&mut record, &parse(&text).items);
            break;
        }
    }
    Ok(Some(record))
}

fn describe(package: &mut Package, items: &[Item<'_>]) {
    let first = |items: &[Item<'_>], name: &str| strings(items, name).into_iter().next();
    // opam manual, "license": several apply together.
    package.licence = licence::all_of(strings(items, "license").into_iter().collect());
    package.maintainer = first(items, "maintainer");
    package.summary = first(items, "synopsis");
    package.homepage = first(items, "homepage");
    let url = items.iter().find_map(|item| match item {
        Item::Block(block) if block.kind.text == "url" => Some(&block.items[..]),
        _ => None,
    });
    let url = url.unwrap_or_default();
    package.source = first(url, "src").or_else(|| first(url, "archive"));
    let sums = strings(url, "checksum").into_iter();
    package.checksums = sums.filter_map(|text| checksum(&text)).collect();
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

/// Returns the strings of a field, without those in filters and groups. Of several fields of that name the first counts.
fn strings(items: &[Item<'_>], name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let field = items.iter().find_map(|item| match item {
        Item::Field(field) if field.name.text == name => Some(&field.value),
        _ => None,
    });
    if let Some(value) = field {
        collect(value, &mut found);
    }
    found
}

/// Goes as deep as the parser lets trees be.
fn collect(value: &Value<'_>, found: &mut Vec<String>) {
    match &value.kind {
        Kind::String(text) => {
            let text = &text[..text.len().min(LONGEST)];
            found.push(text.to_str_lossy().into_owned());
        }
        Kind::List(values) | Kind::And(values) | Kind::Or(values) => {
            for value in values {
                collect(value, found);
            }
        }
        Kind::Option(inner, _) => collect(inner, found),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_found_by_their_field() {
        let text = br#"opam-version: "2.0"
# "no"
license: ["MIT" "ISC"] (* "no" (* "no" *) *)
depends: ["ocaml" {>= "4.08"} ("a" | "b")]
depopts: "x" | "y" {"z"}
synopsis: "tab\tA\065\x41\
   joined"
license: "again"
extra-source "z" { src: "no" }
"#;
        let parsed = parse(text);
        assert_eq!(parsed.errors, []);
        let strings = |name: &str| strings(&parsed.items, name);
        assert_eq!(strings("license"), ["MIT", "ISC"]);
        assert_eq!(strings("depends"), ["ocaml"]);
        assert_eq!(strings("depopts"), ["x", "y"]);
        assert_eq!(strings("synopsis"), ["tab\tAAAjoined"]);
        assert_eq!(strings("src"), [""; 0]);
    }
}
