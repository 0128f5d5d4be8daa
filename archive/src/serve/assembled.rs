// SPDX-License-Identifier: Apache-2.0
//! `index.tar.gz` of a directory that has it in parts: put together once for all workers, in memory that is sent like a file's.

use super::files::Identity;
use crate::index::{LIST, Parts};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file that is put together.
pub(super) const INDEX: &str = "index.tar.gz";

/// The index of a directory.
#[derive(Debug)]
pub(super) struct Assembled {
    /// Where the parts and their list are.
    directory: PathBuf,
    last: Mutex<Option<Last>>,
}

/// What was put together last.
#[derive(Debug)]
struct Last {
    /// The list that says how.
    list: Identity,
    file: File,
    tag: String,
}

impl Assembled {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            directory: root.join("index"),
            last: Mutex::default(),
        }
    }

    /// Returns the index and its validator, which is the same on every machine; nothing if there are no parts. While the parts
    /// of a new one are incomplete, it is the one of before.
    pub(super) fn open(&self) -> Option<(File, String)> {
        let found = rustix::fs::stat(self.directory.join(LIST)).ok()?;
        let list = Identity::of(&found);
        let mut kept = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|kept| kept.list != list) {
            match self.assemble() {
                Ok((file, tag)) => *kept = Some(Last { list, file, tag }),
                Err(error) => {
                    tracing::error!(%error, "cannot put the index together");
                    // Not again for each request; when the list is another one.
                    if let Some(kept) = &mut *kept {
                        kept.list = list;
                    }
                }
            }
        }
        let kept = kept.as_ref()?;
        Some((kept.file.try_clone().ok()?, kept.tag.clone()))
    }

    fn assemble(&self) -> io::Result<(File, String)> {
        let parts = Parts::open(&self.directory).map_err(io::Error::other)?;
        let file = File::from(memfd_create(INDEX, MemfdFlags::CLOEXEC)?);
        let mut writer = BufWriter::new(&file);
        parts.write(&mut writer).map_err(io::Error::other)?;
        writer.flush()?;
        drop(writer);
        Ok((file, format!("\"{}\"", hex::encode(&parts.digest()[..20]))))
    }
}
