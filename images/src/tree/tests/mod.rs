// SPDX-License-Identifier: Apache-2.0
//! Tests of scanning, copying and exporting, on real directories.

mod copying;
mod exporting;
mod hostile;
mod listing;
mod properties;
mod scanning;

use super::*;
use bstr::BString;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const GO_ON: Cancelled<'static> = &|| false;

/// A directory that is made by hand and removed at the end, however deep it has become.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new() -> Self {
        let directory = obuild_fixtures::scratch(obuild_fixtures::FileSystem::Default);
        Self {
            directory: directory.expect("the default file system is always there"),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn file(&self, path: &str, content: &str) -> &Self {
        self.parents(path);
        fs_err::write(self.path(path), content).unwrap();
        self
    }

    fn dir(&self, path: &str) -> &Self {
        fs_err::create_dir_all(self.path(path)).unwrap();
        self
    }

    fn symlink(&self, path: &str, target: &str) -> &Self {
        self.parents(path);
        std::os::unix::fs::symlink(target, self.path(path)).unwrap();
        self
    }

    fn hard_link(&self, path: &str, first: &str) -> &Self {
        self.parents(path);
        fs_err::hard_link(self.path(first), self.path(path)).unwrap();
        self
    }

    fn mode(&self, path: &str, mode: u32) -> &Self {
        let permissions = std::fs::Permissions::from_mode(mode);
        fs_err::set_permissions(self.path(path), permissions).unwrap();
        self
    }

    fn modified(&self, path: &str, seconds: i64) -> &Self {
        let times = super::data::modified(seconds, 5);
        rustix::fs::utimensat(
            CWD,
            self.path(path),
            &times,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        self
    }

    fn parents(&self, path: &str) {
        fs_err::create_dir_all(self.path(path).parent().unwrap()).unwrap();
    }

    fn open(&self) -> OwnedFd {
        open(self.directory.path())
    }

    fn read(&self, path: &str) -> String {
        fs_err::read_to_string(self.path(path)).unwrap()
    }

    fn stat(&self, path: &str) -> std::fs::Metadata {
        fs_err::symlink_metadata(self.path(path)).unwrap()
    }

    fn exists(&self, path: &str) -> bool {
        fs_err::symlink_metadata(self.path(path)).is_ok()
    }

    fn scan(&self, src: &[&str]) -> Result<Manifest, ScanError> {
        self.scan_kind(src, &[], SourceKind::Context)
    }

    fn scan_kind(
        &self,
        src: &[&str],
        exclude: &[&str],
        kind: SourceKind,
    ) -> Result<Manifest, ScanError> {
        scan_at(&self.open(), src, exclude, kind)
    }

    /// Copies from here to there as oneself.
    fn copy(&self, src: &[&str], to: &Tree, dst: &str) -> Result<CopyStats, CopyError> {
        let manifest = self.scan(src).expect("the source can be scanned");
        self.copy_manifest(&manifest, to, dst)
    }

    fn copy_manifest(
        &self,
        manifest: &Manifest,
        to: &Tree,
        dst: &str,
    ) -> Result<CopyStats, CopyError> {
        let request = CopyRequest {
            dst: dst.as_bytes(),
            owner: me(),
            upper: None,
        };
        copy(
            manifest,
            self.open().as_fd(),
            to.open().as_fd(),
            &request,
            GO_ON,
        )
    }

    /// Returns every path with its kind, mode, content or target, time, and the path of the first name of its inode.
    fn listing(&self) -> BTreeMap<PathBuf, String> {
        listing(self.directory.path())
    }
}

/// Scans what is below an open directory, remembering nothing.
fn scan_at(
    root: &OwnedFd,
    src: &[&str],
    exclude: &[&str],
    kind: SourceKind,
) -> Result<Manifest, ScanError> {
    let src: Vec<BString> = src.iter().map(|&path| path.into()).collect();
    let exclude: Vec<BString> = exclude.iter().map(|&name| name.into()).collect();
    let request = ScanRequest {
        src: &src,
        exclude: &exclude,
        kind,
    };
    scan(root.as_fd(), &request, &mut DigestMemo::default(), GO_ON)
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = super::walk::clear(self.open().as_fd());
    }
}

fn open(path: &Path) -> OwnedFd {
    openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

fn me() -> (u32, u32) {
    (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let mut names: Vec<_> = fs_err::read_dir(root.join(&directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            let path = directory.join(name);
            let full = root.join(&path);
            let stat = fs_err::symlink_metadata(&full).unwrap();
            let kind = stat.file_type();
            let content = if kind.is_dir() {
                open.push(path.clone());
                "directory".into()
            } else if kind.is_symlink() {
                format!("-> {}", fs_err::read_link(&full).unwrap().display())
            } else if kind.is_file() {
                format!("file {:?}", BString::from(fs_err::read(&full).unwrap()))
            } else {
                format!("device {:?} {}", kind, stat.rdev())
            };
            inodes
                .entry((stat.dev(), stat.ino()))
                .or_insert_with(Vec::new)
                .push(path.clone());
            let text = format!(
                "{:o} {}:{} {} {content}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.mtime()
            );
            found.insert(path, text);
        }
    }
    for mut paths in inodes.into_values().filter(|paths| paths.len() > 1) {
        paths.sort();
        let first = paths[0].clone();
        for path in paths {
            let text = found.get_mut(&path).unwrap();
            *text = format!("{text} as {}", first.display());
        }
    }
    found
}

/// Returns an error with the errors below it, as a person would see it.
fn message(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
