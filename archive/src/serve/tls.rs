// SPDX-License-Identifier: Apache-2.0
//! TLS: a certificate and its key from files, read again when they change. The files are the user's, or those that ACME orders keep.

use super::Error;
use super::acme::{self, Acme};
use super::certificate::{Pair, Wrong};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
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
struct Certificate {
    files: TlsFiles,
    /// Who orders the certificate: until the first has come there is none.
    acme: Option<Arc<Acme>>,
    current: RwLock<(Option<Stamp>, Option<Pair>)>,
}

/// What tells that a file is another one: device, inode, size, time. Of both files.
type Stamp = [(u64, u64, u64, i64, i64); 2];

impl Tls {
    /// Reads the certificate, which has to be there.
    pub(super) fn open(files: TlsFiles) -> Result<Self, Error> {
        let current = (Some(stamp(&files)?), Some(read(&files)?));
        Self::new(Certificate {
            files,
            acme: None,
            current: RwLock::new(current),
        })
    }

    /// Takes the certificate that is ordered, as soon as it is there.
    pub(super) fn ordered(acme: Arc<Acme>) -> Result<Self, Error> {
        let (certificate, key) = (acme.file(), acme.file());
        let tls = Self::new(Certificate {
            files: TlsFiles { certificate, key },
            acme: Some(acme),
            current: RwLock::default(),
        })?;
        tls.refresh();
        Ok(tls)
    }

    fn new(certificate: Certificate) -> Result<Self, Error> {
        let certificate = Arc::new(certificate);
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&certificate) as _;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if certificate.acme.is_some() {
            config.alpn_protocols.push(acme::PROTOCOL.to_vec());
        }
        // Each session that could be resumed takes memory; tickets take none.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(Error::Tls)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate,
        })
    }

    /// Returns until when the certificate is good, in seconds since 1970; nothing if there is none.
    pub(super) fn expiry(&self) -> Option<u64> {
        let current = self.certificate.current();
        current.1.as_ref().map(|pair| pair.validity.until)
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
    fn current(&self) -> RwLockReadGuard<'_, (Option<Stamp>, Option<Pair>)> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh(&self) -> Result<bool, Error> {
        let stamp = match stamp(&self.files) {
            Err(Error::File(error))
                if self.acme.is_some() && error.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(false);
            }
            stamp => stamp?,
        };
        let lock = || self.current.write().unwrap_or_else(PoisonError::into_inner);
        if lock().0 == Some(stamp) {
            return Ok(false);
        }
        let result = read(&self.files);
        let mut current = lock();
        // Half of a pair may be there: it is said once, and the next change is looked at.
        current.0 = Some(stamp);
        current.1 = Some(result?);
        Ok(true)
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Certificate")
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(acme) = &self.acme
            && hello
                .alpn()
                .is_some_and(|mut protocols| protocols.all(|protocol| protocol == acme::PROTOCOL))
        {
            // An authority that asks for a proof sees that and nothing else.
            return acme.tls_answer(hello.server_name()?);
        }
        let current = self.current();
        current.1.as_ref().map(|pair| Arc::clone(&pair.key))
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

fn read(files: &TlsFiles) -> Result<Pair, Error> {
    let text = |path: &Path| fs_err::read(path).map_err(Error::File);
    Pair::parse(&text(&files.certificate)?, &text(&files.key)?).map_err(|wrong| {
        let (path, reason) = match wrong {
            Wrong::Certificate(reason) => (&files.certificate, reason),
            Wrong::Key(reason) => (&files.key, reason),
        };
        let path = path.clone();
        Error::Certificate { path, reason }
    })
}
