// SPDX-License-Identifier: Apache-2.0
//! What apk has installed: `/lib/apk/db/installed`, by the names that apk-tools' `src/database.c` and `src/package.c` give the fields.

use super::files::Files;
use super::paragraphs::{Paragraph, Paragraphs};
use super::{Algorithm, Checksum, Found, Package, SbomError, System, package_url, warn_of_records};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(super) fn read(
    files: &Files<'_>,
    system: Option<&System>,
    found: &mut Found,
) -> Result<(), SbomError> {
    // Where newer releases, whose `/lib` is a link, have it too.
    for path in ["lib/apk/db/installed", "usr/lib/apk/db/installed"] {
        let Some(database) = files.database(path.as_bytes())? else {
            continue;
        };
        let mut wrong = 0;
        for record in Paragraphs::new(&database) {
            match package(&record, system) {
                Some(package) => found.add(package)?,
                None => wrong += 1,
            }
        }
        warn_of_records(path.as_bytes(), wrong);
        break;
    }
    Ok(())
}

fn package(record: &Paragraph<'_>, system: Option<&System>) -> Option<Package> {
    let name = record.get_exact("P")?;
    let version = record.get_exact("V")?;
    let architecture = record.get_exact("A").unwrap_or_default();
    let distribution = system.map(System::distribution).unwrap_or_default();
    let origin = record.get_exact("o").unwrap_or_default();
    let origin = if origin == name { "" } else { &*origin };
    let url = package_url(
        "apk",
        Some(system.map_or("alpine", |system| system.id.as_str())),
        &name,
        &version,
        &[
            ("arch", &architecture),
            ("distro", &distribution),
            ("upstream", origin),
        ],
    )?;
    let checksum = record.get_exact("C").and_then(|text| checksum(&text));
    Some(Package {
        url,
        name: name.into_owned(),
        version: version.into_owned(),
        licence: record.get_exact("L").map(Into::into),
        maintainer: record.get_exact("m").map(Into::into),
        summary: record.get_exact("T").map(Into::into),
        homepage: record.get_exact("U").map(Into::into),
        checksums: checksum.into_iter().collect(),
        ..Package::default()
    })
}

/// `Q1` and the SHA-1, or `Q2` and the SHA-256, of the package's control part in base64.
fn checksum(text: &str) -> Option<Checksum> {
    let (algorithm, text) = match text.split_at_checked(2)? {
        ("Q1", text) => (Algorithm::Sha1, text),
        ("Q2", text) => (Algorithm::Sha256, text),
        _ => return None,
    };
    Checksum::parse(algorithm, &hex::encode(STANDARD.decode(text).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_base64_of_the_right_length() {
        let made = checksum("Q1qKcZ+j23xssAXmgQhkOO8dHnbWw=").expect("it is one");
        assert_eq!(made.algorithm, Algorithm::Sha1);
        assert_eq!(made.digits, "a8a719fa3db7c6cb005e681086438ef1d1e76d6c");
        for wrong in [
            "",
            "Q",
            "Q1",
            "Q1AAAA",
            "Q3qKcZ+j23xssAXmgQhkOO8dHnbWw=",
            "Qé",
        ] {
            assert_eq!(checksum(wrong), None, "{wrong}");
        }
    }
}
