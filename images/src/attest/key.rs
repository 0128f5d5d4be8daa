// SPDX-License-Identifier: Apache-2.0
//! Keys: ECDSA on P-256 over SHA-256, the scheme that cosign's specification asks of everybody ("Signature Schemes").
//!
//! Private keys are PKCS #8 (RFC 5958), plain or as cosign encrypts them; public keys `SubjectPublicKeyInfo` (RFC 5480); both in PEM (RFC 7468).

use super::{AttestError, encrypted};
use pem::{EncodeConfig, LineEnding, Pem};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use sha2::{Digest as _, Sha256};
use std::fmt;

const PRIVATE: &str = "private key";
const PUBLIC: &str = "public key";

/// What comes before the point in a P-256 key's `SubjectPublicKeyInfo`: the algorithm `id-ecPublicKey`, the curve `prime256v1`, and the
/// head of a bit string of 66 bytes (RFC 5480, section 2).
const INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A private key.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SigningKey")
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a new key. Returns it with its PEM.
    pub fn generate() -> Result<(Self, String), AttestError> {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
            .map_err(|_| AttestError::Random)?;
        let key = Self::from_pkcs8(document.as_ref())?;
        Ok((key, encode("PRIVATE KEY", document.as_ref())))
    }

    /// Reads a key. The password is for those that cosign has encrypted.
    pub fn parse(text: &[u8], password: Option<&[u8]>) -> Result<Self, AttestError> {
        let pem = pem::parse(text).map_err(|error| AttestError::key(PRIVATE, error.to_string()))?;
        match pem.tag() {
            "PRIVATE KEY" => Self::from_pkcs8(pem.contents()),
            // The second is what cosign wrote before its version 2.
            "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => {
                let password = password.ok_or(AttestError::NoPassword)?;
                Self::from_pkcs8(&encrypted::open(pem.contents(), password)?)
            }
            "EC PRIVATE KEY" => Err(AttestError::key(
                PRIVATE,
                "it is in the older format of OpenSSL; convert it with `openssl pkcs8 -topk8 -nocrypt`",
            )),
            other => Err(AttestError::key(PRIVATE, format!("it is a {other:?}"))),
        }
    }

    fn from_pkcs8(document: &[u8]) -> Result<Self, AttestError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document, &random)
            .map_err(|error| AttestError::key(PRIVATE, format!("not ECDSA P-256 ({error})")))?;
        let point = <[u8; 65]>::try_from(pair.public_key().as_ref())
            .map_err(|_| AttestError::key(PRIVATE, "not ECDSA P-256"))?;
        Ok(Self {
            pair,
            random,
            public: PublicKey { point },
        })
    }

    /// Returns the public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message. The signature is an `ECDSA-Sig-Value` in DER (RFC 3279, section 2.2.3), and another one each time.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AttestError> {
        let signature = self.pair.sign(&self.random, message);
        let signature = signature.map_err(|_| AttestError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// The point, uncompressed (SEC 1, section 2.3.3).
    point: [u8; 65],
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({})", self.fingerprint())
    }
}

impl PublicKey {
    /// Reads a key in PEM.
    pub fn parse(text: &[u8]) -> Result<Self, AttestError> {
        let pem = pem::parse(text).map_err(|error| AttestError::key(PUBLIC, error.to_string()))?;
        if pem.tag() != "PUBLIC KEY" {
            return Err(AttestError::key(PUBLIC, format!("it is a {:?}", pem.tag())));
        }
        let point = pem.contents().strip_prefix(&INFO);
        let point = point.and_then(|point| <[u8; 65]>::try_from(point).ok());
        match point {
            Some(point) if point[0] == 4 => Ok(Self { point }),
            _ => Err(AttestError::key(PUBLIC, "not ECDSA P-256")),
        }
    }

    /// Returns the key in PEM.
    pub fn to_pem(&self) -> String {
        encode("PUBLIC KEY", &self.to_der())
    }

    fn to_der(&self) -> Vec<u8> {
        [&INFO[..], &self.point].concat()
    }

    /// Returns the SHA-256 of the key's DER, as hexadecimal digits: its name for people.
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(self.to_der()))
    }

    /// Checks that the key's owner signed this message.
    ///
    /// # Errors
    ///
    /// [`AttestError::BadSignature`] if not.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), AttestError> {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.point)
            .verify(message, signature)
            .map_err(|_| AttestError::BadSignature)
    }
}

