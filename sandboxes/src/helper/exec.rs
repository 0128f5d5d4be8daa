// SPDX-License-Identifier: Apache-2.0
//! The last steps of a command's own process: gives up every privilege and becomes the command.

use super::accounts::Account;
use super::init::Stdio;
use super::{mounts, programs};
use crate::sandbox::{Command, Network};
use crate::seccomp::Program;
use crate::sys::{self, Strings};
use crate::tree::Tree;
use crate::wire::{Failure, Trying};
use bstr::{BStr, BString, ByteSlice};
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use std::ffi::CString;

/// A program with its arguments and variables, as execve(2) takes them.
pub(super) struct Image {
    path: CString,
    argv: Strings,
    env: Strings,
}

impl Image {
    pub(super) fn of(
        command: &Command,
        account: &Account,
        program: BString,
    ) -> Result<Self, Failure> {
        let env = environment(command, account.home.as_bstr());
        Ok(Self {
            path: strings([program])?.remove(0),
            argv: strings(command.argv.iter().cloned())?.into(),
            env: variables(&env)?.into(),
        })
    }
}

/// All that a command's process needs. What it allocates itself is lost to the process whose memory it shares.
pub(super) struct Launch<'a> {
    pub(super) command: &'a Command,
    pub(super) image: Image,
    pub(super) account: Account,
    pub(super) stdio: Stdio,
    pub(super) workdir: OwnedFd,
    pub(super) cgroups: Vec<OwnedFd>,
    /// Whether the host has cgroups of version 2 only.
    pub(super) unified: bool,
    /// What is left of the bounding set.
    pub(super) bounding: CapabilitySet,
    pub(super) filter: &'a Program,
    pub(super) tree: &'a Tree,
}

// OBuilder 614c8ac lib/runc_sandbox.ml: Docker's set without the two for networks, as its steps share the host's.
const BASE: &[(&str, CapabilitySet)] = &[
    ("CAP_AUDIT_WRITE", CapabilitySet::AUDIT_WRITE),
    ("CAP_CHOWN", CapabilitySet::CHOWN),
    ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
    ("CAP_FOWNER", CapabilitySet::FOWNER),
    ("CAP_FSETID", CapabilitySet::FSETID),
    ("CAP_KILL", CapabilitySet::KILL),
    ("CAP_MKNOD", CapabilitySet::MKNOD),
    ("CAP_SETFCAP", CapabilitySet::SETFCAP),
    ("CAP_SETGID", CapabilitySet::SETGID),
    ("CAP_SETPCAP", CapabilitySet::SETPCAP),
    ("CAP_SETUID", CapabilitySet::SETUID),
    ("CAP_SYS_CHROOT", CapabilitySet::SYS_CHROOT),
];

// With a network of its own a step can have Docker's whole set.
const OWN_NETWORK: &[(&str, CapabilitySet)] = &[
    ("CAP_NET_BIND_SERVICE", CapabilitySet::NET_BIND_SERVICE),
    ("CAP_NET_RAW", CapabilitySet::NET_RAW),
];

/// Returns the capabilities that a step's root has, with their names.
pub(super) fn capabilities(
    network: Network,
) -> impl Iterator<Item = &'static (&'static str, CapabilitySet)> {
    let more = match network {
        Network::None => OWN_NETWORK,
        Network::Host => &[],
    };
    BASE.iter().chain(more)
}

fn capability_set(network: Network) -> CapabilitySet {
    capabilities(network).fold(CapabilitySet::empty(), |set, (_, capability)| {
        set | *capability
    })
}

/// Takes all capabilities that no step gets from the bounding set, which children inherit, and returns what is left of it.
pub(super) fn lower_bounding() -> std::io::Result<CapabilitySet> {
    let left = capability_set(Network::None);
    drop_from_bounding(left.complement())?;
    Ok(left)
}

