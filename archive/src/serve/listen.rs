// SPDX-License-Identifier: Apache-2.0
//! Sockets that connections come in on: bound by us, or passed by a service manager.

use super::Error;
use super::connections::Table;
use super::http1;
use super::metrics::Metrics;
use super::sys;
use super::worker::Accepted;
use rustix::io::Errno;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, listen, socket_with, sockopt,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Connections that the kernel may hold until they are accepted; it allows `net.core.somaxconn` at most (listen(2)).
const BACKLOG: i32 = 4096;
/// A pause when the kernel has no descriptors or memory for another connection.
const EXHAUSTED: Duration = Duration::from_millis(20);

/// A socket that connections come in on.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: bool,
    /// Passed by a service manager, which holds it while we are restarted.
    passed: bool,
}

impl Listener {
    /// Binds an address. With `reuse_port` another process of the same user may do so at the same time (`SO_REUSEPORT`, socket(7)), so that a new
    /// server can begin before the old one ends.
    pub fn bind(address: SocketAddr, tls: bool, reuse_port: bool) -> Result<Self, Error> {
        let make = || -> Result<TcpListener, Errno> {
            let family = match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            if reuse_port {
                sockopt::set_socket_reuseport(&socket, true)?;
            }
            if address.is_ipv6() {
                sockopt::set_ipv6_v6only(&socket, false)?;
            }
            bind(&socket, &address)?;
            listen(&socket, BACKLOG)?;
            Ok(TcpListener::from(socket))
        };
        Ok(Self {
            socket: make().map_err(|error| Error::Bind {
                address,
                source: error.into(),
            })?,
            tls,
            passed: false,
        })
    }

    /// Takes the sockets that a service manager passed (`sd_listen_fds(3)`): `count` of them; the one whose name is `tls` or `https` speaks TLS. To be
    /// called once, early.
    pub fn passed(count: u16, names: &[&str]) -> Result<Vec<Self>, Error> {
        let sockets = sys::passed(count).into_iter().enumerate();
        sockets
            .map(|(number, socket)| {
                Self::adopt(socket.ok_or(Error::Passed)?, names.get(number).copied())
            })
            .collect()
    }

    fn adopt(socket: OwnedFd, name: Option<&str>) -> Result<Self, Error> {
        let listens = sockopt::socket_acceptconn(&socket).is_ok_and(|listens| listens)
            && sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
        if !listens {
            return Err(Error::Passed);
        }
        let socket = TcpListener::from(socket);
        // Programs that we start have no use for it.
        fcntl_setfd(&socket, FdFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .and_then(|()| socket.set_nonblocking(true))
            .and_then(|()| socket.local_addr())
            .map_err(|_| Error::Passed)?;
        Ok(Self {
            socket,
            tls: matches!(name, Some("tls" | "https")),
            passed: true,
        })
    }

    /// Returns the address, with the port that the kernel chose if it was left to it.
    pub fn address(&self) -> SocketAddr {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.socket.local_addr().unwrap_or(any)
    }

    /// Returns whether it speaks TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }
}

/// Deals new connections out to the workers in turn.
pub(super) struct Dealer {
    pub(super) table: Arc<Table>,
    pub(super) workers: Vec<mpsc::UnboundedSender<Accepted>>,
    pub(super) patience: Duration,
}

impl Dealer {
    /// Accepts connections until `stop` says so. Those that the kernel had accepted by then are still served, if nobody else would.
    pub(super) async fn accept(
        &self,
        listener: Listener,
        metrics: &Metrics,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let (tls, passed) = (listener.tls, listener.passed);
        let socket = sys::watched(listener.socket).map_err(Error::Thread)?;
        let mut next = 0;
        loop {
            let mut ready = tokio::select! {
                ready = socket.readable() => ready.map_err(Error::Thread)?,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match ready.try_io(|socket| Ok(accept_one(socket.get_ref())?)) {
                Ok(Ok((stream, peer))) => self.deal(&mut next, stream, peer, tls, metrics),
                Ok(Err(error)) if is_exhausted(&error) => {
                    // Whoever does nothing gives up a descriptor for those who want something.
                    self.table.end_idle(metrics);
                    tokio::time::sleep(EXHAUSTED).await;
                }
                // It was gone before it was accepted (accept(2), "Error handling"); or none was there.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        while !passed && let Ok((stream, peer)) = accept_one(socket.get_ref()) {
            self.deal(&mut next, stream, peer, tls, metrics);
        }
        Ok(())
    }

    fn deal(
        &self,
        next: &mut usize,
        stream: TcpStream,
        peer: IpAddr,
        tls: bool,
        metrics: &Metrics,
    ) {
        Metrics::add(&metrics.accepted, 1);
        let Some(ticket) = self.table.enter(peer, self.patience, metrics) else {
            if !tls {
                http1::turn_away(stream);
            }
            return;
        };
        // Small answers are written at once, and large ones say when more follows. If it fails, they are only slower.
        let _ = stream.set_nodelay(true);
        *next = (*next + 1) % self.workers.len();
        // A worker that is gone drops it, which closes it.
        let _ = self.workers[*next].send(Accepted {
            stream,
            peer,
            tls,
            ticket,
        });
    }
}

fn accept_one(socket: &TcpListener) -> Result<(TcpStream, IpAddr), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (stream, address) = acceptfrom_with(socket, flags)?;
    let peer = address
        .and_then(|address| SocketAddr::try_from(address).ok())
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
    Ok((TcpStream::from(stream), peer.to_canonical()))
}

fn is_exhausted(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
    )
}
