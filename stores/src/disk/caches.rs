// SPDX-License-Identifier: Apache-2.0
//! Persistent caches: each user works on a private copy, and the first to finish replaces the content.
//!
//! ```text
//! caches/c-X/current       "name HEX", "token T", then "layer L ENTRIES" for each layer, topmost first
//!            L/fs          a layer; where trees are whole there is one
//! drafts/OWNER/c-X.N/fs    a lease's writable layer
//!                    pins  the layers that it stands on
//! ```
//!
//! The token names the content. A release compares it with that of its lease: equal, its layer goes on top and the token
//! changes; else it is thrown away. So OBuilder's generations (`lib/s.ml`, `cache`) hold between processes. The directory
//! `caches/c-X` is locked while a lease begins or ends, not while it lasts. Layers that are not current are deleted
//! when no lease pins them.
//!
//! When layers grow many, some of the upper ones are squashed into one (see `stack`), outside the lock and without a
//! change of token, since the content stays what it was.

use super::cache_name::encode;
use super::stack::crowd;
use super::{Shared, purpose};
use crate::place::Lock;
use crate::store::CacheLease;
use crate::sys;
use crate::{Error, Rootfs};
use rustix::fs::{AtFlags, Gid, Uid};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

/// What a lease holds on to; dropped, it throws the private copy away.
pub(super) struct Lease {
    shared: Arc<Shared>,
    cache: String,
    token: String,
    /// `drafts/OWNER/c-X.N`
    slot: String,
    done: bool,
}

/// The content of `current`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Current {
    /// The cache's name as given.
    name: Vec<u8>,
    token: String,
    layers: Vec<CacheLayer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CacheLayer {
    name: String,
    /// How many entries it has, 0 if nobody counted.
    entries: u64,
}

impl Current {
    fn to_text(&self) -> String {
        let mut text = format!("name {}\ntoken {}\n", hex::encode(&self.name), self.token);
        for CacheLayer { name, entries } in &self.layers {
            writeln!(text, "layer {name} {entries}").expect("a string takes all");
        }
        text
    }

    /// Reads it back; `None` when it is damaged, which is taken as an empty cache.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let name = hex::decode(lines.next()?.strip_prefix("name ")?).ok()?;
        let token = lines.next()?.strip_prefix("token ")?.to_owned();
        let mut layers = Vec::new();
        for line in lines {
            let (name, entries) = line.strip_prefix("layer ")?.rsplit_once(' ')?;
            layers.push(CacheLayer {
                name: name.to_owned(),
                entries: entries.parse().ok()?,
            });
        }
        (!layers.is_empty()).then_some(Self {
            name,
            token,
            layers,
        })
    }
}

fn layer_paths(cache: &str, layers: &[CacheLayer]) -> Vec<String> {
    layers
        .iter()
        .map(|layer| format!("caches/{cache}/{}/fs", layer.name))
        .collect()
}

impl Lease {
    fn throw_away(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        self.shared.throw_away(&self.slot)?;
        self.shared.collect(&self.cache)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.throw_away() {
            tracing::warn!(%error, "a cache's copy could not be thrown away; the next sweep will try again");
        }
    }
}

impl Shared {
    /// Locks a cache's directory; makes it if `make`, else returns `None` when there is none.
    fn lock_cache(&self, cache: &str, make: bool) -> Result<Option<Lock>, Error> {
        let directory = format!("caches/{cache}");
        loop {
            if make {
                self.place.make_directory(&directory, 0o755)?;
            }
            let Some(lock) = self.place.lock(&directory, true, self.wait)? else {
                if make {
                    continue;
                }
                return Ok(None);
            };
            // Whoever held it before may have moved it away.
            let locked = sys::identity(lock.descriptor());
            let there = self
                .place
                .open_directory(&directory)
                .and_then(sys::identity);
            if let (Ok(locked), Ok(there)) = (locked, there)
                && locked == there
            {
                return Ok(Some(lock));
            }
        }
    }

    fn current(&self, cache: &str) -> Result<Option<Current>, Error> {
        let text = self.place.read(&format!("caches/{cache}/current"))?;
        Ok(text.and_then(|text| Current::parse(&text)))
    }

    fn set_current(&self, cache: &str, current: &Current) -> Result<(), Error> {
        self.place.replace(
            &format!("caches/{cache}/current"),
            &current.to_text(),
            false,
        )
    }

    /// Returns a name that nothing else ever has.
    fn unique(&self) -> String {
        format!("{}-{}", self.name, self.number())
    }

