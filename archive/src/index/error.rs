// SPDX-License-Identifier: Apache-2.0
//! What can go wrong while an index is made.

use crate::repository;
use std::path::{Path, PathBuf};

/// Why there is no new index. The published one is as it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository could not be read.
    #[error("cannot read the repository")]
    Repository(#[from] repository::Error),
    /// A file or directory could not be used.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What is kept between two runs is not as it was written. It is made anew when it is found out in time.
    #[error("{} is damaged", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The fields for the `repo` file are wrong.
    #[error("the fields for the repo file are wrong: {0}")]
    Fields(String),
    /// The compressor failed, for no reason that lies outside.
    #[error("cannot compress: {0}")]
    Compression(String),
}

/// For what passes on bytes that it reads.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

impl Error {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}
