// SPDX-License-Identifier: Apache-2.0
//! Statements about results, and signatures: in-toto statements, DSSE envelopes, keys and signatures as cosign has them.
//!
//! Pure: nothing here reads files, the environment or the clock, or reaches a registry. The formats are those of the in-toto attestation framework v1,
//! SLSA provenance v1, DSSE v1 and cosign's `specs/SIGNATURE_SPEC.md` and `specs/ATTESTATION_SPEC.md`.

mod cosign;
mod encrypted;
mod envelope;
mod key;
mod provenance;
mod statement;

pub use cosign::SimpleSigning;
pub use envelope::Envelope;
pub use key::{PublicKey, SigningKey};
pub use provenance::{BuildDefinition, Builder, Metadata, Provenance, RunDetails};
pub use statement::{CYCLONEDX, PROVENANCE, ResourceDescriptor, SPDX, Statement, sha256};

/// What is wrong with a key, a signature or what was signed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// The text is no key of the wanted kind.
    #[error("this is no {wanted}: {reason}")]
    BadKey {
        /// Which kind.
        wanted: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The key is encrypted and there is no password.
    #[error("the key is encrypted, and no password is given")]
    NoPassword,
    /// The key is encrypted with another password, or damaged.
    #[error("the password does not open the key")]
    WrongPassword,
    /// The system gives no random numbers.
    #[error("cannot make random numbers")]
    Random,
    /// The signature was not made by this key over this.
    #[error("the signature is not by this key")]
    BadSignature,
    /// A document is not what it should be.
    #[error("this is no {wanted}: {reason}")]
    BadDocument {
        /// What it should be: `signed envelope`.
        wanted: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl AttestError {
    fn key(wanted: &'static str, reason: impl Into<String>) -> Self {
        Self::BadKey {
            wanted,
            reason: reason.into(),
        }
    }

    pub(crate) fn document(wanted: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::BadDocument {
            wanted,
            reason: reason.to_string(),
        }
    }
}
