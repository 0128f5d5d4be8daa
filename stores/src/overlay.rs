// SPDX-License-Identifier: Apache-2.0
//! The overlay kind: a snapshot is the upper directory of an overlay mount (Linux
//! `Documentation/filesystems/overlayfs.rst`), on top of those of its ancestors.
//!
//! It works in any directory whose file system can hold an upper layer (ext4, XFS, btrfs) and needs root, if only of a user
//! namespace: there the kernel keeps its marks in `user.overlay.*` (mount option `userxattr`, Linux 5.11). Beside `fs`, a slot
//! has `work`, the kernel's scratch directory. It stays after the commit, with the few empty directories that a mount
//! leaves in it, and goes when the snapshot goes: on ext4, to delete it costs more than all the rest of a commit (four
//! directories at 0.15 to 0.25 ms on a disk in use, 2-core VM, 6.18, 2026-11), and the mount that used it may end a little later than
//! the mount namespace it was in.

use crate::place::Place;
use crate::trees::{self, Layers, Trees};
use crate::{Error, Kind, OverlayMount, Rootfs, Upper, sys, tree};
use rustix::fs::{AtFlags, Mode, XattrFlags};
use std::ffi::CString;

/// The overlay kind.
pub(crate) struct Overlay;

/// A miss in a directory that all layers have costs about 0.4 µs a layer, a mount 2.5 µs; the kernel's limit is 500
/// (measured, 6.18, 2-core VM, 2026-11). Squashing the layers of 64 steps costs about as much as one step that
/// wrote all that they wrote.
const LAYERS: Layers = Layers {
    snapshot: 64,
    cache: 16,
};

/// The directory of [`OverlayMount::points`].
const POINTS: &str = "points";

/// `OVERLAYFS_SUPER_MAGIC`: linux include/uapi/linux/magic.h.
const OVERLAYFS: i64 = 0x794c_7630;

impl Trees for Overlay {
    fn kind(&self) -> Kind {
        Kind::Overlay
    }

    fn probe(&self, place: &Place) -> Result<(), Error> {
        let unsuitable = |reason: String| Error::Unsuitable {
            path: place.path(""),
            kind: Kind::Overlay.name(),
            reason,
        };
        if !sys::is_root() {
            return Err(unsuitable(
                "mounting an overlay needs root: run it as root".to_owned(),
            ));
        }
        let statfs = rustix::fs::fstatfs(place.descriptor())
            .map_err(|errno| place.error("look at", ".", errno))?;
        if statfs.f_type == OVERLAYFS {
            let reason = "it is on an overlay itself (a container's root?): choose a directory on a \
                          real file system, for example a volume";
            return Err(unsuitable(reason.to_owned()));
        }
        // The rest is tried out: the kernel knows best which file systems and privileges will do.
        let slot = format!(".probe-{}", std::process::id());
        place.make_directory(&slot, 0o700)?;
        let lower = format!("{slot}/lower");
        let tried = place
            .make_directory(&lower, 0o700)
            .and_then(|_| try_out(place, &slot, &lower));
        let name = CString::new(slot.as_str()).expect("digits");
        let removed = tree::remove(place.descriptor(), &name, None);
        tried.map_err(|error| {
            unsuitable(format!(
                "an overlay cannot be written there ({}): it takes CAP_SYS_ADMIN and a file system \
                 such as ext4, XFS or btrfs",
                chain(&error)
            ))
        })?;
        removed.map_err(|errno| place.error("remove", &slot, errno))
    }

    fn furnish(&self, place: &Place) -> Result<(), Error> {
        let etc = format!("{POINTS}/etc");
        let hosts = format!("{etc}/hosts");
        if !place.exists(&hosts)? {
            for directory in [POINTS, &etc] {
                place.make_directory(directory, 0o755)?;
                // Whatever the umask is.
                rustix::fs::chmodat(
                    place.descriptor(),
                    directory,
                    Mode::from_raw_mode(0o755),
                    AtFlags::empty(),
                )
                .map_err(|errno| place.error("create", directory, errno))?;
            }
            // Last: who sees it sees all.
            place.mark(&hosts)?;
        }
        Ok(())
    }

    fn layers(&self) -> Option<Layers> {
        Some(LAYERS)
    }

    fn create(&self, place: &Place, slot: &str, below: &[String]) -> Result<Rootfs, Error> {
        let upper = format!("{slot}/fs");
        place.make_directory(&upper, 0o755)?;
        let Some(top) = below.first() else {
            // Whatever the umask is.
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::chmodat(place.descriptor(), &upper, mode, AtFlags::empty())
                .map_err(|errno| place.error("create", &upper, errno))?;
            return Ok(Rootfs::Directory(place.path(&upper)));
        };
        // The merged tree's top directory shows the attributes of the topmost layer's.
        let open = |name: &str| {
            place
                .open_directory(name)
                .map_err(|errno| place.error("open", name, errno))
        };
        let (from, to) = (open(top)?, open(&upper)?);
        rustix::fs::fstat(&from)
            .and_then(|stat| tree::copy_attributes(&from, &to, &stat))
            .map_err(|errno| place.error("create", &upper, errno))?;
        let work = format!("{slot}/work");
        place.make_directory(&work, 0o700)?;
        Ok(Rootfs::Overlay(OverlayMount {
            lower: below.iter().map(|layer| place.path(layer)).collect(),
            upper: Some(Upper {
                upper: place.path(&upper),
                work: place.path(&work),
            }),
            points: place
                .exists(&format!("{POINTS}/etc/hosts"))?
                .then(|| place.path(POINTS)),
        }))
    }

    fn destroy(&self, place: &Place, name: &str) -> Result<(), Error> {
        trees::destroy(place, name, None)
    }

    fn size(&self, place: &Place, name: &str, _parent: Option<&str>) -> Result<u64, Error> {
        trees::size(place, name, None)
    }
}

/// Mounts an overlay in `slot` and makes a directory in place of a deleted one in it, which takes everything a layer
/// needs: whiteouts and extended attributes.
fn try_out(place: &Place, slot: &str, lower: &str) -> Result<(), Error> {
    let name = format!("{lower}/d");
    place.make_directory(&name, 0o700)?;
    let rootfs = Overlay.create(place, slot, &[lower.to_owned()])?;
    let merged = rootfs.open()?;
    rustix::fs::unlinkat(&merged, "d", AtFlags::REMOVEDIR)
        .and_then(|()| rustix::fs::mkdirat(&merged, "d", Mode::RWXU))
        .map_err(|errno| place.error("use an overlay in", slot, errno))?;
    drop(merged);
    let upper = place
        .open_directory(&format!("{slot}/fs"))
        .map_err(|errno| place.error("open", slot, errno))?;
    rustix::fs::fsetxattr(&upper, tree::opaque_mark(), b"y", XattrFlags::empty())
        .map_err(|errno| place.error("mark", slot, errno))
}

/// Writes an error and its causes on one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
