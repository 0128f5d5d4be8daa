// SPDX-License-Identifier: Apache-2.0
//! `obuild archive verify`: every file is read again and compared with its names.

use super::hashes::{BLOCK, Hasher, Hashes};
use super::walk::Entry;
use super::{Cache, CacheError, Counters};
use crate::{Algorithm, Checksum};
use fs_err as fs;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many archives were read.
    pub archives: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// What was put into quarantine, sorted.
    pub damaged: Vec<Damaged>,
    /// Names that were missing and are there again.
    pub repaired: Vec<Checksum>,
    /// Two different archives that have one checksum.
    pub collisions: Vec<Checksum>,
}

/// A name under which there was something else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damaged {
    /// The name.
    pub name: Checksum,
    /// What was there instead; nothing if it could not be read.
    pub found: Option<Checksum>,
    /// Why it could not be read.
    pub error: Option<String>,
}

impl Cache {
    /// Reads every file with so many threads. Changes nothing while it reads; then puts what is damaged into quarantine
    /// and gives archives names that they lack.
    ///
    /// # Panics
    ///
    /// When one of its threads has.
    pub fn verify(
        &self,
        threads: usize,
        counters: &Counters,
        stop: &CancellationToken,
    ) -> Result<Verified, CacheError> {
        let contents = self.walk()?;
        Counters::add(&counters.total, contents.files.len() as u64);
        let bytes = contents.files.iter().map(|file| file.size).sum();
        Counters::add(&counters.bytes_total, bytes);

        let next = AtomicUsize::new(0);
        let read: Mutex<Vec<(usize, io::Result<Hashes>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                scope.spawn(|| {
                    while let Some(entry) = {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        contents.files.get(index).map(|entry| (index, entry))
                    } {
                        if stop.is_cancelled() {
                            return;
                        }
                        let (index, entry) = entry;
                        let sha384 = names_sha384(entry);
                        let hashes = hash_file(&self.path(&entry.names[0]), sha384, counters, stop);
                        if hashes
                            .as_ref()
                            .map_or(true, |hashes| !hashes.mismatches(&entry.names).is_empty())
                        {
                            Counters::add(&counters.failed, 1);
                        }
                        Counters::add(&counters.done, 1);
                        read.lock().expect("no thread panics").push((index, hashes));
                    }
                });
            }
        });
        if stop.is_cancelled() {
            return Err(CacheError::Interrupted);
        }

        let mut verified = Verified {
            archives: contents.files.len() as u64,
            bytes,
            ..Verified::default()
        };
        for name in contents.dangling {
            self.quarantine(&name)?;
            verified.damaged.push(Damaged {
                name,
                found: None,
                error: Some("the symbolic link leads nowhere".to_owned()),
            });
        }
        // First everything that is wrong goes, so that nothing right is taken for a collision with it.
        let mut right = Vec::new();
        for (index, hashes) in read.into_inner().expect("no thread panics") {
            let entry = &contents.files[index];
            match hashes {
                Ok(hashes) => {
                    for mismatch in hashes.mismatches(&entry.names) {
                        self.quarantine(&mismatch.declared)?;
                        verified.damaged.push(Damaged {
                            name: mismatch.declared,
                            found: mismatch.found,
                            error: None,
                        });
                    }
                    right.push((entry, hashes));
                }
                // Removed by somebody in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    for name in &entry.names {
                        self.quarantine(name)?;
                        verified.damaged.push(Damaged {
                            name: name.clone(),
                            found: None,
                            error: Some(error.to_string()),
                        });
                    }
                }
            }
        }
        for (entry, hashes) in right {
            // A file without any right name may be anything: it is in quarantine.
            let Some(name) = entry.names.iter().find(|name| hashes.all().contains(name)) else {
                continue;
            };
            if hashes.all().iter().all(|hash| entry.names.contains(hash)) {
                continue;
            }
            let missing = hashes.all().iter().filter(|hash| self.find(hash).is_none());
            let missing: Vec<Checksum> = missing.cloned().collect();
            let added = self.name(&self.path(name), hashes)?;
            verified.repaired.extend(missing);
            verified.collisions.extend(added.collisions);
        }
        verified.damaged.sort();
        verified.repaired.sort();
        verified.collisions.sort();
        self.sync()?;
        Ok(verified)
    }
}

