// SPDX-License-Identifier: Apache-2.0
//! Checksums as opam files declare them and as the cache's layout names them: `sha256=2cf2…`, `sha256/2c/2cf2…`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The kinds of checksum that opam knows (opam manual, "url"), and sha384, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// 128 bits, broken; still what thousands of packages declare.
    Md5,
    /// 256 bits.
    Sha256,
    /// 384 bits. No opam release accepts it; it is verified where somebody declares it.
    Sha384,
    /// 512 bits.
    Sha512,
}

impl Algorithm {
    /// Every kind, from the weakest to the strongest.
    pub const ALL: [Self; 4] = [Self::Md5, Self::Sha256, Self::Sha384, Self::Sha512];

    /// Returns the name, as before the `=` and in the cache's layout.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns how many hexadecimal digits a digest of this kind has.
    pub fn digits(self) -> usize {
        match self {
            Self::Md5 => 32,
            Self::Sha256 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }

    /// Returns the kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
    }
}

/// A digest and its kind. The order is that of strength, then of the digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Checksum {
    algorithm: Algorithm,
    digest: Box<str>,
}

impl Checksum {
    /// Makes a checksum from a digest in hexadecimal, of either case.
    pub fn new(algorithm: Algorithm, digest: &str) -> Result<Self, BadChecksum> {
        if digest.len() != algorithm.digits() {
            return Err(BadChecksum::Length {
                algorithm,
                digits: digest.len(),
            });
        }
        if !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadChecksum::Digits);
        }
        Ok(Self {
            algorithm,
            digest: digest.to_ascii_lowercase().into(),
        })
    }

    /// Returns the kind.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the digest in lower-case hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns where opam's cache layout has the archive: `sha256/2c/2cf2…` (opam `src/repository/opamRepositoryPath.ml`).
    pub fn path(&self) -> PathBuf {
        [self.algorithm.name(), &self.digest[..2], &self.digest]
            .iter()
            .collect()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.algorithm.name(), self.digest)
    }
}

impl FromStr for Checksum {
    type Err = BadChecksum;

    /// Reads `KIND=DIGEST`; a bare digest is md5, as in opam.
    fn from_str(text: &str) -> Result<Self, BadChecksum> {
        let (name, digest) = text.split_once('=').unwrap_or(("md5", text));
        let algorithm = Algorithm::from_name(name).ok_or_else(|| BadChecksum::Algorithm {
            name: name.to_owned(),
        })?;
        Self::new(algorithm, digest)
    }
}

/// Why a text is no checksum.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChecksum {
    /// The kind is not one that is verified.
    #[error("{name:?} is no kind of checksum that is known: md5, sha256, sha384 or sha512")]
    Algorithm {
        /// What stands before the `=`.
        name: String,
    },
    /// The digest is that of another kind, or cut off.
    #[error("a {} digest has {} hexadecimal digits, not {digits}", .algorithm.name(), .algorithm.digits())]
    Length {
        /// The kind that is named.
        algorithm: Algorithm,
        /// How long the digest is.
        digits: usize,
    },
    /// Something else than digits.
    #[error("a digest has hexadecimal digits only")]
    Digits,
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, BadChecksum, Checksum};

    #[test]
    fn a_checksum_is_read_written_and_has_its_place() {
        let text = format!("sha256={}", "2C".repeat(32));
        let checksum: Checksum = text.parse().expect("a checksum");
        assert_eq!(checksum.to_string(), text.to_lowercase());
        assert_eq!(
            checksum.path().to_str(),
            Some(format!("sha256/2c/{}", "2c".repeat(32)).as_str())
        );
        let bare: Checksum = "0".repeat(32).parse().expect("a checksum");
        assert_eq!(bare.algorithm(), Algorithm::Md5);
        assert!(bare < checksum, "md5 is weaker");
    }

    #[test]
    fn what_is_no_checksum_says_why() {
        let refused = |text: &str| text.parse::<Checksum>().expect_err("refused");
        assert!(matches!(refused("sha1=00"), BadChecksum::Algorithm { .. }));
        assert!(matches!(
            refused(&format!("sha512={}", "0".repeat(64))),
            BadChecksum::Length { digits: 64, .. }
        ));
        assert_eq!(
            refused(&format!("md5={}", "z".repeat(32))),
            BadChecksum::Digits
        );
    }
}
