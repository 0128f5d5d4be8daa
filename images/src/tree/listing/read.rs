// SPDX-License-Identifier: Apache-2.0
//! Takes down a tree by walking it.

use super::{Content, Listing, Node};
use crate::tree::Cancelled;
use crate::tree::error::TreeError;
use crate::tree::export_dir::is_portable;
use crate::tree::scan::{BUFFER, FILE};
use crate::tree::stamp::{Stamp, Time, file_type, permissions};
use crate::tree::walk::{Step, Walk};
use crate::tree::xattr;
use bstr::{BStr, BString, ByteSlice};
use rustix::fs::{FileType, Mode, Stat, fstat, major, minor, openat, readlinkat};
use rustix::io::{Errno, read};
use sha2::{Digest as _, Sha256};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// How a tree is taken down.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListOptions<'a> {
    /// Whether the contents of files are read and hashed.
    pub contents: bool,
    /// The listing of a tree that this one was made from, by a copy in which an untouched file keeps its inode number and
    /// times: files that it knows are not read again.
    pub known: Option<&'a Listing>,
}

/// Hears how many bytes of content have been read since it was last called.
pub type Reading<'a> = &'a mut dyn FnMut(u64);

/// Takes down the tree at `root`, which nobody changes meanwhile.
pub fn list(
    root: BorrowedFd<'_>,
    options: &ListOptions<'_>,
    reading: Reading<'_>,
    cancelled: Cancelled<'_>,
) -> Result<Listing, TreeError> {
    let mut reader = Reader::new(options, reading, cancelled);
    let top = BStr::new("/");
    let mut walk = Walk::new(root).map_err(|error| failed("open", top, error))?;
    let mut nodes = vec![Arc::new(reader.top(walk.directory())?)];
    while let Some(step) = walk
        .next()
        .map_err(|error| failed("read", walk.path(), error))?
    {
        let Step::Entry(stat) = step else { continue };
        let Some(node) = reader.node(&walk, &stat)? else {
            continue;
        };
        if node.is_directory() {
            walk.enter()
                .map_err(|error| failed("open", walk.path(), error))?;
        }
        nodes.push(Arc::new(node));
    }
    Ok(Listing::new(nodes, reader.newest))
}

/// Takes down single entries.
pub(super) struct Reader<'a> {
    pub(super) options: &'a ListOptions<'a>,
    pub(super) buffer: Vec<u8>,
    pub(super) newest: Time,
    pub(super) reading: Reading<'a>,
    pub(super) cancelled: Cancelled<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        options: &'a ListOptions<'a>,
        reading: Reading<'a>,
        cancelled: Cancelled<'a>,
    ) -> Self {
        Self {
            options,
            buffer: Vec::new(),
            newest: Time {
                seconds: i64::MIN,
                nanoseconds: 0,
            },
            reading,
            cancelled,
        }
    }

    /// Takes down a tree's top directory.
    pub(super) fn top(&mut self, directory: BorrowedFd<'_>) -> Result<Node, TreeError> {
        let top = BStr::new("/");
        let stat = fstat(directory).map_err(|error| failed("examine", top, error))?;
        let attributes = xattr::read(xattr::Owner::Open(directory), is_portable)
            .map_err(|error| failed("read the attributes of", top, error))?;
        Ok(self.made(&stat, BString::default(), attributes, Content::Directory))
    }

    /// Takes down a walk's current entry. `None` for a socket.
    pub(super) fn node(&mut self, walk: &Walk, stat: &Stat) -> Result<Option<Node>, TreeError> {
        self.node_at(walk.directory(), walk.name(), walk.path(), stat)
    }

    /// Takes down what has this name in a directory. `None` for a socket.
    pub(super) fn node_at(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &BStr,
        stat: &Stat,
    ) -> Result<Option<Node>, TreeError> {
        if (self.cancelled)() {
            return Err(TreeError::Cancelled);
        }
        let content = match file_type(stat) {
            FileType::Directory => Content::Directory,
            FileType::RegularFile => Content::File {
                size_bytes: Stamp::of(stat).size,
                digest: None,
            },
            FileType::Symlink => Content::Symlink {
                target: readlinkat(directory, name, Vec::new())
                    .map_err(|error| failed("read", path, error))?
                    .into_bytes()
                    .into(),
            },
            kind @ (FileType::BlockDevice | FileType::CharacterDevice) => Content::Device {
                block: kind == FileType::BlockDevice,
                major: major(stat.st_rdev),
                minor: minor(stat.st_rdev),
            },
            FileType::Fifo => Content::Pipe,
            FileType::Socket | FileType::Unknown => return Ok(None),
        };
        let attributes = xattr::read(xattr::Owner::Named(directory, name), is_portable)
            .map_err(|error| failed("read the attributes of", path, error))?;
        let mut node = self.made(stat, path.to_owned(), attributes, content);
        if self.options.contents
            && let Content::File { size_bytes, .. } = node.content
        {
            let known =
                self.options
                    .known
                    .and_then(|known| match known.untouched(&node)?.content {
                        Content::File { digest, .. } => digest,
                        _ => None,
                    });
            let digest = match known {
                Some(digest) => digest,
                None => self.hash(directory, name, path, size_bytes)?,
            };
            node.content = Content::File {
                size_bytes,
                digest: Some(digest),
            };
        }
        Ok(Some(node))
    }

    fn made(
        &mut self,
        stat: &Stat,
        path: BString,
        attributes: xattr::Attributes,
        content: Content,
    ) -> Node {
        let stamp = Stamp::of(stat);
        self.newest = self.newest.max(stamp.changed);
        #[allow(
            clippy::useless_conversion,
            reason = "on some architectures it has 32 bits"
        )]
        let names = u64::from(stat.st_nlink);
        Node {
            path,
            mode: if matches!(content, Content::Symlink { .. }) {
                0
            } else {
                permissions(stat)
            },
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified: (stamp.modified.seconds, stamp.modified.nanoseconds),
            attributes,
            content,
            names,
            stamp,
        }
    }

    fn hash(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        path: &BStr,
        size: u64,
    ) -> Result<[u8; 32], TreeError> {
        let mut hash = Sha256::new();
        if size > 0 {
            self.buffer.resize(BUFFER, 0);
            let file = openat(directory, name, FILE, Mode::empty())
                .map_err(|error| failed("open", path, error))?;
            loop {
                if (self.cancelled)() {
                    return Err(TreeError::Cancelled);
                }
                match read(&file, &mut *self.buffer) {
                    Ok(0) => break,
                    Ok(count) => {
                        hash.update(&self.buffer[..count]);
                        (self.reading)(count as u64);
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(failed("read", path, error)),
                }
            }
        }
        Ok(hash.finalize().into())
    }
}

pub(super) fn failed(action: &'static str, path: &BStr, error: Errno) -> TreeError {
    TreeError::Read {
        action,
        path: path.into(),
        source: error.into(),
    }
}

/// Makes the error of a system call on a path of a tree that is read.
pub(crate) fn read_failed(
    action: &'static str,
    path: &BStr,
) -> impl Fn(Errno) -> TreeError + use<> {
    let path = path.to_owned();
    move |error| failed(action, path.as_bstr(), error)
}
