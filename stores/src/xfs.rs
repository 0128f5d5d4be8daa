// SPDX-License-Identifier: Apache-2.0
//! The xfs kind, for every file system that shares the blocks of copied files (xfs, btrfs, bcachefs, …): each tree is whole,
//! and a draft a copy of its parent's that shares all content with it (`FICLONE`, `ioctl_ficlone(2)`).
//!
//! A step costs the making of all the tree's files. An overlay on the same disk costs nothing like it; this kind is for
//! those who want trees that are plain directories, each complete in itself.

use crate::place::Place;
use crate::tree::Sharing;
use crate::trees::{self, Layers, Trees};
use crate::{Error, Kind, Rootfs, sys};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::AsFd as _;

/// The xfs kind.
pub(crate) struct Xfs;

impl Trees for Xfs {
    fn kind(&self) -> Kind {
        Kind::Xfs
    }

    fn probe(&self, place: &Place) -> Result<(), Error> {
        let path = place.path("").components().collect::<std::path::PathBuf>();
        let unsuitable = |reason: String| Error::Unsuitable {
            path: path.clone(),
            kind: Kind::Xfs.name(),
            reason,
        };
        if !sys::is_root() {
            let reason = "giving files away needs root: run it as root";
            return Err(unsuitable(reason.to_owned()));
        }
        try_out(place).map_err(|errno| match errno {
            Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::XDEV => {
                unsuitable(format!(
                    "its file system cannot share the blocks of copied files: mount an XFS made with reflinks \
                     (mkfs.xfs -m reflink=1) or a btrfs there, or use overlay:{path}",
                    path = path.display()
                ))
            }
            errno => place.error("share blocks in", ".", errno),
        })
    }

    fn layers(&self) -> Option<Layers> {
        None
    }

    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
        trees::create_copy(place, slot, below)
    }

    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error> {
        trees::destroy(place, name, None)
    }

    fn size(&self, place: &Place, name: &str, parent: Option<&str>) -> Result<u64, Error> {
        trees::size(place, name, parent.map(|parent| (parent, Sharing::Blocks)))
    }
}

/// Makes a file that shares its block with another, both without names.
fn try_out(place: &Place) -> rustix::io::Result<()> {
    let name = format!(".probe-{}", std::process::id());
    let make = |suffix: &str| {
        let name = format!("{name}{suffix}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(place.descriptor(), &name, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::unlinkat(place.descriptor(), &name, AtFlags::empty())?;
        Ok::<_, Errno>(file)
    };
    let (from, to) = (make("a")?, make("b")?);
    rustix::io::write(&from, &[1; 4096])?;
    rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd())
}
