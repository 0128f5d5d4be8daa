// SPDX-License-Identifier: Apache-2.0
//! The native sandbox from inside: namespaces, root, mounts, and the start of the command.
//!
//! The mounts, masked and read-only paths are those of the OCI runtimes' default (OBuilder 614c8ac lib/runc_sandbox.ml has the same list).

use super::init::{Started, Stdio};
use super::{Prepared, accounts, exec, programs};
use crate::sandbox::{Mount, MountSource, Network, OverlayMount, Rootfs, Upper};
use crate::sys;
use crate::tree::{Attributes, Kind, Tree, attach, bind, file_system, overlay};
use crate::wire::{self, Failure, Reply, Request, Streams, Trying};
use bstr::ByteSlice;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
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

// Character devices of linux v6.18 Documentation/admin-guide/devices.txt: name, major, minor.
const NODES: &[(&str, u32, u32)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const DEV_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The sandbox's own files, which no path of the step leads to: what is shown is mounted from here piece by piece.
pub(super) struct Private {
    directory: OwnedFd,
}

impl Private {
    /// Makes an empty one, mounted on `place`, which must be in the step's own mount namespace.
    pub(super) fn new(place: &OwnedFd) -> Result<Self, Failure> {
        let action = || "make the sandbox's private directory";
        // Not NODEV: the device nodes are shown from here.
        let options = [("mode", "700")];
        let directory = file_system("tmpfs", &options, Attributes::DEVICES).trying(action)?;
        attach(&directory, place.as_fd()).trying(action)?;
        Ok(Self { directory })
    }

    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Writes a file and returns it as a detached read-only mount.
    pub(super) fn show(
        &self,
        name: &str,
        content: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<OwnedFd, Failure> {
        let action = || format!("write the sandbox's own {name}");
        self.write(name, content, mode, owner).trying(action)?;
        bind(
            self.directory(),
            name.as_bytes(),
            Attributes::NO_EXEC.readonly(),
        )
        .trying(action)
    }

    pub(super) fn write(
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
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(owner.0),
                rustix::fs::Gid::from_raw(owner.1),
            );
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        std::fs::File::from(file).write_all(content)
    }

    fn make_directory(&self, name: &str) -> Result<(), Failure> {
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

/// Gives the process its own mounts, which the host never sees.
pub(super) fn own_mounts() -> Result<(), Failure> {
    sys::mount_setattr(open_host("/")?.as_fd(), true, 0, 0, true)
        .trying(|| "keep the step's mounts to itself")
}

pub(super) fn open_host(path: impl AsRef<Path>) -> Result<OwnedFd, Failure> {
    let path = path.as_ref();
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .trying(|| format!("open the host's {}", path.display()))
}

/// Prepares everything and starts the command.
pub(super) fn start(
    request: &Request,
    stdio: Stdio,
    secrets: &[Vec<u8>],
    prepared: &Prepared,
    socket: &OwnedFd,
) -> Result<Started, Failure> {
    let command = &request.command;
    let mut namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if command.network == Network::None {
        namespaces |= UnshareFlags::NEWNET;
    }
    sys::unshare(namespaces).trying(|| "make namespaces")?;
    own_mounts()?;
    let cgroups = request
        .cgroups
        .iter()
        .map(|path| {
            rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .trying(|| format!("open {}", path.display()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Any directory of the host will do that nothing is looked for in: this one is covered in the step's own mount namespace only.
    let private = Private::new(&open_host("/sys")?)?;
    let root = private.mount_tree(&request.rootfs, "root", Attributes::ROOT)?;
    attach(&root, open_host("/")?.as_fd()).trying(|| "mount the root")?;
    let mut tree = Tree::new(root);
    let account = accounts::find(&tree, &command.user)?;
    let owner = (account.uid, account.gid);

    let dev = system_mounts(&mut tree, &private)?;
    if let Streams::Inherit {
        terminal: Some(path),
    } = &request.streams
    {
        console(&dev, path)?;
    }
    for (target, mount) in host_files(command.network, &private)? {
        place(&mut tree, &mount, target.as_bytes(), Kind::File)?;
    }
    for (index, mount) in command.mounts.iter().enumerate() {
        extra_mount(&mut tree, &private, mount, &format!("mount-{index}"))?;
    }
    for (index, (secret, value)) in command.secrets.iter().zip(secrets).enumerate() {
        let mount = private.show(&format!("secret-{index}"), value, 0o400, owner)?;
        place(&mut tree, &mount, &secret.target, Kind::File)?;
    }
    protect(&tree, &private)?;
    let workdir = tree
        .directory(&command.workdir)
        .trying(|| format!("enter the working directory {}", command.workdir))?;
    tree.restore_times()
        .trying(|| "restore the times of the tree's directories")?;
    if is_readonly(&request.rootfs) {
        Attributes::ROOT
            .readonly()
            .set(tree.root())
            .trying(|| "make the root read-only")?;
    }
    let program = programs::find(
        &tree,
        command.argv[0].as_bstr(),
        &command.env,
        &command.workdir,
    )?;
    enter(&tree)?;
    rustix::system::sethostname(command.hostname.as_bytes()).trying(|| "set the host name")?;
    if command.network == Network::None {
        loopback()?;
    }

    let launch = exec::Launch {
        command,
        program,
        account,
        stdio,
        workdir,
        cgroups,
        filter: if command.fast_sync {
            &prepared.filter_fast_sync
        } else {
            &prepared.filter
        },
        tree: &tree,
    };
    match sys::fork().trying(|| "fork the command")? {
        sys::Fork::Child => {
            let failure = launch.exec();
            let _ = wire::send_reply(socket.as_fd(), &Reply::Failed(failure), &[]);
            sys::exit_now(127)
        }
        sys::Fork::Parent(child) => {
            drop(launch);
            Ok(Started { child, tree })
        }
    }
}

/// Attaches a mount to a place in the tree.
fn place(tree: &mut Tree, mount: &OwnedFd, target: &[u8], kind: Kind) -> Result<(), Failure> {
    let action = || format!("mount {} in the tree", target.as_bstr());
    let point = tree.point(target, kind).trying(action)?;
    attach(mount, point.as_fd()).trying(action)
}

/// Mounts what every Linux program expects. Returns `/dev`.
fn system_mounts(tree: &mut Tree, private: &Private) -> Result<OwnedFd, Failure> {
    let proc = file_system("proc", &[], Attributes::NO_EXEC).trying(|| "make /proc")?;
    place(tree, &proc, b"/proc", Kind::Directory)?;

    let options = [("mode", "755"), ("size", "65536k")];
    let dev = file_system("tmpfs", &options, Attributes::DATA).trying(|| "make /dev")?;
    place(tree, &dev, b"/dev", Kind::Directory)?;
    fill_dev(&dev, private)?;

    let options = [("gid", "5"), ("mode", "0620"), ("ptmxmode", "0666")];
    let pts = file_system("devpts", &options, Attributes::DEVICES).trying(|| "make /dev/pts")?;
    let options = [("mode", "1777"), ("size", "65536k")];
    let shm = file_system("tmpfs", &options, Attributes::NO_EXEC).trying(|| "make /dev/shm")?;
    let mqueue = file_system("mqueue", &[], Attributes::NO_EXEC).trying(|| "make /dev/mqueue")?;
    for (name, mount) in [("pts", pts), ("shm", shm), ("mqueue", mqueue)] {
        let action = || format!("mount /dev/{name}");
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).trying(action)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let point = rustix::fs::openat(&dev, name, flags, Mode::empty()).trying(action)?;
        attach(&mount, point.as_fd()).trying(action)?;
    }

    let sys = file_system("sysfs", &[], Attributes::NO_EXEC.readonly()).trying(|| "make /sys")?;
    place(tree, &sys, b"/sys", Kind::Directory)?;
    Ok(dev)
}

/// Fills `/dev`. The directory itself is nodev, since steps may make nodes; ours are mounted into it one by one, read-only, which keeps
/// their modes but not the devices behind them from being changed.
fn fill_dev(dev: &OwnedFd, private: &Private) -> Result<(), Failure> {
    let old = rustix::process::umask(Mode::empty());
    for &(name, major, minor) in NODES {
        let action = || format!("make /dev/{name}");
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o666);
        let directory = private.directory();
        rustix::fs::mknodat(directory, name, FileType::CharacterDevice, mode, device)
            .trying(action)?;
        let mount =
            bind(directory, name.as_bytes(), Attributes::DEVICES.readonly()).trying(action)?;
        attach_file(dev, name, &mount).trying(action)?;
    }
    for (name, target) in DEV_LINKS {
        rustix::fs::symlinkat(*target, dev, *name).trying(|| format!("make /dev/{name}"))?;
    }
    rustix::process::umask(old);
    Ok(())
}

fn attach_file(directory: &OwnedFd, name: &str, mount: &OwnedFd) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let point = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    attach(mount, point.as_fd())
}

/// Shows the step's terminal as `/dev/console`, so that it has a name inside.
fn console(dev: &OwnedFd, terminal: &Path) -> Result<(), Failure> {
    let action = || format!("show the terminal {} as /dev/console", terminal.display());
    let mount = bind(CWD, terminal.as_os_str().as_bytes(), Attributes::DEVICES).trying(action)?;
    attach_file(dev, "console", &mount).trying(action)
}

/// Returns the files that describe the host to the step, each with its place.
pub(super) fn host_files(
    network: Network,
    private: &Private,
) -> Result<Vec<(&'static str, OwnedFd)>, Failure> {
    const HOSTS: &[u8] = b"127.0.0.1 localhost builder\n::1 localhost ip6-localhost ip6-loopback\n";
    let mut files = vec![("/etc/hosts", private.show("hosts", HOSTS, 0o644, (0, 0))?)];
    if network == Network::Host {
        // A copy: the host's own file may be a link, or be replaced while the step runs.
        let content = match fs_err::read("/etc/resolv.conf") {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).trying(|| "read the host's /etc/resolv.conf"),
        };
        let mount = private.show("resolv.conf", &content, 0o644, (0, 0))?;
        files.push(("/etc/resolv.conf", mount));
    }
    Ok(files)
}

/// Returns a mount that the caller asked for, detached, with the kind of point it needs.
pub(super) fn extra(
    private: &Private,
    mount: &Mount,
    name: &str,
) -> Result<(OwnedFd, Kind), Failure> {
    let with = Attributes::DATA.readonly_if(mount.readonly);
    let detached = match &mount.source {
        MountSource::Tree(rootfs) => {
            let with = if is_readonly(rootfs) {
                with.readonly()
            } else {
                with
            };
            private.mount_tree(rootfs, name, with)?
        }
        MountSource::Tmpfs { size_bytes } => {
            let size = size_bytes.map(|size| size.to_string());
            let mut options = vec![("mode", "1777")];
            options.extend(size.iter().map(|size| ("size", size.as_str())));
            file_system("tmpfs", &options, with)
                .trying(|| format!("make a tmpfs for {}", mount.target))?
        }
    };
    let stat = rustix::fs::fstat(&detached)
        .trying(|| format!("look at the source of {}", mount.target))?;
    let kind = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        Kind::Directory
    } else {
        Kind::File
    };
    Ok((detached, kind))
}

fn extra_mount(
    tree: &mut Tree,
    private: &Private,
    mount: &Mount,
    name: &str,
) -> Result<(), Failure> {
    let (detached, kind) = extra(private, mount, name)?;
    place(tree, &detached, &mount.target, kind)
}

/// Hides and write-protects what leads to the host. What the kernel does not have is skipped.
fn protect(tree: &Tree, private: &Private) -> Result<(), Failure> {
    private.make_directory("empty")?;
    for path in MASKED {
        let action = || format!("hide {path}");
        let Ok(point) = tree.open(path.as_bytes(), OFlags::PATH) else {
            continue;
        };
        let stat = rustix::fs::fstat(&point).trying(action)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let (name, with): (&[u8], _) = if directory {
            (b"empty", Attributes::NO_EXEC)
        } else {
            (b"null", Attributes::DEVICES)
        };
        let mount = bind(private.directory(), name, with.readonly()).trying(action)?;
        attach(&mount, point.as_fd()).trying(action)?;
    }
    for path in READ_ONLY {
        let action = || format!("write-protect {path}");
        let Ok(point) = tree.open(path.as_bytes(), OFlags::PATH) else {
            continue;
        };
        let mount = bind(point.as_fd(), b"", Attributes::NO_EXEC.readonly()).trying(action)?;
        attach(&mount, point.as_fd()).trying(action)?;
    }
    Ok(())
}

/// Makes the tree the root of the process and lets go of the host's.
fn enter(tree: &Tree) -> Result<(), Failure> {
    let action = || "change to the step's root";
    rustix::process::fchdir(tree.root()).trying(action)?;
    // pivot_root(2), NOTES: with "." for both, the old root ends up on top of the new one and is unmounted from there.
    rustix::process::pivot_root(".", ".").trying(action)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).trying(|| "let go of the host's root")?;
    rustix::process::chdir("/").trying(action)
}

fn loopback() -> Result<(), Failure> {
    let action = || "set the loopback interface up";
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
        .trying(action)?;
    sys::loopback_up(socket.as_fd()).trying(action)
}
