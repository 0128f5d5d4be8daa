// SPDX-License-Identifier: Apache-2.0
//! Content digests remembered from one build to the next, so that an unchanged tree is not read twice.

use super::stamp::{Stamp, Time};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first bytes of a saved memo; the number is the format's version.
const MAGIC: &[u8; 16] = b"obuild digests 1";

/// Bytes of one saved entry.
const RECORD: usize = 8 * 3 + 12 * 2 + 1 + 32;

/// Bytes of the checksum at the end.
const CHECKSUM: usize = 4;

/// Saves that an entry survives without being used: builds of several targets share the memo of one context.
const LIFETIME: u8 = 16;

/// How much older than the scan a file must be for its digest to be remembered.
///
/// A file written twice within one tick of its file system's clock has the same size and times after both writes; had its
/// digest been taken between them, the stamp would vouch for the wrong content for ever. Git calls such an entry "racily clean"
/// (`Documentation/technical/racy-git.txt`). Here it is simply not remembered: a file whose change time is not safely in the past
/// when the scan begins is read again by the next scan. Two seconds is the coarsest clock in use (FAT's).
const MARGIN: Duration = Duration::from_secs(2);

/// The digests of the files of one context, by their identity and times.
#[derive(Debug, Default)]
pub struct DigestMemo {
    /// What was loaded, in order of device and inode. Building a table of it would take longer than all searches.
    loaded: Vec<Known>,
    /// What has come since.
    fresh: HashMap<(u64, u64), Known>,
    changed: bool,
}

#[derive(Clone, Debug)]
struct Known {
    stamp: Stamp,
    digest: [u8; 32],
    /// Saves since it was last used.
    age: u8,
}

impl DigestMemo {
    /// Reads a saved memo. Anything but a whole, undamaged memo of this version gives an empty one, since
    /// the worst that follows is that files are read again.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::parse(bytes).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
        let records = content.strip_prefix(MAGIC)?;
        if records.len() % RECORD != 0 || self::checksum(content) != *checksum {
            return None;
        }
        let loaded = records.chunks_exact(RECORD).map(Known::parse);
        let mut loaded: Vec<Known> = loaded.collect::<Option<_>>()?;
        // It was saved in order; this costs one look at each.
        loaded.sort_by_key(Known::key);
        Some(Self {
            loaded,
            fresh: HashMap::new(),
            changed: false,
        })
    }

    /// Returns the memo in the form that [`Self::from_bytes`] reads, without the entries that long went unused.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MAGIC.len() + self.len() * RECORD + CHECKSUM);
        bytes.extend_from_slice(MAGIC);
        let mut all: Vec<&Known> = self.loaded.iter().chain(self.fresh.values()).collect();
        all.sort_by_key(|known| known.key());
        for known in all.into_iter().filter(|known| known.age <= LIFETIME) {
            let stamp = &known.stamp;
            bytes.extend_from_slice(&stamp.device.to_le_bytes());
            bytes.extend_from_slice(&stamp.inode.to_le_bytes());
            bytes.extend_from_slice(&stamp.size.to_le_bytes());
            for time in [stamp.modified, stamp.changed] {
                bytes.extend_from_slice(&time.seconds.to_le_bytes());
                bytes.extend_from_slice(&time.nanoseconds.to_le_bytes());
            }
            bytes.push(known.age);
            bytes.extend_from_slice(&known.digest);
        }
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        bytes
    }

    /// Returns whether there is anything new to be saved.
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// Returns how many files are remembered.
    pub fn len(&self) -> usize {
        self.loaded.len() + self.fresh.len()
    }

    /// Returns whether no file is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the digest of a file that has not changed since it was read.
    pub(crate) fn get(&mut self, stamp: &Stamp) -> Option<[u8; 32]> {
        let known = self.find(stamp)?;
        if known.stamp != *stamp {
            return None;
        }
        known.age = 0;
        Some(known.digest)
    }

    /// Remembers a digest, unless the file is so new at `now`, when the scan began, that it may change unseen.
    pub(crate) fn insert(&mut self, stamp: &Stamp, digest: [u8; 32], now: SystemTime) {
        if !settled(stamp, now) {
            return;
        }
        let known = Known {
            stamp: *stamp,
            digest,
            age: 0,
        };
        match self.find(stamp) {
            Some(old) => *old = known,
            None => drop(self.fresh.insert(known.key(), known)),
        }
        self.changed = true;
    }

    fn find(&mut self, stamp: &Stamp) -> Option<&mut Known> {
        let key = (stamp.device, stamp.inode);
        match self.loaded.binary_search_by_key(&key, Known::key) {
            Ok(place) => self.loaded.get_mut(place),
            Err(_) => self.fresh.get_mut(&key),
        }
    }
}