fn drop_from_bounding(set: CapabilitySet) -> std::io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if set.contains(capability) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // capabilities(7): above the last capability that the kernel knows.
                Err(rustix::io::Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Returns the limits of open files, soft and hard: what programs expect and, as far as this process may, what they may ask for.
pub(crate) fn open_files() -> Rlimit {
    let most = rustix::process::getrlimit(Resource::Nofile)
        .maximum
        .unwrap_or(u64::MAX);
    let hard = most.min(1_048_576);
    Rlimit {
        current: Some(hard.min(1024)),
        maximum: Some(hard),
    }
}

/// Returns the environment, with the home directory unless the command has one of its own.
pub(crate) fn environment(command: &Command, home: &BStr) -> Vec<(BString, BString)> {
    let mut env = command.env.clone();
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push((BString::from("HOME"), home.to_owned()));
    }
    env
}

/// Returns an environment as execve(2) takes it.
pub(crate) fn variables(env: &[(BString, BString)]) -> Result<Vec<CString>, Failure> {
    strings(
        env.iter()
            .map(|(name, value)| BString::from([name.as_slice(), b"=", value].concat())),
    )
}

impl Launch<'_> {
    /// Becomes the command; returns only with the reason why it could not.
    pub(super) fn exec(&self) -> Failure {
        match self.try_exec() {
            Ok(infallible) => sys::never(infallible),
            Err(failure) => failure,
        }
    }

    fn try_exec(&self) -> Result<std::convert::Infallible, Failure> {
        for procs in &self.cgroups {
            rustix::io::write(procs, b"0").trying(|| "enter the step's cgroup")?;
        }
        // Only now, so that the step's own cgroup is the root of what it sees.
        sys::unshare(UnshareFlags::NEWCGROUP).trying(|| "make a cgroup namespace")?;
        if self.unified {
            mounts::own_cgroup(self.tree);
        }
        self.stdio.install()?;
        // The caller's keys stay the caller's.
        sys::own_session_keyring();
        rustix::process::fchdir(&self.workdir).trying(|| "enter the working directory")?;
        rustix::process::setrlimit(Resource::Nofile, open_files())
            .trying(|| "limit the open files")?;
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        rustix::process::setrlimit(Resource::Core, none).trying(|| "limit core dumps")?;
        sys::default_signals();
        sys::close_on_exec_from(3).trying(|| "keep descriptors from the command")?;
        self.privileges()?;
        let image = &self.image;
        let error = sys::execve(&image.path, &image.argv, &image.env);
        let errno = rustix::io::Errno::from_io_error(&error);
        if errno == Some(rustix::io::Errno::IO) {
            // The disk's fault, not the tree's.
            return Err(error).trying(|| "read the command's program");
        }
        let program = self.image.path.as_bytes().as_bstr();
        let reason = programs::obstacle(self.tree, program, errno);
        Err(Failure::NoProgram {
            program: self.command.argv[0].clone(),
            reason: reason.unwrap_or_else(|| error.to_string()),
        })
    }

    /// Installs the filter and gives up privileges, in the order in which each call is still allowed.
    fn privileges(&self) -> Result<(), Failure> {
        let action = || "give up privileges";
        let keep = capability_set(self.command.network);
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go.
        sys::install_filter(self.filter).trying(|| "install the system call filter")?;
        drop_from_bounding(self.bounding.difference(keep)).trying(action)?;
        // With a single id the kernel does not allow it, and there is no group to be had anyway.
        if obuild_rootless::current().is_none_or(obuild_rootless::Mapping::may_set_groups) {
            rustix::thread::set_thread_groups(&self.account.groups).trying(action)?;
        }
        let (uid, gid) = (
            Uid::from_raw(self.account.uid),
            Gid::from_raw(self.account.gid),
        );
        rustix::thread::set_thread_res_gid(gid, gid, gid).trying(action)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).trying(action)?;
        if self.account.uid == 0 {
            let sets = CapabilitySets {
                effective: keep,
                permitted: keep,
                // Empty, else a program with inheritable file capabilities would give them to any user: CVE-2022-24769.
                inheritable: CapabilitySet::empty(),
            };
            rustix::thread::set_capabilities(None, sets).trying(action)?;
        }
        if self.command.no_new_privs {
            rustix::thread::set_no_new_privs(true).trying(action)?;
        }
        Ok(())
    }
}

/// The caller has refused what holds a zero byte.
pub(crate) fn strings(bytes: impl IntoIterator<Item = BString>) -> Result<Vec<CString>, Failure> {
    bytes
        .into_iter()
        .map(|string| CString::new(Vec::from(string)))
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::Helper("an argument or variable holds a zero byte".to_owned()))
}
