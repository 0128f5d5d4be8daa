// SPDX-License-Identifier: Apache-2.0
//! `obuild archive import`: archives that are on this machine already, from `opam admin cache`, opam-mirror, an image or
//! anywhere, are hashed and taken over. Nothing is downloaded, and on one file system nothing is copied.

use super::hashes::{BLOCK, Hashes, Mismatch};
use super::incoming::{Finished, Temporary};
use super::verify::hash_file;
use super::{Cache, CacheError, Counters, FileId};
use crate::{Algorithm, Checksum};
use flate2::read::MultiGzDecoder;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{AtFlags, CWD};
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// What is imported, and how.
pub struct Import<'a> {
    /// A directory, or a tar file, compressed with gzip or zstd or not at all; a block device will do.
    pub source: &'a Path,
    /// Checksums that packages declare: a file that has one of them is taken whatever it is called.
    pub named: &'a HashSet<Checksum>,
    /// Takes every file, also those that are not called by a checksum and that no package names.
    pub all: bool,
    /// Never shares a file with the source, not even by a hard link.
    pub copy: bool,
    /// How many files are read at once.
    pub threads: usize,
}

/// What was taken over.
#[derive(Debug, Default)]
pub struct Imported {
    /// Archives that are new here.
    pub archives: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Archives that were here before.
    pub present: u64,
    /// Files that are not called by a checksum and that no package names.
    pub others: u64,
    /// Files that are not what they are called, sorted.
    pub refused: Vec<Refused>,
    /// Checksums that belong to another archive already.
    pub collisions: Vec<Checksum>,
}

/// A file that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it is.
    pub path: PathBuf,
    /// What it is called and what it is; nothing if it could not be read.
    pub mismatch: Option<Mismatch>,
    /// Why it could not be read.
    pub error: Option<String>,
}

/// So many files are put in at once.
const BATCH: usize = 64;

impl Cache {
    /// Takes archives over. Those that were complete stay when it fails or is stopped. Needs the [lock](super::Lock).
    pub fn import(
        &self,
        import: &Import<'_>,
        counters: &Counters,
        stop: &CancellationToken,
    ) -> Result<Imported, CacheError> {
        let metadata = fs::metadata(import.source).map_err(CacheError::Import)?;
        let mut imported = if metadata.is_dir() {
            self.import_directory(import, counters, stop)?
        } else {
            if metadata.file_type().is_file() || metadata.file_type().is_block_device() {
                Counters::add(&counters.bytes_total, metadata.len());
            }
            self.import_tar(import, counters, stop)?
        };
        if stop.is_cancelled() {
            return Err(CacheError::Interrupted);
        }
        imported
            .refused
            .sort_by(|one, other| one.path.cmp(&other.path));
        imported.collisions.sort();
        imported.collisions.dedup();
        self.sync()?;
        Ok(imported)
    }

