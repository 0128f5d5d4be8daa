// SPDX-License-Identifier: Apache-2.0
//! The one place where a URL becomes a store.

use crate::btrfs::Btrfs;
use crate::disk::Disk;
use crate::overlay::Overlay;
use crate::rsync::Rsync;
use crate::trees::Trees;
use crate::xfs::Xfs;
use crate::{Error, Kind, Options, Store, StoreUrl};
use std::sync::Arc;

/// Opens the store that a URL names; makes it where there is nothing, in a new or empty directory.
///
/// Repairs what a crash left: drafts of dead processes go, and after a reboot what was still provisional.
///
/// # Errors
///
/// [`Error::Unsuitable`] when the directory cannot hold such a store, [`Error::Newer`] when a newer program wrote it,
/// [`Error::RsyncMode`] when the mode is missing or wrong.
pub fn open(url: &StoreUrl, options: &Options) -> Result<Arc<dyn Store>, Error> {
    if options.rsync_mode.is_some() && url.kind != Kind::Rsync {
        return Err(Error::RsyncMode {
            url: url.to_string(),
            reason: "only rsync stores have one".to_owned(),
        });
    }
    let trees: Box<dyn Trees> = match url.kind {
        Kind::Overlay => Box::new(Overlay),
        Kind::Btrfs => Box::new(Btrfs),
        Kind::Xfs => Box::new(Xfs),
        Kind::Rsync => Box::new(Rsync::new(url, options)),
    };
    Ok(Arc::new(Disk::open(url, options, trees)?))
}
