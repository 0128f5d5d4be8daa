// SPDX-License-Identifier: Apache-2.0
//! Copying the bytes of a file: shared where the file system can, else moved in the kernel, else read and written. Holes
//! stay holes.

use rustix::fs::{SeekFrom, Stat};
use rustix::io::{Errno, Result};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Below this, reading and writing is faster than `copy_file_range(2)`.
const SMALL: usize = 64 * 1024;

/// The most that one call is asked to copy.
const PIECE: usize = 1 << 30;

/// Which ways of copying are worth another try between two trees.
pub(crate) struct Ways {
    clone: AtomicBool,
    range: AtomicBool,
}

impl Ways {
    /// Tries all.
    pub(crate) fn new() -> Self {
        Self {
            clone: AtomicBool::new(true),
            range: AtomicBool::new(true),
        }
    }
}

/// Copies the content of `from`, whose `stat` is given, into the new, empty file `to`.
pub(crate) fn copy_content(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    stat: &Stat,
    ways: &Ways,
) -> Result<()> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 {
        return Ok(());
    }
    if ways.clone.load(Ordering::Relaxed) {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => return Err(errno),
            // Not this file (a swap file, one without checksums); others may do.
            Err(Errno::INVAL | Errno::TXTBSY | Errno::PERM) => {}
            Err(_) => ways.clone.store(false, Ordering::Relaxed),
        }
    }
    // st_blocks counts 512 bytes whatever the file system's block is: stat(3type).
    let sparse =
        u64::try_from(stat.st_blocks).is_ok_and(|blocks| blocks.saturating_mul(512) < size);
    if !sparse {
        return copy_range(from, to, 0, size, ways);
    }
    rustix::fs::ftruncate(to, size)?;
    let mut position = 0;
    while position < size {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(position)) {
            Ok(begin) => begin,
            // Nothing but a hole is left: lseek(2).
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?.min(size);
        copy_range(from, to, begin, end, ways)?;
        position = end;
    }
    Ok(())
}

/// Copies the bytes from `start` to `end` to the same place.
fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
    ways: &Ways,
) -> Result<()> {
    let (mut input, mut output) = (start, start);
    let left = |at: u64| usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
    if left(start) > SMALL && ways.range.load(Ordering::Relaxed) {
        while input < end {
            let want = left(input);
            let count =
                rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), want);
            match count {
                // A file that is shorter than it was: the rest is read, which meets its end too.
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                // copy_file_range(2): what kernels say of pairs of files that they cannot do.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                    ways.range.store(false, Ordering::Relaxed);
                    break;
                }
                Err(errno) => return Err(errno),
            }
        }
    }
    let mut position = input;
    let mut buffer = vec![0; left(position).min(SMALL)];
    while position < end {
        let want = left(position).min(buffer.len());
        let count = match rustix::io::pread(from, &mut buffer[..want], position) {
            // Committed trees do not change, so the file is damaged.
            Ok(0) => return Err(Errno::IO),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut written = 0;
        while written < count {
            match rustix::io::pwrite(to, &buffer[written..count], position + written as u64) {
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        position += count as u64;
    }
    Ok(())
}
