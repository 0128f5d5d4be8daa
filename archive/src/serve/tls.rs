// SPDX-License-Identifier: Apache-2.0
//! TLS: a certificate and its key from files, read again when they change.

use super::Error;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Where the certificate is.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain in PEM, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
}

/// TLS for all connections.
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
}

/// The certificate that is shown.
#[derive(Debug)]
struct Certificate {
    files: TlsFiles,
    current: RwLock<(Stamp, Arc<CertifiedKey>)>,
}

/// What tells that a file is another one: device, inode, size, time. Of both files.
type Stamp = [(u64, u64, u64, i64, i64); 2];

impl Tls {
    pub(super) fn open(files: TlsFiles) -> Result<Self, Error> {
        let stamp = stamp(&files)?;
        let certificate = Arc::new(Certificate {
            current: RwLock::new((stamp, Arc::new(read(&files)?))),
            files,
        });
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&certificate) as _;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Each session that could be resumed takes memory; tickets take none.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(Error::Tls)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
        })
    }

    /// Shakes hands. No more than `buffer_bytes` are kept encrypted for a client that does not take them.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        buffer_bytes: usize,
    ) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor
            .accept_with(stream, |connection| {
                connection.set_buffer_limit(Some(buffer_bytes));
            })
            .await
    }

    /// Reads the files again if they are others than before; with something wrong in them, the old certificate stays.
    pub(super) fn refresh(&self) {
        match self.certificate.refresh() {
            Ok(true) => tracing::info!("the certificate was read anew"),
            Ok(false) => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "the old certificate stays: the new one is wrong");
            }
        }
    }
}

impl Certificate {
    fn refresh(&self) -> Result<bool, Error> {
        let stamp = stamp(&self.files)?;
        let lock = || self.current.write().unwrap_or_else(PoisonError::into_inner);
        if lock().0 == stamp {
            return Ok(false);
        }
        let result = read(&self.files);
        let mut current = lock();
        match result {
            Ok(key) => {
                *current = (stamp, Arc::new(key));
                Ok(true)
            }
            Err(error) => {
                // Half of a pair may be there: it is said once, and the next change is looked at.
                current.0 = stamp;
                Err(error)
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current.1))
    }
}

fn stamp(files: &TlsFiles) -> Result<Stamp, Error> {
    let one = |path: &Path| {
        let metadata = fs_err::metadata(path).map_err(Error::File)?;
        Ok((
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
        ))
    };
    Ok([one(&files.certificate)?, one(&files.key)?])
}

fn read(files: &TlsFiles) -> Result<CertifiedKey, Error> {
    let wrong = |path: &Path, reason: String| Error::Certificate {
        path: path.to_owned(),
        reason,
    };
    let path = &files.certificate;
    let text = fs_err::read(path).map_err(Error::File)?;
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(path, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(path, "it has no certificate".to_owned()));
    }
    let path = &files.key;
    let text = fs_err::read(path).map_err(Error::File)?;
    let key =
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| wrong(path, error.to_string()))?;
    // Checks that the key is the certificate's.
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| wrong(path, error.to_string()))
}
