// SPDX-License-Identifier: Apache-2.0
//! What dpkg has installed: `/var/lib/dpkg/status`, and `/var/lib/dpkg/status.d/` of images that were put together without dpkg.
//! Formats: deb-control(5), dpkg's lib/dpkg/fields.c; the copyright file's by the Debian Policy, "Machine-readable debian/copyright".

use super::files::Files;
use super::paragraphs::{Paragraph, Paragraphs};
use super::{Found, Package, SbomError, System, licence, package_url, warn_of_records};
use std::collections::BTreeSet;

/// The longest copyright file that is looked into; the kernel's and TeX's have some hundred kilobytes.
const COPYRIGHT: u64 = 2 << 20;

pub(super) fn read(
    files: &Files<'_>,
    system: Option<&System>,
    found: &mut Found,
) -> Result<(), SbomError> {
    let path = b"var/lib/dpkg/status";
    if let Some(status) = files.database(path)? {
        add(files, system, path, &status, true, found)?;
    }
    let directory = b"var/lib/dpkg/status.d";
    for name in files.names(directory)? {
        // Lists of checksums of files lie beside the records.
        if name.ends_with(b".md5sums") {
            continue;
        }
        let path = [&directory[..], &name[..]].join(&b'/');
        if let Some(record) = files.database(&path)? {
            add(files, system, &path, &record, false, found)?;
        }
    }
    Ok(())
}

fn add(
    files: &Files<'_>,
    system: Option<&System>,
    path: &[u8],
    database: &[u8],
    has_states: bool,
    found: &mut Found,
) -> Result<(), SbomError> {
    let mut wrong = 0;
    for record in Paragraphs::new(database) {
        if has_states && !is_installed(&record) {
            continue;
        }
        match package(&record, system) {
            Some(mut package) => {
                package.licence = copyright(files, &package.name)?;
                found.add(package)?;
            }
            None => wrong += 1,
        }
    }
    warn_of_records(path, wrong);
    Ok(())
}

/// The third word of `Status` says what is there of the package; one that was removed may keep its configuration. Those that are unpacked but not
/// configured have their files in the tree.
fn is_installed(record: &Paragraph<'_>) -> bool {
    record.get("Status").is_some_and(|status| {
        !matches!(
            status.split_ascii_whitespace().nth(2),
            None | Some("not-installed" | "config-files")
        )
    })
}

fn package(record: &Paragraph<'_>, system: Option<&System>) -> Option<Package> {
    let name = record.get("Package")?;
    let version = record.get("Version")?;
    let architecture = record.get("Architecture").unwrap_or_default();
    let distribution = system.map(System::distribution).unwrap_or_default();
    // `Source: name (version)` is given where it differs from the package's own; scanners look up advisories by it.
    let source = record.get("Source").unwrap_or_default();
    let source = match source.split_once(" (") {
        Some((name, version)) => format!("{name}@{}", version.trim_end_matches(')')),
        None => source.into_owned(),
    };
    let url = package_url(
        "deb",
        Some(system.map_or("debian", |system| system.id.as_str())),
        &name,
        &version,
        &[
            ("arch", &architecture),
            ("distro", &distribution),
            ("upstream", &source),
        ],
    )?;
    Some(Package {
        url,
        name: name.into_owned(),
        version: version.into_owned(),
        maintainer: record.get("Maintainer").map(Into::into),
        summary: record.get("Description").map(Into::into),
        homepage: record.get("Homepage").map(Into::into),
        ..Package::default()
    })
}

/// Returns the licences that a package's copyright file names, if it is written for machines.
fn copyright(files: &Files<'_>, package: &str) -> Result<Option<String>, SbomError> {
    // Debian Policy, "Package": lower-case letters, digits, plus and minus signs, periods. Nothing else becomes a path.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if !package.bytes().all(fits) || package.starts_with('.') {
        return Ok(None);
    }
    let path = format!("usr/share/doc/{package}/copyright");
    let Some(text) = files.document(path.as_bytes(), COPYRIGHT)? else {
        return Ok(None);
    };
    Ok(licences(&text))
}

fn licences(copyright: &[u8]) -> Option<String> {
    let mut paragraphs = Paragraphs::new(copyright);
    let head = paragraphs.next()?;
    if !head.get("Format")?.contains("copyright-format/1.0") {
        return None;
    }
    let mut names = BTreeSet::new();
    for paragraph in std::iter::once(head).chain(paragraphs) {
        // The paragraphs that stand for files; those of a licence alone give its text.
        if (paragraph.get("Files").is_some() || paragraph.get("Format").is_some())
            && let Some(name) = paragraph.get("License")
        {
            licence::add(&mut names, &licence::from_debian(&name));
        }
    }
    licence::all_of(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_come_from_copyright_files_for_machines() {
        let text = b"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+\n\n\
                     Files: lib/*\nLicense: Expat or GPL-2+\n\nLicense: GPL-2+\n On Debian systems\n";
        assert_eq!(
            licences(text).as_deref(),
            Some("GPL-2.0-or-later AND (MIT OR GPL-2.0-or-later)")
        );
        assert_eq!(licences(b"This package was debianized by\n"), None);
    }
}
