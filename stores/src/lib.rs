// SPDX-License-Identifier: Apache-2.0
//! Copy-on-write snapshot stores.
//!
//! A store keeps trees, each under the id of the step that made it and with at most one parent. It knows
//! nothing of steps, logs or images. [`Store`] is the one way in.
//!
//! All calls may block on the file system: async callers run them on blocking threads.

mod btrfs;
mod disk;
#[cfg(feature = "docker")]
mod docker;
mod draft;
mod error;
mod host;
mod id;
mod memory;
mod mount;
mod open;
mod overlay;
mod place;
mod rootfs;
mod rsync;
mod store;
mod sys;
mod tree;
mod trees;
mod upkeep;
mod url;
mod xfs;
mod zfs;

pub use draft::Draft;
pub use error::Error;
pub use host::FileSystem;
pub use id::SnapshotId;
pub use memory::Memory;
pub use open::open;
pub use rootfs::{OverlayMount, Rootfs, Upper};
pub use store::{CacheLease, Kind, Options, RsyncMode, Snapshot, Space, Store, StoreUrl, Touched};
pub use upkeep::{Capabilities, DraftStatus, Finding, FindingKind, Sharing, Status, Upkeep};
pub use url::best;
pub use zfs::Dataset;
