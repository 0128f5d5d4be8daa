// SPDX-License-Identifier: Apache-2.0
//! A directory in memory that only the step's init process reaches: secrets and what differs from step to step are shown from it one
//! by one.

use super::template::open_place;
use crate::sandbox::{OverlayMount, Rootfs, Upper};
use crate::sys;
use crate::tree::{Attributes, attach, bind, file_system, overlay};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::thread::UnshareFlags;
use std::cell::OnceCell;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The sandbox's own files, which no path of the step leads to: what is shown is mounted from here piece by piece.
pub(super) struct Private {
    place: Option<OwnedFd>,
    directory: OnceCell<OwnedFd>,
}

impl Private {
    /// Makes an empty one when it is needed first, mounted on `place`, which must be in the step's own mount namespace.
    pub(super) fn new(place: OwnedFd) -> Self {
        Self {
            place: Some(place),
            directory: OnceCell::new(),
        }
    }

    /// Makes an empty one when it is needed first, in a mount namespace that the process gets then. The host's mounts stay in reach.
    pub(super) fn among_host() -> Self {
        Self {
            place: None,
            directory: OnceCell::new(),
        }
    }

    pub(super) fn directory(&self) -> Result<BorrowedFd<'_>, Failure> {
        if let Some(directory) = self.directory.get() {
            return Ok(directory.as_fd());
        }
        let action = || "make the sandbox's private directory";
        let options = [("mode", "755"), ("size", "65536k")];
        let directory = file_system("tmpfs", &options, Attributes::NO_EXEC).trying(action)?;
        if let Some(place) = &self.place {
            attach(&directory, place.as_fd())
        } else {
            sys::unshare(UnshareFlags::NEWNS).trying(action)?;
            attach(&directory, open_place()?.as_fd())
        }
        .trying(action)?;
        Ok(self.directory.get_or_init(|| directory).as_fd())
    }

    /// Returns one of its files or directories as a detached mount that cannot be written to.
    pub(super) fn show(&self, name: &str) -> Result<OwnedFd, Failure> {
        let action = || format!("show the sandbox's own {name}");
        bind(
            self.directory()?,
            name.as_bytes(),
            Attributes::NO_EXEC.readonly(),
        )
        .trying(action)
    }

    /// Writes a file.
    pub(super) fn write(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<(), Failure> {
        let directory = self.directory()?;
        try_write(directory, name, content, mode, owner)
            .trying(|| format!("write the sandbox's own {name}"))
    }

    pub(super) fn make_directory(&self, name: &str) -> Result<(), Failure> {
        rustix::fs::mkdirat(self.directory()?, name, Mode::from_raw_mode(0o755))
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
                overlay(recipe, with, || self.directory())
            }
            Rootfs::Overlay(recipe) => {
                let (upper, work) = (format!("{name}-upper"), format!("{name}-work"));
                self.make_directory(&upper)?;
                self.make_directory(&work)?;
                let below = format!("/proc/self/fd/{}", self.directory()?.as_raw_fd());
                let writable = OverlayMount {
                    lower: recipe.lower.clone(),
                    upper: Some(Upper {
                        upper: Path::new(&below).join(upper),
                        work: Path::new(&below).join(work),
                    }),
                };
                overlay(&writable, with, || self.directory())
            }
        }
    }
}

/// Returns whether a tree may not be written to.
pub(super) fn is_readonly(rootfs: &Rootfs) -> bool {
    matches!(rootfs, Rootfs::Overlay(OverlayMount { upper: None, .. }))
}

fn try_write(
    directory: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    mode: u32,
    owner: (u32, u32),
) -> std::io::Result<()> {
    use std::io::Write;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(mode);
    let file = rustix::fs::openat(directory, name, flags, mode)?;
    if owner != (0, 0) {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    std::fs::File::from(file).write_all(content)
}
