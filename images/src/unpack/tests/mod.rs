// SPDX-License-Identifier: Apache-2.0
//! Tests of the unpacking, and the archives that they are made of.

mod faithful;
mod hostile;
mod random;

use super::tree::open_root;
use super::{Error, Whiteouts, unpack};
use obuild_fixtures::{FileSystem, root, scratch};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Writes archives entry by entry, also such as no tar would write.
#[derive(Default)]
pub(super) struct Builder(pub(super) Vec<u8>);

impl Builder {
    pub(super) fn raw(
        &mut self,
        flag: u8,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> &mut Self {
        self.entry(flag, name, link, data, Box::new(change))
    }

    fn entry(
        &mut self,
        flag: u8,
        name: &[u8],
        link: &[u8],
        data: &[u8],
        change: Box<dyn FnOnce(&mut tar::Header) + '_>,
    ) -> &mut Self {
        for (flag, text) in [(b'L', name), (b'K', link)] {
            if text.len() > 100 {
                let mut record = text.to_vec();
                record.push(0);
                self.entry(flag, b"././@LongLink", b"", &record, Box::new(|_| {}));
            }
        }
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(data.len() as u64);
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
            let length = text.len().min(100);
            field[..length].copy_from_slice(&text[..length]);
        }
        header.as_mut_bytes()[156] = flag;
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(&mut self, name: &str, data: &str) -> &mut Self {
        self.raw(b'0', name.as_bytes(), b"", data.as_bytes(), |_| {})
    }

    pub(super) fn directory(&mut self, name: &str) -> &mut Self {
        self.raw(b'5', name.as_bytes(), b"", b"", |header| {
            header.set_mode(0o755);
        })
    }

    pub(super) fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'2', name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    pub(super) fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.raw(b'1', name.as_bytes(), target.as_bytes(), b"", |_| {})
    }

    pub(super) fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").expect("a vector takes it");
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", &data, |_| {})
    }

    pub(super) fn end(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    pub(super) fn unpack(&self, target: &Path, whiteouts: Whiteouts) -> Result<(), Error> {
        unpack(self.end().as_slice(), open_root(target), whiteouts)
    }
}

pub(super) fn text(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(path.as_ref()).expect("the file is there")
}

pub(super) fn exists(path: impl AsRef<Path>) -> bool {
    fs_err::symlink_metadata(path.as_ref()).is_ok()
}

/// Describes everything below a directory, one line an entry.
pub(super) fn listing(directory: &Path) -> Vec<String> {
    fn walk(directory: &Path, base: &Path, lines: &mut Vec<String>) {
        let mut entries: Vec<_> = fs_err::read_dir(directory)
            .expect("readable")
            .map(|entry| entry.expect("readable").path())
            .collect();
        entries.sort();
        for path in entries {
            let metadata = fs_err::symlink_metadata(&path).expect("readable");
            let kind = metadata.file_type();
            let content = if kind.is_file() {
                hex::encode(fs_err::read(&path).expect("readable"))
            } else if kind.is_symlink() {
                format!("{:?}", fs_err::read_link(&path).expect("readable"))
            } else {
                format!("{:x}", metadata.rdev())
            };
            let size = if kind.is_dir() { 0 } else { metadata.size() };
            let names = if kind.is_dir() { 0 } else { metadata.nlink() };
            lines.push(format!(
                "{:?} {:o} {}:{} {}.{} {size} {names} {content}",
                path.strip_prefix(base).expect("below the base"),
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec(),
            ));
            if kind.is_dir() {
                walk(&path, base, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(directory, directory, &mut lines);
    lines
}

pub(super) fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1000];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

pub(super) fn target() -> Option<tempfile::TempDir> {
    if root() {
        scratch(FileSystem::Default)
    } else {
        None
    }
}
