// SPDX-License-Identifier: Apache-2.0
//! An archive on its way in: a file beside the cache, hashed while it is written, gone when dropped.
//!
//! A long one from a server that can go on where it broke off has a note beside it, which says of which URL it is the beginning: then it
//! outlives its process, however that ends, and a later one goes on from there.

use super::hashes::{Hasher, Hashes, hash_reader};
use super::{BLOCK, Cache, CacheError};
use crate::Algorithm;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// How the names of unfinished files begin; those of finished ones begin with their sha512.
const PART: &str = "part-";

/// What the name of a note has behind that of its file.
const NOTE: &str = ".of";

/// Beginnings that nobody goes on with are removed after this time.
const OLDEST: Duration = Duration::from_hours(7 * 24);

/// A file that is removed unless it is told to stay.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    /// Whether there is a note, and so both stay.
    noted: bool,
}

impl Temporary {
    fn new(path: PathBuf) -> Self {
        Self { path, noted: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn note(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(NOTE);
        path.into()
    }

    /// Takes the note away: the file is of no use to a later process.
    fn forget(&mut self) {
        if std::mem::take(&mut self.noted) {
            let _ = fs::remove_file(self.note());
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.noted {
            // Whatever cannot be removed now is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Of what a file is the beginning.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    url: String,
    /// What proves to the server that the rest belongs to it (RFC 9110 §13.1.5).
    validator: String,
}

/// Beginnings that earlier processes left, by their URLs.
#[derive(Debug, Default)]
pub(super) struct Beginnings {
    known: Mutex<HashMap<String, (Temporary, String)>>,
}

impl Beginnings {
    fn take(&self, url: &str) -> Option<(Temporary, String)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(url)
    }

    fn add(&self, file: Temporary, note: Note) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let path = file.path.clone();
        if let Some((mut other, _)) = known.insert(note.url, (file, note.validator))
            && other.path != path
        {
            // Two are of no use.
            other.forget();
        }
    }
}

/// An archive that is being received.
pub struct Incoming {
    file: fs::File,
    hasher: Hasher,
    temporary: Temporary,
}

impl Incoming {
    /// Returns how many bytes have been received.
    pub fn size(&self) -> u64 {
        self.hasher.size()
    }

    /// Returns the file that is being written.
    pub(super) fn file(&self) -> &fs::File {
        &self.file
    }

    /// Adds bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<(), CacheError> {
        self.file.write_all(data).map_err(CacheError::Write)?;
        self.hasher.update(data);
        Ok(())
    }

    /// Lets what was received outlive this process: a later one can go on with it by [`Cache::resume`].
    ///
    /// # Errors
    ///
    /// When the note cannot be written.
    pub fn remember(&mut self, url: &str, validator: &str) -> Result<(), CacheError> {
        if self.temporary.noted {
            return Ok(());
        }
        let note = Note {
            url: url.to_owned(),
            validator: validator.to_owned(),
        };
        serde_json::to_vec(&note)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(self.temporary.note(), text))
            .map_err(CacheError::Write)?;
        self.temporary.noted = true;
        Ok(())
    }

    /// Undoes [`Incoming::remember`].
    pub fn forget(&mut self) {
        self.temporary.forget();
    }

    /// Forgets what was received.
    pub fn restart(&mut self) -> Result<(), CacheError> {
        self.forget();
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(CacheError::Write)?;
        self.hasher.reset();
        Ok(())
    }

    /// Ends the archive. Nothing is in the cache yet: the hashes are to be judged first.
    pub fn finish(mut self) -> Result<Finished, CacheError> {
        self.forget();
        // Nobody has a reason to write into it ever again.
        self.file
            .set_permissions(std::fs::Permissions::from_mode(0o444))
            .map_err(CacheError::Write)?;
        Ok(Finished {
            hashes: self.hasher.finish(),
            temporary: self.temporary,
        })
    }
}

/// A complete archive that is not in the cache yet. Removed when dropped.
#[derive(Debug)]
pub struct Finished {
    pub(crate) hashes: Hashes,
    pub(crate) temporary: Temporary,
}

impl Finished {
    /// Returns what it is.
    pub fn hashes(&self) -> &Hashes {
        &self.hashes
    }

