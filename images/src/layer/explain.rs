// SPDX-License-Identifier: Apache-2.0
//! Says what it is about two things at one path that differs.

use super::Times;
use super::content::{Piece, pieces};
use crate::tree::cursor::Cursor;
use crate::tree::listing::read_failed;
use crate::tree::scan::FILE;
use crate::tree::{Change, ChangeKind, Content, Node, TreeError};
use bstr::{BString, ByteSlice};
use rustix::fs::{Mode, openat};
use std::fs::File;
use std::os::fd::BorrowedFd;

/// A path at which two trees differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path below the root; empty for the root itself.
    pub path: BString,
    /// Whether it is new, gone or another.
    pub kind: ChangeKind,
    /// What differs, if both trees have it.
    pub aspects: Vec<Aspect>,
}

/// Something about a path that is another than before: what it was, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aspect {
    /// It is something else.
    Kind(&'static str, &'static str),
    /// Permissions.
    Mode(u16, u16),
    /// Owner and group.
    Owner((u32, u32), (u32, u32)),
    /// When it was modified, in seconds since 1970.
    Time(i64, i64),
    /// The names of extended attributes that differ.
    Attributes(Vec<BString>),
    /// A link's target.
    Target(BString, BString),
    /// A device's numbers.
    Device((u32, u32), (u32, u32)),
    /// Which other names the file has.
    Links,
    /// The content of a file.
    Content(Piece),
}

pub(super) fn explain(
    changes: &[Change],
    earlier: BorrowedFd<'_>,
    later: BorrowedFd<'_>,
    times: Times,
) -> Result<Vec<Difference>, TreeError> {
    let (mut was, mut now) = (Cursor::new(earlier)?, Cursor::new(later)?);
    let mut differences = Vec::with_capacity(changes.len());
    for change in changes {
        let mut aspects = Vec::new();
        if let (Some(one), Some(other)) = (&change.was, &change.now) {
            aspects = attributes(one, other, times);
            if let (Content::File { .. }, Content::File { .. }) = (&one.content, &other.content) {
                let (one, other) = (open(&mut was, one)?, open(&mut now, other)?);
                let found = pieces(one, other).map_err(|source| TreeError::Read {
                    action: "read",
                    path: change.path.clone(),
                    source,
                })?;
                aspects.extend(found.into_iter().map(Aspect::Content));
            }
            if aspects.is_empty() {
                aspects.push(Aspect::Links);
            }
        }
        differences.push(Difference {
            path: change.path.clone(),
            kind: change.kind(),
            aspects,
        });
    }
    Ok(differences)
}

fn open(cursor: &mut Cursor<'_>, node: &Node) -> Result<File, TreeError> {
    let failed = read_failed("open", node.path.as_bstr());
    let directory = cursor.enter(node.directory()).map_err(&failed)?;
    let file = openat(directory, node.name().as_bytes(), FILE, Mode::empty()).map_err(&failed)?;
    Ok(File::from(file))
}

/// Compares everything but the contents of files.
fn attributes(one: &Node, other: &Node, times: Times) -> Vec<Aspect> {
    let mut aspects = Vec::new();
    match (&one.content, &other.content) {
        (Content::Symlink { target: from }, Content::Symlink { target: to }) if from != to => {
            aspects.push(Aspect::Target(from.clone(), to.clone()));
        }
        (
            Content::Device { major, minor, .. },
            Content::Device {
                major: to_major,
                minor: to_minor,
                ..
            },
        ) if (major, minor) != (to_major, to_minor) => {
            aspects.push(Aspect::Device((*major, *minor), (*to_major, *to_minor)));
        }
        (from, to) if kind(from) != kind(to) => aspects.push(Aspect::Kind(kind(from), kind(to))),
        _ => {}
    }
    if one.mode != other.mode {
        aspects.push(Aspect::Mode(one.mode, other.mode));
    }
    if (one.uid, one.gid) != (other.uid, other.gid) {
        aspects.push(Aspect::Owner((one.uid, one.gid), (other.uid, other.gid)));
    }
    let (from, to) = (times.of(one.modified.0), times.of(other.modified.0));
    if from != to && !other.is_directory() {
        aspects.push(Aspect::Time(from, to));
    }
    if one.attributes != other.attributes {
        let mut names: Vec<BString> = one
            .attributes
            .iter()
            .filter(|attribute| !other.attributes.contains(attribute))
            .chain(
                other
                    .attributes
                    .iter()
                    .filter(|attribute| !one.attributes.contains(attribute)),
            )
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names.dedup();
        aspects.push(Aspect::Attributes(names));
    }
    aspects
}

fn kind(content: &Content) -> &'static str {
    match content {
        Content::Directory => "directory",
        Content::File { .. } => "file",
        Content::Symlink { .. } => "symbolic link",
        Content::Device { block: true, .. } => "block device",
        Content::Device { block: false, .. } => "character device",
        Content::Pipe => "named pipe",
    }
}
