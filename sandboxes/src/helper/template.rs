// SPDX-License-Identifier: Apache-2.0
//! What all steps see alike: device nodes, `/etc/hosts`, and what hides a path. Made once by the helper, read-only, and shown to each step
//! piece by piece: a mount costs the kernel much less than a file system of the step's own with all that in it.

use super::dev::Dev;
use super::mounts::{Kernel, Protected};
use super::namespaces::Kind;
use super::native;
use crate::sys;
use crate::tree::{Attributes, attach, attach_at, bind, copy, file_system};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::thread::UnshareFlags;
use std::io::Write;

// Character devices of linux v6.18 Documentation/admin-guide/devices.txt: name, major, minor.
pub(super) const NODES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Its directory that hides directories.
pub(super) const EMPTY: &str = "empty";

/// Its directory that a step's own files are mounted on.
const PRIVATE: &str = "private";

/// Its directories that what one process 1 keeps is mounted on.
pub(super) const DEV: &str = "dev";
pub(super) const PROC: &str = "proc";
pub(super) const SYS: &str = "sys";

/// Directories of sysfs to mount something on that no program of ours looks into.
const PLACES: [&str; 2] = ["/sys/kernel", "/sys"];

/// In a user namespace a step may be shown the host's `/sys` as it is: there a directory of procfs is as good.
const ROOTLESS: [&str; 2] = ["/proc/fs", "/proc"];

/// Opens a place that things can be mounted on in a mount namespace that still has the host's mounts.
pub(super) fn open_place() -> Result<OwnedFd, Failure> {
    let [first, second] = if obuild_rootless::current().is_some() {
        ROOTLESS
    } else {
        PLACES
    };
    native::open_host(first).or_else(|_| native::open_host(second))
}

/// The content of a step's `/etc/hosts`.
pub(super) const HOSTS: &[u8] =
    b"127.0.0.1 localhost builder\n::1 localhost ip6-localhost ip6-loopback\n";

/// A mount namespace that has nothing but the template, as its root. A step's own is copied from it: the kernel copies, and takes down again,
/// one mount instead of all of the host's, and has none to unmount before the step begins, which costs it a wait for all processors.
pub(super) struct Template {
    own: OwnedFd,
    /// The helper's own mount namespace, and its root there.
    home: OwnedFd,
    home_root: OwnedFd,
}

impl Template {
    /// Makes it. The helper gets mounts of its own meanwhile, which the host never sees; mounts that the host makes or removes later appear
    /// and disappear here too.
    pub(super) fn make() -> Result<Self, Failure> {
        let action = || "make what all steps see";
        sys::unshare(UnshareFlags::NEWNS).trying(|| "make a mount namespace for the helper")?;
        native::own_mounts()?;
        let (home, home_root) = (Kind::Mount.own().trying(action)?, native::open_host("/")?);
        sys::unshare(UnshareFlags::NEWNS).trying(action)?;
        let made = Kind::Mount.own().trying(action)?;
        let template = Self {
            own: made,
            home,
            home_root,
        };
        let made = make_root();
        template.leave()?;
        made.map(|()| template)
    }

    /// Makes one that has `/dev` too, and the kernel's file systems as one process 1 sees them, with what leads to the host hidden.
    pub(super) fn with_kernel(
        &self,
        kernel: &Kernel,
        protected: &Protected,
    ) -> Result<(Self, Dev), Failure> {
        let action = || "keep what process 1 sees";
        let copy = |descriptor: &OwnedFd| descriptor.try_clone().trying(action);
        let entered = self.enter()?;
        kernel.show(&entered)?;
        protected.apply(&entered)?;
        let dev = Dev::make(&entered)?;
        // Of the template itself: the host's procfs is out of reach, and this is as good.
        let made = Self {
            own: Kind::Mount.own().trying(action)?,
            home: copy(&self.home)?,
            home_root: copy(&self.home_root)?,
        };
        Ok((made, dev))
    }

    /// Gives the process, which has one thread, a mount namespace of its own that is as the template's. The host's mounts are out of reach then.
    pub(super) fn enter(&self) -> Result<Entered, Failure> {
        let action = || "enter the step's own mounts";
        Kind::Mount.join(&self.own).trying(action)?;
        sys::unshare(UnshareFlags::NEWNS).trying(action)?;
        native::open_host("/").map(Entered)
    }

    /// Brings the process back to the helper's mounts. Those of the namespace that it leaves are gone when this returns, unless
    /// something else holds them.
    pub(super) fn leave(&self) -> Result<(), Failure> {
        let action = || "go back to the helper's mounts";
        Kind::Mount.join(&self.home).trying(action)?;
        // setns(2) leaves the process at the root of the namespace, but its own may have been another.
        rustix::process::fchdir(&self.home_root).trying(action)?;
        rustix::process::chroot(".").trying(action)
    }
}

/// The template in the mount namespace of a step.
pub(super) struct Entered(OwnedFd);

impl Entered {
    /// Returns what the step's root is mounted on.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Returns a place that something of the step's own can be mounted on.
    pub(super) fn place(&self) -> Result<OwnedFd, Failure> {
        self.open(PRIVATE)
            .trying(|| "open the sandbox's private directory")
    }

    /// Opens what is at a path below its root, which is mounted there or lies in what is.
    pub(super) fn open(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, path, flags, Mode::empty())
    }

    /// Returns one of its files or directories as a detached, read-only mount.
    pub(super) fn show(&self, name: &str) -> Result<OwnedFd, Failure> {
        copy(self.0.as_fd(), name.as_bytes()).trying(|| format!("show the sandbox's own {name}"))
    }
}

/// Makes the template the root of the process's mount namespace, and lets go of everything else in it.
fn make_root() -> Result<(), Failure> {
    let action = || "make what all steps see";
    // Not NODEV: the device nodes are shown from here.
    let made = file_system("tmpfs", &[("mode", "755")], Attributes::DEVICES).trying(action)?;
    let old = rustix::process::umask(Mode::empty());
    let filled = fill(&made);
    rustix::process::umask(old);
    filled.trying(action)?;
    Attributes::DEVICES
        .readonly()
        .set(made.as_fd())
        .trying(action)?;
    attach(&made, open_place()?.as_fd()).trying(action)?;
    if obuild_rootless::current().is_some() {
        // Nobody can make a device there, so the host's are shown.
        for &(name, ..) in NODES {
            let host = format!("/dev/{name}");
            let action = || format!("show the host's {host}");
            let with = Attributes::DEVICES.readonly();
            let node = bind(CWD, host.as_bytes(), with).trying(action)?;
            attach_at(&node, made.as_fd(), name).trying(action)?;
        }
    }
    rustix::process::fchdir(&made).trying(action)?;
    // pivot_root(2), NOTES: with "." for both, the old root ends up on top of the new one and is unmounted from there.
    rustix::process::pivot_root(".", ".").trying(action)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).trying(|| "let go of the host's root")
}

fn fill(directory: &OwnedFd) -> std::io::Result<()> {
    let rootless = obuild_rootless::current().is_some();
    for &(name, major, minor) in NODES {
        let (kind, device) = if rootless {
            (FileType::RegularFile, 0)
        } else {
            let device = rustix::fs::makedev(major, minor);
            (FileType::CharacterDevice, device)
        };
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(directory, name, kind, mode, device)?;
    }
    for name in [EMPTY, PRIVATE, DEV, PROC, SYS] {
        rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let hosts = rustix::fs::openat(directory, "hosts", flags, Mode::from_raw_mode(0o644))?;
    std::fs::File::from(hosts).write_all(HOSTS)
}