    fn import_directory(
        &self,
        import: &Import<'_>,
        counters: &Counters,
        stop: &CancellationToken,
    ) -> Result<Imported, CacheError> {
        let files = list(import.source)?;
        Counters::add(&counters.total, files.len() as u64);
        Counters::add(
            &counters.bytes_total,
            files.iter().map(|file| file.size).sum(),
        );
        let imported = Mutex::new(Imported::default());
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<CacheError>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..import.threads.max(1) {
                scope.spawn(|| {
                    let mut batch = Vec::new();
                    let mut work = || -> Result<(), CacheError> {
                        while !stop.is_cancelled()
                            && failed.lock().expect("no thread panics").is_none()
                            && let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed))
                        {
                            if let Some(finished) =
                                self.take_file(import, file, &imported, counters, stop)?
                            {
                                batch.push(finished);
                            }
                            Counters::add(&counters.done, 1);
                            if batch.len() >= BATCH {
                                self.settle(std::mem::take(&mut batch), &imported)?;
                            }
                        }
                        self.settle(std::mem::take(&mut batch), &imported)
                    };
                    if let Err(error) = work() {
                        failed
                            .lock()
                            .expect("no thread panics")
                            .get_or_insert(error);
                    }
                });
            }
        });
        match failed.into_inner().expect("no thread panics") {
            Some(error) => Err(error),
            None => Ok(imported.into_inner().expect("no thread panics")),
        }
    }

    fn settle(&self, batch: Vec<Finished>, imported: &Mutex<Imported>) -> Result<(), CacheError> {
        for added in self.add(batch) {
            let added = added?;
            let mut imported = imported.lock().expect("no thread panics");
            if added.new {
                imported.archives += 1;
                imported.bytes += added.hashes.size();
            } else {
                imported.present += 1;
            }
            imported.collisions.extend(added.collisions);
        }
        Ok(())
    }

    /// Brings one file of a directory in, if it is an archive.
    fn take_file(
        &self,
        import: &Import<'_>,
        file: &Source,
        imported: &Mutex<Imported>,
        counters: &Counters,
        stop: &CancellationToken,
    ) -> Result<Option<Finished>, CacheError> {
        let called = called(&file.path);
        if called
            .as_ref()
            .is_some_and(|name| self.find(name).is_some())
        {
            imported.lock().expect("no thread panics").present += 1;
            Counters::add(&counters.bytes, file.size);
            return Ok(None);
        }
        let sha384 = called
            .as_ref()
            .is_some_and(|name| name.algorithm() == Algorithm::Sha384);
        if called.is_none() && !import.all {
            // It is read before anything is made of it: most files that have another name are no archives.
            match hash_file(&file.path, true, counters, stop) {
                Ok(hashes) if hashes.all().iter().any(|hash| import.named.contains(hash)) => {}
                Ok(_) => {
                    imported.lock().expect("no thread panics").others += 1;
                    return Ok(None);
                }
                Err(_) if stop.is_cancelled() => return Ok(None),
                Err(error) => {
                    refuse(imported, counters, &file.path, Err(&error));
                    return Ok(None);
                }
            }
        }
        let finished = match self.bring(&file.path, import.copy, sha384, counters)? {
            Ok(finished) => finished,
            Err(error) => {
                refuse(imported, counters, &file.path, Err(&error));
                return Ok(None);
            }
        };
        let mismatches = finished.hashes.mismatches(called.as_slice());
        if let Some(mismatch) = mismatches.into_iter().next() {
            refuse(imported, counters, &file.path, Ok(mismatch));
            return Ok(None);
        }
        Ok(Some(finished))
    }

    /// Makes a file of ours that has the source's bytes, and hashes that one. The inner error is the source's.
    fn bring(
        &self,
        source: &Path,
        copy: bool,
        sha384: bool,
        counters: &Counters,
    ) -> Result<io::Result<Finished>, CacheError> {
        // Not a pipe that somebody put there in the meantime.
        let mut from = match fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(source)
        {
            Ok(from) => from,
            Err(error) => return Ok(Err(error)),
        };
        let mut incoming = self.receive(sha384)?;
        if rustix::fs::ioctl_ficlone(incoming.file(), &from).is_ok() {
            let shared = incoming.finish()?.temporary;
            return Ok(hash_shared(shared, sha384, counters));
        }
        if !copy {
            let temporary = self.temporary();
            if rustix::fs::linkat(CWD, source, CWD, temporary.path(), AtFlags::empty()).is_ok() {
                return Ok(hash_shared(temporary, sha384, counters));
            }
        }
        let mut buffer = vec![0; BLOCK];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return incoming.finish().map(Ok),
                Ok(read) => {
                    incoming.write(&buffer[..read])?;
                    Counters::add(&counters.bytes, read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    fn import_tar(
        &self,
        import: &Import<'_>,
        counters: &Counters,
        stop: &CancellationToken,
    ) -> Result<Imported, CacheError> {
        let file = fs::File::open(import.source).map_err(CacheError::Import)?;
        let counted = Counted {
            inner: file,
            counters,
        };
        let mut tar = tar::Archive::new(open_compressed(counted).map_err(CacheError::Import)?);
        let imported = Mutex::new(Imported::default());
        let mut batch = Vec::new();
        let result = self.read_tar(&mut tar, import, &imported, &mut batch, counters, stop);
        // What was complete is kept even if the tar is cut off after it.
        self.settle(batch, &imported)?;
        result?;
        Ok(imported.into_inner().expect("no thread panics"))
    }

    fn read_tar(
        &self,
        tar: &mut tar::Archive<Box<dyn Read + '_>>,
        import: &Import<'_>,
        imported: &Mutex<Imported>,
        batch: &mut Vec<Finished>,
        counters: &Counters,
        stop: &CancellationToken,
    ) -> Result<(), CacheError> {
        let mut buffer = vec![0; BLOCK];
        for entry in tar.entries().map_err(CacheError::Import)? {
            if stop.is_cancelled() {
                return Ok(());
            }
            let mut entry = entry.map_err(CacheError::Import)?;
            // Links of any kind lead to a file that is in the tar itself.
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path().map_err(CacheError::Import)?.into_owned();
            Counters::add(&counters.total, 1);
            let called = called(&path);
            if called
                .as_ref()
                .is_some_and(|name| self.find(name).is_some())
            {
                imported.lock().expect("no thread panics").present += 1;
                Counters::add(&counters.done, 1);
                continue;
            }
            let sha384 = called
                .as_ref()
                .is_none_or(|name| name.algorithm() == Algorithm::Sha384);
            let mut incoming = self.receive(sha384)?;
            loop {
                match entry.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => incoming.write(&buffer[..read])?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(CacheError::Import(error)),
                }
            }
            if incoming.size() != entry.size() {
                let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "the tar file is cut off");
                return Err(CacheError::Import(cut));
            }
            let finished = incoming.finish()?;
            let hashes = finished.hashes();
            match called {
                Some(name) => {
                    if let Some(mismatch) = hashes.mismatches(&[name]).into_iter().next() {
                        refuse(imported, counters, &path, Ok(mismatch));
                        continue;
                    }
                    batch.push(finished);
                }
                None if import.all || is_named(hashes, import.named) => batch.push(finished),
                None => imported.lock().expect("no thread panics").others += 1,
            }
            Counters::add(&counters.done, 1);
            if batch.len() >= BATCH {
                self.settle(std::mem::take(batch), imported)?;
            }
        }
        Ok(())
    }
}