    pub(super) fn lease_cache(
        self: &Arc<Self>,
        name: &[u8],
        user: (u32, u32),
    ) -> Result<CacheLease, Error> {
        let cache = encode(name);
        let slot = format!("drafts/{}/{cache}.{}", self.owner()?.name, self.number());
        let lock = self.lock_cache(&cache, true)?;
        let current = match self.current(&cache)? {
            Some(current) => current,
            None => self.make_cache(&cache, name)?,
        };
        self.place.make_directory(&slot, 0o755)?;
        let mut lease = Lease {
            shared: Arc::clone(self),
            cache,
            token: current.token.clone(),
            slot,
            done: false,
        };
        let made = self.fill_lease(&lease, &current, user);
        // The lock is given back before a failed lease is dropped, which takes it too.
        drop(lock);
        match made {
            Ok(rootfs) => Ok(CacheLease {
                rootfs,
                guard: Box::new(lease),
            }),
            Err(error) => {
                lease.throw_away()?;
                Err(error)
            }
        }
    }

    fn fill_lease(
        &self,
        lease: &Lease,
        current: &Current,
        (user, group): (u32, u32),
    ) -> Result<Rootfs, Error> {
        self.pin(&lease.slot, current)?;
        let below = layer_paths(&lease.cache, &current.layers);
        let rootfs = self
            .cache_trees()
            .create(&self.place, &lease.slot, &below)?;
        let top = format!("{}/fs", lease.slot);
        let (user, group) = obuild_rootless::owner(user, group)
            .map_err(|error| self.place.error("give away", &top, error))?;
        let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        rustix::fs::chownat(
            self.place.descriptor(),
            &top,
            owner.0,
            owner.1,
            AtFlags::empty(),
        )
        .map_err(|errno| self.place.error("give away", &top, errno))?;
        Ok(rootfs)
    }

    /// Makes the first, empty content. The cache must be locked.
    fn make_cache(&self, cache: &str, name: &[u8]) -> Result<Current, Error> {
        let layer = self.unique();
        let slot = format!("caches/{cache}/{layer}");
        self.place.make_directory(&slot, 0o755)?;
        self.cache_trees().create(&self.place, &slot, &[])?;
        self.cache_trees().finish(&self.place, &slot, None, None)?;
        let current = Current {
            name: name.to_owned(),
            token: self.unique(),
            layers: vec![CacheLayer {
                name: layer,
                entries: 0,
            }],
        };
        self.set_current(cache, &current)?;
        Ok(current)
    }

    /// Notes in a lease which layers it stands on. The cache must be locked.
    fn pin(&self, slot: &str, current: &Current) -> Result<(), Error> {
        if self.cache_trees().layers().is_none() {
            return Ok(());
        }
        self.place
            .write(&format!("{slot}/pins"), &current.to_text())
    }

