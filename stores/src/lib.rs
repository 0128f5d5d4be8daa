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
mod id;
mod memory;
mod mount;
mod open;
mod overlay;
mod place;
mod rootfs;
mod store;
mod sys;
mod tree;
mod trees;
mod url;

pub use draft::Draft;
pub use error::Error;
pub use id::SnapshotId;
pub use memory::Memory;
pub use open::open;
pub use rootfs::{OverlayMount, Rootfs, Upper};
pub use store::{CacheLease, Kind, Options, Snapshot, Space, Store, StoreUrl};
pub use url::best;
