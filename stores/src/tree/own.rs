// SPDX-License-Identifier: Apache-2.0
//! Measuring what a whole tree holds beyond the tree that it was copied from.

use super::crew;
use super::node::{Budget, Held, Waiting, open_quietly};
use crate::sys;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// How a tree holds what it has in common with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// As hard links.
    Links,
    /// As shared blocks.
    Blocks,
}

/// Returns the bytes of disk that the files in `top` take, each once however many names it has, and without those that they
/// share with the files of the same names in `parent`.
pub(crate) fn own_size(
    top: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    sharing: Sharing,
) -> Result<u64> {
    let budget = Budget::default();
    let bytes = AtomicU64::new(0);
    let linked = Mutex::new(HashSet::new());
    let first = Waiting {
        above: None,
        node: None,
    };
    crew::run(first, &|waiting: Waiting<'_, Pair>, found| {
        let own = waiting.open(top, |above| above.own.as_fd())?;
        // The directory above may be gone from the parent, or have been something else there.
        let parent = match &waiting.above {
            Some(above) if above.open.parent.is_none() => None,
            _ => absent(waiting.open(parent, |above| {
                above.parent.as_ref().unwrap_or(&above.own).as_fd()
            }))?,
        };
        let pair = Held::new(Pair { own, parent }, &budget);
        let own = pair.open.own.as_fd();
        let mut sum = used(&rustix::fs::fstat(own)?);
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(own, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = rustix::fs::statat(own, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                found.push(Waiting::below(
                    &pair,
                    waiting.node.as_ref(),
                    name.to_owned(),
                ));
                continue;
            }
            let counted = stat.st_nlink > 1
                && !linked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert((stat.st_dev, stat.st_ino));
            if !counted {
                sum += beyond(own, pair.open.parent.as_ref(), name, &stat, sharing)?;
            }
        }
        bytes.fetch_add(sum, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(bytes.into_inner())
}

/// A directory, and the one of that name in the parent.
struct Pair {
    own: OwnedFd,
    parent: Option<OwnedFd>,
}

/// Returns what a file holds that the parent's file of that name does not.
fn beyond(
    own: BorrowedFd<'_>,
    parent: Option<&OwnedFd>,
    name: &CStr,
    stat: &Stat,
    sharing: Sharing,
) -> Result<u64> {
    let Some(parent) = parent else {
        return Ok(used(stat));
    };
    let Some(other) = absent(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW))? else {
        return Ok(used(stat));
    };
    if (stat.st_dev, stat.st_ino) == (other.st_dev, other.st_ino) {
        return Ok(0);
    }
    let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if sharing == Sharing::Links || !regular(stat) || !regular(&other) {
        return Ok(used(stat));
    }
    let what = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    if what(stat) == what(&other) {
        return Ok(0);
    }
    let own = open_quietly(own, name, OFlags::empty())?;
    let other = open_quietly(parent, name, OFlags::empty())?;
    let (Ok((own, elsewhere)), Ok((mut other, _))) =
        (sys::extents(own.as_fd()), sys::extents(other.as_fd()))
    else {
        return Ok(used(stat));
    };
    other.sort_unstable();
    let whole: u64 = own.iter().map(|(_, bytes)| bytes).sum();
    let common: u64 = own.iter().map(|extent| overlap(*extent, &other)).sum();
    // Compressed extents are shorter on the disk than they say.
    Ok((whole - common + elsewhere).min(used(stat)))
}

/// Returns how many bytes of an extent are in those of a sorted list.
fn overlap((start, bytes): (u64, u64), others: &[(u64, u64)]) -> u64 {
    let end = start + bytes;
    let first = others.partition_point(|(other, bytes)| other + bytes <= start);
    others[first..]
        .iter()
        .take_while(|(other, _)| *other < end)
        .map(|(other, bytes)| (other + bytes).min(end) - (*other).max(start))
        .sum::<u64>()
        .min(bytes)
}

/// Returns the bytes that a file takes on the disk. The unit of `st_blocks` is 512 bytes whatever the file
/// system (stat(3type)).
fn used(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

/// Turns the errors that mean that nothing is there into `None`.
fn absent<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::overlap;

    #[test]
    fn common_parts_of_extents_are_counted() {
        let others = [(0, 10), (20, 10), (100, 5)];
        assert_eq!(overlap((0, 10), &others), 10);
        assert_eq!(overlap((5, 20), &others), 10);
        assert_eq!(overlap((10, 10), &others), 0);
        assert_eq!(overlap((25, 200), &others), 10);
        assert_eq!(overlap((300, 1), &others), 0);
    }
}
