// SPDX-License-Identifier: Apache-2.0
//! A cancellation that a blocked thread can wait for together with other descriptors.

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that is set once and can be polled: its descriptor is readable from then on. Clones share it.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    flag: AtomicBool,
    event: OwnedFd,
}

impl Cancel {
    /// Makes one that has not fired.
    ///
    /// # Errors
    ///
    /// When the process is out of file descriptors.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner {
            flag: AtomicBool::new(false),
            event,
        })))
    }

    /// Fires it. Doing so again changes nothing.
    pub fn cancel(&self) {
        self.0.flag.store(true, Ordering::SeqCst);
        // An eventfd write of 1 can fail only when the counter is at its end, and then it is readable anyway.
        let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
    }

    /// Returns whether it has fired.
    pub fn is_cancelled(&self) -> bool {
        self.0.flag.load(Ordering::SeqCst)
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
