// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the directory itself. An archive that is not what it should be is no error but a finding.

use std::io;
use std::path::PathBuf;

/// The archive's directory, or what is imported into it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be made or opened.
    #[error("the archive's directory cannot be used")]
    Directory(#[source] io::Error),
    /// An archive cannot be read.
    #[error("an archive cannot be read")]
    Read(#[source] io::Error),
    /// An archive cannot be written.
    #[error("an archive cannot be written")]
    Write(#[source] io::Error),
    /// The file system has no hard links, or refuses this one.
    #[error("an archive cannot get its other name {path:?}; the file system must have hard links")]
    Link {
        /// The name.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// What is to be imported cannot be read.
    #[error("what is to be imported cannot be read")]
    Import(#[source] io::Error),
    /// Another process works on the archive, and waiting was not wanted.
    #[error("another obuild works on this archive")]
    Locked,
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

impl CacheError {
    /// Returns the input/output error below, if that is what it was.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Directory(source)
            | Self::Read(source)
            | Self::Write(source)
            | Self::Import(source)
            | Self::Link { source, .. } => Some(source),
            Self::Locked | Self::Interrupted => None,
        }
    }
}
