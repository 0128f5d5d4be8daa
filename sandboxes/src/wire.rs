// SPDX-License-Identifier: Apache-2.0
//! What goes between the calling process and the helper: one message a step one way, a few replies back.
//!
//! A message is a packet on a `SOCK_SEQPACKET` socket with the step's descriptors attached. Requests that are too large for a packet
//! travel in a memory file. Replies come from the step's own init process, on a socket that belongs to that process alone; one that is kept
//! gets its next request there.

use crate::sandbox::{Command, Error, Network, Rootfs};
use crate::user::Account;
use bstr::BString;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::path::PathBuf;

/// The largest packet. Sockets would take more, but every page touched is one more to copy after the fork.
const PACKET_BYTES: usize = 8 * 1024;

/// The longest part of a reply that comes from the outside.
const QUOTED_BYTES: usize = 1024;

/// Most descriptors in one packet: step, three streams, secrets, a build user's lock, request.
const PACKET_DESCRIPTORS: usize = 7;

/// One step to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) rootfs: Rootfs,
    /// Lengths of the secrets' values, in the order of the command's secrets.
    pub(crate) secret_sizes: Vec<usize>,
    pub(crate) streams: Streams,
    /// `cgroup.procs` files that the command has to enter.
    pub(crate) cgroups: Vec<PathBuf>,
    /// The OCI runtime to use; `None` is the native sandbox.
    pub(crate) runtime: Option<Runtime>,
    /// The build user of the user sandbox. Its lock is the last descriptor.
    pub(crate) account: Option<Account>,
    /// Whether the step's process 1 is to wait for another step afterwards.
    pub(crate) keep: bool,
}

impl Request {
    /// Returns whether the step gets its network namespace from the helper; a runtime makes its own.
    pub(crate) fn own_network(&self) -> bool {
        self.runtime.is_none() && self.account.is_none() && self.command.network == Network::None
    }
}

/// What the descriptors after the first are.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Streams {
    /// One pipe for standard output and error; standard input is empty.
    Capture,
    /// Standard input, output and error.
    Inherit {
        /// The path of the terminal that the command gets as its own, if any of the three is one.
        terminal: Option<PathBuf>,
    },
}

/// An OCI runtime for one step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Runtime {
    #[serde(with = "crate::sandbox::path_bytes")]
    pub(crate) program: PathBuf,
    /// An empty directory of ours; the bundle is mounted over it, in the step's own mount namespace.
    #[serde(with = "crate::sandbox::path_bytes")]
    pub(crate) bundle: PathBuf,
    /// The container's name, unique on the host.
    pub(crate) name: String,
    /// The value for `linux.cgroupsPath`.
    pub(crate) cgroup: String,
    /// Whether swap can be limited here.
    pub(crate) swap: bool,
}

/// What a step's init process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It lives; its pidfd is attached.
    Started,
    /// The command could not be run.
    Failed(Failure),
    /// The command ended with this wait status.
    Ended(i32),
    /// The same; all that there was of the step is gone, and its init process waits for another one on the same socket.
    Kept(i32),
}

/// Why a command could not be run; the form of [`Error`] that can be sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Setup {
        action: String,
        errno: i32,
    },
    NoProgram {
        program: BString,
        reason: String,
    },
    NoUser(BString),
    Unmapped(String),
    Unavailable(String),
    Helper(String),
    /// As `Unavailable`, of the user sandbox.
    NotByUser(String),
}

impl Failure {
    /// Returns the same with its texts cut to what a packet can hold.
    fn clipped(&self) -> Self {
        let clip = |text: &str| text.chars().take(QUOTED_BYTES / 4).collect();
        let clip_bytes = |bytes: &BString| BString::from(&bytes[..bytes.len().min(QUOTED_BYTES)]);
        match self {
            Self::Setup { action, errno } => Self::Setup {
                action: clip(action),
                errno: *errno,
            },
            Self::NoProgram { program, reason } => Self::NoProgram {
                program: clip_bytes(program),
                reason: clip(reason),
            },
            Self::NoUser(name) => Self::NoUser(clip_bytes(name)),
            Self::Unmapped(reason) => Self::Unmapped(clip(reason)),
            Self::Unavailable(reason) => Self::Unavailable(clip(reason)),
            Self::Helper(reason) => Self::Helper(clip(reason)),
            Self::NotByUser(reason) => Self::NotByUser(clip(reason)),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Setup { action, errno } => Self::Setup {
                action,
                source: io::Error::from_raw_os_error(errno),
            },
            Failure::NoProgram { program, reason } => Self::NoProgram { program, reason },
            Failure::NoUser(name) => Self::NoUser(name),
            Failure::Unmapped(reason) => Self::Unmapped(reason),
            Failure::Unavailable(reason) => Self::Unavailable {
                sandbox: "runc",
                reason,
            },
            Failure::Helper(reason) => Self::Helper(reason),
            Failure::NotByUser(reason) => Self::Unavailable {
                sandbox: "user",
                reason,
            },
        }
    }
}