fn hash_shared(file: Temporary, sha384: bool, counters: &Counters) -> io::Result<Finished> {
    let hashes = hash_file(file.path(), sha384, counters, &CancellationToken::new())?;
    Ok(Finished {
        hashes,
        temporary: file,
    })
}

fn is_named(hashes: &Hashes, named: &HashSet<Checksum>) -> bool {
    hashes.all().iter().any(|hash| named.contains(hash))
}

fn refuse(
    imported: &Mutex<Imported>,
    counters: &Counters,
    path: &Path,
    why: Result<Mismatch, &io::Error>,
) {
    Counters::add(&counters.failed, 1);
    let (mismatch, error) = match why {
        Ok(mismatch) => (Some(mismatch), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let mut imported = imported.lock().expect("no thread panics");
    imported.refused.push(Refused {
        path: path.to_owned(),
        mismatch,
        error,
    });
}

/// Returns the checksum that a file is called by: `…/sha256/2c/2cf2…`, or opam-mirror's bare `2cf2…`, which is a sha256.
fn called(path: &Path) -> Option<Checksum> {
    let digest = path.file_name()?.to_str()?;
    let kind = path
        .parent()
        .and_then(Path::parent)
        .and_then(Path::file_name)
        .and_then(|kind| Algorithm::from_name(kind.to_str()?));
    match kind {
        Some(kind) => Checksum::new(kind, digest).ok(),
        None => Algorithm::ALL
            .into_iter()
            .find_map(|kind| Checksum::new(kind, digest).ok()),
    }
}

/// A file to look at.
struct Source {
    path: PathBuf,
    size: u64,
}

/// Lists the regular files below a directory, each once whatever hard links it has.
///
/// Symbolic links are left out: those of `opam admin cache` lead to files that are in the list themselves.
fn list(top: &Path) -> Result<Vec<Source>, CacheError> {
    let mut seen: HashSet<FileId> = HashSet::new();
    let mut files = Vec::new();
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(CacheError::Import)? {
            let entry = entry.map_err(CacheError::Import)?;
            let kind = entry.file_type().map_err(CacheError::Import)?;
            if kind.is_dir() && entry.file_name() != ".obuild" {
                directories.push(entry.path());
            } else if kind.is_file() {
                let metadata = entry.metadata().map_err(CacheError::Import)?;
                if seen.insert(FileId::of(&metadata)) {
                    files.push(Source {
                        path: entry.path(),
                        size: metadata.len(),
                    });
                }
            }
        }
    }
    Ok(files)
}

/// Counts what is read of a tar file.
struct Counted<'a> {
    inner: fs::File,
    counters: &'a Counters,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        Counters::add(&self.counters.bytes, read as u64);
        Ok(read)
    }
}

fn open_compressed<'a>(file: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(BLOCK, file);
    let magic = reader.fill_buf()?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(reader))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

