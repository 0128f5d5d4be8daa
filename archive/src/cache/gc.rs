// SPDX-License-Identifier: Apache-2.0
//! `obuild archive gc`: archives that no package has named for a while are removed. Nothing else ever removes one.

use super::{Cache, CacheError};
use crate::Checksum;
use crate::state::Unix;
use fs_err as fs;
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// An archive that no package names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    /// Its strongest name.
    pub name: Checksum,
    /// How long it is.
    pub size: u64,
    /// Since when nobody has named it, as far as is known.
    pub since: Unix,
}

/// What a collection found.
#[derive(Debug, Default)]
pub struct Collected {
    /// Removed, or to be removed if this was a dry run.
    pub removed: Vec<Garbage>,
    /// Not named by any package either, but not for long enough.
    pub waiting: Vec<Garbage>,
    /// How many archives packages name.
    pub kept: u64,
    /// How many files left the quarantine.
    pub quarantine: u64,
}

impl Cache {
    /// Removes archives that have been without a package for longer than `grace`, and the quarantine's files of that age.
    ///
    /// `named` is every checksum that a package declares; `unnamed` remembers since when archives are without one, and is
    /// brought up to date. Needs the [lock](super::Lock).
    pub fn gc(
        &self,
        named: &HashSet<Checksum>,
        unnamed: &mut BTreeMap<String, Unix>,
        grace: Duration,
        now: Unix,
        dry_run: bool,
    ) -> Result<Collected, CacheError> {
        let mut collected = Collected::default();
        let mut still = BTreeMap::new();
        for entry in self.walk()?.files {
            if entry.names.iter().any(|name| named.contains(name)) {
                collected.kept += 1;
                continue;
            }
            let since = entry
                .names
                .iter()
                .filter_map(|name| unnamed.get(&name.to_string()))
                .min()
                .copied()
                .unwrap_or(now);
            let name = entry.names[0].clone();
            let garbage = Garbage {
                name: name.clone(),
                size: entry.size,
                since,
            };
            let waited = Duration::from_secs(now.saturating_sub(since));
            if waited < grace {
                still.insert(name.to_string(), since);
                collected.waiting.push(garbage);
                continue;
            }
            if dry_run {
                still.insert(name.to_string(), since);
            } else {
                // The strongest last: while it is there the others can be made again.
                for name in entry.names.iter().rev() {
                    remove(&self.path(name))?;
                }
            }
            collected.removed.push(garbage);
        }
        *unnamed = still;
        collected.quarantine = self.empty_quarantine(grace, now, dry_run)?;
        Ok(collected)
    }

    fn empty_quarantine(
        &self,
        grace: Duration,
        now: Unix,
        dry_run: bool,
    ) -> Result<u64, CacheError> {
        let mut left = 0;
        for entry in fs::read_dir(&self.quarantine).map_err(CacheError::Directory)? {
            let path = entry.map_err(CacheError::Directory)?.path();
            let metadata = fs::symlink_metadata(&path).map_err(CacheError::Read)?;
            // A rename sets the time of the last change of the inode, not that of the contents.
            let moved = Unix::try_from(metadata.ctime()).unwrap_or(0);
            if Duration::from_secs(now.saturating_sub(moved)) >= grace {
                if !dry_run {
                    remove(&path)?;
                }
                left += 1;
            }
        }
        Ok(left)
    }
}

fn remove(path: &std::path::Path) -> Result<(), CacheError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CacheError::Write(error)),
        _ => Ok(()),
    }
}
