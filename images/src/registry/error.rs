// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a registry.

use crate::digest::Digest;
use std::io;
use std::path::PathBuf;

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The registry has no such image.
    #[error("{host} has no {what}{}", detail(message))]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for: `library/debian:nosuch`.
        what: String,
        /// The registry's words.
        message: String,
    },
    /// The registry wants other credentials, or none are known.
    #[error("{host} refuses access to {what}{}", detail(message))]
    Unauthorized {
        /// The registry, or the server that makes its tokens.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's words.
        message: String,
        /// Whether credentials were known and sent.
        with_credentials: bool,
    },
    /// The server answered something else than what was asked for.
    #[error("{method} {url} was answered {status}{}", detail(message))]
    Status {
        /// The request's method.
        method: String,
        /// The request's address, without its query.
        url: String,
        /// The answer's status: `503 Service Unavailable`.
        status: String,
        /// The server's words.
        message: String,
    },
    /// No connection could be made.
    #[error("cannot connect to {host}: {reason}")]
    Connect {
        /// The server.
        host: String,
        /// Why not.
        reason: String,
    },
    /// A connection was cut or fell silent, more often than is worth trying.
    #[error("{method} {url} was cut off {times} times: {reason}")]
    Cut {
        /// The request's method.
        method: String,
        /// The request's address, without its query.
        url: String,
        /// How often it was tried without getting any further.
        times: u32,
        /// What happened the last time.
        reason: String,
    },
    /// The server sent bytes that are not those that were promised.
    #[error("{url} is not what it should be: {what}")]
    Lied {
        /// The request's address, without its query.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// The server sends us in a circle, or to where we do not go.
    #[error("{url} {what}")]
    Redirect {
        /// The request's address, without its query.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// Credentials could not be read.
    #[error("cannot get the credentials for {host} from {}: {reason}", from.display())]
    Credentials {
        /// The registry.
        host: String,
        /// The file or the program that has them.
        from: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The options are wrong, or the machine lacks what a connection needs.
    #[error("cannot talk to {host}: {reason}")]
    Setup {
        /// The server.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The image is not here, and fetching it is not allowed.
    #[error("{image} is not here, and nothing may be fetched")]
    NotHere {
        /// The image.
        image: String,
    },
    /// What is to be sent is not there or has changed.
    #[error("cannot send {digest}: {reason}")]
    Source {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// Returns whether the user named something that is not there, rather than that something failed.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NotHere { .. })
    }

    /// Returns what a person can do about it, if that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotFound { .. } => "check the name and the tag; a private image needs `docker login`".to_owned(),
            Self::Unauthorized { host, what, with_credentials: false, .. } if what.starts_with("push to ") => {
                format!("`docker login {host}` first: credentials come from ~/.docker/config.json")
            }
            Self::Unauthorized { host, with_credentials: false, .. } => {
                format!("there may be no such image; if it is private, `docker login {host}` first: credentials come from ~/.docker/config.json")
            }
            Self::Unauthorized { host, .. } => {
                format!("the credentials of ~/.docker/config.json are not enough: `docker login {host}` again")
            }
            Self::Status { status, .. } if status.starts_with("429") => {
                "the registry allows no more requests for now: try later, log in, or name a mirror in the configuration".to_owned()
            }
            Self::Status { .. } | Self::Lied { .. } | Self::Redirect { .. } => {
                "the fault is the server's: try again later, or name a mirror in the configuration. What was fetched is kept".to_owned()
            }
            Self::Connect { reason, .. } if reason.contains("certificate") || reason.contains("CA") => {
                "if the registry has a certificate of its own, name its authority's file in the configuration: registry.HOST.ca".to_owned()
            }
            Self::Connect { host, .. } => {
                format!("is the host right, and the network up? A registry without TLS needs registry.\"{host}\".insecure = true in the configuration. `--pull missing` and `never` work with what is here")
            }
            Self::Cut { .. } => "run it again: it goes on where it was cut".to_owned(),
            Self::Credentials { .. } => "`docker login` writes them anew".to_owned(),
            Self::NotHere { .. } => "fetch it with `obuild pull`".to_owned(),
            Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                "the disk is full: make room, for example with `obuild prune`. The next run goes on where this one stopped".to_owned()
            }
            Self::Setup { .. } | Self::Source { .. } | Self::Io { .. } | Self::Cancelled => return None,
        };
        Some(hint)
    }
}

/// Puts a server's words after a message.
fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}
