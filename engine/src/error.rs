// SPDX-License-Identifier: Apache-2.0
//! What can end a build.

use obuild_specs::StepId;
use std::path::PathBuf;

/// Why a build, or an operation on the store, ended without its result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A step's command failed.
    #[error("{heading}: {reason}")]
    StepFailed {
        /// The step as the spec has it.
        heading: String,
        /// The step's id.
        id: StepId,
        /// How it ended: `exit status 7`, `killed by signal 9`, `timed out after 60 s`.
        reason: String,
    },
    /// A step's sources or destination are not as the spec says.
    #[error("{heading}")]
    CopyFailed {
        /// The step as the spec has it.
        heading: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The caller cancelled the build.
    #[error("cancelled")]
    Cancelled,
    /// A secret that the spec asks for was not given.
    #[error("the spec asks for the secret {id:?} ({heading}), but it was not given")]
    MissingSecret {
        /// The secret's name.
        id: String,
        /// The step that asks for it.
        heading: String,
    },
    /// The tree has no such user.
    #[error("there is no user {name:?} in the tree's /etc/passwd")]
    NoUser {
        /// The name.
        name: String,
    },
    /// There is no step or snapshot of this id.
    #[error("there is no step {0} in the store")]
    NoSuchStep(String),
    /// The id's beginning fits several.
    #[error("{prefix} is the beginning of {count} ids")]
    AmbiguousId {
        /// What was given.
        prefix: String,
        /// How many it fits.
        count: usize,
    },
    /// The snapshot is in use by a build that is running.
    #[error("step {0} is in use by a running build")]
    InUse(String),
    /// The snapshot has others standing on it.
    #[error("step {id} has {count} steps standing on it")]
    HasChildren {
        /// The step.
        id: String,
        /// How many.
        count: usize,
    },
    /// A base image could not be resolved or imported.
    #[error("cannot use the base image {reference}")]
    Base {
        /// The reference.
        reference: String,
        /// Why.
        #[source]
        source: Box<obuild_images::Error>,
    },
    /// A step's result could not be taken from a cache. A build tells of it and runs the step.
    #[error("{heading}: its result could not be taken from the cache {cache}")]
    NotFetched {
        /// The step as the spec has it.
        heading: String,
        /// The cache.
        cache: String,
        /// Why.
        #[source]
        source: Box<obuild_images::Error>,
    },
    /// A step's result could not be taken from a cache, because one that it stands on could not.
    #[error("{heading}: what it stands on in the cache could not be fetched")]
    NothingBelow {
        /// The step as the spec has it.
        heading: String,
    },
    /// A copy's id was taken from a cache, and what it copies is something else here. A build begins anew without the cache's word.
    #[error("{heading}: what it copies is not what a cache has said")]
    NotAsTold {
        /// The step as the spec has it.
        heading: String,
    },
    /// An image could not be made.
    #[error("cannot make an image")]
    Image(#[source] obuild_images::Error),
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] obuild_stores::Error),
    /// A snapshot's tree could not be read, or its copy not written.
    #[error("the tree of {id} failed")]
    Tree {
        /// The snapshot.
        id: String,
        /// Why.
        #[source]
        source: obuild_images::tree::TreeError,
    },
    /// A cache could not be copied.
    #[error("the cache {name:?} could not be copied")]
    Cache {
        /// The cache.
        name: String,
        /// Why.
        #[source]
        source: obuild_images::tree::TreeError,
    },
    /// The sandbox could not run the step.
    #[error("{heading}")]
    Sandbox {
        /// The step as the spec has it.
        heading: String,
        /// Why.
        #[source]
        source: obuild_sandboxes::Error,
    },
    /// A file of the engine's own could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The bookkeeping database failed.
    #[error("the database {} failed", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What `SQLite` said.
        #[source]
        source: sqlx::Error,
    },
    /// The database was written by a newer version.
    #[error("the database {} has format {found}, but this program knows formats up to {known}", path.display())]
    NewerDatabase {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// A step's user does not exist in the user namespace of an ordinary user.
    #[error(transparent)]
    Unmapped(obuild_rootless::Unmapped),
    /// A broken invariant.
    #[error("internal error: {0}")]
    Bug(String),
    /// The same failure, told to several who waited for it.
    #[error("{}", .0)]
    Shared(#[source] std::sync::Arc<Error>),
}

/// Which of the exit codes an error is for (design decision 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The build failed: 1.
    Build,
    /// The spec or the usage is wrong: 2.
    Usage,
    /// The host or a service failed: 3.
    Host,
    /// Our bug: 4.
    Bug,
    /// Interrupted: 130.
    Interrupted,
}

impl Error {
    /// Returns whether a step may be run because its result could not be fetched.
    pub(crate) fn is_not_fetched(&self) -> bool {
        match self {
            Self::NotFetched { .. } | Self::NothingBelow { .. } => true,
            Self::Shared(error) => error.is_not_fetched(),
            _ => false,
        }
    }

    /// Returns the message with its causes.
    pub(crate) fn told(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.ends_with(&part) {
                text = format!("{text}: {part}");
            }
            cause = error.source();
        }
        text
    }

    /// Returns which exit code the error is for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::CopyFailed { source, .. } if is_of_the_host(&**source) => Kind::Host,
            Self::StepFailed { .. } | Self::CopyFailed { .. } | Self::NoUser { .. } => Kind::Build,
            Self::Cancelled => Kind::Interrupted,
            Self::MissingSecret { .. }
            | Self::NoSuchStep(_)
            | Self::AmbiguousId { .. }
            | Self::InUse(_)
            | Self::HasChildren { .. } => Kind::Usage,
            Self::Sandbox { source, .. } => match source {
                obuild_sandboxes::Error::NoProgram { .. } | obuild_sandboxes::Error::NoUser(_) => {
                    Kind::Build
                }
                _ => Kind::Host,
            },
            Self::Image(source) => match source.kind() {
                obuild_images::ErrorKind::Usage => Kind::Usage,
                obuild_images::ErrorKind::Host => Kind::Host,
                obuild_images::ErrorKind::Cancelled => Kind::Interrupted,
            },
            Self::Base { source, .. } => match source.kind() {
                obuild_images::ErrorKind::Usage => Kind::Usage,
                obuild_images::ErrorKind::Host => Kind::Host,
                obuild_images::ErrorKind::Cancelled => Kind::Interrupted,
            },
            Self::Store(_)
            | Self::Unmapped(_)
            | Self::Tree { .. }
            | Self::Cache { .. }
            | Self::NotFetched { .. }
            | Self::NothingBelow { .. }
            | Self::NotAsTold { .. }
            | Self::Io { .. }
            | Self::Database { .. }
            | Self::NewerDatabase { .. } => Kind::Host,
            Self::Bug(_) => Kind::Bug,
            Self::Shared(error) => error.kind(),
        }
    }

    /// Returns what went wrong without the step that it happened in, for where that is shown already.
    pub fn reason(&self) -> String {
        match self {
            Self::StepFailed { reason, .. } => reason.clone(),
            Self::Shared(error) => error.reason(),
            Self::CopyFailed { source, .. } => chain(&**source),
            Self::Sandbox { source, .. } => chain(source),
            error => chain(error),
        }
    }
}

/// Returns whether a copy failed for a reason that no change of the spec or the context helps against.
fn is_of_the_host(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>()
            && (matches!(
                error.kind(),
                StorageFull | QuotaExceeded | ReadOnlyFilesystem
            ) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Joins an error's message with those of its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
