// SPDX-License-Identifier: Apache-2.0
//! What is in a tree, entry by entry, with a digest over all of it.
//!
//! A copy's [`Manifest`](super::Manifest) takes down what a copy copies and leaves out what it does not: owners, devices, parts of
//! the mode. A listing is of a whole snapshot, to tell whether two trees are the same, or what is different between them.

mod layer;
mod paths;
mod read;

pub(crate) use layer::is_opaque;
pub use layer::list_layer;
pub(crate) use paths::list_paths;
pub(crate) use read::read_failed;
pub use read::{ListOptions, Reading, list};

use super::stamp::{Stamp, Time};
use bstr::{BStr, BString, ByteSlice};
use sha2::{Digest as _, Sha256};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

/// Names the encoding in [`Listing::digest`]; another encoding gets another name.
const DOMAIN: &[u8] = b"obuild tree 1\0";

/// Two changes of a file within this time may bear the same time: file systems take it from a clock that ticks 100 to 1000 times a second
/// (linux kernel/time/timekeeping.c, `ktime_get_coarse_real_ts64`). In nanoseconds; twice the longest tick.
const TICK: i128 = 20_000_000;

/// Everything in a tree, in the order of [`order`].
#[derive(Clone, Debug)]
pub struct Listing {
    nodes: Vec<Arc<Node>>,
    /// The latest change time of anything in the tree.
    newest: Time,
}

/// One name in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The path below the root, without a `/` at its start; empty for the root itself.
    pub path: BString,
    /// Permissions with the set-id and sticky bits; 0 for a symbolic link, whose mode means nothing.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When its content was last modified: seconds and nanoseconds since 1970.
    pub modified: (i64, u32),
    /// Extended attributes by name, without those that belong to a file system or a host.
    pub attributes: Vec<(BString, BString)>,
    /// What it is.
    pub content: Content,
    /// Number of names that the file system knows of the inode, in this tree or not.
    names: u64,
    stamp: Stamp,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its length.
        size_bytes: u64,
        /// SHA-256 of its content, if contents were read.
        digest: Option<[u8; 32]>,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to.
        target: BString,
    },
    /// A device.
    Device {
        /// Whether it is a block device; else it is a character device.
        block: bool,
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// A named pipe.
    Pipe,
}

/// Compares two paths so that a directory comes right before everything in it: `a`, `a/b`, `a.c`.
pub fn order(left: &[u8], right: &[u8]) -> Ordering {
    // No name holds a NUL, so a separator comes before everything.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    left.iter().map(key).cmp(right.iter().map(key))
}

/// Returns whether a path is somewhere below a directory.
pub(crate) fn is_below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.first() == Some(&b'/'))
}

impl Node {
    /// Returns whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.content == Content::Directory
    }

    /// Returns when anything about it last changed: seconds and nanoseconds since 1970. No program can set this time.
    pub fn changed(&self) -> (i64, u32) {
        (self.stamp.changed.seconds, self.stamp.changed.nanoseconds)
    }

    /// Returns the name without the directories before it.
    pub fn name(&self) -> &BStr {
        let start = self.path.rfind_byte(b'/').map_or(0, |slash| slash + 1);
        self.path[start..].as_bstr()
    }

    /// Returns the path of the directory that it is in; the root is in itself.
    pub fn directory(&self) -> &BStr {
        let end = self.path.rfind_byte(b'/').unwrap_or(0);
        self.path[..end].as_bstr()
    }

    /// Returns whether the two are equal but for the contents of files, the names that share an inode, and times.
    pub(crate) fn looks_like(&self, other: &Self) -> bool {
        let contents = match (&self.content, &other.content) {
            (
                Content::File { size_bytes, .. },
                Content::File {
                    size_bytes: other, ..
                },
            ) => size_bytes == other,
            (content, other) => content == other,
        };
        contents
            && (self.mode, self.uid, self.gid) == (other.mode, other.uid, other.gid)
            && self.attributes == other.attributes
    }

    /// Returns whether this is the file that an earlier listing saw, not written since.
    fn is_untouched(&self, earlier: &Self) -> bool {
        let (now, then) = (&self.stamp, &earlier.stamp);
        // Not the device: every mount of an overlay has another, and every subvolume.
        (now.inode, now.size, now.modified, now.changed)
            == (then.inode, then.size, then.modified, then.changed)
    }
}

impl Listing {
    /// Returns every name in the tree: the root first, a directory right before everything in it.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Returns what is at a path.
    pub fn find(&self, path: &[u8]) -> Option<&Arc<Node>> {
        let found = self
            .nodes
            .binary_search_by(|node| order(&node.path, path))
            .ok()?;
        self.nodes.get(found)
    }

    /// Returns the bytes of all files' content, each inode counted once.
    pub fn content_bytes(&self) -> u64 {
        let leaders = self.leaders();
        let once = self.nodes.iter().zip(&leaders).enumerate();
        once.filter(|(index, (_, leader))| leader.is_none_or(|leader| leader == *index))
            .map(|(_, (node, _))| match node.content {
                Content::File { size_bytes, .. } => size_bytes,
                _ => 0,
            })
            .sum()
    }

