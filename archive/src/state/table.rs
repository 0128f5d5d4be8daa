// SPDX-License-Identifier: Apache-2.0
//! What every package declares, as of the last synced commit.

use crate::Checksum;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};

/// What every package declares, by the path of its opam file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// By path: `packages/NAME/NAME.VERSION/opam`.
    pub packages: BTreeMap<String, Package>,
}

/// What a package declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its archives.
    pub sources: Vec<Declared>,
    /// What is wrong with its opam file.
    pub notes: Vec<Note>,
}

/// An archive that a package declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// `url`, or `extra-source "NAME"`.
    pub section: String,
    /// Where to fetch it from.
    pub url: String,
    /// Where else.
    pub mirrors: Vec<String>,
    /// What it must match, the strongest first.
    #[serde(with = "checksums")]
    pub checksums: Vec<Checksum>,
}

/// Something wrong with an opam file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// A short name, for programs.
    pub code: String,
    /// The line, counted from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

impl Declared {
    /// Returns the name under which this archive stands in the list of failures: its checksums.
    pub fn key(&self) -> String {
        let checksums = self.checksums.iter().map(ToString::to_string);
        checksums.collect::<Vec<_>>().join(" ")
    }
}

impl Table {
    /// Returns every checksum that a package declares.
    pub fn named(&self) -> HashSet<Checksum> {
        let sources = self.packages.values().flat_map(|package| &package.sources);
        sources
            .flat_map(|source| source.checksums.iter().cloned())
            .collect()
    }

    /// Returns how many different archives are declared, as far as their checksums tell.
    pub fn archives(&self) -> usize {
        let sources = self.packages.values().flat_map(|package| &package.sources);
        let strongest: HashSet<&Checksum> = sources
            .filter_map(|source| source.checksums.first())
            .collect();
        strongest.len()
    }

    /// Writes it, with a hash over all.
    pub(super) fn encode(&self) -> Vec<u8> {
        let data = postcard::to_allocvec(self).expect("strings and lists can be written");
        let mut whole = Sha256::digest(&data).to_vec();
        whole.extend(data);
        whole
    }

    /// Reads it; nothing if a bit is not as it was.
    pub(super) fn decode(whole: &[u8]) -> Option<Self> {
        let (hash, data) = whole.split_at_checked(32)?;
        if Sha256::digest(data).as_slice() != hash {
            return None;
        }
        postcard::from_bytes(data).ok()
    }
}

/// Checksums as the strings that opam files have.
mod checksums {
    use crate::Checksum;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        checksums: &[Checksum],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(checksums.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Checksum>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts
            .iter()
            .map(|text| text.parse().map_err(D::Error::custom))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_as_it_was_or_not_at_all() {
        let mut table = Table::default();
        let source = Declared {
            section: "url".to_owned(),
            url: "https://a.example/a.tgz".to_owned(),
            mirrors: vec!["https://b.example/a.tgz".to_owned()],
            checksums: vec![format!("md5={}", "0".repeat(32)).parse().expect("one")],
        };
        let package = Package {
            sources: vec![source.clone(), source],
            notes: vec![Note::default()],
        };
        table
            .packages
            .insert("packages/a/a.1/opam".to_owned(), package);
        assert_eq!((table.archives(), table.named().len()), (1, 1));
        let mut data = table.encode();
        assert_eq!(Table::decode(&data), Some(table));
        *data.last_mut().expect("not empty") ^= 1;
        assert_eq!(Table::decode(&data), None);
        assert_eq!(Table::decode(b"short"), None);
    }
}
