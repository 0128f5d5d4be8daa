// SPDX-License-Identifier: Apache-2.0
//! DSSE envelopes: a document with signatures over it and its type. secure-systems-lab/dsse v1.0.2 `protocol.md` and `envelope.md`.

use super::{AttestError, PublicKey, SigningKey, Statement};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};

/// What an in-toto statement is called in an envelope.
const IN_TOTO: &str = "application/vnd.in-toto+json";

/// A signed document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    /// Says nothing that may be relied on; cosign leaves it empty.
    #[serde(default)]
    keyid: String,
    sig: String,
}

impl Envelope {
    /// Signs a statement.
    pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Self, AttestError> {
        let payload = serde_json::to_vec(statement)
            .map_err(|error| AttestError::document("in-toto statement", error))?;
        let signature = key.sign(&authenticated(IN_TOTO, &payload))?;
        Ok(Self {
            payload_type: IN_TOTO.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![Signature {
                keyid: String::new(),
                sig: STANDARD.encode(signature),
            }],
        })
    }

    /// Reads an envelope. It has not been verified then.
    pub fn parse(text: &[u8]) -> Result<Self, AttestError> {
        serde_json::from_slice(text)
            .map_err(|error| AttestError::document("signed envelope", error))
    }

    /// Returns the statement if one of the signatures is by this key.
    ///
    /// # Errors
    ///
    /// [`AttestError::BadSignature`] if none is. What is inside is looked at only when one is.
    pub fn verify(&self, key: &PublicKey) -> Result<Statement, AttestError> {
        let payload = decode(&self.payload)?;
        let signed = authenticated(&self.payload_type, &payload);
        let mut signatures = self.signatures.iter();
        if !signatures.any(|signature| {
            decode(&signature.sig).is_ok_and(|signature| key.verify(&signed, &signature).is_ok())
        }) {
            return Err(AttestError::BadSignature);
        }
        if self.payload_type != IN_TOTO {
            let reason = format!("it holds {:?}", self.payload_type);
            return Err(AttestError::document("in-toto statement", reason));
        }
        Statement::parse(&payload)
    }
}

/// Either alphabet is allowed (`envelope.md`).
fn decode(text: &str) -> Result<Vec<u8>, AttestError> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .map_err(|error| AttestError::document("signed envelope", error))
}

/// Returns what is signed: the type and the document, with their lengths (`protocol.md`, "PAE").
fn authenticated(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut signed = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    signed.extend_from_slice(payload);
    signed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::{ResourceDescriptor, sha256};
    use serde_json::json;

    #[test]
    fn the_signed_text_is_that_of_the_specification() {
        // The test vector of `protocol.md`.
        let signed = authenticated("http://example.com/HelloWorld", b"hello world");
        assert_eq!(
            signed,
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn a_statement_comes_out_as_it_went_in_or_not_at_all() {
        let subject = ResourceDescriptor {
            name: Some("it".into()),
            digest: sha256("ab"),
            ..ResourceDescriptor::default()
        };
        let statement = Statement::new(vec![subject], "https://example.org/x", json!({"a": 1}));
        let (key, _) = SigningKey::generate().expect("a key");
        let (other, _) = SigningKey::generate().expect("a key");
        let envelope = Envelope::sign(&statement, &key).expect("it is signed");
        let text = serde_json::to_vec(&envelope).expect("it is JSON");
        let read = Envelope::parse(&text).expect("an envelope");
        let out = read.verify(key.public()).expect("it is good");
        assert_eq!(out, statement);
        assert!(out.is_about("ab") && !out.is_about("cd"));
        assert!(matches!(
            read.verify(other.public()),
            Err(AttestError::BadSignature)
        ));
        let second = Envelope::sign(&statement, &other).expect("it is signed");
        let mut both = read.clone();
        both.signatures.extend(second.signatures);
        assert!(both.verify(other.public()).is_ok());

        let mut changed = read.clone();
        changed.payload = STANDARD.encode(br#"{"a": 2}"#);
        assert!(changed.verify(key.public()).is_err());
        let mut changed = read;
        changed.payload_type = "text/plain".into();
        assert!(matches!(
            changed.verify(key.public()),
            Err(AttestError::BadSignature)
        ));
    }
}
