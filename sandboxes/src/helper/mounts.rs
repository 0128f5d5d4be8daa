// SPDX-License-Identifier: Apache-2.0
//! What a step sees beside its tree. The mounts, masked and read-only paths are those of the OCI runtimes' default (OBuilder 614c8ac
//! `lib/runc_sandbox.ml` has the same list).

use super::dev;
use super::private::{Private, is_readonly};
use super::template::{DEV, EMPTY, Entered, HOSTS, PROC, SYS};
use crate::sandbox::{Mount, MountSource, Network};
use crate::tree::{Attributes, Kind, Tree, attach, attach_at, bind, bind_all, file_system};
use crate::wire::{Failure, Streams, Trying};
use bstr::ByteSlice;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, OFlags};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Paths that tell about or change the host, hidden. OCI runtime-spec v1.2 config-linux.md "Masked Paths".
pub(super) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that may be read only. OCI runtime-spec v1.2 config-linux.md "Readonly Paths".
pub(super) const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Attaches a mount to a place in the tree.
pub(super) fn place(
    tree: &mut Tree,
    mount: &OwnedFd,
    target: &[u8],
    kind: Kind,
) -> Result<(), Failure> {
    let action = || format!("mount {} in the tree", target.as_bstr());
    let point = tree.point(target, kind).trying(action)?;
    attach(mount, point.as_fd()).trying(action)
}

/// Writes the files that tell the step about its host.
pub(super) fn write_host_files(private: &Private, network: Network) -> Result<(), Failure> {
    private.write("hosts", HOSTS, 0o644, (0, 0))?;
    match network {
        Network::None => Ok(()),
        // A copy: the file itself may be a link, or be replaced while the step runs.
        Network::Host => private.write("resolv.conf", &read_resolver()?, 0o644, (0, 0)),
    }
}

/// Returns the content of the host's `/etc/resolv.conf`.
fn read_resolver() -> Result<Vec<u8>, Failure> {
    match fs_err::read("/etc/resolv.conf") {
        Ok(content) => Ok(content),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).trying(|| "read the host's /etc/resolv.conf"),
    }
}

/// The kernel's own file systems for one process 1: of its pid namespace and of its network namespace.
pub(super) struct Kernel {
    proc: OwnedFd,
    sys: OwnedFd,
}

impl Kernel {
    /// Makes them while the process still has the host's mounts: in a user namespace the kernel gives them only to who has the host's in sight.
    pub(super) fn take(network: Network) -> Result<Self, Failure> {
        let proc = file_system("proc", &[], Attributes::NO_EXEC).trying(|| "make /proc")?;
        let with = Attributes::NO_EXEC.readonly();
        let sys = if network == Network::Host && obuild_rootless::current().is_some() {
            // The kernel makes a sysfs only for who owns the network that it shows.
            bind_all(super::native::open_host("/sys")?.as_fd(), with)
                .trying(|| "show the host's /sys")?
        } else {
            file_system("sysfs", &[], with).trying(|| "make /sys")?
        };
        Ok(Self { proc, sys })
    }

    /// Mounts them in the template.
    pub(super) fn show(&self, template: &Entered) -> Result<(), Failure> {
        for (name, mount) in [(PROC, &self.proc), (SYS, &self.sys)] {
            attach_at(mount, template.root(), name).trying(|| format!("mount /{name}"))?;
        }
        Ok(())
    }
}

/// What of the host a step sees: taken while the process still has the host's mounts.
pub(super) struct Host {
    pub(super) console: Option<OwnedFd>,
    resolver: Option<Vec<u8>>,
}

impl Host {
    pub(super) fn take(streams: &Streams, network: Network) -> Result<Self, Failure> {
        let console = match streams {
            Streams::Inherit {
                terminal: Some(path),
            } => {
                // So that the step's terminal has a name inside.
                let action = || format!("show the terminal {} as /dev/console", path.display());
                let path = path.as_os_str().as_bytes();
                Some(bind(CWD, path, Attributes::DEVICES).trying(action)?)
            }
            _ => None,
        };
        let resolver = (network == Network::Host).then(read_resolver).transpose()?;
        Ok(Self { console, resolver })
    }
}

/// Shows the files that tell the step about its host.
pub(super) fn host_files(
    tree: &mut Tree,
    template: &Entered,
    private: &Private,
    host: &Host,
) -> Result<(), Failure> {
    place(tree, &template.show("hosts")?, b"/etc/hosts", Kind::File)?;
    if let Some(resolver) = &host.resolver {
        private.write("resolv.conf", resolver, 0o644, (0, 0))?;
        let mount = private.show("resolv.conf")?;
        place(tree, &mount, b"/etc/resolv.conf", Kind::File)?;
    }
    Ok(())
}

/// Mounts what every Linux program expects.
pub(super) fn system(tree: &mut Tree, template: &Entered, host: &Host) -> Result<(), Failure> {
    let shared = |name: &str| template.open(name).trying(|| format!("open /{name}"));
    place(tree, &shared(PROC)?, b"/proc", Kind::Directory)?;

    let dev = shared(DEV)?;
    place(tree, &dev, b"/dev", Kind::Directory)?;
    dev::complete(dev.as_fd(), host)?;
    place(tree, &shared(SYS)?, b"/sys", Kind::Directory)
}