fn encode(tag: &str, contents: &[u8]) -> String {
    // 64 digits a line is RFC 7468's; so is the end of lines, where it lets us choose.
    let style = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(tag, contents), style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    /// Made with Python's hashlib.scrypt, `PyNaCl` 1.5 and cryptography: another implementation of all that it takes.
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----
eyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjozMjc2OCwiciI6
OCwicCI6MX0sInNhbHQiOiJBQUVDQXdRRkJnY0lDUW9MREEwT0R4QVJFaE1VRlJZ
WEdCa2FHeHdkSGg4PSJ9LCJjaXBoZXIiOnsibmFtZSI6Im5hY2wvc2VjcmV0Ym94
Iiwibm9uY2UiOiJaR1ZtWjJocGFtdHNiVzV2Y0hGeWMzUjFkbmQ0ZVhwNyJ9LCJj
aXBoZXJ0ZXh0IjoiL01JcFlPYkw5bUNsVkhCN0ZRSTJabCtkWkVSSHlIenNuUDVJ
K1BhdE9PMjJ1Y25MSXNFZXo5QUIwTEMxT0d3S3pGUmMzaUV6cGdMSW8wRk5BRTlL
T05WTi90V0NyaEFkRzVmQzh2SU1VaEJYNm9kclNEUUQ2YUExQjQ3Y3R2bUo4SEtm
cFpQVzF4Vm45UmNXMGlYM0EzMHZ5anJkS20vWk5MN2J6UUdWNjIvOWdTUkdDSzhj
bS85MGU2L0xOeGNMWlMyUVJrUXRISjZvOFE9PSJ9
-----END ENCRYPTED SIGSTORE PRIVATE KEY-----
";
    const PUBLIC_HALF: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE4simDtbreSgFTZ37MUKWjjNeEUlC
DKwySdtSoqG3qiIDJBjfOF2ElTKvC9y2sPjZziLK4r2x+w63DUfSO76O9A==
-----END PUBLIC KEY-----
";
    /// Of `message`, by the same key and program.
    const SIGNATURE: &str = "MEYCIQC5hDwhBlxcD3LdEIDglOlcTEluOX57CjuN6MFwunlMEgIhAPM5jLknLwYFhRUiYbtDr6qcjC9Rp0dIfxdnnvUmMDI+";

    #[test]
    fn what_was_signed_verifies_and_nothing_else() {
        let (key, pem) = SigningKey::generate().expect("a key");
        let again = SigningKey::parse(pem.as_bytes(), None).expect("it reads its own");
        let public = PublicKey::parse(key.public().to_pem().as_bytes()).expect("and this");
        assert_eq!(&public, again.public());
        let signature = again.sign(b"message").expect("a signature");
        public.verify(b"message", &signature).expect("it is good");
        for (message, signature) in [
            (&b"Message"[..], &signature[..]),
            (b"message", &signature[1..]),
            (b"message", b""),
        ] {
            let wrong = public.verify(message, signature);
            assert!(matches!(wrong, Err(AttestError::BadSignature)));
        }
        let (other, _) = SigningKey::generate().expect("a key");
        other
            .public()
            .verify(b"message", &signature)
            .expect_err("it is another key");
    }

    #[test]
    fn keys_and_signatures_of_others_are_read() {
        let key = SigningKey::parse(ENCRYPTED.as_bytes(), Some(b"password")).expect("it opens");
        assert_eq!(key.public().to_pem(), PUBLIC_HALF);
        let signature = STANDARD.decode(SIGNATURE).expect("base64");
        key.public()
            .verify(b"message", &signature)
            .expect("it is good");
        let wrong = SigningKey::parse(ENCRYPTED.as_bytes(), Some(b"Password"));
        assert!(matches!(wrong, Err(AttestError::WrongPassword)));
        let none = SigningKey::parse(ENCRYPTED.as_bytes(), None);
        assert!(matches!(none, Err(AttestError::NoPassword)));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        SigningKey::parse(PUBLIC_HALF.as_bytes(), None).expect_err("it is public");
        PublicKey::parse(ENCRYPTED.as_bytes()).expect_err("it is private");
        PublicKey::parse(b"").expect_err("there is nothing");
        let short = encode("PUBLIC KEY", &INFO);
        PublicKey::parse(short.as_bytes()).expect_err("there is no point");
        let (key, _) = SigningKey::generate().expect("a key");
        let mut der = key.public().to_der();
        der[26] = 2;
        let compressed = encode("PUBLIC KEY", &der);
        PublicKey::parse(compressed.as_bytes()).expect_err("its point is of another form");
    }
}
