// SPDX-License-Identifier: Apache-2.0
//! in-toto statements, v1: what is said (the predicate) of what (the subjects). in-toto/attestation `spec/v1/statement.md`.

use super::AttestError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const TYPE: &str = "https://in-toto.io/Statement/v1";
/// The predicate type of SLSA provenance v1.
pub const PROVENANCE: &str = "https://slsa.dev/provenance/v1";
/// The predicate type of SPDX documents (in-toto/attestation `spec/predicates/spdx.md`).
pub const SPDX: &str = "https://spdx.dev/Document";
/// The predicate type of `CycloneDX` documents (in-toto/attestation `spec/predicates/cyclonedx.md`).
pub const CYCLONEDX: &str = "https://cyclonedx.org/bom";

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    /// What it is about.
    pub subject: Vec<ResourceDescriptor>,
    /// What the predicate is.
    pub predicate_type: String,
    /// What is said.
    pub predicate: Value,
}

/// A thing, by name and digests (in-toto/attestation `spec/v1/resource_descriptor.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceDescriptor {
    /// What tells it from others in the same list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is called everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Digests by algorithm, as hexadecimal digits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digest: BTreeMap<String, String>,
    /// More about it.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Map<String, Value>,
}

/// Returns a set of digests that has one SHA-256, given as hexadecimal digits.
pub fn sha256(digits: impl Into<String>) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), digits.into())])
}

impl Statement {
    /// Makes a statement.
    pub fn new(subject: Vec<ResourceDescriptor>, predicate_type: &str, predicate: Value) -> Self {
        Self {
            kind: TYPE.to_owned(),
            subject,
            predicate_type: predicate_type.to_owned(),
            predicate,
        }
    }

    /// Reads a statement; also one of version 0.1, which many tools still write.
    pub fn parse(text: &[u8]) -> Result<Self, AttestError> {
        let wanted = "in-toto statement";
        let statement: Self =
            serde_json::from_slice(text).map_err(|error| AttestError::document(wanted, error))?;
        match statement.kind.as_str() {
            TYPE | "https://in-toto.io/Statement/v0.1" => Ok(statement),
            other => Err(AttestError::document(
                wanted,
                format!("it is of type {other:?}"),
            )),
        }
    }

    /// Returns whether it is about what has this SHA-256.
    pub fn is_about(&self, digits: &str) -> bool {
        let mut subjects = self.subject.iter();
        subjects.any(|subject| subject.digest.get("sha256").is_some_and(|it| it == digits))
    }
}
