// SPDX-License-Identifier: Apache-2.0
//! Bills in SPDX 2.3 (ISO/IEC 5962 is 2.2.1), as JSON: chapters 6 to 11 of the specification and its `spdx-schema.json`.

use super::cyclonedx::is_url;
use super::{Algorithm, Bill, Checksum, Package, licence};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

const ROOT: &str = "SPDXRef-subject";
const DOCUMENT: &str = "SPDXRef-DOCUMENT";
/// Chapter 7.7: nobody has tried to say.
const UNSAID: &str = "NOASSERTION";

pub(super) fn document(bill: &Bill) -> Value {
    let subject = &bill.subject;
    let mut root = Map::new();
    root.insert("SPDXID".into(), ROOT.into());
    root.insert("name".into(), subject.name.clone().into());
    complete(&mut root);
    root.insert("primaryPackagePurpose".into(), "CONTAINER".into());
    if let Some(digest) = &subject.digest {
        let checksum = json!([{"algorithm": "SHA256", "checksumValue": digest}]);
        root.insert("checksums".into(), checksum);
    }
    let mut packages = vec![Value::from(root)];
    let mut relationships = vec![relationship(DOCUMENT, "DESCRIBES", ROOT)];
    if let Some(system) = &bill.inventory.system {
        let id = "SPDXRef-system";
        let mut part = Map::new();
        part.insert("SPDXID".into(), id.into());
        part.insert("name".into(), system.id.clone().into());
        if let Some(version) = &system.version {
            part.insert("versionInfo".into(), version.clone().into());
        }
        if let Some(name) = &system.name {
            part.insert("summary".into(), name.clone().into());
        }
        complete(&mut part);
        part.insert("primaryPackagePurpose".into(), "OPERATING-SYSTEM".into());
        packages.push(part.into());
        relationships.push(relationship(ROOT, "CONTAINS", id));
    }
    for package in &bill.inventory.packages {
        let id = identifier(package);
        relationships.push(relationship(ROOT, "CONTAINS", &id));
        packages.push(entry(package, id));
    }
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": DOCUMENT,
        "name": subject.name,
        "documentNamespace": format!("urn:obuild:sbom:{}", hex::encode(bill.digest("spdx"))),
        "creationInfo": {
            "created": bill.time(),
            "creators": [format!("Tool: obuild-{}", bill.version)],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

fn entry(package: &Package, id: String) -> Value {
    let mut entry = Map::new();
    entry.insert("SPDXID".into(), id.into());
    entry.insert("name".into(), package.name.clone().into());
    entry.insert("versionInfo".into(), package.version.clone().into());
    if let Some(summary) = &package.summary {
        entry.insert("summary".into(), summary.clone().into());
    }
    if let Some(homepage) = package.homepage.as_deref().filter(|url| is_url(url)) {
        entry.insert("homepage".into(), homepage.into());
    }
    if let Some(maintainer) = &package.maintainer {
        // Chapter 7.5: a person, with the address in round brackets.
        let who = maintainer.replace('<', "(").replace('>', ")");
        entry.insert("supplier".into(), format!("Person: {who}").into());
    }
    if !package.checksums.is_empty() {
        entry.insert("checksums".into(), checksums(&package.checksums));
    }
    if let Some(licence) = &package.licence {
        match licence::expression(licence) {
            Some(expression) => entry.insert("licenseDeclared".into(), expression.into()),
            // A licence that only has a name cannot be declared without its text (chapter 10).
            None => entry.insert("licenseComments".into(), licence.clone().into()),
        };
    }
    if let Some(source) = package.source.as_deref().filter(|url| is_url(url)) {
        entry.insert("downloadLocation".into(), source.into());
    }
    complete(&mut entry);
    let reference = json!({
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": package.url,
    });
    entry.insert("externalRefs".into(), json!([reference]));
    entry.into()
}

/// Adds what every package must have.
fn complete(package: &mut Map<String, Value>) {
    package.insert("filesAnalyzed".into(), false.into());
    for field in [
        "downloadLocation",
        "licenseConcluded",
        "licenseDeclared",
        "copyrightText",
    ] {
        package.entry(field).or_insert_with(|| UNSAID.into());
    }
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

/// Makes an identifier: letters, digits, `.` and `-` only (chapter 7.2), and no two alike.
fn identifier(package: &Package) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .take(100)
            .map(|character| match character {
                fine if fine.is_ascii_alphanumeric() || fine == '.' => fine,
                _ => '-',
            })
            .collect()
    };
    let digest = hex::encode(&Sha256::digest(package.url.as_bytes())[..8]);
    format!("SPDXRef-{}-{digest}", plain(&package.name))
}

fn checksums(checksums: &[Checksum]) -> Value {
    let name = |algorithm| match algorithm {
        Algorithm::Md5 => "MD5",
        Algorithm::Sha1 => "SHA1",
        Algorithm::Sha256 => "SHA256",
        Algorithm::Sha512 => "SHA512",
    };
    checksums
        .iter()
        .map(|sum| json!({"algorithm": name(sum.algorithm), "checksumValue": sum.digits}))
        .collect()
}