    pub(super) fn release_cache(self: &Arc<Self>, lease: CacheLease) -> Result<(), Error> {
        let mut lease = match lease.guard.downcast::<Lease>() {
            Ok(lease) if Arc::ptr_eq(&lease.shared, self) => lease,
            _ => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "it is of another store");
                return Err(self.place.error("give a cache back to", ".", source));
            }
        };
        let replaced = self.replace_content(&lease)?;
        if let Some(layers) = self.cache_trees().layers()
            && let Some(current) = replaced
            && current.layers.len() > layers.cache
        {
            self.squash_cache(&lease, &current)?;
        }
        lease.throw_away()
    }

    /// Makes the leased tree the cache's content. Returns the new one, or `None` if another lease was faster.
    fn replace_content(&self, lease: &Lease) -> Result<Option<Current>, Error> {
        let cache = &lease.cache;
        let Some(_lock) = self.lock_cache(cache, false)? else {
            return Ok(None);
        };
        let Some(old) = self
            .current(cache)?
            .filter(|current| current.token == lease.token)
        else {
            return Ok(None);
        };
        self.cache_trees()
            .finish(&self.place, &lease.slot, None, None)?;
        // See `provisional` in `durability`: the slot's name is the mark's.
        let (slots, slot) = lease
            .slot
            .rsplit_once('/')
            .expect("a slot is in a directory");
        let owner = slots.rsplit_once('/').map_or(slots, |(_, owner)| owner);
        let number = super::snapshots::number(slot);
        self.place
            .mark(&format!("provisional/{cache}.{owner}.{number}"))?;
        let name = self.unique();
        let directory = format!("caches/{cache}/{name}");
        self.place.make_directory(&directory, 0o755)?;
        self.place
            .rename(&format!("{}/fs", lease.slot), &format!("{directory}/fs"))?;
        let mut layers = vec![CacheLayer { name, entries: 0 }];
        if self.cache_trees().layers().is_some() {
            layers.extend(old.layers);
        }
        let current = Current {
            name: old.name,
            token: self.unique(),
            layers,
        };
        self.set_current(cache, &current)?;
        // The layers must stay until they are squashed.
        self.pin(&lease.slot, &current)?;
        Ok(Some(current))
    }

    /// Squashes the upper layers of `seen`, which `lease` pins, into one.
    fn squash_cache(&self, lease: &Lease, seen: &Current) -> Result<(), Error> {
        let cache = &lease.cache;
        let mut entries = Vec::new();
        for (layer, path) in seen.layers.iter().zip(layer_paths(cache, &seen.layers)) {
            entries.push(if layer.entries == 0 {
                self.count(&path)?
            } else {
                layer.entries
            });
        }
        let (crowd, rest) = seen.layers.split_at(crowd(&entries));
        let merged = format!("{}/merged", lease.slot);
        let entries = self.squash(
            &layer_paths(cache, crowd),
            &layer_paths(cache, rest),
            &merged,
        )?;
        let Some(_lock) = self.lock_cache(cache, false)? else {
            return Ok(());
        };
        let Some(mut now) = self.current(cache)? else {
            return Ok(());
        };
        // Meanwhile others may have put layers on top, or squashed these.
        let Some(at) = now
            .layers
            .windows(crowd.len())
            .position(|window| window == crowd)
        else {
            return Ok(());
        };
        let name = self.unique();
        let directory = format!("caches/{cache}/{name}");
        self.place.make_directory(&directory, 0o755)?;
        self.place.rename(&merged, &format!("{directory}/fs"))?;
        now.layers
            .splice(at..at + crowd.len(), [CacheLayer { name, entries }]);
        self.set_current(cache, &now)
    }

    pub(super) fn delete_cache(&self, name: &[u8]) -> Result<(), Error> {
        let cache = encode(name);
        {
            let Some(_lock) = self.lock_cache(&cache, false)? else {
                return Ok(());
            };
            self.place.unlink(&format!("caches/{cache}/current"))?;
        }
        self.collect(&cache)
    }

    /// Deletes the layers of a cache that nothing needs any more, and the cache itself if it has no content.
    fn collect(&self, cache: &str) -> Result<(), Error> {
        let trash = {
            let Some(_lock) = self.lock_cache(cache, false)? else {
                return Ok(());
            };
            let current = self.current(cache)?;
            let mut needed: Vec<CacheLayer> =
                current.iter().flat_map(|c| c.layers.clone()).collect();
            let mut layers = self.place.names(&format!("caches/{cache}"))?;
            layers.retain(|name| !name.starts_with("current"));
            if current.is_some() && layers.len() == needed.len() {
                return Ok(());
            }
            for (owner, slot) in self.slots()? {
                if purpose(&slot) == cache {
                    let pins = self.place.read(&format!("drafts/{owner}/{slot}/pins"))?;
                    let pins = pins.and_then(|pins| Current::parse(&pins));
                    needed.extend(pins.into_iter().flat_map(|pins| pins.layers));
                }
            }
            let (needed, unneeded): (Vec<_>, Vec<_>) = layers
                .into_iter()
                .partition(|layer| needed.iter().any(|needed| needed.name == *layer));
            let mut trash = Vec::new();
            if current.is_none() && needed.is_empty() {
                trash.extend(self.trash(&format!("caches/{cache}"))?);
            } else {
                for layer in unneeded {
                    trash.extend(self.trash(&format!("caches/{cache}/{layer}"))?);
                }
            }
            trash
        };
        for name in trash {
            self.cache_trees().destroy(&self.place, &name)?;
        }
        Ok(())
    }

    /// Does [`Shared::collect`] for all caches: dead leases pin nothing any more.
    pub(super) fn sweep_caches(&self) -> Result<(), Error> {
        for cache in self.place.names("caches")? {
            self.collect(&cache)?;
        }
        Ok(())
    }

    /// Returns caches that cannot be leased, with the layer that is missing.
    pub(super) fn broken_caches(&self) -> Result<Vec<(Vec<u8>, String)>, Error> {
        let mut broken = Vec::new();
        for cache in self.place.names("caches")? {
            let Some(_lock) = self.lock_cache(&cache, false)? else {
                continue;
            };
            let Some(current) = self.current(&cache)? else {
                continue;
            };
            for layer in layer_paths(&cache, &current.layers) {
                if !self.place.exists(&layer)? {
                    broken.push((current.name, layer));
                    break;
                }
            }
        }
        Ok(broken)
    }

    pub(super) fn caches(&self) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        let mut all = Vec::new();
        for cache in self.place.names("caches")? {
            let Some(_lock) = self.lock_cache(&cache, false)? else {
                continue;
            };
            let Some(current) = self.current(&cache)? else {
                continue;
            };
            let mut size = 0;
            for layer in layer_paths(&cache, &current.layers) {
                size += self.cache_trees().whole_size(&self.place, &layer)?;
            }
            all.push((current.name, size));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current(entries: &[u64]) -> Current {
        let layer = |entries: &u64| CacheLayer {
            name: "l".to_owned(),
            entries: *entries,
        };
        Current {
            name: b"a/b".to_vec(),
            token: "t-1".to_owned(),
            layers: entries.iter().map(layer).collect(),
        }
    }

    #[test]
    fn current_reads_back_as_written() {
        let written = current(&[0, 12]);
        assert_eq!(Current::parse(&written.to_text()), Some(written));
        assert_eq!(Current::parse("name 61\ntoken t\n"), None);
        assert_eq!(Current::parse("name 61\ntoken t\nlayer a"), None);
        assert_eq!(Current::parse(""), None);
    }
}
