// SPDX-License-Identifier: Apache-2.0
//! What a copy's destination means for its sources.

use crate::tree::destination::absolute;
use crate::tree::error::CopyError;
use crate::tree::manifest::Manifest;
use bstr::{BString, ByteSlice};

/// The destination, understood.
pub(super) struct Place<'a> {
    /// The directory that the sources go into, by its components.
    pub(super) base: Vec<&'a [u8]>,
    /// The name of the one source, if it does not keep its own.
    pub(super) name: Option<&'a [u8]>,
}

impl<'a> Place<'a> {
    pub(super) fn new(manifest: &Manifest, dst: &'a [u8]) -> Result<Self, CopyError> {
        let bad = |reason| CopyError::BadDestination {
            destination: dst.into(),
            reason,
        };
        if !dst.starts_with(b"/") {
            return Err(bad("is not absolute"));
        }
        if dst.contains(&0) {
            return Err(bad("contains a zero byte"));
        }
        let mut base: Vec<&[u8]> = dst
            .split(|&byte| byte == b'/')
            .filter(|component| !component.is_empty() && *component != b".")
            .collect();
        let [item] = &*manifest.items else {
            return if dst.ends_with(b"/") {
                Ok(Self { base, name: None })
            } else {
                Err(CopyError::ManyToOne {
                    destination: dst.into(),
                })
            };
        };
        let entry = manifest.entry(item.entry);
        if dst.ends_with(b"/") || entry.name.is_empty() {
            return Ok(Self { base, name: None });
        }
        match base.pop() {
            Some(b"..") => Err(bad("ends in '..'")),
            Some(name) => Ok(Self {
                base,
                name: Some(name),
            }),
            // `/.`
            None => Err(bad("has no name in it")),
        }
    }

    /// Returns the absolute path of the directory.
    pub(super) fn path(&self) -> BString {
        absolute(self.base.join(&b"/"[..]).as_bstr())
    }
}
