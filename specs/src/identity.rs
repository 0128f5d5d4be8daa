// SPDX-License-Identifier: Apache-2.0
//! Step identity: SHA-256 over everything that can change a step's result.
//!
//! # Encoding, version 1
//!
//! A [`Digester`] hashes a sequence of items, each self-delimiting, so that no two different sequences give the
//! same bytes:
//!
//! | item   | bytes |
//! |--------|-------|
//! | bytes  | `b`, length as 64-bit little-endian integer, the bytes |
//! | number | `n`, 64-bit little-endian integer |
//! | list   | `l`, number of elements as 64-bit little-endian integer; the elements' items follow |
//!
//! The first item is the domain, bytes that name what is hashed and the version of the encoding; whoever changes
//! the items of a domain gives it a new version, so that old ids are not taken for new ones.
//!
//! A user is two items: number 0 and bytes holding uid and gid as 32-bit little-endian integers, or number 1 and
//! the bytes of the name.
//!
//! **A run**, domain `obuild/run/1`: the parent's id (bytes); list of argv (bytes each); list of the environment in
//! order (name, value); user; working directory (bytes); network (number: 0 none, 1 host); list of caches in order
//! (id, target); list of secrets in order (id, target). Secret *values* are not part of it, nor what a cache holds.
//!
//! **A copy**, domain `obuild/copy/1`: the parent's id (bytes); the digest of the tree that is copied (bytes:
//! names, kinds, executable bits, contents and link targets, as its maker defines); destination as the plan has
//! it (bytes: the trailing `/` counts); owner (user). Where the tree came from, the context or which build, is
//! not part of it, nor is `exclude`, which is applied in making the tree.
//!
//! A base's id is made by whoever resolves bases.

use crate::plan::{Copy, Network, Run, StepId, User};
use sha2::{Digest, Sha256};

/// Hashes a sequence of items without ambiguity; the encoding is that of the [module](self).
#[derive(Clone, Debug)]
pub struct Digester(Sha256);

impl Digester {
    /// Starts a digest in `domain`, a name with a version such as `obuild/run/1`.
    pub fn new(domain: &str) -> Self {
        let mut digester = Self(Sha256::new());
        digester.bytes(domain.as_bytes());
        digester
    }

    /// Adds a string of bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.item(b'b', bytes.len() as u64);
        self.0.update(bytes);
        self
    }

    /// Adds a number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.item(b'n', number);
        self
    }

    /// Begins a list: `length` elements of one or more items each, which the caller adds next.
    pub fn list(&mut self, length: usize) -> &mut Self {
        self.item(b'l', length as u64);
        self
    }

    /// Adds a user.
    pub fn user(&mut self, user: &User) -> &mut Self {
        match user {
            User::Ids { uid, gid } => {
                let mut ids = [0; 8];
                ids[..4].copy_from_slice(&uid.to_le_bytes());
                ids[4..].copy_from_slice(&gid.to_le_bytes());
                self.number(0).bytes(&ids)
            }
            User::Name(name) => self.number(1).bytes(name),
        }
    }

    /// Returns the digest of what was added.
    pub fn finish(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }

    fn item(&mut self, kind: u8, number: u64) {
        self.0.update([kind]);
        self.0.update(number.to_le_bytes());
    }
}

/// Returns the id of a command on the tree `parent`.
pub fn run_id(parent: &StepId, run: &Run) -> StepId {
    let mut digester = Digester::new("obuild/run/1");
    digester.bytes(parent.as_bytes()).list(run.argv.len());
    for word in &run.argv {
        digester.bytes(word);
    }
    digester.list(run.env.len());
    for (name, value) in &run.env {
        digester.bytes(name).bytes(value);
    }
    digester
        .user(&run.user)
        .bytes(&run.workdir)
        .number(match run.network {
            Network::None => 0,
            Network::Host => 1,
        });
    digester.list(run.caches.len());
    for cache in &run.caches {
        digester.bytes(&cache.id).bytes(&cache.target);
    }
    digester.list(run.secrets.len());
    for secret in &run.secrets {
        digester.bytes(&secret.id).bytes(&secret.target);
    }
    StepId::from_digest(digester.finish())
}

/// Returns the id of copying a tree with the digest `tree` onto the tree `parent`.
pub fn copy_id(parent: &StepId, tree: &[u8; 32], copy: &Copy) -> StepId {
    let mut digester = Digester::new("obuild/copy/1");
    digester
        .bytes(parent.as_bytes())
        .bytes(tree)
        .bytes(&copy.dst)
        .user(&copy.user);
    StepId::from_digest(digester.finish())
}

#[cfg(test)]
mod tests;
