// SPDX-License-Identifier: Apache-2.0
//! What can go wrong when trees are scanned, copied and exported.
//!
//! The rules behind the scan's refusals are OBuilder's (614c8ac `lib/manifest.ml`).

use bstr::BString;
use std::io;
use std::path::PathBuf;

/// Why a tree could not be scanned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// No source was given.
    #[error("no source items for copy")]
    NoSources,
    /// A source contains `..`.
    #[error("can't use .. in source paths (in {source_path:?})")]
    ParentInSource {
        /// The source as written.
        source_path: BString,
    },
    /// A source does not exist.
    #[error("source path {source_path:?} not found")]
    NotFound {
        /// The source as written.
        source_path: BString,
    },
    /// A source goes through a file as if it were a directory.
    #[error("not a directory: {path} (in {source_path:?})")]
    NotADirectory {
        /// The file.
        path: BString,
        /// The source as written.
        source_path: BString,
    },
    /// A source goes through something that is neither a file nor a directory: links are never followed.
    #[error("not a regular file: {path} (in {source_path:?}; it is {found})")]
    NotARegularFile {
        /// Where.
        path: BString,
        /// The source as written.
        source_path: BString,
        /// What is there, for example `a symbolic link`.
        found: &'static str,
    },
    /// The tree holds something that cannot be copied.
    #[error("unsupported file type for {path:?}: it is {found}")]
    UnsupportedType {
        /// Where.
        path: BString,
        /// What is there, for example `a socket`.
        found: &'static str,
    },
    /// A file kept changing while its content was read.
    #[error("{path:?} changes while it is read")]
    SourceChanged {
        /// The file.
        path: BString,
    },
    /// The caller cancelled.
    #[error("the scan was cancelled")]
    Cancelled,
    /// A system call failed.
    #[error("cannot {action} {path:?} in the copy's source")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the source's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why a manifest could not be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// Several sources, but the destination is not written as a directory.
    #[error(
        "when copying multiple items, the destination must end with '/' (it is {destination:?})"
    )]
    ManyToOne {
        /// The destination as given.
        destination: BString,
    },
    /// The destination is not an absolute path that can be used.
    #[error("the destination {destination:?} {reason}")]
    BadDestination {
        /// The destination as given.
        destination: BString,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something on the way to the destination is not a directory.
    #[error("{path:?} in the destination is not a directory")]
    NotADirectory {
        /// The path in the destination.
        path: BString,
    },
    /// A symbolic link on the way to the destination points to nothing.
    #[error("{path:?} in the destination is a symbolic link that points nowhere inside the tree")]
    DanglingLink {
        /// The link in the destination.
        path: BString,
    },
    /// Symbolic links on the way to the destination go round in circles.
    #[error("there are too many symbolic links on the way to {path:?} in the destination")]
    LinkLoop {
        /// The path in the destination.
        path: BString,
    },
    /// A file would have to replace a directory.
    #[error(
        "cannot replace the directory {path:?} in the destination with a file \
         (a destination that ends with '/' copies into it)"
    )]
    FileOverDirectory {
        /// The directory in the destination.
        path: BString,
    },
    /// A source file is not what it was when the tree was scanned.
    #[error("{path:?} was changed while it was being copied")]
    SourceChanged {
        /// The file below the source's root.
        path: BString,
    },
    /// The caller cancelled.
    #[error("the copy was cancelled")]
    Cancelled,
    /// A system call on the source failed.
    #[error("cannot {action} {path:?} in the copy's source")]
    Source {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the source's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A system call on the destination failed. A full disk is a `source` of kind `StorageFull`.
    #[error("cannot {action} {path:?} in the copy's destination")]
    Destination {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the destination's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Why a tree could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The directory to export to holds something already.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The place to export to is taken by something that is not a directory.
    #[error("{} exists and is not a directory", path.display())]
    NotADirectory {
        /// The place.
        path: PathBuf,
    },
    /// A file of the tree changed while it was read.
    #[error("{path:?} was changed while it was being exported")]
    SourceChanged {
        /// The file below the tree's root.
        path: BString,
    },
    /// The caller cancelled.
    #[error("the export was cancelled")]
    Cancelled,
    /// Reading the tree failed.
    #[error("cannot {action} {path:?} in the tree")]
    Source {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the tree's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Writing the result failed. A full disk is a `source` of kind `StorageFull`.
    #[error("cannot {action} {path:?} in the export")]
    Target {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the export's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory to export to could not be made ready.
    #[error("cannot {action} {}", path.display())]
    Place {
        /// What was tried, as a verb.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The tar stream's writer failed.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// Why a tree could not be taken down, or made into another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// Reading a tree failed.
    #[error("cannot {action} {path:?} in the tree")]
    Read {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the tree's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Writing a tree failed. A full disk is a `source` of kind `StorageFull`.
    #[error("cannot {action} {path:?} in the new tree")]
    Write {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which path below the tree's root.
        path: BString,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
