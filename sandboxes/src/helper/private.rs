// SPDX-License-Identifier: Apache-2.0
//! A directory in memory that only the step's init process reaches: secrets, host files and device nodes are shown from it one by one.

use crate::sandbox::{OverlayMount, Rootfs, Upper};
use crate::tree::{Attributes, attach, bind, copy, file_system, overlay};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The sandbox's own files, which no path of the step leads to: what is shown is mounted from here piece by piece.
pub(super) struct Private {
    directory: OwnedFd,
}

impl Private {
    /// Makes an empty one, mounted on `place`, which must be in the step's own mount namespace.
    pub(super) fn new(place: &OwnedFd) -> Result<Self, Failure> {
        let action = || "make the sandbox's private directory";
        // Not NODEV: the device nodes are shown from here. The size is that of the OCI runtimes' /dev, which is a part of it.
        let options = [("mode", "755"), ("size", "65536k")];
        let directory = file_system("tmpfs", &options, Attributes::DEVICES).trying(action)?;
        attach(&directory, place.as_fd()).trying(action)?;
        Ok(Self { directory })
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Returns one of its files or directories as a detached mount with what this one forbids.
    pub(super) fn show(&self, name: &str) -> Result<OwnedFd, Failure> {
        copy(self.directory(), name.as_bytes()).trying(|| format!("show the sandbox's own {name}"))
    }

    /// Makes it read-only, and with it what is shown from now on.
    pub(super) fn seal(&self) -> Result<(), Failure> {
        Attributes::DEVICES
            .readonly()
            .set(self.directory())
            .trying(|| "seal the sandbox's private directory")
    }

    /// Writes a file.
    pub(super) fn write(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), Failure> {
        self.try_write(name, content, mode, owner)
            .trying(|| format!("write the sandbox's own {name}"))
    }

    fn try_write(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> std::io::Result<()> {
        use std::io::Write;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let file = rustix::fs::openat(&self.directory, name, flags, mode)?;
        if owner != (0, 0) {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        std::fs::File::from(file).write_all(content)
    }

    pub(super) fn make_directory(&self, name: &str) -> Result<(), Failure> {
        rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o755))
            .trying(|| format!("make the sandbox's own {name}"))
    }

    /// Mounts a tree, detached. One that may not be written to gets a writable layer of ours, so that mount points can be made in it;
    /// the caller then makes the mount read-only.
    pub(super) fn mount_tree(
        &self,
        rootfs: &Rootfs,
        name: &str,
        with: Attributes,
    ) -> Result<OwnedFd, Failure> {
        match rootfs {
            Rootfs::Directory(path) => bind(CWD, path.as_os_str().as_bytes(), with)
                .trying(|| format!("mount {}", path.display())),
            Rootfs::Overlay(recipe) if recipe.upper.is_some() => {
                overlay(recipe, with, self.directory())
            }
            Rootfs::Overlay(recipe) => {
                let (upper, work) = (format!("{name}-upper"), format!("{name}-work"));
                self.make_directory(&upper)?;
                self.make_directory(&work)?;
                let below = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
                let writable = OverlayMount {
                    lower: recipe.lower.clone(),
                    upper: Some(Upper {
                        upper: Path::new(&below).join(upper),
                        work: Path::new(&below).join(work),
                    }),
                };
                overlay(&writable, with, self.directory())
            }
        }
    }
}

/// Returns whether a tree may not be written to.
pub(super) fn is_readonly(rootfs: &Rootfs) -> bool {
    matches!(rootfs, Rootfs::Overlay(OverlayMount { upper: None, .. }))
}