/// A detached mount, the kind of point it needs, and its target.
pub(super) type Extra<'a> = (OwnedFd, Kind, &'a [u8]);

/// Returns the mounts that the caller asked for.
pub(super) fn extra<'a>(private: &Private, mounts: &'a [Mount]) -> Result<Vec<Extra<'a>>, Failure> {
    let mut detached = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let action = || format!("mount {} in the tree", mount.target);
        let with = Attributes::DATA.readonly_if(mount.readonly);
        let made = match &mount.source {
            MountSource::Tree(rootfs) => {
                let with = with.readonly_if(shows_readonly(mount));
                private.mount_tree(rootfs, &format!("mount-{index}"), with)?
            }
            MountSource::Tmpfs { size_bytes } => {
                let size = size_bytes.map(|size| size.to_string());
                let mut options = vec![("mode", "1777")];
                options.extend(size.iter().map(|size| ("size", size.as_str())));
                file_system("tmpfs", &options, with).trying(action)?
            }
        };
        let stat = rustix::fs::fstat(&made).trying(action)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            _ => Kind::File,
        };
        detached.push((made, kind, mount.target.as_slice()));
    }
    Ok(detached)
}

/// Shows the step its own cgroup, and nothing above it, where the host has version 2 only. Must be called in the step's cgroup namespace.
///
/// Programs read their limits there. One that cannot be shown is one less to read: no reason to fail.
pub(super) fn own_cgroup(tree: &Tree) {
    let show = || -> std::io::Result<()> {
        let mount = file_system("cgroup2", &[], Attributes::NO_EXEC.readonly())?;
        attach(&mount, tree.open(b"/sys/fs/cgroup", OFlags::PATH)?.as_fd())
    };
    let _ = show();
}

/// Returns whether a mount shows something that cannot be written to anyway.
pub(super) fn shows_readonly(mount: &Mount) -> bool {
    matches!(&mount.source, MountSource::Tree(rootfs) if is_readonly(rootfs))
}

/// Refuses a target in the kernel's own file systems: a mount there could hide what protects the host.
pub(super) fn refuse_kernel_files(tree: &Tree, target: &[u8]) -> Result<(), Failure> {
    // linux v6.18 include/uapi/linux/magic.h: PROC_SUPER_MAGIC, SYSFS_MAGIC.
    const KERNELS: [i64; 2] = [0x9fa0, 0x6265_6572];
    let action = || format!("mount {} in the tree", target.as_bstr());
    let point = tree.open(target, OFlags::PATH).trying(action)?;
    if KERNELS.contains(&rustix::fs::fstatfs(&point).trying(action)?.f_type) {
        return Err(rustix::io::Errno::INVAL).trying(action);
    }
    Ok(())
}

/// The masked and read-only paths that this kernel has.
pub(super) struct Protected {
    /// With whether each is a directory.
    masked: Vec<(&'static str, bool)>,
    read_only: Vec<&'static str>,
    /// Whether the host has cgroups of version 2 only.
    pub(super) unified: bool,
}

impl Protected {
    /// Looks at the host's own `/proc` and `/sys`, where looking costs less than in a step's fresh ones.
    pub(super) fn probe() -> Self {
        // Where the host itself shows no sysfs its absence says nothing.
        let sysfs = Path::new("/sys/kernel").exists();
        let exists = |path: &&str| {
            (path.starts_with("/sys/") && !sysfs) || Path::new(path).symlink_metadata().is_ok()
        };
        // linux v6.18 include/uapi/linux/magic.h CGROUP2_SUPER_MAGIC.
        let unified =
            rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|found| found.f_type == 0x6367_7270);
        Self {
            unified,
            masked: MASKED
                .iter()
                .copied()
                .filter(exists)
                // Of what the host itself does not show, all that there may be is directories.
                .map(|path| {
                    (
                        path,
                        fs_err::metadata(path).is_ok_and(|found| !found.is_dir()),
                    )
                })
                .map(|(path, file)| (path, !file))
                .collect(),
            read_only: READ_ONLY.iter().copied().filter(exists).collect(),
        }
    }

    /// Hides and write-protects what leads to the host, in the kernel's file systems as the template has them.
    pub(super) fn apply(&self, template: &Entered) -> Result<(), Failure> {
        for (path, directory) in &self.masked {
            let action = || format!("hide {path}");
            let Some(point) = point(template, path)? else {
                continue;
            };
            let mount = template.show(if *directory { EMPTY } else { "null" })?;
            attach(&mount, point.as_fd()).trying(action)?;
        }
        for path in &self.read_only {
            let action = || format!("write-protect {path}");
            let Some(point) = point(template, path)? else {
                continue;
            };
            let mount = bind(point.as_fd(), b"", Attributes::NO_EXEC.readonly()).trying(action)?;
            attach(&mount, point.as_fd()).trying(action)?;
        }
        Ok(())
    }
}

/// Opens a path of the kernel's; it may be missing, but any other reason not to protect it is an error.
fn point(template: &Entered, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match template.open(path.trim_start_matches('/')) {
        Err(rustix::io::Errno::NOENT) => Ok(None),
        result => result.map(Some).trying(|| format!("look at {path}")),
    }
}
