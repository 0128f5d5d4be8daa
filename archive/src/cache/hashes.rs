// SPDX-License-Identifier: Apache-2.0
//! All checksums of one archive, computed in one pass.
//!
//! A client asks a cache for the first checksum that the opam file lists, whatever its kind (opam
//! `src/repository/opamRepository.ml`, `fetch_from_cache`). With md5, sha256 and sha512 of everything at hand each
//! archive is reachable under every name that any package, now or later, gives it. sha384 is computed on demand: no opam
//! release asks for it.

use crate::{Algorithm, Checksum};
use sha2::digest::{Digest, DynDigest};
use std::io::{self, Read};

/// How much is read and hashed at a time.
pub(crate) const BLOCK: usize = 128 * 1024;

/// Hashes a stream of bytes in every kind at once.
pub(crate) struct Hasher {
    kinds: Vec<(Algorithm, Box<dyn DynDigest + Send>)>,
    size: u64,
}

impl Hasher {
    /// Starts a stream; `sha384` tells whether that is wanted too.
    pub(crate) fn new(sha384: bool) -> Self {
        let mut kinds: Vec<(Algorithm, Box<dyn DynDigest + Send>)> = vec![
            (Algorithm::Sha512, Box::new(sha2::Sha512::new())),
            (Algorithm::Sha256, Box::new(sha2::Sha256::new())),
            (Algorithm::Md5, Box::new(md5::Md5::new())),
        ];
        if sha384 {
            kinds.insert(1, (Algorithm::Sha384, Box::new(sha2::Sha384::new())));
        }
        Self { kinds, size: 0 }
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, data: &[u8]) {
        for (_, hasher) in &mut self.kinds {
            hasher.update(data);
        }
        self.size += data.len() as u64;
    }

    /// Forgets what was added.
    pub(crate) fn reset(&mut self) {
        for (_, hasher) in &mut self.kinds {
            hasher.reset();
        }
        self.size = 0;
    }

    /// Returns how many bytes were added.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Ends the stream.
    pub(crate) fn finish(self) -> Hashes {
        let checksums = self
            .kinds
            .into_iter()
            .map(|(algorithm, hasher)| {
                Checksum::new(algorithm, &hex::encode(hasher.finalize()))
                    .expect("a digest has as many digits as its kind")
            })
            .collect();
        Hashes {
            checksums,
            size: self.size,
        }
    }
}

/// Hashes all that a reader gives.
pub(crate) fn hash_reader(reader: &mut impl Read, sha384: bool) -> io::Result<Hashes> {
    let mut hasher = Hasher::new(sha384);
    let mut buffer = vec![0; BLOCK];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The checksums of one archive, the strongest first, and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    checksums: Vec<Checksum>,
    size: u64,
}

impl Hashes {
    /// Returns the strongest, under which the archive is kept.
    pub fn strongest(&self) -> &Checksum {
        &self.checksums[0]
    }

    /// Returns all that were computed, the strongest first.
    pub fn all(&self) -> &[Checksum] {
        &self.checksums
    }

    /// Returns the one of this kind, if it was computed.
    pub fn get(&self, algorithm: Algorithm) -> Option<&Checksum> {
        self.checksums
            .iter()
            .find(|checksum| checksum.algorithm() == algorithm)
    }

    /// Returns how long the archive is.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Compares with what was declared; returns each that is something else. One whose kind was not computed differs.
    pub fn mismatches(&self, declared: &[Checksum]) -> Vec<Mismatch> {
        declared
            .iter()
            .filter(|checksum| self.get(checksum.algorithm()) != Some(checksum))
            .map(|checksum| Mismatch {
                declared: checksum.clone(),
                found: self.get(checksum.algorithm()).cloned(),
            })
            .collect()
    }
}

/// A declared checksum, and what the archive really has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// What the opam file, or the name in a cache, says.
    pub declared: Checksum,
    /// What the bytes give.
    pub found: Option<Checksum>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.found {
            Some(found) => write!(
                formatter,
                "{} was declared, {found} is what it is",
                self.declared
            ),
            None => write!(formatter, "{} was declared", self.declared),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_computed_and_compared() {
        let hashes = hash_reader(&mut &b"abc"[..], true).expect("memory can be read");
        // RFC 1321 A.5 and FIPS 180-4's example values for "abc".
        let known = [
            "md5=900150983cd24fb0d6963f7d28e17f72",
            "sha256=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha384=cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            "sha512=ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ]
        .map(|text| text.parse::<Checksum>().expect("a checksum"));
        assert_eq!(hashes.mismatches(&known), []);
        assert_eq!(hashes.strongest(), &known[3]);
        assert_eq!(hashes.size(), 3);

        let wrong: Checksum = format!("md5={}", "0".repeat(32)).parse().expect("one");
        let mismatches = hashes.mismatches(&[wrong.clone(), known[1].clone()]);
        assert_eq!(mismatches.len(), 1);
        assert_eq!(mismatches[0].declared, wrong);
        assert_eq!(mismatches[0].found.as_ref(), Some(&known[0]));

        let without = hash_reader(&mut &b"abc"[..], false).expect("memory can be read");
        assert_eq!(without.mismatches(&known[2..3])[0].found, None);
    }
}
