// SPDX-License-Identifier: Apache-2.0
//! What cosign signs of an image: a "simple signing" document with the digest of its manifest (cosign `specs/SIGNATURE_SPEC.md`, "Payloads").

use super::AttestError;
use crate::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

const TYPE: &str = "cosign container image signature";

/// The document whose signature says that the key's owner stands for an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SimpleSigning {
    critical: Critical,
    optional: Option<Map<String, Value>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl SimpleSigning {
    /// Makes the document for an image: `reference` is its repository, which is for people only.
    pub fn new(reference: &str, digest: Digest) -> Self {
        Self {
            critical: Critical {
                identity: Identity {
                    reference: reference.to_owned(),
                },
                image: Image {
                    digest: digest.to_string(),
                },
                kind: TYPE.to_owned(),
            },
            optional: None,
        }
    }

    /// Reads a document whose signature has been verified, and checks that it is about this image.
    pub fn check(payload: &[u8], digest: Digest) -> Result<(), AttestError> {
        let wanted = "signature of this image";
        let document: Self = serde_json::from_slice(payload)
            .map_err(|error| AttestError::document(wanted, error))?;
        if document.critical.kind != TYPE {
            let reason = format!("it is a {:?}", document.critical.kind);
            return Err(AttestError::document(wanted, reason));
        }
        if document.critical.image.digest != digest.to_string() {
            let reason = format!("it is of {}", document.critical.image.digest);
            return Err(AttestError::document(wanted, reason));
        }
        Ok(())
    }

    /// Returns the bytes to sign.
    pub fn to_bytes(&self) -> Result<Vec<u8>, AttestError> {
        serde_json::to_vec(self).map_err(|error| AttestError::document("payload", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_cosigns() {
        let digest = Digest::of(b"");
        let payload = SimpleSigning::new("example.org/x", digest)
            .to_bytes()
            .expect("JSON");
        assert_eq!(
            String::from_utf8_lossy(&payload),
            format!(
                r#"{{"critical":{{"identity":{{"docker-reference":"example.org/x"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
            )
        );
        SimpleSigning::check(&payload, digest).expect("it is its own");
        SimpleSigning::check(&payload, Digest::of(b"x")).expect_err("it is another's");
        SimpleSigning::check(b"{}", digest).expect_err("it is no payload");
    }
}