/// Says what was tried when a call fails.
pub(crate) trait Trying<T> {
    fn trying<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Trying<T> for Result<T, E> {
    fn trying<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            let action = action().into();
            match error.raw_os_error() {
                Some(errno) => Failure::Setup { action, errno },
                None => Failure::Helper(format!("{action}: {error}")),
            }
        })
    }
}

/// Returns a sealed memory file with `content`, at its start.
pub(crate) fn memory_file(name: &str, content: &[&[u8]]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create(name, flags)?);
    for piece in content {
        file.write_all(piece)?;
    }
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Returns what a memory file holds.
pub(crate) fn read_all(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut file = std::fs::File::from(file);
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

/// Sends a request with the step's descriptors.
pub(crate) fn send_request(
    socket: BorrowedFd<'_>,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let runtime = if request.runtime.is_some() {
        FOR_RUNTIME
    } else {
        0
    };
    let network = if request.own_network() {
        OWN_NETWORK
    } else {
        0
    };
    let flags = runtime | network;
    let mut packet = vec![flags];
    packet.extend(postcard::to_allocvec(request).map_err(io::Error::other)?);
    if packet.len() <= PACKET_BYTES {
        return send(socket, &packet, descriptors);
    }
    let file = memory_file("obuild-request", &[&packet[1..]])?;
    let mut all = descriptors.to_vec();
    all.push(file.as_fd());
    send(socket, &[flags | IN_FILE], &all)
}

/// Sends a helper in a container the caller's mount namespace, before any step.
#[cfg(feature = "docker")]
pub(crate) fn send_namespace(socket: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    send(socket, &[0], &[namespace])
}

/// Receives what [`send_namespace`] sent.
pub(crate) fn receive_namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (_, mut descriptors) = receive(socket, &mut [0], RecvFlags::empty())?;
    descriptors
        .pop()
        .ok_or_else(|| io::Error::other("a message without the mount namespace"))
}

// Flags in the first byte of a packet: what the helper must know before it forks.

/// The request is in the last descriptor.
const IN_FILE: u8 = 1;
/// An OCI runtime is to run.
const FOR_RUNTIME: u8 = 2;
/// The step's processes are to be in a network namespace of their own from the start.
const OWN_NETWORK: u8 = 4;

/// A request as it came, not yet decoded.
pub(crate) struct Parcel {
    packet: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Parcel {
    /// Returns a copy of the step's socket.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        match self.descriptors.first() {
            Some(socket) => socket.try_clone(),
            None => Err(io::Error::other("a request without a socket")),
        }
    }

    /// Closes its descriptors, the step's socket last: who waits for its end finds all others closed.
    pub(crate) fn close(mut self) {
        while self.descriptors.pop().is_some() {}
    }

    /// Decodes a copy; this one can be opened again.
    pub(crate) fn open_copy(&self) -> io::Result<(Request, Vec<OwnedFd>)> {
        let copies = self.descriptors.iter().map(OwnedFd::try_clone);
        let copy = Self {
            packet: self.packet.clone(),
            descriptors: copies.collect::<io::Result<_>>()?,
        };
        copy.open()
    }

    /// Returns whether the step's processes are to be in a network namespace of their own from the start.
    pub(crate) fn own_network(&self) -> bool {
        self.has(OWN_NETWORK)
    }

    /// Returns whether an OCI runtime is to run.
    pub(crate) fn is_for_runtime(&self) -> bool {
        self.has(FOR_RUNTIME)
    }

    fn has(&self, flag: u8) -> bool {
        self.packet.first().is_some_and(|flags| flags & flag != 0)
    }

    /// Decodes it into the request and the step's descriptors.
    pub(crate) fn open(mut self) -> io::Result<(Request, Vec<OwnedFd>)> {
        let content = match self.packet.split_first() {
            Some((flags, rest)) if flags & IN_FILE == 0 => rest.to_vec(),
            Some(_) => {
                let file = self.descriptors.pop();
                read_all(file.ok_or_else(|| io::Error::other("a request without its file"))?)?
            }
            None => return Err(io::Error::other("an empty request")),
        };
        let request = postcard::from_bytes(&content).map_err(io::Error::other)?;
        Ok((request, self.descriptors))
    }
}

