// SPDX-License-Identifier: Apache-2.0
//! A bill: an inventory with what it is of and when it was made, ready to be written.

use super::{Inventory, cyclonedx, spdx};
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What a bill is of.
#[derive(Clone, Debug)]
pub struct Subject {
    /// A name for people: an image's, or a result's id.
    pub name: String,
    /// SHA-256 of the image's manifest, if it is one, as hexadecimal digits.
    pub digest: Option<String>,
}

/// A bill of materials.
#[derive(Clone, Debug)]
pub struct Bill {
    /// What it is of.
    pub subject: Subject,
    /// What is in it.
    pub inventory: Inventory,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The version of the program that makes it.
    pub version: String,
}

impl Bill {
    /// Returns it as an SPDX 2.3 document.
    pub fn to_spdx(&self) -> Value {
        spdx::document(self)
    }

    /// Returns it as a `CycloneDX` 1.6 document.
    pub fn to_cyclonedx(&self) -> Value {
        cyclonedx::document(self)
    }

    /// Returns the time as RFC 3339 has it, to the second.
    pub(super) fn time(&self) -> String {
        // Times before year -9999 or after 9999 are nobody's.
        Timestamp::from_second(self.created)
            .unwrap_or_default()
            .to_string()
    }

    /// Returns a digest of all that is in the bill: what has the same digest is the same document.
    pub(super) fn digest(&self, format: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(format.as_bytes());
        part(self.version.as_bytes());
        part(&self.created.to_le_bytes());
        part(self.subject.name.as_bytes());
        part(
            self.subject
                .digest
                .as_deref()
                .unwrap_or_default()
                .as_bytes(),
        );
        part(format!("{:?}", self.inventory).as_bytes());
        hash.finalize().into()
    }
}
