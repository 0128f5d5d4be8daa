// SPDX-License-Identifier: Apache-2.0
//! A certificate with its key: read from PEM, and what of it the server has to know.

use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader, BERReaderSeq, Tag};

/// A chain and the key of its first certificate, which fit together.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) validity: Validity,
}

/// From when until when a certificate is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: u64,
    pub(super) until: u64,
}

impl Pair {
    /// Reads PEM: the chain, the server's own certificate first, and the key; each may be beside other things.
    ///
    /// # Errors
    ///
    /// Says whether the key's text is the wrong one, and what is wrong.
    pub(super) fn parse(chain: &[u8], key: &[u8]) -> Result<Self, Wrong> {
        let chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Wrong::Certificate(error.to_string()))?;
        let Some(own) = chain.first() else {
            return Err(Wrong::Certificate("it has no certificate".to_owned()));
        };
        let validity = validity(own)
            .map_err(|_| Wrong::Certificate("it does not say how long it is good".to_owned()))?;
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|error| Wrong::Key(error.to_string()))?;
        // Checks that the key is the certificate's.
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|error| Wrong::Key(error.to_string()))?;
        Ok(Self {
            key: Arc::new(key),
            validity,
        })
    }

    /// Returns whether clients that ask for a host of this name are content with the certificate.
    pub(super) fn is_for(&self, name: &str) -> bool {
        let own = self.key.cert.first().and_then(|own| {
            let own = ParsedCertificate::try_from(own).ok()?;
            let name = ServerName::try_from(name).ok()?;
            Some(verify_server_name(&own, &name).is_ok())
        });
        own == Some(true)
    }
}

/// Which text is wrong, and how.
#[derive(Debug)]
pub(super) enum Wrong {
    Certificate(String),
    Key(String),
}

/// Finds the times in a certificate (RFC 5280 §4.1).
fn validity(certificate: &[u8]) -> ASN1Result<Validity> {
    yasna::parse_der(certificate, |reader| {
        reader.read_sequence(|reader| {
            let validity = reader.next().read_sequence(|reader| {
                // Left out of certificates of version 1.
                reader.read_optional(|reader| reader.read_tagged(Tag::context(0), skip))?;
                for _ in ["serialNumber", "signature", "issuer"] {
                    skip(reader.next())?;
                }
                let validity = reader.next().read_sequence(|reader| {
                    let (from, until) = (time(reader.next())?, time(reader.next())?);
                    Ok(Validity { from, until })
                })?;
                for _ in ["subject", "subjectPublicKeyInfo"] {
                    skip(reader.next())?;
                }
                for number in 1..=3 {
                    rest(reader, number)?;
                }
                Ok(validity)
            })?;
            for _ in ["signatureAlgorithm", "signatureValue"] {
                skip(reader.next())?;
            }
            Ok(validity)
        })
    })
}

fn skip(reader: BERReader<'_, '_>) -> ASN1Result<()> {
    reader.read_der().map(drop)
}

/// Passes over issuerUniqueID, subjectUniqueID or extensions.
fn rest(reader: &mut BERReaderSeq<'_, '_>, number: u64) -> ASN1Result<()> {
    let found = reader.read_optional(|reader| {
        if reader.lookahead_tag()? != Tag::context(number) {
            return Err(ASN1Error::new(ASN1ErrorKind::Invalid));
        }
        skip(reader)
    });
    found.map(drop)
}

/// Reads a time in either of its two forms; one before 1970 counts as that.
fn time(reader: BERReader<'_, '_>) -> ASN1Result<u64> {
    let time = if reader.lookahead_tag()? == yasna::tags::TAG_UTCTIME {
        *reader.read_utctime()?.datetime()
    } else {
        *reader.read_generalized_time()?.datetime()
    };
    Ok(u64::try_from(time.unix_timestamp()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{Pair, Validity, Wrong, validity};
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(until: i32) -> (String, String, Vec<u8>) {
        let mut params = CertificateParams::new(vec!["Mirror.example.org".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 11, 21);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (
            certificate.pem(),
            key.serialize_pem(),
            certificate.der().to_vec(),
        )
    }

    #[test]
    fn names_and_times_are_read_and_the_key_has_to_fit() {
        // The year 2050 is where the other form of times begins.
        for (year, until) in [(2027, 1_798_761_600), (2050, 2_524_608_000)] {
            let (chain, key, _) = certificate(year);
            let pair = Pair::parse(chain.as_bytes(), key.as_bytes()).unwrap();
            let from = 1_795_219_200;
            assert_eq!(pair.validity, Validity { from, until });
            assert!(pair.is_for("mirror.example.org"));
            assert!(!pair.is_for("example.org") && !pair.is_for("not a name"));
            // Both in one file, as the server itself keeps them.
            let both = format!("{key}{chain}");
            assert!(Pair::parse(both.as_bytes(), both.as_bytes()).is_ok());
            let other = certificate(year).1;
            let wrong = Pair::parse(chain.as_bytes(), other.as_bytes());
            assert!(matches!(wrong, Err(Wrong::Key(_))));
            let wrong = Pair::parse(key.as_bytes(), key.as_bytes());
            assert!(matches!(wrong, Err(Wrong::Certificate(_))));
        }
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_no_reason_to_panic(at in 0_usize..400, byte: u8, cut in 0_usize..500) {
            let (_, _, mut der) = certificate(2030);
            let length = der.len();
            der[at % length] = byte;
            let _ = validity(&der);
            let _ = validity(&der[..cut.min(length)]);
        }
    }
}
