// SPDX-License-Identifier: Apache-2.0
//! The files of an authority: our account there, and the certificate with its key. Only their owner can read them.

use super::error::OrderError;
use super::value::Authority;
use crate::cache;
use crate::replace::replace_private;
use crate::state::StateError;
use instant_acme::AccountCredentials;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};

/// Where an authority's files are. Each has a place of its own, so that a certificate of one for tests is not taken for a real one.
pub(super) struct Keep(PathBuf);

impl Keep {
    pub(super) fn new(directory: &Path, authority: &Authority) -> Self {
        let url = authority.url();
        let digest = hex::encode(&Sha256::digest(url.as_str())[..4]);
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let place = cache::private(directory).join("acme");
        Self(place.join(format!("{host}-{digest}")))
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }

    /// Keeps the key and the certificate: both in one file, so that they are replaced together.
    pub(super) fn write_certificate(&self, pem: &str) -> Result<(), OrderError> {
        self.write(&self.certificate(), pem.as_bytes())
    }

    /// Returns the account, if there is one and it is not damaged.
    pub(super) fn account(&self) -> Option<AccountCredentials> {
        let text = fs_err::read(self.account_file()).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(%error, "the account is damaged; another is made"))
            .ok()
    }

    pub(super) fn write_account(&self, account: &AccountCredentials) -> Result<(), OrderError> {
        let text = serde_json::to_vec(account).map_err(instant_acme::Error::Json)?;
        self.write(&self.account_file(), &text)
    }

    fn account_file(&self) -> PathBuf {
        self.0.join("account.json")
    }

    fn write(&self, path: &Path, data: &[u8]) -> Result<(), OrderError> {
        fs_err::create_dir_all(&self.0)
            .and_then(|()| replace_private(path, data))
            .map_err(|error| OrderError::Keep(StateError::Write(error)))
    }
}
