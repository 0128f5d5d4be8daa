// SPDX-License-Identifier: Apache-2.0
//! Trees of files: taken down, copied onto each other, exported.
//!
//! A tree is given as a descriptor of its root directory, which may be that of a mount that is attached nowhere.
//! Everything below is reached relative to open descriptors, so that no path is too long, no tree too deep, and no
//! symbolic link leads out. All calls block.
//!
//! A `(copy …)` step is a [`scan`] of its source, whose digest is part of the step's identity, and, if the
//! step must run, a [`copy`] of the resulting [`Manifest`] onto the draft's tree. The rules are OBuilder's
//! (614c8ac `lib/manifest.ml`, `lib/tar_transfer.ml`) without its losses: see `docs/decisions/0003-copy-modes.md`.

mod apply;
mod copy;
mod crew;
pub(crate) mod cursor;
mod data;
pub(crate) mod destination;
pub(crate) mod diff;
mod error;
pub(crate) mod export_dir;
mod export_tar;
pub(crate) mod ladder;
pub(crate) mod listing;
mod manifest;
mod memo;
pub(crate) mod scan;
pub(crate) mod stamp;
pub(crate) mod tar_writer;
#[cfg(test)]
mod tests;
pub(crate) mod walk;
pub(crate) mod xattr;

pub use apply::{Applied, apply};
pub use copy::{CopyRequest, CopyStats, copy};
pub(crate) use destination::open_in_root;
pub use diff::{Change, ChangeKind, diff};
pub use error::{CopyError, ExportError, ScanError, TreeError};
pub use export_dir::{ExportStats, Progress, export_dir};
pub use export_tar::export_tar;
pub(crate) use ladder::Names;
pub(crate) use listing::read_failed;
pub use listing::{Content, ListOptions, Listing, Node, Reading, list, list_layer, order};
pub use manifest::Manifest;
pub use memo::DigestMemo;
pub use scan::{ScanRequest, scan};
pub(crate) use walk::{Step, Walk};

/// Whose tree a copy reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// The build context on the host. Extended attributes are not copied: they are the host's affair.
    Context,
    /// The result of another build. `user.*` attributes and file capabilities are copied.
    Build,
}

/// Asks whether to stop; called often, from several threads.
pub type Cancelled<'a> = &'a (dyn Fn() -> bool + Sync);