impl Known {
    fn key(&self) -> (u64, u64) {
        (self.stamp.device, self.stamp.inode)
    }

    fn parse(record: &[u8]) -> Option<Self> {
        let mut record = Record(record);
        let stamp = Stamp {
            device: u64::from_le_bytes(record.take()?),
            inode: u64::from_le_bytes(record.take()?),
            size: u64::from_le_bytes(record.take()?),
            modified: record.time()?,
            changed: record.time()?,
        };
        let [age] = record.take()?;
        Some(Self {
            stamp,
            age: age.saturating_add(1),
            digest: record.take()?,
        })
    }
}

fn settled(stamp: &Stamp, now: SystemTime) -> bool {
    let Some(limit) = now
        .checked_sub(MARGIN)
        .and_then(|limit| limit.duration_since(UNIX_EPOCH).ok())
    else {
        return false;
    };
    let limit = Time {
        seconds: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: limit.subsec_nanos(),
    };
    stamp.modified.max(stamp.changed) < limit
}

/// Guards against damage, not against people: who can write the memo can write the store. SHA-256 would take ten times as long.
fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let mut checksum = flate2::Crc::new();
    checksum.update(content);
    checksum.sum().to_le_bytes()
}

/// What is left of a saved entry.
struct Record<'a>(&'a [u8]);

impl Record<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*value)
    }

    fn time(&mut self) -> Option<Time> {
        Some(Time {
            seconds: i64::from_le_bytes(self.take()?),
            nanoseconds: u32::from_le_bytes(self.take()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(inode: u64, seconds: i64) -> Stamp {
        let time = Time {
            seconds,
            nanoseconds: 7,
        };
        Stamp {
            device: 1,
            inode,
            size: 3,
            modified: time,
            changed: time,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let mut memo = DigestMemo::default();
        for inode in 0..100 {
            memo.insert(
                &stamp(inode, 5),
                [u8::try_from(inode).unwrap(); 32],
                at(1000),
            );
        }
        assert!(memo.changed());
        let mut read = DigestMemo::from_bytes(&memo.to_bytes());
        assert!(!read.changed());
        assert_eq!(read.len(), 100);
        assert_eq!(read.get(&stamp(9, 5)), Some([9; 32]));
        assert_eq!(read.get(&stamp(9, 6)), None);
        assert_eq!(read.get(&stamp(100, 5)), None);
    }

    #[test]
    fn a_file_as_new_as_the_scan_is_not_remembered() {
        let mut memo = DigestMemo::default();
        memo.insert(&stamp(1, 1000), [1; 32], at(1000));
        memo.insert(&stamp(1, 1000), [1; 32], at(1001));
        memo.insert(&stamp(1, 1000), [1; 32], at(1002));
        assert!(memo.is_empty() && !memo.changed());
        memo.insert(&stamp(1, 1000), [1; 32], at(1003));
        assert_eq!(memo.len(), 1);
        // A modification time in the future vouches for nothing.
        memo.insert(&stamp(2, 5000), [1; 32], at(1003));
        assert_eq!(memo.len(), 1);
    }

    #[test]
    fn damage_gives_an_empty_memo() {
        let mut memo = DigestMemo::default();
        memo.insert(&stamp(1, 5), [1; 32], at(1000));
        memo.insert(&stamp(2, 5), [2; 32], at(1000));
        let bytes = memo.to_bytes();
        assert_eq!(DigestMemo::from_bytes(&bytes).len(), 2);
        for length in 0..bytes.len() {
            assert!(DigestMemo::from_bytes(&bytes[..length]).is_empty());
        }
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x10;
            assert!(DigestMemo::from_bytes(&damaged).is_empty(), "byte {index}");
        }
        let mut longer = bytes.clone();
        longer.extend_from_slice(&bytes);
        assert!(DigestMemo::from_bytes(&longer).is_empty());
    }

    #[test]
    fn an_entry_that_goes_unused_is_dropped_in_the_end() {
        let mut memo = DigestMemo::default();
        memo.insert(&stamp(1, 5), [1; 32], at(1000));
        memo.insert(&stamp(2, 5), [2; 32], at(1000));
        for _ in 0..=LIFETIME {
            memo = DigestMemo::from_bytes(&memo.to_bytes());
            assert_eq!(memo.get(&stamp(2, 5)), Some([2; 32]));
        }
        memo = DigestMemo::from_bytes(&memo.to_bytes());
        assert_eq!(memo.get(&stamp(1, 5)), None);
        assert_eq!(memo.len(), 1);
    }
}
