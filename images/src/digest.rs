// SPDX-License-Identifier: Apache-2.0
//! SHA-256 digests as image documents write them, and the hashing of streams.

use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Read};

/// A SHA-256 digest, written `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec v1.1 descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub(crate) [u8; 32]);

impl Digest {
    /// Returns the raw digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Takes a digest that was computed elsewhere.
    pub fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Hashes bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Parses `sha256:…`; the error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((algorithm, digits)) = text.split_once(':') else {
            return Err(format!("{text:?} is not a digest"));
        };
        if algorithm != "sha256" {
            return Err(format!(
                "the digest algorithm {algorithm:?} is not supported, only sha256 is"
            ));
        }
        let mut digest = [0; 32];
        if digits.bytes().any(|byte| byte.is_ascii_uppercase())
            || hex::decode_to_slice(digits, &mut digest).is_err()
        {
            return Err(format!("{text:?} is not a digest"));
        }
        Ok(Self(digest))
    }

    /// Returns the hexadecimal digits alone: the blob's file name.
    pub fn digits(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.digits())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

/// Hashes what is read through it.
pub(crate) struct Hashing<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(from: R) -> Self {
        Self {
            from,
            hash: Sha256::new(),
        }
    }

    /// Returns the digest of what was read.
    pub(crate) fn finish(self) -> Digest {
        Digest(self.hash.finalize().into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.hash.update(&buffer[..length]);
        Ok(length)
    }
}

/// Hashes all that a reader has.
pub(crate) fn digest_of(
    mut reader: impl Read,
    mut tick: impl FnMut() -> bool,
) -> io::Result<Option<Digest>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        if tick() {
            return Ok(None);
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Some(Digest(hash.finalize().into()))),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
