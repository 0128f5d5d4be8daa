// SPDX-License-Identifier: Apache-2.0
//! The native sandbox from inside: namespaces, root, and the start of the command.

use super::init::Init;
use super::init::Stdio;
use super::private::{Private, is_readonly};
use super::{accounts, clock, exec, mounts, networks, programs};
use crate::sandbox::Network;
use crate::tree::{Attributes, Kind, Tree, attach};
use crate::wire::{self, Failure, Reply, Request, Trying};
use crate::{seccomp, sys};
use bstr::ByteSlice;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use std::path::Path;

/// Keeps the mounts of the process, in whose mount namespace nobody else is, from the host.
pub(super) fn own_mounts() -> Result<(), Failure> {
    sys::keep_mounts(open_host("/")?.as_fd()).trying(|| "keep the step's mounts to itself")
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
    init: &mut Init<'_>,
    slot: &mut Option<Tree>,
) -> Result<Pid, Failure> {
    let command = &request.command;
    if let Some(variation) = &command.variation {
        // Without CONFIG_CHECKPOINT_RESTORE the kernel does not have this file, and ids begin as ever.
        let _ = fs_err::write(
            "/proc/sys/kernel/ns_last_pid",
            variation.last_process.to_string(),
        );
    }
    let mut namespaces = UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    // But in a user namespace the process is in its network namespace already: see `networks`.
    let network = obuild_rootless::current().is_some() && command.network == Network::None;
    namespaces.set(UnshareFlags::NEWNET, network);
    sys::unshare(namespaces).trying(|| "make namespaces")?;
    if network {
        networks::loopback().trying(|| "make the loopback network")?;
    }
    let cgroups = request
        .cgroups
        .iter()
        .map(|path| {
            rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .trying(|| format!("open {}", path.display()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (prepared, socket) = (init.prepared, init.socket);
    let among_host = Private::among_host();
    let root = among_host.mount_tree(&request.rootfs, "root", Attributes::ROOT)?;
    let extra = mounts::extra(&among_host, &command.mounts)?;
    let host = mounts::Host::take(&request.streams, command.network)?;
    if init.template.is_none() {
        let kernel = mounts::Kernel::take(command.network)?;
        let template = prepared.template.as_ref().map_err(Failure::clone)?;
        init.template = Some(template.with_kernel(&kernel, &prepared.protected)?);
    }
    let (template, _) = init.template.as_ref().expect("it was just made");
    let template = template.enter()?;
    let private = Private::new(template.place()?);
    attach(&root, template.root()).trying(|| "mount the root")?;
    let tree = slot.insert(Tree::new(root));
    let account = accounts::find(tree, &command.user)?;
    let owner = (account.uid, account.gid);

    for (index, value) in secrets.iter().enumerate() {
        private.write(&format!("secret-{index}"), value, 0o400, owner)?;
    }

    mounts::system(tree, &template, &host)?;
    mounts::host_files(tree, &template, &private, &host)?;
    for (mount, kind, target) in extra {
        let point = tree.point(target, kind);
        let point = point.trying(|| format!("mount {} in the tree", target.as_bstr()))?;
        drop(point);
        mounts::refuse_kernel_files(tree, target)?;
        mounts::place(tree, &mount, target, kind)?;
    }
    for (index, secret) in command.secrets.iter().enumerate() {
        let mount = private.show(&format!("secret-{index}"))?;
        mounts::place(tree, &mount, &secret.target, Kind::File)?;
    }
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
        tree,
        command.argv[0].as_bstr(),
        &command.env,
        &command.workdir,
    )?;
    enter(tree)?;
    rustix::system::sethostname(command.hostname.as_bytes()).trying(|| "set the host name")?;
    // linux v6.18 include/linux/uts.h UTS_DOMAINNAME: what a host has that was given none. Else the step would see this host's.
    rustix::system::setdomainname(b"(none)").trying(|| "set the domain name")?;

    let timed;
    let filter = match (&command.variation, command.fast_sync) {
        (Some(_), fast_sync) => {
            timed = seccomp::program(fast_sync, true);
            &timed
        }
        (None, true) => &prepared.filter_fast_sync,
        (None, false) => &prepared.filter,
    };
    let launch = exec::Launch {
        command,
        image: exec::Image::of(command, &account, program)?,
        account,
        stdio,
        workdir,
        cgroups,
        unified: prepared.protected.unified,
        bounding: prepared.bounding,
        filter,
        tree,
    };
    let become_command = || {
        let failure = launch.exec();
        let _ = wire::send_reply(socket.as_fd(), &Reply::Failed(failure), &[]);
        127
    };
    let child = match command.variation {
        None => sys::spawn(&become_command),
        Some(_) => clock::spawn(&become_command),
    };
    let child = child.trying(|| "start a process for the command")?;
    drop(launch);
    Ok(child)
}

/// Makes the tree the root of the process.
///
/// It is mounted on the root of the mount namespace, so whoever goes up from anywhere ends at it. Below it is nothing but the template, and only who may
/// unmount could get at that.
fn enter(tree: &Tree) -> Result<(), Failure> {
    let action = || "change to the step's root";
    rustix::process::fchdir(tree.root()).trying(action)?;
    rustix::process::chroot(".").trying(action)
}