    /// Names the file by its hash, so that the next start finds it if this process does not come to put it into the cache.
    pub(crate) fn keep(&mut self) -> Result<(), CacheError> {
        // Two may have received the same bytes: each keeps its own file.
        let kept = self.temporary.path.with_file_name(format!(
            "{}-{}",
            self.hashes.strongest().digest(),
            unique()
        ));
        fs::rename(&self.temporary.path, &kept).map_err(CacheError::Write)?;
        self.temporary.path = kept;
        Ok(())
    }
}

impl Cache {
    /// Returns a path for a file on its way in.
    pub(crate) fn temporary(&self) -> Temporary {
        Temporary::new(self.incoming.join(format!("{PART}{}", unique())))
    }

    /// Begins to receive an archive.
    pub fn receive(&self, sha384: bool) -> Result<Incoming, CacheError> {
        let temporary = self.temporary();
        let file = fs::OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o644)
            .open(temporary.path())
            .map_err(CacheError::Write)?;
        Ok(Incoming {
            file,
            hasher: Hasher::new(sha384),
            temporary,
        })
    }

    /// Goes on with what an earlier process received of a URL, if there is something: returns it, hashed as far as it goes, and what
    /// proves to the server what it is of. Nobody else gets it.
    ///
    /// Whether it is what it is said to be shows at the end, by its checksums.
    pub fn resume(&self, url: &str, sha384: bool) -> Option<(Incoming, String)> {
        let (temporary, validator) = self.beginnings.take(url)?;
        let open = || {
            let mut file = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(temporary.path())?;
            let mut hasher = Hasher::new(sha384);
            let mut block = vec![0; BLOCK];
            loop {
                match file.read(&mut block)? {
                    0 => break,
                    length => hasher.update(&block[..length]),
                }
            }
            file.seek(SeekFrom::End(0))?;
            Ok::<_, io::Error>((file, hasher))
        };
        let opened = open();
        match opened {
            Ok((file, hasher)) => {
                let incoming = Incoming {
                    file,
                    hasher,
                    temporary,
                };
                Some((incoming, validator))
            }
            Err(error) => {
                tracing::info!(%url, %error, "what an earlier run received is of no use");
                let mut temporary = temporary;
                temporary.forget();
                None
            }
        }
    }

    /// Puts in what an earlier process had complete when it died, keeps for [`Cache::resume`] what can be gone on with, and removes the
    /// rest. Needs the [lock](super::Lock).
    pub fn recover(&self) -> Result<usize, CacheError> {
        let mut complete = Vec::new();
        for entry in fs::read_dir(&self.incoming).map_err(CacheError::Directory)? {
            let entry = entry.map_err(CacheError::Directory)?;
            if entry.path().extension().is_some_and(|of| of == &NOTE[1..]) {
                self.recover_beginning(entry.path().with_extension(""));
                continue;
            }
            let mut temporary = Temporary::new(entry.path());
            if temporary.note().exists() {
                // It comes with its note.
                temporary.noted = true;
                continue;
            }
            let name = entry.file_name();
            let Some(digest) = name
                .to_str()
                .and_then(|name| name.get(..Algorithm::Sha512.digits()))
            else {
                continue;
            };
            let mut file = match fs::File::open(temporary.path()) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(CacheError::Read(error)),
            };
            let hashes = hash_reader(&mut file, false).map_err(CacheError::Read)?;
            if digest == hashes.strongest().digest() {
                complete.push(Finished { hashes, temporary });
            }
        }
        let found = complete.len();
        for added in self.add(complete) {
            match added {
                // The process that died is not quite dead, and has put it in itself.
                Err(CacheError::Link { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                added => drop(added?),
            }
        }
        Ok(found)
    }

    /// Keeps the beginning of an archive, unless it is old or its note says nothing.
    fn recover_beginning(&self, path: PathBuf) {
        let mut temporary = Temporary::new(path);
        temporary.noted = true;
        let note = fs::read(temporary.note())
            .ok()
            .and_then(|text| serde_json::from_slice::<Note>(&text).ok());
        let age = fs::metadata(temporary.path())
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        match note {
            // A clock that was set back makes a file of the future, which is not old.
            Some(note) if age.is_none_or(|age| age < OLDEST) && temporary.path().is_file() => {
                self.beginnings.add(temporary, note);
            }
            _ => temporary.forget(),
        }
    }
}

/// Returns a name that nobody else has in this directory, nor had: what is there may be of an earlier process with our number.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static STARTED: OnceLock<u128> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |time| time.as_nanos())
    });
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{started:x}-{next}", std::process::id())
}
