// SPDX-License-Identifier: Apache-2.0
//! Reads the files whose digests are not known.

use super::{FILE, io, join};
use crate::tree::error::ScanError;
use crate::tree::manifest::Index;
use crate::tree::stamp::{Stamp, file_type, permissions};
use crate::tree::xattr::{self, Attributes};
use crate::tree::{Cancelled, SourceKind};
use bstr::BString;
use rustix::fs::{FileType, Mode, Stat, fstat, openat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How often a file that changes while it is read is tried.
const ATTEMPTS: u32 = 3;

/// What a thread reads with, and what it has read.
pub(super) struct Hand {
    pub(super) buffer: Vec<u8>,
    pub(super) found: Vec<Found>,
}

pub(super) struct Found {
    pub(super) entry: Index,
    pub(super) digest: [u8; 32],
    pub(super) stamp: Stamp,
    pub(super) mode: u16,
    pub(super) attributes: Attributes,
}

/// Files of one directory that must be read.
pub(super) struct Unit {
    directory: Arc<OwnedFd>,
    /// For messages.
    pub(super) path: BString,
    pub(super) names: Vec<u8>,
    pub(super) files: Vec<(Index, Range<usize>)>,
    pub(super) bytes: u64,
}

impl Unit {
    pub(super) fn new(directory: &Arc<OwnedFd>, path: BString) -> Self {
        Self {
            directory: Arc::clone(directory),
            path,
            names: Vec::new(),
            files: Vec::new(),
            bytes: 0,
        }
    }

    pub(super) fn read(
        self,
        hand: &mut Hand,
        kind: SourceKind,
        cancelled: Cancelled<'_>,
    ) -> Result<(), ScanError> {
        for (entry, range) in self.files {
            let name = &self.names[range];
            let result = read_file(&self.directory, name, &mut hand.buffer, kind, cancelled);
            match result {
                Ok(Some((digest, stat, attributes))) => hand.found.push(Found {
                    entry,
                    digest,
                    stamp: Stamp::of(&stat),
                    mode: permissions(&stat),
                    attributes,
                }),
                Ok(None) => return Err(ScanError::Cancelled),
                Err(Errno::STALE | Errno::NOENT | Errno::LOOP | Errno::NXIO) => {
                    let path = join(&self.path, name);
                    return Err(ScanError::SourceChanged { path });
                }
                Err(error) => return Err(io("read", join(&self.path, name), error)),
            }
        }
        Ok(())
    }
}

/// Reads one file's digest and facts. `None` when cancelled, `STALE` when it does not hold still.
fn read_file(
    directory: &OwnedFd,
    name: &[u8],
    buffer: &mut [u8],
    kind: SourceKind,
    cancelled: Cancelled<'_>,
) -> Result<Option<([u8; 32], Stat, Attributes)>, Errno> {
    for _ in 0..ATTEMPTS {
        let file = openat(directory, name, FILE, Mode::empty())?;
        let before = fstat(&file)?;
        if file_type(&before) != FileType::RegularFile {
            return Err(Errno::STALE);
        }
        let size = Stamp::of(&before).size;
        let mut hash = Sha256::new();
        let mut read = 0;
        // A file that grows as fast as it is read must not keep us for ever.
        while read <= size {
            if cancelled() {
                return Ok(None);
            }
            match rustix::io::read(&file, &mut *buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    read += count as u64;
                    // Two more calls tell nothing that the comparison below does not.
                    if read == size {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        let attributes = attributes(file.as_fd(), kind)?;
        let after = fstat(&file)?;
        if read == size && Stamp::of(&before) == Stamp::of(&after) {
            return Ok(Some((hash.finalize().into(), after, attributes)));
        }
    }
    Err(Errno::STALE)
}

/// Returns the extended attributes that a copy from a build keeps; a context's are the host's affair.
pub(super) fn attributes(file: BorrowedFd<'_>, kind: SourceKind) -> Result<Attributes, Errno> {
    match kind {
        SourceKind::Context => Ok(Vec::new()),
        SourceKind::Build => xattr::read(xattr::Owner::Open(file), |name| {
            name.starts_with(b"user.") || name == b"security.capability"
        }),
    }
}
