// SPDX-License-Identifier: Apache-2.0
//! What can go wrong while a repository is read.

use std::path::{Path, PathBuf};

/// Why a repository could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location cannot be given to git.
    #[error("{location:?} is no directory and no URL")]
    Location {
        /// What was given.
        location: String,
    },
    /// git could not be started.
    #[error("cannot start {}", .program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// git ended badly.
    #[error("`git {command}` failed: {said}")]
    Git {
        /// The subcommand.
        command: &'static str,
        /// The end of its standard error, or how it ended.
        said: String,
    },
    /// git said nothing for so long that it was ended.
    #[error("`git {command}` was ended: nothing came for {seconds} s")]
    Silent {
        /// The subcommand.
        command: &'static str,
        /// How long.
        seconds: u64,
    },
    /// git's answers make no sense, or an object is missing or broken.
    #[error("the git repository is broken: {what}")]
    Broken {
        /// What is wrong.
        what: String,
    },
    /// There is no such branch, tag or commit.
    #[error("the repository has no branch, tag or commit {revision:?}")]
    NoSuchRevision {
        /// What was asked for.
        revision: String,
    },
    /// The state that a comparison starts or ends at is not there.
    #[error("the repository has no commit {commit} (any more)")]
    NoSuchCommit {
        /// The state.
        commit: String,
    },
    /// There are more files than allowed.
    #[error("the repository has more than {limit} files")]
    TooMany {
        /// How many are allowed.
        limit: usize,
    },
    /// A file of a plain directory changed between looking at it and reading it.
    #[error("{} changed while it was read", .path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
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
    /// Somebody wanted it to end.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Returns a wrapper for an I/O error.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}