pub(super) fn names_sha384(entry: &Entry) -> bool {
    let mut kinds = entry.names.iter().map(Checksum::algorithm);
    kinds.any(|kind| kind == Algorithm::Sha384)
}

pub(super) fn hash_file(
    path: &Path,
    sha384: bool,
    counters: &Counters,
    stop: &CancellationToken,
) -> io::Result<Hashes> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Hasher::new(sha384);
    let mut buffer = vec![0; BLOCK];
    loop {
        if stop.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                Counters::add(&counters.bytes, read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};
    use std::time::Duration;

    fn put(cache: &Cache, data: &[u8]) -> Hashes {
        let mut incoming = cache.receive(false).expect("a file");
        incoming.write(data).expect("room");
        let mut added = cache.add(vec![incoming.finish().expect("a file")]);
        added.remove(0).expect("it gets in").hashes
    }

    fn verify(cache: &Cache) -> Verified {
        cache
            .verify(2, &Counters::default(), &CancellationToken::new())
            .expect("it can be read")
    }

    #[test]
    fn damage_goes_into_quarantine_and_missing_names_come_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(directory.path()).expect("room");
        let (good, bad) = (put(&cache, b"good"), put(&cache, b"bad"));
        assert_eq!(verify(&cache).archives, 2);
        fs::remove_file(cache.path(&good.all()[2])).expect("it is there");
        let rot = cache.path(bad.strongest());
        fs::set_permissions(&rot, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .expect("ours");
        fs::write(&rot, "rot").expect("room");
        let dangling: Checksum = format!("md5={}", "3".repeat(32)).parse().expect("one");
        fs::create_dir_all(cache.path(&dangling).parent().expect("one")).expect("room");
        fs_err::os::unix::fs::symlink("../nowhere", cache.path(&dangling)).expect("room");

        let verified = verify(&cache);
        assert_eq!(verified.repaired, [good.all()[2].clone()]);
        assert_eq!(verified.damaged.len(), 4, "three names and a dangling link");
        assert!(bad.all().iter().all(|name| cache.find(name).is_none()));
        assert!(cache.has_all(good.all()));
        let clean = verify(&cache);
        assert!(clean.damaged.is_empty() && clean.repaired.is_empty());
    }

    #[test]
    fn what_nobody_names_is_removed_after_the_grace_time_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(directory.path()).expect("room");
        let (kept, old) = (put(&cache, b"kept"), put(&cache, b"old"));
        let named = HashSet::from([kept.all()[1].clone()]);
        let mut unnamed = BTreeMap::new();
        let now = crate::state::now();
        let (day, half) = (86_400, 43_200);
        let mut collect = |now, dry_run| {
            cache
                .gc(&named, &mut unnamed, Duration::from_secs(day), now, dry_run)
                .expect("it can be read")
        };
        let first = collect(now, false);
        assert_eq!(
            (first.removed.len(), first.waiting.len(), first.kept),
            (0, 1, 1)
        );
        assert_eq!(collect(now + half, false).removed, []);
        let dry = collect(now + day, true);
        assert_eq!(dry.removed[0].name, *old.strongest());
        assert_eq!((dry.removed[0].size, dry.removed[0].since), (3, now));
        assert!(cache.has_all(old.all()), "a dry run removes nothing");
        assert_eq!(collect(now + day, false).removed.len(), 1);
        assert!(old.all().iter().all(|name| cache.find(name).is_none()));
        assert!(cache.has_all(kept.all()));
        assert!(unnamed.is_empty());
    }
}
