// SPDX-License-Identifier: Apache-2.0
//! Opened files, kept open for a while: one cache a worker thread, so that it needs no lock.
//!
//! What is kept is looked at again on disk after [`FRESH`], so a new index is served within a second of its rename and a removed
//! file is gone within one. A response goes on with the file that it began with.

use super::assembled::{Assembled, INDEX};
use super::conditions::written;
use super::http2::hpack::write_field;
use super::place::{Kind, media_type};
use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, statat};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long an opened file is used without looking at the disk.
const FRESH: Duration = Duration::from_secs(1);
/// Files up to this size are kept in memory, as far as there is room for them.
const SMALL_BYTES: u64 = 16 << 10;

/// A directory that files are served from.
#[derive(Debug)]
pub(super) struct Root(OwnedFd, Assembled);

impl Root {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let index = Assembled::new(path);
        // Now, so that nobody has to wait for it.
        index.open();
        Ok(Self(root, index))
    }

    /// Opens a file below the directory. The kernel refuses every way out of it: `..`, absolute links, links of /proc (openat2(2)).
    /// Links inside it work: the cache of `opam admin cache` has some.
    fn open_file(&self, path: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY
            | OFlags::CLOEXEC
            | OFlags::NOCTTY
            // A FIFO must not hold us up.
            | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.0, path, flags, Mode::empty(), resolve) {
                // A rename went on meanwhile (openat2(2), EAGAIN); and a signal.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

/// An opened file and what its responses say of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: std::fs::File,
    pub(super) size: u64,
    /// Seconds since 1970; a time before that counts as 1970.
    pub(super) modified: u64,
    /// The strong validator, with its quotes.
    pub(super) tag: String,
    /// The header fields of every response with this file, as HTTP/1.1 writes them.
    pub(super) rendered: Vec<u8>,
    /// The same, as HTTP/2 writes them.
    pub(super) block: Vec<u8>,
    /// The content of a small file.
    pub(super) content: Option<Bytes>,
    identity: Identity,
    checked: Cell<Instant>,
    used: Cell<u64>,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Identity {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// What a path led to.
pub(super) enum Found {
    File(Rc<Entry>),
    Directory,
    Missing,
    /// No more descriptors or memory: later, perhaps.
    Exhausted,
    /// The disk failed, or we may not read the file.
    Failed(Errno),
}

/// How much a [`Files`] keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) files: usize,
    pub(super) bytes: usize,
}

/// The files that one worker has open.
pub(super) struct Files {
    entries: RefCell<HashMap<String, Rc<Entry>>>,
    limits: Limits,
    /// Bytes of content in memory.
    bytes: Cell<usize>,
    /// Counts look-ups: the clock by which the longest unused is found.
    tick: Cell<u64>,
}

impl Files {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            entries: RefCell::default(),
            limits,
            bytes: Cell::new(0),
            tick: Cell::new(0),
        }
    }

    /// Looks a file up below the roots, the first first.
    pub(super) fn find(&self, roots: &[&Root], path: &str, kind: &Kind, now: Instant) -> Found {
        self.tick.set(self.tick.get() + 1);
        if let Some(entry) = self.kept(roots, path, now) {
            entry.used.set(self.tick.get());
            return Found::File(entry);
        }
        let mut failure = Found::Missing;
        for root in roots {
            let mut opened = root.open_file(path);
            if matches!(opened, Err(Errno::MFILE | Errno::NFILE)) {
                // Ours are the first to go.
                self.clear();
                opened = root.open_file(path);
            }
            match opened.and_then(|fd| Ok((fstat(&fd)?, fd))) {
                Ok((stat, fd)) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => match self.keep(path, kind, fd, &stat, None, now) {
                        Ok(entry) => return Found::File(entry),
                        Err(error) => failure = Found::Failed(errno(&error)),
                    },
                    FileType::Directory => return Found::Directory,
                    _ => {}
                },
                Err(Errno::NOENT) if path == INDEX => {
                    let Some((file, tag)) = root.1.open() else {
                        continue;
                    };
                    let kept = fstat(&file)
                        .map_err(io::Error::from)
                        .and_then(|stat| self.keep(path, kind, file.into(), &stat, Some(tag), now));
                    match kept {
                        Ok(entry) => return Found::File(entry),
                        Err(error) => failure = Found::Failed(errno(&error)),
                    }
                }
                // Not there, or a way out of the directory, or a name that no file can have.
                Err(
                    Errno::NOENT
                    | Errno::NOTDIR
                    | Errno::XDEV
                    | Errno::LOOP
                    | Errno::NAMETOOLONG
                    | Errno::INVAL
                    | Errno::NXIO,
                ) => {}
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => return Found::Exhausted,
                Err(error) => failure = Found::Failed(error),
            }
        }
        failure
    }

    /// Closes everything that no response is being made from.
    pub(super) fn clear(&self) {
        self.entries.borrow_mut().clear();
        self.bytes.set(0);
    }

    /// Returns what is kept for a path, if it still is what is on disk.
    fn kept(&self, roots: &[&Root], path: &str, now: Instant) -> Option<Rc<Entry>> {
        let entry = Rc::clone(self.entries.borrow().get(path)?);
        if now.saturating_duration_since(entry.checked.get()) < FRESH {
            return Some(entry);
        }
        // Only a hint: what it is compared with was opened safely. It follows no link, and then the file is opened anew.
        let same = roots.iter().find_map(|root| {
            let stat = statat(&root.0, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some(Identity::of(&stat) == entry.identity)
        });
        if same == Some(true) {
            entry.checked.set(now);
            return Some(entry);
        }
        self.forget(path);
        None
    }

    fn keep(
        &self,
        path: &str,
        kind: &Kind,
        fd: OwnedFd,
        stat: &Stat,
        tag: Option<String>,
        now: Instant,
    ) -> io::Result<Rc<Entry>> {
        let file = std::fs::File::from(fd);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let room = self.limits.bytes.saturating_sub(self.bytes.get());
        let content = match usize::try_from(size) {
            Ok(length) if size <= SMALL_BYTES && length <= room => {
                let mut content = vec![0; length];
                file.read_exact_at(&mut content, 0)?;
                Some(Bytes::from(content))
            }
            _ => None,
        };
        let entry = Rc::new(Entry::new(path, kind, file, stat, content, tag, now));
        entry.used.set(self.tick.get());
        if self.entries.borrow().len() >= self.limits.files {
            self.evict();
        }
        self.bytes
            .set(self.bytes.get() + entry.content.as_ref().map_or(0, Bytes::len));
        self.entries
            .borrow_mut()
            .insert(path.to_owned(), Rc::clone(&entry));
        Ok(entry)
    }

    fn forget(&self, path: &str) {
        if let Some(entry) = self.entries.borrow_mut().remove(path) {
            let length = entry.content.as_ref().map_or(0, Bytes::len);
            self.bytes.set(self.bytes.get().saturating_sub(length));
        }
    }

    /// Closes the half that was unused for longest, so that a look-up that finds nothing costs little on average.
    fn evict(&self) {
        let mut used: Vec<u64> = self
            .entries
            .borrow()
            .values()
            .map(|entry| entry.used.get())
            .collect();
        let middle = used.len() / 2;
        let (_, &mut median, _) = used.select_nth_unstable(middle);
        let mut entries = self.entries.borrow_mut();
        entries.retain(|_, entry| entry.used.get() > median);
        let contents = entries.values().filter_map(|entry| entry.content.as_ref());
        self.bytes.set(contents.map(Bytes::len).sum());
    }
}

