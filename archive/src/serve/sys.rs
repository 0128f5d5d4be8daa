// SPDX-License-Identifier: Apache-2.0
//! Descriptors that Rust's types cannot vouch for: sockets that were open before the program began, and sockets that epoll(7) watches.
#![expect(
    unsafe_code,
    reason = "a descriptor's number from outside is not known to be one, and tokio cannot see who closes one"
)]

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use tokio::io::unix::AsyncFd;

/// `SD_LISTEN_FDS_START`: `sd_listen_fds(3)`.
const FIRST: RawFd = 3;

/// Takes the descriptors that a service manager passed, `count` of them from number 3 on.
///
/// `None` stands for a number that is not open. To be called once, before anything else could have opened a descriptor of such a number.
pub(super) fn passed(count: u16) -> Vec<Option<OwnedFd>> {
    (FIRST..FIRST + RawFd::from(count))
        .map(|number| {
            let is_open = fs_err::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
            // SAFETY: the descriptor is open, and by the protocol of sd_listen_fds(3) it is ours.
            is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

/// Lets a listening socket be waited for.
pub(super) fn watched(socket: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: the listener owns its descriptor and gives out no other one; nobody replaces it in its `AsyncFd`.
    Ok(unsafe { AsyncFd::register(socket) }?)
}
