// SPDX-License-Identifier: Apache-2.0
//! Licences as SPDX expressions.

use spdx::Expression;
use std::collections::BTreeSet;

/// The longest expression that is taken for one: parsing is no place for surprises.
const LONGEST: usize = 1024;

/// Returns an expression that documents may give as one, or `None` for a licence that has only a name.
pub(super) fn expression(licence: &str) -> Option<String> {
    if licence.len() > LONGEST {
        return None;
    }
    // References to texts of the document itself would lead nowhere.
    let parsed = Expression::parse(licence).ok()?;
    parsed
        .requirements()
        .all(|requirement| requirement.req.license.id().is_some())
        .then(|| licence.to_owned())
}

/// Adds a licence, or each of several that apply together.
pub(super) fn add(licences: &mut BTreeSet<String>, licence: &str) {
    if licence.contains(" OR ") {
        licences.insert(licence.to_owned());
    } else {
        licences.extend(licence.split(" AND ").map(str::to_owned));
    }
}

/// Returns what all of several licences together are.
pub(super) fn all_of(licences: BTreeSet<String>) -> Option<String> {
    let several = licences.len() > 1;
    let parts: Vec<String> = licences
        .into_iter()
        .map(|licence| {
            if several && licence.contains(" OR ") {
                format!("({licence})")
            } else {
                licence
            }
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(" AND "))
}

/// Turns a licence as Debian's copyright files have it (copyright-format 1.0, "License specification") into an expression, as far as its
/// parts are known.
pub(super) fn from_debian(licence: &str) -> String {
    let words = licence.split_ascii_whitespace();
    let words: Vec<String> = words
        .map(|word| {
            let bare = word.trim_end_matches(',');
            match bare {
                "or" => "OR".to_owned(),
                "and" | "and/or" => "AND".to_owned(),
                "with" => "WITH".to_owned(),
                other => short_name(other),
            }
        })
        .collect();
    words.join(" ")
}

/// copyright-format 1.0, "Short name", against the SPDX licence list.
fn short_name(name: &str) -> String {
    let (stem, later) = match name.strip_suffix('+') {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    let family = ["LGPL-", "AGPL-", "GPL-", "GFDL-"]
        .into_iter()
        .find_map(|family| stem.strip_prefix(family).map(|version| (family, version)));
    if let Some((family, version)) = family {
        let version = version.strip_suffix("-only").unwrap_or(version);
        let dotted = if version.contains('.') {
            version.to_owned()
        } else {
            format!("{version}.0")
        };
        let known = dotted
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        if known {
            let suffix = if later { "or-later" } else { "only" };
            return format!("{family}{dotted}-{suffix}");
        }
    }
    match name {
        "Expat" => "MIT",
        "BSD-2-clause" => "BSD-2-Clause",
        "BSD-3-clause" => "BSD-3-Clause",
        "BSD-4-clause" => "BSD-4-Clause",
        "Zlib" | "zlib" => "Zlib",
        "Artistic" => "Artistic-1.0",
        "Apache-2" => "Apache-2.0",
        "CC0" => "CC0-1.0",
        "MPL-2" => "MPL-2.0",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_names_become_expressions() {
        for (debian, wanted) in [
            ("GPL-2+", "GPL-2.0-or-later"),
            ("LGPL-2.1", "LGPL-2.1-only"),
            ("GPL-3+ or Expat", "GPL-3.0-or-later OR MIT"),
            ("BSD-3-clause and Artistic", "BSD-3-Clause AND Artistic-1.0"),
        ] {
            let made = from_debian(debian);
            assert_eq!(made, wanted);
            assert_eq!(expression(&made).as_deref(), Some(wanted));
        }
        assert_eq!(expression(&from_debian("public-domain")), None);
        assert_eq!(expression(&from_debian("GPL-x+")), None);
        assert_eq!(expression("LicenseRef-mine"), None);
        assert_eq!(expression(&"(".repeat(1000)), None);
    }
}
