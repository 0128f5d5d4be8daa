// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a base image.

use crate::digest::Digest;
use bstr::BString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why a base image could not be resolved or imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text names no image.
    #[error("{text:?} does not name an image: {reason}")]
    BadReference {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text names no platform.
    #[error("{0:?} is no platform")]
    BadPlatform(String),
    /// A registry could not give an image, or take one.
    #[error("{source}")]
    Registry {
        /// The image.
        image: String,
        /// Why not.
        source: Arc<crate::registry::Error>,
    },
    /// The Docker daemon could not give an image.
    #[error("cannot use the Docker daemon at {}: {reason}", socket.display())]
    Daemon {
        /// Its socket.
        socket: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file or directory is not there or is of the wrong kind.
    #[error("{} is not {wanted}: {reason}", path.display())]
    NotUsable {
        /// The path.
        path: PathBuf,
        /// What it should be, with its article: `an OCI image layout`.
        wanted: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// The image layout has no image of this tag.
    #[error("{} has no image tagged {tag:?}", layout.display())]
    NoSuchTag {
        /// The layout.
        layout: PathBuf,
        /// The tag that was asked for.
        tag: String,
        /// The tags that it has.
        tags: Vec<String>,
    },
    /// The image layout holds several images, and none was chosen.
    #[error("{} holds {count} images", layout.display())]
    Ambiguous {
        /// The layout.
        layout: PathBuf,
        /// How many there are.
        count: usize,
        /// The tags that it has.
        tags: Vec<String>,
    },
    /// The image exists, but not for this platform.
    #[error("{} has no image for {wanted}", layout.display())]
    NoSuchPlatform {
        /// The layout.
        layout: PathBuf,
        /// The platform, as `linux/amd64`.
        wanted: String,
        /// The platforms that it has.
        platforms: Vec<String>,
    },
    /// A JSON document does not parse.
    #[error("{} is not a valid {what}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What it should be: `image index`.
        what: &'static str,
        /// The parser's words.
        #[source]
        source: serde_json::Error,
    },
    /// An image is of a kind that cannot be a base, or its parts contradict each other.
    #[error("the image in {} cannot be used: {reason}", layout.display())]
    BadImage {
        /// The layout.
        layout: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A part of the image is missing.
    #[error("{} is missing: it holds {what}", path.display())]
    MissingBlob {
        /// The blob's file.
        path: PathBuf,
        /// What it holds: `layer 2 of 3`.
        what: String,
    },
    /// Bytes are not those that were promised.
    #[error("{} is damaged: {what} should be {expected}, but is {found}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// Which digest: `its digest`, `the digest of its uncompressed content`.
        what: &'static str,
        /// The digest that was promised.
        expected: Digest,
        /// The digest of what is there.
        found: Digest,
    },
    /// A file is compressed in a way that is not understood.
    #[error("{} is compressed with {method}, which is not supported", path.display())]
    Compression {
        /// The file.
        path: PathBuf,
        /// The method's name.
        method: &'static str,
    },
    /// An archive could not be unpacked.
    #[error("cannot unpack {}", path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: crate::UnpackError,
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
    /// A program that is needed is not installed.
    #[error("{program} was not found in the search path")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// debootstrap could not make the tree.
    #[error("debootstrap {suite} failed ({status}): {}", last_lines.join("; "))]
    Debootstrap {
        /// The suite.
        suite: String,
        /// How it ended.
        status: String,
        /// The end of its output, without credentials.
        last_lines: Vec<String>,
    },
    /// debootstrap gives files to more users than there are ids for.
    #[error(
        "debootstrap {suite} needs more user ids than your own, which is all that there is here"
    )]
    DebootstrapIds {
        /// The suite.
        suite: String,
    },
    /// The image's configuration has an environment variable without a value.
    #[error("invalid environment in {}: {entry:?} should be 'K=V'", path.display())]
    BadEnvironment {
        /// The configuration's file.
        path: PathBuf,
        /// The entry.
        entry: BString,
    },
    /// The directory tree could not be read or copied.
    #[error("cannot use {} as a base", path.display())]
    Tree {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A layer could not be made.
    #[error("cannot make a layer of {id}")]
    Layer {
        /// The snapshot.
        id: String,
        /// Why not.
        #[source]
        source: Box<crate::LayerError>,
    },
    /// A snapshot was to be told apart from one that it does not stand on.
    #[error("{id} was not made from {earlier}")]
    NotMadeFrom {
        /// The snapshot.
        id: String,
        /// The other one.
        earlier: String,
    },
    /// The store could not take the tree.
    #[error(transparent)]
    Store(#[from] obuild_stores::Error),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Whose fault an error is; it fixes the program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What the user wrote names something that is not there or not usable.
    Usage,
    /// The machine or a service failed.
    Host,
    /// The caller cancelled.
    Cancelled,
}

impl Error {
    /// Returns whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry { source, .. } => match &**source {
                crate::registry::Error::Cancelled => ErrorKind::Cancelled,
                error if error.is_usage() => ErrorKind::Usage,
                _ => ErrorKind::Host,
            },
            Self::BadReference { .. }
            | Self::BadPlatform(_)
            | Self::NotUsable { .. }
            | Self::NoSuchTag { .. }
            | Self::Ambiguous { .. }
            | Self::NoSuchPlatform { .. }
            | Self::Json { .. }
            | Self::BadImage { .. }
            | Self::BadEnvironment { .. }
            | Self::NotMadeFrom { .. }
            | Self::Compression { .. } => ErrorKind::Usage,
            Self::MissingBlob { .. }
            | Self::Daemon { .. }
            | Self::Digest { .. }
            | Self::Unpack { .. }
            | Self::Io { .. }
            | Self::MissingProgram { .. }
            | Self::Debootstrap { .. }
            | Self::DebootstrapIds { .. }
            | Self::Tree { .. }
            | Self::Layer { .. }
            | Self::Store(_) => ErrorKind::Host,
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }

    /// Returns what a person can do about it, if that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::BadReference { .. } => "bases are [HOST/]REPOSITORY[:TAG] in a registry, oci:PATH[:TAG], docker-archive:FILE[:TAG], docker-daemon:NAME, tar:FILE, dir:PATH, debootstrap:SUITE and scratch".into(),
            Self::Registry { source, .. } => return source.hint(),
            Self::Daemon { .. } => "is the daemon running, and may you use its socket? DOCKER_HOST=unix://PATH names another".into(),
            Self::BadPlatform(_) => "platforms are named OS/ARCHITECTURE[/VARIANT], as linux/amd64".into(),
            Self::NoSuchTag { tags, .. } if tags.is_empty() => "its images have no tags: leave the tag out".into(),
            Self::NoSuchTag { tags, .. } => format!("its tags are {}", tags.join(", ")),
            Self::Ambiguous { tags, .. } if tags.is_empty() => {
                "none of them has a tag: give the wanted one a tag, for example with `umoci tag`".into()
            }
            Self::Ambiguous { tags, .. } => format!("choose one by its tag: {}", tags.join(", ")),
            Self::NoSuchPlatform { platforms, .. } => format!("it has {}", platforms.join(", ")),
            Self::MissingBlob { .. } | Self::Digest { .. } | Self::Json { .. } => {
                "fetch or make the image again: this copy of it is not whole".into()
            }
            Self::Compression { .. } => "decompress it first, or compress it with gzip, zstd or xz".into(),
            Self::MissingProgram { package, .. } => format!("install it, for example with `apt-get install {package}`"),
            Self::Debootstrap { .. } => {
                "see the step's log; the suite's name, the mirror of /etc/apt and the network are the usual causes".into()
            }
            Self::DebootstrapIds { .. } => {
                "install newuidmap (Debian: package uidmap) and give yourself ranges in /etc/subuid and /etc/subgid; or build once as root, or use another base".into()
            }
            Self::Unpack { source, .. } => return io_hint(source.io()?),
            Self::Io { source, .. } | Self::Store(obuild_stores::Error::Io { source, .. }) => return io_hint(source),
            Self::Store(source) => source.hint()?.into(),
            _ => return None,
        };
        Some(hint)
    }

    pub(crate) fn registry(image: &impl ToString, source: crate::registry::Error) -> Self {
        match source {
            crate::registry::Error::Cancelled => Self::Cancelled,
            source => Self::Registry {
                image: image.to_string(),
                source: Arc::new(source),
            },
        }
    }

    pub(crate) fn io(
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
}

fn io_hint(error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("the disk is full: free some space, for example with `obuild prune`".into())
        }
        io::ErrorKind::PermissionDenied => {
            Some("only root can give files to other users and make devices: run as root".into())
        }
        _ => None,
    }
}
