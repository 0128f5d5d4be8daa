// SPDX-License-Identifier: Apache-2.0
//! Containers that hold a helper: their start, their socket, their end.
//!
//! A container ends with its first process, the helper, and that ends with its socket, which the kernel closes with the caller
//! however the caller dies; the daemon then removes the container by itself. What a caller leaves that dies before
//! the helper has connected, the next one finds by name, which tells its maker's process id and start time.

use super::{libraries, unavailable};
use crate::Cancel;
use crate::cgroup::is_abandoned;
use crate::helper::CONTAINER_SOCKET;
use crate::sandbox::Error;
use crate::wire::{self, Request};
use crate::zygote::HelperCommand;
use obuild_docker::{Client, Container, Limits};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The label of all containers of all sandboxes.
const LABEL: &str = "obuild.sandbox";

/// How long a started container may take to run its first process: a busy host needs seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// Starts containers.
pub(super) struct Holders {
    client: Arc<Client>,
    helper: HelperCommand,
    /// Where sockets are for the moment until the helper has connected.
    sockets: PathBuf,
}

/// A running container with a helper in it. Dropped, it ends.
pub(super) struct Holder {
    client: Arc<Client>,
    name: String,
    socket: Option<OwnedFd>,
    process: i32,
}

/// A socket's file, which goes when it is connected, or not.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs_err::remove_file(&self.0);
    }
}

/// A container that may not run yet; removed unless it became a [`Holder`].
struct Starting<'a> {
    client: &'a Client,
    name: &'a str,
    done: bool,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.done {
            remove(self.client, self.name);
        }
    }
}

fn remove(client: &Client, name: &str) {
    // The daemon does it by itself too, once it is there again.
    if let Err(error) = client.remove_container(name) {
        tracing::warn!(%error, "a container could not be removed");
    }
}

fn setup(action: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let action = action.to_owned();
    move |source| Error::Setup { action, source }
}

fn refused(error: &obuild_docker::Error) -> Error {
    unavailable(error.to_string())
}

impl Holders {
    pub(super) fn new(
        client: Arc<Client>,
        helper: HelperCommand,
        state_dir: &Path,
    ) -> Result<Self, Error> {
        let sockets = state_dir.join("sockets");
        fs_err::create_dir_all(&sockets)
            .map_err(setup("make the docker sandbox's state directory"))?;
        let sockets = fs_err::canonicalize(&sockets)
            .map_err(setup("find the docker sandbox's state directory"))?;
        Ok(Self {
            client,
            helper,
            sockets,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Removes what dead callers left.
    pub(super) fn sweep(&self) {
        match self.client.containers(LABEL) {
            Ok(names) => {
                for name in names.iter().filter(|name| is_abandoned(name)) {
                    remove(&self.client, name);
                }
            }
            // The start that follows will say it.
            Err(error) => tracing::debug!(%error, "old containers are not looked for"),
        }
        for entry in fs_err::read_dir(&self.sockets)
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_str().is_some_and(is_abandoned) {
                let _ = fs_err::remove_file(entry.path());
            }
        }
    }

    /// Starts a container and waits for its helper.
    pub(super) fn start(
        &self,
        name: String,
        host_network: bool,
        limits: Limits,
        cancel: &Cancel,
    ) -> Result<Holder, Error> {
        let (listener, file) = self.listen(&name)?;
        let start = libraries::look(&self.helper.program)
            .map_err(setup("find the sandbox helper's program and libraries"))?;
        let mut argv = start.argv;
        for argument in &self.helper.args {
            argv.push(argument.to_string_lossy().into_owned());
        }
        let mut binds: Vec<(PathBuf, String, bool)> = start
            .binds
            .into_iter()
            .map(|(source, target)| (source, target, true))
            .collect();
        binds.push((file.0.clone(), CONTAINER_SOCKET.to_owned(), false));
        let container = Container {
            name: name.clone(),
            image: None,
            argv,
            labels: vec![(LABEL.to_owned(), "helper".to_owned())],
            binds,
            host_network,
            makes_sandboxes: true,
            limits,
        };
        let mut starting = Starting {
            client: &self.client,
            name: &name,
            done: false,
        };
        self.client
            .create_container(&container)
            .map_err(|error| refused(&error))?;
        self.client
            .start_container(&name)
            .map_err(|error| refused(&error))?;
        let socket = accept(&listener, cancel)?;
        let process = rustix::net::sockopt::socket_peercred(&socket)
            .map_err(|error| setup("look at the sandbox helper")(error.into()))?
            .pid;
        let own = rustix::fs::open(
            "/proc/thread-self/ns/mnt",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| setup("open the own mount namespace")(error.into()))?;
        wire::send_namespace(socket.as_fd(), own.as_fd())
            .map_err(setup("greet the sandbox helper"))?;
        starting.done = true;
        drop(starting);
        tracing::debug!(name, "started a container");
        Ok(Holder {
            client: Arc::clone(&self.client),
            name,
            socket: Some(socket),
            process: process.as_raw_nonzero().get(),
        })
    }

    fn listen(&self, name: &str) -> Result<(OwnedFd, SocketFile), Error> {
        let failed = |error: rustix::io::Errno| setup("make the container's socket")(error.into());
        let flags = SocketFlags::CLOEXEC;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(failed)?;
        // unix(7): an address has 108 bytes, which a long path does not fit.
        let directory = rustix::fs::open(
            &self.sockets,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        let address = SocketAddrUnix::new(short).map_err(failed)?;
        let file = SocketFile(self.sockets.join(name));
        rustix::net::bind(&listener, &address).map_err(failed)?;
        rustix::net::listen(&listener, 1).map_err(failed)?;
        Ok((listener, file))
    }
}

/// Waits for the helper to connect.
fn accept(listener: &OwnedFd, cancel: &Cancel) -> Result<OwnedFd, Error> {
    let failed = |error: rustix::io::Errno| setup("wait for the container")(error.into());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(unavailable(format!(
                "the helper in the container has not come up in {} s: the daemon must be of this host, with the same \
                 directories, and this program must be one that it can start",
                PATIENCE.as_secs()
            )));
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut waited = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(cancel, PollFlags::IN),
        ];
        match poll(&mut waited, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
        if !waited[1].revents().is_empty() {
            return Err(setup("wait for the container")(
                io::ErrorKind::Interrupted.into(),
            ));
        }
        if !waited[0].revents().is_empty() {
            return rustix::net::accept_with(listener, SocketFlags::CLOEXEC).map_err(failed);
        }
    }
}

impl Holder {
    /// Returns the helper's process id on the host.
    pub(super) fn process_id(&self) -> i32 {
        self.process
    }

    pub(super) fn try_send(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        wire::send_request(socket.as_fd(), request, descriptors)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The helper ends with its socket, and the container with the helper.
        self.socket = None;
        remove(&self.client, &self.name);
    }
}
