// SPDX-License-Identifier: Apache-2.0
//! What a scan found: names, kinds, modes, digests. No file content.

use super::stamp::Stamp;
use super::xattr::Attributes;
use bstr::BString;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ops::Range;

/// The list of everything that a copy copies, with the digests of the contents.
#[derive(Debug, Default)]
pub struct Manifest {
    pub(crate) items: Vec<Item>,
    pub(crate) entries: Vec<Entry>,
    /// Names and link targets.
    pub(crate) text: Vec<u8>,
    pub(crate) attributes: Vec<Attributes>,
}

/// The index of an entry.
pub(crate) type Index = u32;

/// Stands for no entry and no attributes.
pub(crate) const NONE: Index = Index::MAX;

/// One source of the copy.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) entry: Index,
    /// The path of the directory that it is in, below the source's root.
    pub(crate) directory: BString,
}

/// A file, directory or link.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The base name; empty for the source's root itself.
    pub(crate) name: Text,
    pub(crate) parent: Index,
    pub(crate) mode: u16,
    pub(crate) stamp: Stamp,
    pub(crate) node: Node,
    /// The first entry of the same inode, if the inode has several entries.
    pub(crate) leader: Index,
    /// Place in [`Manifest::attributes`].
    pub(crate) attributes: Index,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    File { digest: [u8; 32] },
    Directory { children: Range<Index> },
    Symlink { target: Text },
}

/// A place in [`Manifest::text`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text {
    start: usize,
    length: u32,
}

impl Manifest {
    /// Returns the digest of what a copy of this would write: names, kinds, modes, contents, link targets, which files are
    /// hard links of each other, extended attributes, and what the destination will call each source. Times and owners do not count.
    ///
    /// Two scans have the same digest exactly if their copies are the same, however the trees came about. Of the
    /// source's root itself (`.` or `/`) only the content counts, since it is copied into a directory that is there.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Canonical::new();
        let mut groups = HashMap::new();
        hash.number(self.items.len());
        for item in &self.items {
            let entry = self.entry(item.entry);
            let mut open = Vec::new();
            if let (true, Node::Directory { children }) = (entry.name.is_empty(), &entry.node) {
                hash.bytes(b"c");
                hash.number(children.len());
                open.push(children.clone());
            } else {
                open.push(item.entry..item.entry + 1);
            }
            while let Some(children) = open.last_mut() {
                match children.next() {
                    Some(child) => {
                        let entry = self.entry(child);
                        self.digest_entry(entry, &mut hash, &mut groups);
                        if let Node::Directory { children } = &entry.node {
                            open.push(children.clone());
                        }
                    }
                    None => {
                        open.pop();
                    }
                }
            }
        }
        hash.finish()
    }

    fn digest_entry(
        &self,
        entry: &Entry,
        hash: &mut Canonical,
        groups: &mut HashMap<Index, usize>,
    ) {
        hash.bytes(match &entry.node {
            Node::File { .. } => b"f",
            Node::Directory { .. } => b"d",
            Node::Symlink { .. } => b"l",
        });
        hash.text(self.text(entry.name));
        match &entry.node {
            Node::File { digest } => {
                hash.bytes(&entry.mode.to_le_bytes());
                let group = if entry.leader == NONE {
                    0
                } else {
                    // Numbered by first appearance, which does not depend on how the tree was walked.
                    let next = groups.len() + 1;
                    *groups.entry(entry.leader).or_insert(next)
                };
                hash.number(group);
                hash.bytes(digest);
            }
            Node::Directory { children } => {
                hash.bytes(&entry.mode.to_le_bytes());
                hash.number(children.len());
            }
            Node::Symlink { target } => hash.text(self.text(*target)),
        }
        let attributes = self.attributes_of(entry);
        hash.number(attributes.len());
        for (name, value) in attributes {
            hash.text(name);
            hash.text(value);
        }
    }

    /// Returns how many files, directories and links there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the bytes of all files' contents, those of hard links once.
    pub fn size_bytes(&self) -> u64 {
        (0..)
            .zip(&self.entries)
            .filter(|(index, entry)| {
                matches!(entry.node, Node::File { .. })
                    && (entry.leader == NONE || entry.leader == *index)
            })
            .map(|(_, entry)| entry.stamp.size)
            .sum()
    }

    /// Returns the paths of all entries below the source's root, a directory before its content; the root itself is `.`.
    pub fn paths(&self) -> impl Iterator<Item = BString> {
        (0..).zip(&self.entries).map(|(index, _)| self.path(index))
    }

    pub(crate) fn entry(&self, index: Index) -> &Entry {
        &self.entries[index as usize]
    }

    pub(crate) fn text(&self, text: Text) -> &[u8] {
        &self.text[text.start..text.start + text.length as usize]
    }

    pub(crate) fn attributes_of(&self, entry: &Entry) -> &[(BString, BString)] {
        if entry.attributes == NONE {
            &[]
        } else {
            &self.attributes[entry.attributes as usize]
        }
    }

    /// Returns the names from an entry's item down to it, without the item's own.
    pub(crate) fn names_below_item(&self, mut index: Index) -> Vec<&[u8]> {
        let mut names = Vec::new();
        loop {
            let entry = self.entry(index);
            if entry.parent == NONE {
                break;
            }
            names.push(self.text(entry.name));
            index = entry.parent;
        }
        names.reverse();
        names
    }

    /// Returns an entry's path below the source's root, for messages.
    pub(crate) fn path(&self, index: Index) -> BString {
        let names = self.names_below_item(index);
        let mut top = index;
        while self.entry(top).parent != NONE {
            top = self.entry(top).parent;
        }
        // Items are few beside entries, and paths are made for messages only.
        let item = self.items.iter().find(|item| item.entry == top);
        let mut path = item.map_or_else(BString::default, |item| item.directory.clone());
        for name in [self.text(self.entry(top).name)].into_iter().chain(names) {
            if !path.is_empty() && !name.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        if path.is_empty() { ".".into() } else { path }
    }

    pub(crate) fn add_text(&mut self, text: &[u8]) -> Text {
        let start = self.text.len();
        self.text.extend_from_slice(text);
        Text {
            start,
            length: index(text.len()),
        }
    }

    pub(crate) fn add_attributes(&mut self, attributes: Attributes) -> Index {
        if attributes.is_empty() {
            return NONE;
        }
        self.attributes.push(attributes);
        index(self.attributes.len() - 1)
    }

    pub(crate) fn add_entry(&mut self, entry: Entry) -> Index {
        self.entries.push(entry);
        index(self.entries.len() - 1)
    }
}

impl Text {
    pub(crate) fn is_empty(self) -> bool {
        self.length == 0
    }
}

/// Narrows a length. An entry takes over a hundred bytes, a link's target at most 4,096.
pub(crate) fn index(length: usize) -> Index {
    Index::try_from(length).expect("2^32 entries do not fit into memory")
}

/// A hash over an unambiguous encoding: every part has a fixed length or its length before it.
struct Canonical {
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Canonical {
    fn new() -> Self {
        let mut buffer = Vec::with_capacity(16 * 1024);
        // The number is the encoding's version.
        buffer.extend_from_slice(b"obuild tree 1\n");
        Self {
            hash: Sha256::new(),
            buffer,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if self.buffer.len() + bytes.len() > self.buffer.capacity() {
            self.hash.update(&self.buffer);
            self.buffer.clear();
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn number(&mut self, number: usize) {
        self.bytes(&(number as u64).to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.number(text.len());
        self.bytes(text);
    }

    fn finish(mut self) -> [u8; 32] {
        self.hash.update(&self.buffer);
        self.hash.finalize().into()
    }
}
