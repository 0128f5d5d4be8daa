// SPDX-License-Identifier: Apache-2.0
//! Packs: layers that hold archives.
//!
//! A pack is a list of archives; its layer is a function of the list and the cache. In it an archive is a file under its shortest name,
//! and hard links under the others: the cache's layout, below `srv/cache/`.

use super::ROOT;
use super::stream::{Content, Piece, Pieces, directories, entry, link, padding};
use crate::cache::Cache;
use crate::{Algorithm, Checksum};
use tar::EntryType;

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

fn path(checksum: &Checksum) -> String {
    let path = checksum.path();
    format!("{ROOT}cache/{}", path.to_str().expect("names are ASCII"))
}

/// The archives of one layer, ordered by their strongest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pack {
    pub(super) members: Vec<Member>,
}

impl Pack {
    pub(super) fn new(mut members: Vec<Member>) -> Self {
        members.sort();
        Self { members }
    }

    /// Writes the list.
    pub(super) fn to_text(&self) -> String {
        self.members.iter().map(Member::line).collect()
    }

    /// Reads the list again; `None` if it is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let members: Option<Vec<Member>> = text.lines().map(Member::parse).collect();
        members.map(|members| Self { members })
    }

    /// The bytes of the archives themselves.
    pub(super) fn content_bytes(&self) -> u64 {
        self.members.iter().map(|member| member.size).sum()
    }

    /// Makes the layer.
    pub(super) fn pieces(&self, cache: &Cache) -> Pieces {
        let files: Vec<String> = self
            .members
            .iter()
            .flat_map(|member| &member.names)
            .map(path)
            .collect();
        let first = Piece {
            before: directories(files.iter().map(String::as_str)),
            ..Piece::default()
        };
        let (members, cache) = (self.members.clone(), cache.clone());
        let rest = members.into_iter().map(move |member| member.piece(&cache));
        Box::new(std::iter::once(first).chain(rest))
    }
}