    /// Returns the node, of this listing of a parent, that `node` of a child's tree still is: the same inode at the same
    /// path, not written since.
    ///
    /// The child was made when the parent was complete. A file that was last changed in the parent's last moments could have
    /// been written in the child within the same tick of the clock, so of such a one nothing is said.
    pub(crate) fn untouched(&self, node: &Node) -> Option<&Arc<Node>> {
        let earlier = self.find(&node.path)?;
        let certain = nanoseconds(self.newest) - nanoseconds(earlier.stamp.changed) > TICK;
        (certain && node.is_untouched(earlier)).then_some(earlier)
    }

    /// Returns, for every node of an inode that has several names in this tree, the place of its first name.
    pub(crate) fn leaders(&self) -> Vec<Option<usize>> {
        let mut first: HashMap<(u64, u64), usize> = HashMap::new();
        let mut leaders = vec![None; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            if node.names < 2 || node.is_directory() {
                continue;
            }
            match first.entry((node.stamp.device, node.stamp.inode)) {
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(index);
                }
                std::collections::hash_map::Entry::Occupied(leader) => {
                    leaders[*leader.get()] = Some(*leader.get());
                    leaders[index] = Some(*leader.get());
                }
            }
        }
        leaders
    }

    /// Returns the SHA-256 that names this tree, whichever store it is in. Contents must have been read.
    ///
    /// It covers, for every name in the order of [`order`], the root included: the path; the kind; owner and group; the permission, set-id
    /// and sticky bits (but of symbolic links, whose mode means nothing); the modification time in whole seconds (but of directories);
    /// extended attributes but those of the file system or host ([`Node::attributes`]); a file's size and content; a link's target; a
    /// device's kind and numbers; and, for the second and later names of one inode, only the first name. It leaves out
    ///
    /// * times of directories: a store may put a directory back together from pieces, and sandboxes make mount points in it;
    /// * parts of seconds: image layers and some tools keep none;
    /// * change and access times, inode and device numbers, sizes of directories, holes in files: they belong to the file system;
    /// * sockets: one is nothing without the process behind it, and images cannot hold it.
    ///
    /// Everything of a variable length is preceded by that length, so that no two trees encode alike.
    pub fn digest(&self) -> [u8; 32] {
        let mut encoder = Encoder::default();
        let leaders = self.leaders();
        for (index, node) in self.nodes.iter().enumerate() {
            encoder.node(
                node,
                leaders[index]
                    .filter(|leader| *leader != index)
                    .map(|leader| &*self.nodes[leader]),
            );
            if encoder.buffer.len() > 64 << 10 {
                encoder.flush();
            }
        }
        encoder.flush();
        encoder.hash.finalize().into()
    }

    pub(crate) fn new(nodes: Vec<Arc<Node>>, newest: Time) -> Self {
        Self { nodes, newest }
    }
}

pub(crate) fn nanoseconds(time: Time) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

/// Writes the canonical form of a tree into a hash.
struct Encoder {
    hash: Sha256,
    buffer: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            hash: Sha256::new(),
            buffer: DOMAIN.to_vec(),
        }
    }
}

impl Encoder {
    fn flush(&mut self) {
        self.hash.update(&self.buffer);
        self.buffer.clear();
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.buffer.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        self.buffer.extend_from_slice(&number.to_le_bytes());
    }

    fn node(&mut self, node: &Node, first: Option<&Node>) {
        self.bytes(&node.path);
        if let Some(first) = first {
            self.buffer.push(b'h');
            self.bytes(&first.path);
            return;
        }
        self.buffer.push(match &node.content {
            Content::Directory => b'd',
            Content::File { .. } => b'f',
            Content::Symlink { .. } => b'l',
            Content::Device { block: true, .. } => b'b',
            Content::Device { block: false, .. } => b'c',
            Content::Pipe => b'p',
        });
        self.number(node.mode.into());
        self.number(node.uid.into());
        self.number(node.gid.into());
        if !node.is_directory() {
            self.number(node.modified.0.cast_unsigned());
        }
        self.number(node.attributes.len() as u64);
        for (name, value) in &node.attributes {
            self.bytes(name);
            self.bytes(value);
        }
        match &node.content {
            Content::Directory | Content::Pipe => {}
            Content::File { size_bytes, digest } => {
                self.number(*size_bytes);
                self.bytes(digest.as_ref().map_or(&[], |digest| digest.as_slice()));
            }
            Content::Symlink { target } => self.bytes(target),
            Content::Device { major, minor, .. } => {
                self.number((*major).into());
                self.number((*minor).into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{is_below, order};
    use std::cmp::Ordering;

    #[test]
    fn a_directory_comes_right_before_what_is_in_it() {
        let mut paths = ["a.c", "a", "", "a/b", "a-", "a/b/c", "b"];
        paths.sort_by(|left, right| order(left.as_bytes(), right.as_bytes()));
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a-", "a.c", "b"]);
        assert_eq!(order(b"a", b"a"), Ordering::Equal);
        assert!(is_below(b"a/b", b"a") && is_below(b"a", b""));
        assert!(!is_below(b"a.c", b"a") && !is_below(b"a", b"a") && !is_below(b"", b""));
    }
}
