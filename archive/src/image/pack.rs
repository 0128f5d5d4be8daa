// SPDX-License-Identifier: Apache-2.0
//! Packs: layers that hold archives, and parts of the index.
//!
//! A pack is a list of archives and parts; its layer is a function of the list and the files. In it an archive is a file under its
//! shortest name, and hard links under the others: the cache's layout, below `srv/cache/`. A part of the index is a file
//! below `srv/index/`. One that the index does not use any more stays in its pack until that is merged with others.
//!
//! A pack may also hide archives that lower packs hold and that were removed since: with a whiteout for each of their names (OCI image-spec v1.1
//! layer.md, "Whiteouts").

use super::ROOT;
use super::stream::{Content, Piece, Pieces, directories, entry, link, padding};
use crate::cache::Cache;
use crate::{Algorithm, Checksum};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tar::EntryType;

/// How a line of a list begins that is a part's.
const PART: &str = "part ";
/// How a line begins that is a name that is hidden.
const GONE: &str = "gone ";

/// Where the files of packs are.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) cache: Cache,
    /// The directory of the index's parts.
    pub(super) parts: PathBuf,
}

/// An archive in a pack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    /// Its names, the strongest first; at least one.
    pub(super) names: Vec<Checksum>,
    /// Its size in bytes.
    pub(super) size: u64,
}

impl Member {
    /// Writes the member as a line of a pack's list.
    fn line(&self) -> String {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        format!("{} {}\n", self.size, names.join(" "))
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let size = words.next()?.parse().ok()?;
        let names: Option<Vec<Checksum>> = words.map(|word| word.parse().ok()).collect();
        names
            .filter(|names| !names.is_empty())
            .map(|names| Self { names, size })
    }

    /// The name that the file itself has: the shortest.
    fn file(&self) -> &Checksum {
        self.names.last().expect("a member has a name")
    }

    /// Makes the member's part of the layer.
    fn piece(&self, cache: &Cache) -> Piece {
        let name = path(self.file());
        let mut before = Vec::new();
        entry(&mut before, EntryType::Regular, &name, 0o644, self.size);
        let mut after = vec![0; padding(self.size)];
        for other in &self.names[..self.names.len() - 1] {
            link(&mut after, EntryType::Link, &path(other), &name);
        }
        let sha256 = self
            .names
            .iter()
            .find(|name| name.algorithm() == Algorithm::Sha256);
        Piece {
            before,
            file: Some(Content {
                path: cache.path(self.file()),
                size: self.size,
                sha256: sha256.map(|name| name.digest().to_owned()),
            }),
            after,
        }
    }
}

/// Returns the whiteout of a name.
fn whiteout(checksum: &Checksum) -> String {
    let path = path(checksum);
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", &path));
    format!("{directory}/.wh.{name}")
}

fn path(checksum: &Checksum) -> String {
    let path = checksum.path();
    format!("{ROOT}cache/{}", path.to_str().expect("names are ASCII"))
}

/// A part of the index in a pack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct IndexPart {
    /// The name of its file: the beginning of its SHA-256.
    pub(super) name: String,
    /// Its size in bytes.
    pub(super) size: u64,
}

impl IndexPart {
    fn line(&self) -> String {
        format!("{PART}{} {}\n", self.size, self.name)
    }

    fn parse(line: &str) -> Option<Self> {
        let (size, name) = line.split_once(' ')?;
        let hexadecimal = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        hexadecimal.then_some(Self {
            name: name.to_owned(),
            size: size.parse().ok()?,
        })
    }

    /// Returns whether its file is there, so that a layer with it can be made again.
    pub(super) fn is_in(&self, directory: &Path) -> bool {
        fs_err::metadata(directory.join(&self.name)).is_ok_and(|found| found.len() == self.size)
    }

    fn path(&self) -> String {
        format!("{ROOT}index/{}", self.name)
    }

    fn piece(&self, places: &Places) -> Piece {
        let mut before = Vec::new();
        entry(
            &mut before,
            EntryType::Regular,
            &self.path(),
            0o644,
            self.size,
        );
        Piece {
            before,
            file: Some(Content {
                path: places.parts.join(&self.name),
                size: self.size,
                sha256: Some(self.name.clone()),
            }),
            after: vec![0; padding(self.size)],
        }
    }
}

/// What is in one layer: archives, ordered by their strongest names, parts of the index, and names that it hides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pack {
    pub(super) members: Vec<Member>,
    pub(super) parts: Vec<IndexPart>,
    pub(super) gone: Vec<Checksum>,
}

impl Pack {
    pub(super) fn new(
        mut members: Vec<Member>,
        mut parts: Vec<IndexPart>,
        mut gone: Vec<Checksum>,
    ) -> Self {
        members.sort();
        parts.sort();
        parts.dedup();
        gone.sort();
        gone.dedup();
        Self {
            members,
            parts,
            gone,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.parts.is_empty() && self.gone.is_empty()
    }

    /// Writes the list.
    pub(super) fn to_text(&self) -> String {
        let members = self.members.iter().map(Member::line);
        members
            .chain(self.parts.iter().map(IndexPart::line))
            .chain(self.gone.iter().map(|name| format!("{GONE}{name}\n")))
            .collect()
    }

    /// Reads the list again; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut pack = Self::default();
        for line in text.lines() {
            if let Some(part) = line.strip_prefix(PART) {
                pack.parts.push(IndexPart::parse(part)?);
            } else if let Some(name) = line.strip_prefix(GONE) {
                pack.gone.push(name.parse().ok()?);
            } else {
                pack.members.push(Member::parse(line)?);
            }
        }
        Some(pack)
    }

    /// The bytes of the archives and parts themselves.
    pub(super) fn content_bytes(&self) -> u64 {
        let members = self.members.iter().map(|member| member.size);
        members.chain(self.parts.iter().map(|part| part.size)).sum()
    }

    /// Makes the layer.
    pub(super) fn pieces(self: &Arc<Self>, places: &Places) -> Pieces {
        let files: Vec<String> = self
            .members
            .iter()
            .flat_map(|member| &member.names)
            .map(path)
            .chain(self.parts.iter().map(IndexPart::path))
            .chain(self.gone.iter().map(whiteout))
            .collect();
        let first = Piece {
            before: directories(files.iter().map(String::as_str)),
            ..Piece::default()
        };
        let mut last = Piece::default();
        for name in &self.gone {
            entry(
                &mut last.before,
                EntryType::Regular,
                &whiteout(name),
                0o644,
                0,
            );
        }
        let (pack, places) = (Arc::clone(self), places.clone());
        let count = pack.members.len();
        let rest = (0..count + pack.parts.len()).map(move |at| match at.checked_sub(count) {
            None => pack.members[at].piece(&places.cache),
            Some(at) => pack.parts[at].piece(&places),
        });
        Box::new(std::iter::once(first).chain(rest).chain([last]))
    }
}
