// SPDX-License-Identifier: Apache-2.0
//! What can be wrong with an archive, or with putting it on disk.

use bstr::BString;
use std::io;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes could not be read or decompressed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The bytes are no tar archive, or a damaged one.
    #[error("not a tar archive, or a damaged one: {reason} (at byte {position})")]
    Malformed {
        /// What is wrong.
        reason: String,
        /// Where, in the uncompressed stream.
        position: u64,
    },
    /// An entry asks for something that no honest archive of a root file system asks for.
    #[error("refused the entry {entry:?}: {reason}")]
    Refused {
        /// The entry's name.
        entry: BString,
        /// What it asks for.
        reason: String,
    },
    /// The file system refused an entry.
    #[error("cannot {action} {entry:?}")]
    Write {
        /// What was tried, as a verb.
        action: &'static str,
        /// The entry's name.
        entry: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns the input or output error at the bottom, if it is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read(source) | Self::Write { source, .. } => Some(source),
            Self::Malformed { .. } | Self::Refused { .. } => None,
        }
    }
}
