// SPDX-License-Identifier: Apache-2.0
//! Bills in `CycloneDX` 1.6 (ECMA-424), as JSON: its schema's `bom-1.6.schema.json`.

use super::{Algorithm, Bill, Checksum, Package, System, licence};
use serde_json::{Map, Value, json};

pub(super) fn document(bill: &Bill) -> Value {
    let subject = &bill.subject;
    let root = "subject";
    let mut component = json!({"type": "container", "bom-ref": root, "name": subject.name});
    if let Some(digest) = &subject.digest {
        component["hashes"] = json!([{"alg": "SHA-256", "content": digest}]);
    }
    let system = bill.inventory.system.as_ref();
    let packages = bill.inventory.packages.iter();
    let components: Vec<Value> = system
        .map(operating_system)
        .into_iter()
        .chain(packages.map(library))
        .collect();
    let held: Vec<&Value> = components.iter().map(|part| &part["bom-ref"]).collect();
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", uuid(bill.digest("cyclonedx"))),
        "version": 1,
        "metadata": {
            "timestamp": bill.time(),
            "tools": {"components": [{"type": "application", "name": "obuild", "version": bill.version}]},
            "component": component,
        },
        "dependencies": [{"ref": root, "dependsOn": held}],
        "components": components,
    })
}

fn operating_system(system: &System) -> Value {
    let mut component = Map::new();
    component.insert("type".into(), "operating-system".into());
    // No package URL begins like this.
    let reference = format!("os:{}", system.distribution());
    component.insert("bom-ref".into(), reference.into());
    component.insert("name".into(), system.id.clone().into());
    insert(&mut component, "version", system.version.as_ref());
    insert(&mut component, "description", system.name.as_ref());
    component.into()
}

fn library(package: &Package) -> Value {
    let mut component = Map::new();
    component.insert("type".into(), "library".into());
    component.insert("bom-ref".into(), package.url.clone().into());
    if let Some(maintainer) = &package.maintainer {
        component.insert("supplier".into(), json!({"name": maintainer}));
    }
    component.insert("name".into(), package.name.clone().into());
    component.insert("version".into(), package.version.clone().into());
    insert(&mut component, "description", package.summary.as_ref());
    if package.source.is_none() && !package.checksums.is_empty() {
        component.insert("hashes".into(), hashes(&package.checksums));
    }
    if let Some(text) = &package.licence {
        let licence = match licence::expression(text) {
            Some(expression) => json!([{"expression": expression}]),
            None => json!([{"license": {"name": text}}]),
        };
        component.insert("licenses".into(), licence);
    }
    component.insert("purl".into(), package.url.clone().into());
    let mut references = Vec::new();
    // Only what is a URL is let in: the schema's `iri-reference`.
    if let Some(url) = package.homepage.as_deref().filter(|url| is_url(url)) {
        references.push(json!({"type": "website", "url": url}));
    }
    if let Some(url) = package.source.as_deref().filter(|url| is_url(url)) {
        let mut reference = json!({"type": "source-distribution", "url": url});
        if !package.checksums.is_empty() {
            reference["hashes"] = hashes(&package.checksums);
        }
        references.push(reference);
    }
    if !references.is_empty() {
        component.insert("externalReferences".into(), references.into());
    }
    component.into()
}

fn insert(component: &mut Map<String, Value>, name: &str, value: Option<&String>) {
    if let Some(value) = value {
        component.insert(name.into(), value.clone().into());
    }
}

fn hashes(checksums: &[Checksum]) -> Value {
    let name = |algorithm| match algorithm {
        Algorithm::Md5 => "MD5",
        Algorithm::Sha1 => "SHA-1",
        Algorithm::Sha256 => "SHA-256",
        Algorithm::Sha512 => "SHA-512",
    };
    checksums
        .iter()
        .map(|sum| json!({"alg": name(sum.algorithm), "content": sum.digits}))
        .collect()
}

/// Returns whether a text can stand where a document wants a URL (RFC 3986, section 2: no blanks, quotes or brackets).
pub(super) fn is_url(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, rest)| {
        !rest.is_empty()
            && scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    }) && text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte))
}

/// Makes a UUID of a digest: version 8, whose bits are the maker's own (RFC 9562, section 5.8).
fn uuid(digest: [u8; 32]) -> String {
    let mut bytes: [u8; 16] = std::array::from_fn(|at| digest[at]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..]
    )
}
