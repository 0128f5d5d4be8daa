// SPDX-License-Identifier: Apache-2.0
//! Base images in, trees and archives out.
//!
//! A [`Reference`] names a base image, [`resolve`] finds out its identity and configuration, and [`import`] brings its tree into a
//! store. Nothing here reads the environment or prints. All calls block: async callers run them on blocking threads.

mod apt;
mod architecture;
pub mod attest;
mod beside;
mod config;
mod debootstrap;
mod digest;
mod directory;
mod docker;
mod error;
mod image;
mod import;
mod layer;
mod layout;
mod lock;
mod material;
mod owners;
mod platform;
mod reference;
pub mod registry;
mod resolve;
mod reuse;
pub mod sbom;
mod share;
mod stamp;
mod stream;
mod tail;
pub mod tree;
mod unpack;

pub use architecture::host_architecture;
pub use beside::replace;
pub use config::ImageConfig;
pub use digest::Digest;
pub use error::{Error, ErrorKind};
pub use image::{ArchiveFormat, Image, ImageLayer, ImageRequest, StackedImage, remember_base};
pub use import::{Progress, import};
pub use layer::{Aspect, Difference, Member, Piece, differences};
pub use layer::{
    Compression, FIXED_TIME, LayerBlob, LayerError, LayerOptions, Times, forget_layers,
    forget_layers_of, known_diff_id, layer,
};
pub use platform::Platform;
pub use reference::Reference;
pub use resolve::{Pull, ResolveOptions, Resolved, Tools, resolve};
pub use reuse::BaseLayer;
pub use share::{
    CacheDocument, CacheExport, CacheImport, CachePlace, Fetching, SharedBlob, SharedCopy,
    SharedLayer, SharedStep, shared_layers,
};
pub use stamp::{FileDigests, FileStamp, NoDigests};
pub use unpack::Error as UnpackError;

#[cfg(test)]
mod tests;
