// SPDX-License-Identifier: Apache-2.0
//! The one place where a URL becomes a store.

use crate::btrfs::Btrfs;
use crate::disk::Disk;
use crate::overlay::Overlay;
use crate::rsync::Rsync;
use crate::trees::Trees;
use crate::xfs::Xfs;
use crate::zfs::Zfs;
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
        Kind::Zfs => {
            let (zfs, path) = Zfs::open(url)?;
            return Ok(Arc::new(Disk::open(url, &path, options, Box::new(zfs))?));
        }
        #[cfg(feature = "docker")]
        Kind::Docker => Box::new(crate::docker::Docker::new(options.docker_socket.clone())),
        #[cfg(not(feature = "docker"))]
        Kind::Docker => {
            return Err(Error::Unsuitable {
                path: url.path.clone(),
                kind: url.kind.name(),
                reason: "this program was built without the feature `docker`".to_owned(),
            });
        }
    };
    Ok(Arc::new(Disk::open(url, &url.path, options, trees)?))
}
