// SPDX-License-Identifier: Apache-2.0
//! Private keys as cosign encrypts them: scrypt (RFC 7914) makes a key of the password, `NaCl`'s secretbox holds the private key
//! (go-securesystemslib, package `encrypted`, which cosign's `generate-key-pair` writes).

use super::AttestError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_secretbox::aead::Aead;
use crypto_secretbox::{KeyInit, XSalsa20Poly1305};
use serde::Deserialize;

/// The most memory that deriving the key may take; cosign's parameters take 32 or 64 MiB.
const MEMORY: u64 = 256 << 20;
/// The most passes over it.
const PASSES: u32 = 16;

#[derive(Deserialize)]
struct Document {
    kdf: Derivation,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Derivation {
    name: String,
    params: Parameters,
    salt: String,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// Decrypts a key; returns its PKCS #8.
pub(super) fn open(text: &[u8], password: &[u8]) -> Result<Vec<u8>, AttestError> {
    let bad = |reason: &str| AttestError::key("encrypted private key", reason);
    let document: Document =
        serde_json::from_slice(text).map_err(|error| bad(&error.to_string()))?;
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| bad("it is not base64"));
    if document.kdf.name != "scrypt" || document.cipher.name != "nacl/secretbox" {
        return Err(bad("it is encrypted in a way that is not known"));
    }
    let Parameters { n, r, p } = document.kdf.params;
    // RFC 7914, section 2: 128 * N * r bytes.
    let memory = n.checked_mul(128 * u64::from(r));
    if !n.is_power_of_two() || p > PASSES || memory.is_none_or(|memory| memory > MEMORY) {
        return Err(bad("its scrypt parameters are out of bounds"));
    }
    // Within MEMORY it is less than 64.
    let log_n = u8::try_from(n.ilog2()).unwrap_or(u8::MAX);
    let parameters = scrypt::Params::new(log_n, r, p, 32)
        .map_err(|_| bad("its scrypt parameters are out of bounds"))?;
    let mut key = [0; 32];
    scrypt::scrypt(
        password,
        &decode(&document.kdf.salt)?,
        &parameters,
        &mut key,
    )
    .map_err(|_| bad("its scrypt parameters are out of bounds"))?;
    let nonce = <[u8; 24]>::try_from(decode(&document.cipher.nonce)?)
        .map_err(|_| bad("its nonce has the wrong length"))?;
    XSalsa20Poly1305::new(&key.into())
        .decrypt(&nonce.into(), decode(&document.ciphertext)?.as_slice())
        .map_err(|_| AttestError::WrongPassword)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_take_too_much_are_refused() {
        let with = |n: u64, r: u32, p: u32, salt: &str| {
            format!(
                r#"{{"kdf":{{"name":"scrypt","params":{{"N":{n},"r":{r},"p":{p}}},"salt":"{salt}"}},
                "cipher":{{"name":"nacl/secretbox","nonce":""}},"ciphertext":""}}"#
            )
        };
        for text in [
            with(1 << 40, 8, 1, ""),
            with(u64::MAX, u32::MAX, 1, ""),
            with(0, 8, 1, ""),
            with(1, 8, 1, ""),
            with(16, 0, 1, ""),
            with(16, 8, 0, ""),
            with(16, 8, 1000, ""),
            with(16, 8, 1, "%"),
            with(16, 8, 1, ""),
            "{}".to_owned(),
            String::new(),
        ] {
            let opened = open(text.as_bytes(), b"");
            assert!(matches!(opened, Err(AttestError::BadKey { .. })), "{text}");
        }
    }
}