#[cfg(test)]
mod tests {
    use super::super::hashes::hash_reader;
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn import(cache: &Cache, source: &Path, all: bool, copy: bool) -> Imported {
        let import = Import {
            source,
            named: &HashSet::new(),
            all,
            copy,
            threads: 2,
        };
        let (counters, stop) = (Counters::default(), CancellationToken::new());
        cache
            .import(&import, &counters, &stop)
            .expect("it can be read")
    }

    fn place(top: &Path, data: &[u8], kind: Algorithm) -> (PathBuf, Hashes) {
        let hashes = hash_reader(&mut &data[..], true).expect("memory");
        let path = top.join(hashes.get(kind).expect("computed").path());
        fs::create_dir_all(path.parent().expect("one")).expect("room");
        fs::write(&path, data).expect("room");
        (path, hashes)
    }

    #[test]
    fn a_cache_of_opam_admin_is_adopted_without_a_copy() {
        let directory = tempfile::tempdir().expect("a directory");
        let old = directory.path().join("old");
        let (file, hashes) = place(&old, b"one", Algorithm::Sha512);
        let link = old.join(hashes.get(Algorithm::Md5).expect("computed").path());
        fs::create_dir_all(link.parent().expect("one")).expect("room");
        fs_err::os::unix::fs::symlink(&file, &link).expect("room");
        let (rotten, _) = place(&old, b"two", Algorithm::Sha256);
        fs::write(&rotten, "three").expect("room");
        fs::write(old.join("README"), "no archive").expect("room");
        rustix::fs::mknodat(
            CWD,
            old.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("pipes can be made");

        let cache = Cache::open(&directory.path().join("new")).expect("room");
        let imported = import(&cache, &old, false, false);
        assert_eq!((imported.archives, imported.bytes), (1, 3));
        assert_eq!(imported.others, 1);
        assert_eq!(imported.refused.len(), 1);
        assert_eq!(imported.refused[0].path, rotten);
        assert!(imported.refused[0].mismatch.is_some());
        let standard = [Algorithm::Md5, Algorithm::Sha256, Algorithm::Sha512]
            .map(|kind| hashes.get(kind).expect("computed").clone());
        assert!(cache.has_all(&standard));
        // One file system: the bytes are shared, by a hard link where there are no reflinks.
        let (here, there) = (
            fs::metadata(cache.path(hashes.strongest())).expect("there"),
            fs::metadata(&file).expect("there"),
        );
        assert!(here.ino() == there.ino() || here.mode() & 0o777 == 0o444);

        let again = import(&cache, &old, true, false);
        assert_eq!((again.archives, again.present), (1, 1), "README now too");
        let copied = Cache::open(&directory.path().join("copied")).expect("room");
        import(&copied, &old, false, true);
        let here = fs::metadata(copied.path(hashes.strongest())).expect("there");
        assert_ne!(here.ino(), there.ino());
    }

    #[test]
    fn a_tar_is_adopted_and_a_cut_one_as_far_as_it_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut builder = tar::Builder::new(Vec::new());
        let mut hashes = Vec::new();
        for data in [&b"first"[..], b"second"] {
            let hash = hash_reader(&mut &data[..], false).expect("memory");
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            // opam-mirror: the name is the bare sha256.
            let name = hash
                .get(Algorithm::Sha256)
                .expect("computed")
                .digest()
                .to_owned();
            builder
                .append_data(&mut header, name, data)
                .expect("memory");
            hashes.push(hash);
        }
        let whole = builder.into_inner().expect("memory");
        let path = directory.path().join("mirror.tar.zst");
        fs::write(&path, zstd::encode_all(&whole[..], 1).expect("memory")).expect("room");
        let cache = Cache::open(&directory.path().join("whole")).expect("room");
        assert_eq!(import(&cache, &path, false, false).archives, 2);
        assert!(hashes.iter().all(|hash| cache.has_all(hash.all())));

        fs::write(&path, &whole[..512 * 3 + 3]).expect("room");
        let cache = Cache::open(&directory.path().join("cut")).expect("room");
        let cut = Import {
            source: &path,
            named: &HashSet::new(),
            all: false,
            copy: false,
            threads: 1,
        };
        let error = cache
            .import(&cut, &Counters::default(), &CancellationToken::new())
            .expect_err("it is cut");
        assert!(matches!(error, CacheError::Import(_)));
        assert!(cache.has_all(hashes[0].all()) && !cache.has_all(hashes[1].all()));
    }
}
