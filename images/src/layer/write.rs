// SPDX-License-Identifier: Apache-2.0
//! Writes changes as the tar archive of a layer: OCI image-spec v1.1 layer.md.
//!
//! Every directory above a change has an entry too: whoever unpacks the layer alone, as Docker and Podman do with their overlay
//! drivers, would make these directories up otherwise. What is deleted has an explicit whiteout; opaque ones, which some tools
//! overlook, are never written (layer.md, "Whiteouts": they should not be generated). Holes in files are written as zeros ("Sparse
//! files should not be used").

use super::changes::{Changes, directories_above};
use super::{LayerError, Times};
use crate::tree::cursor::Cursor;
use crate::tree::export_dir::source;
use crate::tree::scan::{BUFFER, FILE};
use crate::tree::stamp::Stamp;
use crate::tree::tar_writer::{Member, TarWriter};
use crate::tree::xattr::Attributes;
use crate::tree::{Cancelled, Content, ExportError, Node, order};
use bstr::{BStr, BString, ByteSlice};
use rustix::fs::{Mode, fstat, openat};
use std::cmp::Ordering;
use std::io::Write;
use std::os::fd::BorrowedFd;
use tar::EntryType;

/// What makes a name a whiteout (layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";

/// Writes the layer; `root` is the later tree's.
pub(super) fn write(
    changes: &Changes,
    root: BorrowedFd<'_>,
    times: Times,
    writer: &mut dyn Write,
    cancelled: Cancelled<'_>,
) -> Result<u64, LayerError> {
    let mut out = Output {
        tar: TarWriter::new(writer),
        cursor: Cursor::new(root)?,
        buffer: vec![0; BUFFER],
        times,
        entries: 0,
        cancelled,
    };
    let above = directories_above(&changes.changes);
    let mut above = above.iter().peekable();
    for change in &changes.changes {
        while let Some(path) = above.next_if(|path| order(path, &change.path) == Ordering::Less) {
            if let Some(node) = changes.later.find(path) {
                out.node(node, None)?;
            }
        }
        match &change.now {
            Some(node) => out.node(node, change.link.as_ref())?,
            None => out.whiteout(change.path.as_bstr())?,
        }
    }
    out.tar.finish()?;
    Ok(out.entries)
}

struct Output<'a> {
    tar: TarWriter<'a>,
    cursor: Cursor<'a>,
    buffer: Vec<u8>,
    times: Times,
    entries: u64,
    cancelled: Cancelled<'a>,
}

impl Output<'_> {
    fn node(&mut self, node: &Node, link: Option<&BString>) -> Result<(), LayerError> {
        if (self.cancelled)() {
            return Err(LayerError::Export(ExportError::Cancelled));
        }
        let path = node.path.as_bstr();
        if node.name().starts_with(WHITEOUT) {
            return Err(LayerError::Whiteout {
                path: node.path.clone(),
            });
        }
        self.entries += 1;
        let no_attributes = Attributes::new();
        let mut member = Member {
            kind: EntryType::Regular,
            path,
            target: b"",
            size: 0,
            // What every tool writes for a link, whose mode means nothing.
            mode: if matches!(node.content, Content::Symlink { .. }) {
                0o777
            } else {
                node.mode
            },
            uid: node.uid,
            gid: node.gid,
            modified: self.times.of(node.modified.0),
            device: (0, 0),
            attributes: &node.attributes,
        };
        if let Some(first) = link {
            member.kind = EntryType::Link;
            member.target = first;
            member.attributes = &no_attributes;
            return Ok(self.tar.header(&member)?);
        }
        let directory;
        match &node.content {
            Content::Directory => {
                member.kind = EntryType::Directory;
                directory = if path.is_empty() {
                    b"./".to_vec()
                } else {
                    [path.as_bytes(), b"/"].concat()
                };
                member.path = &directory;
            }
            Content::File { .. } => return self.file(node, member),
            Content::Symlink { target } => {
                member.kind = EntryType::Symlink;
                member.target = target;
            }
            Content::Device {
                block,
                major,
                minor,
            } => {
                member.kind = if *block {
                    EntryType::Block
                } else {
                    EntryType::Char
                };
                member.device = (*major, *minor);
            }
            Content::Pipe => member.kind = EntryType::Fifo,
        }
        Ok(self.tar.header(&member)?)
    }

    fn file(&mut self, node: &Node, mut member: Member<'_>) -> Result<(), LayerError> {
        let path = node.path.as_bstr();
        let failed = |action| move |error| source(action, path, error);
        let directory = self
            .cursor
            .enter(node.directory())
            .map_err(failed("open"))?;
        let file = openat(directory, node.name().as_bytes(), FILE, Mode::empty())
            .map_err(failed("open"))?;
        let stat = fstat(&file).map_err(failed("examine"))?;
        member.size = Stamp::of(&stat).size;
        self.tar.header(&member)?;
        self.tar.content(
            &file,
            &stat,
            path,
            &mut self.buffer,
            &mut |_, _| {},
            self.cancelled,
        )?;
        Ok(())
    }

    fn whiteout(&mut self, path: &BStr) -> Result<(), LayerError> {
        self.entries += 1;
        let start = path.rfind_byte(b'/').map_or(0, |slash| slash + 1);
        let name = [&path[..start], WHITEOUT, &path[start..]].concat();
        let member = Member {
            kind: EntryType::Regular,
            path: &name,
            target: b"",
            size: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            modified: self.times.of(i64::MIN).max(0),
            device: (0, 0),
            attributes: &Attributes::new(),
        };
        Ok(self.tar.header(&member)?)
    }
}
