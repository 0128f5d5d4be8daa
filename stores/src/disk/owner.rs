// SPDX-License-Identifier: Apache-2.0
//! Who owns what is unfinished: each open store has a directory `drafts/OWNER`, which it holds locked while it lives.
//!
//! A directory that can be locked belongs to nobody any more. Owners come under a shared lock of the store and are
//! judged under an exclusive one, so that nobody is judged between making the directory and locking it.

use super::Shared;
use super::format::spread;
use crate::Error;
use crate::place::Lock;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

/// The directory of an open store's unfinished things.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: String,
    _lock: Lock,
}

impl Shared {
    /// Returns this store's owner; makes it at the first call.
    pub(crate) fn owner(&self) -> Result<&Owner, Error> {
        if let Some(owner) = self.owner.get() {
            return Ok(owner);
        }
        let _making = self
            .making_owner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(owner) = self.owner.get() {
            return Ok(owner);
        }
        let _lock = self.lock(false)?;
        let directory = format!("drafts/{}", self.name);
        self.place.make_directory(&directory, 0o700)?;
        if self.trees.layers().is_none() {
            // Each draft is a whole tree, and in an rsync store links take its files' places when it is done: the next is made elsewhere. 8 steps
            // on a Debian there took 13.2 s of the kernel's time, and 4.1 s with this (ext4, one run each, busy 2-core VM, 6.18, 2026-11).
            spread(&self.place, &directory)?;
        }
        let lock = self.place.lock(&directory, true, self.wait)?;
        let owner = Owner {
            name: self.name.clone(),
            _lock: lock.expect("it was made just now"),
        };
        Ok(self.owner.get_or_init(|| owner))
    }

    /// Returns whether the owner's process has the store open. The store must be locked for [`Shared::lock`].
    pub(crate) fn is_alive(&self, owner: &str) -> Result<bool, Error> {
        if self.owner.get().is_some_and(|ours| ours.name == owner) {
            return Ok(true);
        }
        match self
            .place
            .lock(&format!("drafts/{owner}"), true, Duration::ZERO)
        {
            Ok(_) => Ok(false),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::TimedOut => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns what living owners are making. The store must be locked as for [`Shared::is_alive`].
    pub(super) fn live_drafts(&self) -> Result<LiveDrafts, Error> {
        let mut live = LiveDrafts::new();
        for owner in self.place.names("drafts")? {
            if self.is_alive(&owner)? {
                let slots = self.place.names(&format!("drafts/{owner}"))?;
                live.extend(slots.iter().map(|slot| purpose(slot).to_owned()));
            }
        }
        Ok(live)
    }

    /// Returns the slots of all owners as `(owner, slot)`, those of dead ones too.
    pub(crate) fn slots(&self) -> Result<Vec<(String, String)>, Error> {
        let mut slots = Vec::new();
        for owner in self.place.names("drafts")? {
            for slot in self.place.names(&format!("drafts/{owner}"))? {
                slots.push((owner.clone(), slot));
            }
        }
        Ok(slots)
    }
}

/// What living owners are making, by the names of what it will be.
pub(super) type LiveDrafts = HashSet<String>;

/// Returns a name for an owner: no dot in it, and never used twice.
pub(crate) fn unique_name() -> String {
    static OPENED: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .as_nanos();
    // In one process two stores may be opened within one tick of the clock.
    let opened = OPENED.fetch_add(1, Ordering::Relaxed);
    format!("{now:x}-{:x}-{opened:x}", std::process::id())
}

/// Splits a slot's name into what it is for and its number.
pub(crate) fn purpose(slot: &str) -> &str {
    slot.rsplit_once('.').map_or(slot, |(purpose, _)| purpose)
}
