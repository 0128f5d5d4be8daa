// SPDX-License-Identifier: Apache-2.0
//! What all steps see alike: device nodes, `/etc/hosts`, and what hides a path. Made once by the helper, read-only, and shown to each step
//! piece by piece: a mount costs the kernel much less than a file system of the step's own with all that in it.

use super::native;
use crate::tree::{Attributes, attach, copy, file_system};
use crate::wire::{Failure, Trying};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
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

/// Where it is mounted in the helper's own mount namespace, and so in those of all steps until they change their root. A directory of
/// sysfs that no program of ours or of a step looks into there.
const PLACES: [&str; 2] = ["/sys/kernel", "/sys"];

/// The content of a step's `/etc/hosts`.
pub(super) const HOSTS: &[u8] =
    b"127.0.0.1 localhost builder\n::1 localhost ip6-localhost ip6-loopback\n";

/// The template as a step's init process sees it.
pub(super) struct Template(OwnedFd);

impl Template {
    /// Gives the helper its own mounts, which the host never sees, and makes the template among them. Mounts that the host makes or
    /// removes later appear and disappear here too.
    pub(super) fn mount() -> Result<(), Failure> {
        crate::sys::unshare(rustix::thread::UnshareFlags::NEWNS)
            .trying(|| "make a mount namespace for the helper")?;
        native::own_mounts()?;
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
        let place = native::open_host(PLACES[0]).or_else(|_| native::open_host(PLACES[1]))?;
        attach(&made, place.as_fd()).trying(action)
    }

    /// Finds it in the mount namespace of a step.
    pub(super) fn open() -> Result<Self, Failure> {
        native::open_host(PLACES[0])
            .or_else(|_| native::open_host(PLACES[1]))
            .map(Self)
    }

    /// Returns a place that things can be mounted on before the step's root is entered.
    pub(super) fn place(self) -> OwnedFd {
        self.0
    }

    /// Returns one of its files or directories as a detached, read-only mount.
    pub(super) fn show(&self, name: &str) -> Result<OwnedFd, Failure> {
        copy(self.0.as_fd(), name.as_bytes()).trying(|| format!("show the sandbox's own {name}"))
    }
}

fn fill(directory: &OwnedFd) -> std::io::Result<()> {
    for &(name, major, minor) in NODES {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(directory, name, FileType::CharacterDevice, mode, device)?;
    }
    rustix::fs::mkdirat(directory, "empty", Mode::from_raw_mode(0o755))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let hosts = rustix::fs::openat(directory, "hosts", flags, Mode::from_raw_mode(0o644))?;
    std::fs::File::from(hosts).write_all(HOSTS)
}