impl Entry {
    fn new(
        path: &str,
        kind: &Kind,
        file: std::fs::File,
        stat: &Stat,
        content: Option<Bytes>,
        tag: Option<String>,
        now: Instant,
    ) -> Self {
        let identity = Identity::of(stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
        let (own, caching) = match kind {
            Kind::Archive(checksum) => (
                format!("\"{}\"", checksum.digest()),
                // RFC 8246: not even a reload asks again.
                "public, max-age=31536000, immutable",
            ),
            // The inode and nanoseconds: a file that was replaced within a second by one of the same size is another one.
            Kind::Index => (
                format!(
                    "\"{:x}-{:x}-{:x}.{:x}\"",
                    identity.inode, size, identity.modified.0, identity.modified.1
                ),
                // To be asked about each time, which costs a 304: a merge is live at once.
                "public, no-cache",
            ),
        };
        let tag = tag.unwrap_or(own);
        let media = match kind {
            Kind::Archive(_) => "application/octet-stream",
            Kind::Index => media_type(path),
        };
        let mut fields = vec![
            ("content-type", media.to_owned()),
            ("etag", tag.clone()),
            ("cache-control", caching.to_owned()),
            ("accept-ranges", "bytes".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
        ];
        if let Some(date) = written(modified) {
            fields.push(("last-modified", date));
        }
        let mut block = Vec::new();
        for (name, value) in &fields {
            write_field(&mut block, name, value.as_bytes());
        }
        Self {
            file,
            size,
            modified,
            tag,
            rendered: render(&fields),
            block,
            content,
            identity,
            checked: Cell::new(now),
            used: Cell::new(0),
        }
    }
}

/// Writes fields as HTTP/1.1 has them.
pub(super) fn render(fields: &[(&'static str, String)]) -> Vec<u8> {
    let mut text = String::new();
    for (name, value) in fields {
        // Writing to a string cannot fail.
        let _ = write!(text, "{name}: {value}\r\n");
    }
    text.into_bytes()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::{FRESH, Files, Found, Limits, Root};
    use crate::serve::place::Kind;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Instant;

    const LIMITS: Limits = Limits {
        files: 4,
        bytes: 100,
    };

    fn tag(found: Found) -> Option<String> {
        match found {
            Found::File(entry) => Some(entry.tag.clone()),
            _ => None,
        }
    }

    fn directory() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn what_changed_on_disk_is_seen_within_a_second() {
        let (directory, root) = directory();
        let path = directory.path().join("repo");
        fs_err::write(&path, "one").unwrap();
        let files = Files::new(LIMITS);
        let now = Instant::now();
        let find = |now| tag(files.find(&[&root], "repo", &Kind::Index, now));
        let first = find(now).expect("a file");
        let other = directory.path().join("other");
        fs_err::write(&other, "two").unwrap();
        fs_err::rename(&other, &path).unwrap();
        assert_eq!(find(now), Some(first.clone()), "not looked at yet");
        let second = find(now + FRESH).expect("a file");
        assert_ne!(second, first);
        fs_err::remove_file(&path).unwrap();
        assert_eq!(find(now + FRESH * 3), None);
    }

    #[test]
    fn the_kernel_keeps_us_below_the_root() {
        let (directory, root) = directory();
        let outside = tempfile::tempdir().unwrap();
        fs_err::write(outside.path().join("secret"), "s").unwrap();
        let below = |name: &str| directory.path().join(name);
        symlink(outside.path().join("secret"), below("absolute")).unwrap();
        let name = outside.path().file_name().unwrap();
        symlink(Path::new("..").join(name).join("secret"), below("upward")).unwrap();
        symlink("/proc/self/root", below("magic")).unwrap();
        symlink("loop", below("loop")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            below("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        fs_err::create_dir(below("d")).unwrap();
        fs_err::write(below("d/inside"), "i").unwrap();
        symlink("d/inside", below("link")).unwrap();
        let files = Files::new(LIMITS);
        let find = |path: &str| files.find(&[&root], path, &Kind::Index, Instant::now());
        for path in [
            "absolute",
            "upward",
            "magic/etc/passwd",
            "loop",
            "fifo",
            "../x",
            "d/inside/x",
        ] {
            assert!(matches!(find(path), Found::Missing), "{path}");
        }
        assert!(tag(find("link")).is_some(), "inside is inside");
        assert!(matches!(find("d"), Found::Directory));
    }

    #[test]
    fn few_files_stay_open_and_few_bytes_in_memory() {
        let (directory, root) = directory();
        let files = Files::new(LIMITS);
        for n in 0..20 {
            let name = format!("f{n}");
            fs_err::write(directory.path().join(&name), [b'x'; 40]).unwrap();
            assert!(tag(files.find(&[&root], &name, &Kind::Index, Instant::now())).is_some());
            assert!(files.entries.borrow().len() <= 4 && files.bytes.get() <= 100);
        }
        files.clear();
        assert!(files.entries.borrow().is_empty());
    }
}