/// Receives a request; `None` when the other side is gone.
pub(crate) fn receive_request(socket: BorrowedFd<'_>) -> io::Result<Option<Parcel>> {
    let mut packet = vec![0; PACKET_BYTES + 1];
    let (length, descriptors) = receive(socket, &mut packet, RecvFlags::empty())?;
    packet.truncate(length);
    Ok((length > 0).then_some(Parcel {
        packet,
        descriptors,
    }))
}

/// Sends a reply.
pub(crate) fn send_reply(
    socket: BorrowedFd<'_>,
    reply: &Reply,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut packet = postcard::to_allocvec(reply).map_err(io::Error::other)?;
    if packet.len() > PACKET_BYTES
        && let Reply::Failed(failure) = reply
    {
        packet =
            postcard::to_allocvec(&Reply::Failed(failure.clipped())).map_err(io::Error::other)?;
    }
    send(socket, &packet, descriptors)
}

/// What a look at the replies gives.
pub(crate) enum Received {
    Reply(Reply, Option<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// Takes a reply if there is one.
pub(crate) fn receive_reply(socket: BorrowedFd<'_>) -> io::Result<Received> {
    let mut packet = vec![0; PACKET_BYTES];
    match receive(socket, &mut packet, RecvFlags::DONTWAIT) {
        Ok((0, _)) => Ok(Received::Closed),
        Ok((length, mut descriptors)) => {
            let reply = postcard::from_bytes(&packet[..length]).map_err(io::Error::other)?;
            Ok(Received::Reply(reply, descriptors.pop()))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
        // The helper ended with the request unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::Closed),
        Err(error) => Err(error),
    }
}

fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors in a message"));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[IoSlice::new(packet)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

fn receive(
    socket: BorrowedFd<'_>,
    packet: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(packet)], &mut control, flags)
    })?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn round_trip(command: Command) -> (Request, Vec<OwnedFd>) {
        let flags = SocketFlags::CLOEXEC;
        let (left, right) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket");
        let request = Request {
            command,
            rootfs: Rootfs::Directory("/tree".into()),
            secret_sizes: vec![3],
            streams: Streams::Capture,
            cgroups: Vec::new(),
            runtime: None,
            account: None,
            keep: false,
        };
        send_request(left.as_fd(), &request, &[right.as_fd()]).expect("sent");
        let parcel = receive_request(right.as_fd())
            .expect("received")
            .expect("a message");
        parcel.open().expect("decoded")
    }

    #[test]
    fn bytes_that_are_no_text_survive() {
        let mut command = Command::new(["\u{0}"]);
        command.argv = vec![BString::from(&b"\xff\xfe\n"[..])];
        let (request, descriptors) = round_trip(command);
        assert_eq!(request.command.argv[0], &b"\xff\xfe\n"[..]);
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn a_large_environment_travels_in_a_file() {
        let mut command = Command::new(["true"]);
        command.env = vec![(BString::from("BIG"), BString::from(vec![b'x'; 3 << 20]))];
        let (request, descriptors) = round_trip(command);
        assert_eq!(request.command.env[0].1.len(), 3 << 20);
        assert_eq!(descriptors.len(), 1);
    }

    #[test]
    fn a_secrets_value_is_not_in_the_request() {
        let mut command = Command::new(["true"]);
        command.secrets = vec![crate::Secret {
            target: BString::from("/s"),
            value: b"hidden".to_vec(),
        }];
        let (request, _) = round_trip(command);
        assert!(request.command.secrets[0].value.is_empty());
        assert_eq!(request.secret_sizes, [3]);
    }
}
