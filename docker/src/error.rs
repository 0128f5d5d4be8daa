// SPDX-License-Identifier: Apache-2.0
//! Why the daemon did not do what it was asked.

use std::io;
use std::path::PathBuf;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("cannot reach the docker daemon at {}: {reason}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What happened, and what to do.
        reason: String,
    },
    /// The daemon answered with an error.
    #[error("docker cannot {action}: {message}")]
    Refused {
        /// What was asked, as a verb: `create the container x`.
        action: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The daemon's answer was cut short or is not understood.
    #[error("docker broke off while it should {action}: {reason}")]
    Broken {
        /// What was asked.
        action: String,
        /// What is wrong.
        reason: String,
    },
    /// The daemon is there but cannot be used.
    #[error("{0}")]
    Unsuitable(String),
}

impl Error {
    /// Returns whether the thing asked for is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Returns whether something of that name is there, or in use.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    /// Returns the kind that fits best, so that a full disk is known as one.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Unreachable { .. } => io::ErrorKind::NotConnected,
            // syscall.ENOSPC and EDQUOT as Go writes them.
            Self::Refused { message, .. }
                if message.contains("no space left on device")
                    || message.contains("disk quota exceeded") =>
            {
                io::ErrorKind::StorageFull
            }
            Self::Refused { status: 404, .. } => io::ErrorKind::NotFound,
            Self::Broken { .. } => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::Other,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
