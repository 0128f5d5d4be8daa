// SPDX-License-Identifier: Apache-2.0
//! The docker sandbox: steps run in containers of a docker daemon on this host.
//!
//! A container holds our helper and nothing else; the daemon gives it processes, network and limits of its own, and the helper runs
//! steps in it as the native sandbox does. So steps are the same in both, whatever the store, and no image needs anything.
//! See `docs/decisions/0011-docker.md`.

mod holder;
mod libraries;

use crate::Cancel;
use crate::cgroup::{self, Cgroups, Wanted};
use crate::sandbox::{Command, Error, Exit, Features, Network, Rootfs, Sandbox, Stdio};
use crate::step::{self, Surroundings};
use crate::wire::Request;
use crate::zygote::{Helper, HelperCommand};
use holder::{Holder, Holders};
use obuild_docker::{Client, Limits};
use rustix::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Once, PoisonError};

/// How to open a [`Docker`] sandbox.
#[derive(Clone, Debug)]
pub struct DockerOptions {
    /// How to start the helper.
    pub helper: HelperCommand,
    /// The daemon's unix socket.
    pub socket: PathBuf,
    /// A directory of this sandbox's own, made when missing. The daemon must see it, and the helper's program, at the
    /// same paths. Several sandboxes may share it.
    pub state_dir: PathBuf,
}

/// Runs commands in containers. Needs root, Linux 5.12, and a daemon of this host.
///
/// Steps without limits share a container as long as the sandbox is open, each with namespaces of its own; one with limits has a
/// container to itself. Containers end when this process does, however it ends.
pub struct Docker {
    holders: Holders,
    cgroups: Cgroups,
    /// For steps without limits: without and with the host's network.
    shared: [Mutex<Option<Arc<Holder>>>; 2],
    swept: Once,
}

const NAME: &str = "docker";

impl Docker {
    /// Opens the sandbox. The daemon is asked for a container with the first command.
    pub fn open(options: DockerOptions) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(unavailable("it needs root; run obuild as root".to_owned()));
        }
        let client = Arc::new(Client::new(options.socket));
        Ok(Self {
            holders: Holders::new(client, options.helper, &options.state_dir)?,
            cgroups: Cgroups::open(NAME)?,
            shared: [Mutex::new(None), Mutex::new(None)],
            swept: Once::new(),
        })
    }

    fn start(&self, host_network: bool, limits: Limits, cancel: &Cancel) -> Result<Holder, Error> {
        self.swept.call_once(|| self.holders.sweep());
        self.holders
            .start(self.cgroups.name(), host_network, limits, cancel)
    }
}

fn unavailable(reason: String) -> Error {
    Error::Unavailable {
        sandbox: NAME,
        reason,
    }
}

/// The container that steps without limits share, started when there is none.
struct Shared<'a> {
    sandbox: &'a Docker,
    host_network: bool,
    cancel: &'a Cancel,
}

impl Helper for Shared<'_> {
    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let place = &self.sandbox.shared[usize::from(self.host_network)];
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(holder) = &*place {
            match holder.try_send(request, descriptors) {
                // Somebody removed it. A new one serves as well.
                Err(error) if crate::zygote::gone(&error) => *place = None,
                result => return result.map_err(not_sent),
            }
        }
        let holder = self
            .sandbox
            .start(self.host_network, Limits::default(), self.cancel)?;
        let sent = holder.try_send(request, descriptors).map_err(not_sent);
        *place = Some(Arc::new(holder));
        sent
    }
}

fn not_sent(source: std::io::Error) -> Error {
    Error::Setup {
        action: "send the step to the sandbox helper in its container".to_owned(),
        source,
    }
}

impl Helper for Holder {
    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.try_send(request, descriptors).map_err(not_sent)
    }
}

impl Sandbox for Docker {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        let note = |name: &str, value: String| (name.to_owned(), value);
        let client = self.holders.client();
        let (daemon, cgroup) = match client.server() {
            Ok(server) => (
                format!(
                    "{} at {} ({})",
                    server.version,
                    client.socket().display(),
                    server.driver
                ),
                "by the daemon".to_owned(),
            ),
            Err(error) => (error.to_string(), "no limits: no daemon".to_owned()),
        };
        Features {
            notes: vec![note("daemon", daemon), note("cgroup", cgroup)],
        }
    }

    fn run(
        &self,
        command: &Command,
        rootfs: &Rootfs,
        stdio: Stdio<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, Error> {
        if cancel.is_cancelled() {
            return Ok(Exit::Cancelled);
        }
        let host_network = command.network == Network::Host;
        let nothing = || Surroundings {
            cgroups: Vec::new(),
            runtime: None,
            account: None,
        };
        let wanted = Wanted::of(&command.limits)?;
        let ended = if wanted.is_empty() {
            let shared = Shared {
                sandbox: self,
                host_network,
                cancel,
            };
            step::run(&shared, command, rootfs, stdio, cancel, nothing())
        } else {
            let limits = Limits {
                memory_bytes: wanted.memory_bytes,
                cpu_quota: wanted.cpu_quota,
                // The helper and the step's first process are in the container too.
                pids: wanted.pids.map(|pids| pids.saturating_add(2)),
            };
            self.start(host_network, limits, cancel).and_then(|holder| {
                let exit = step::run(&holder, command, rootfs, stdio, cancel, nothing())?;
                let killed = cgroup::of_process(holder.process_id()).was_out_of_memory();
                Ok(match exit {
                    Exit::Status(1..) | Exit::Signal(_) if killed => Exit::OutOfMemory,
                    exit => exit,
                })
            })
        };
        match ended {
            // Starting a container was given up.
            Err(_) if cancel.is_cancelled() => Ok(Exit::Cancelled),
            ended => ended,
        }
    }
}
