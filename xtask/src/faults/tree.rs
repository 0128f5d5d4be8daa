// SPDX-License-Identifier: Apache-2.0
//! Trees as they should be and as they are, compared byte for byte.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// What stands at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Permission bits; 0 for a link.
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
}

/// Its kind, with what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File(Arc<[u8]>),
    Link(String),
}

impl Entry {
    pub(super) fn directory() -> Self {
        Self {
            kind: Kind::Directory,
            mode: 0o755,
            owner: (0, 0),
        }
    }

    pub(super) fn file(content: impl Into<Arc<[u8]>>) -> Self {
        Self {
            kind: Kind::File(content.into()),
            mode: 0o644,
            owner: (0, 0),
        }
    }

    pub(super) fn link(target: &str) -> Self {
        Self {
            kind: Kind::Link(target.to_owned()),
            mode: 0,
            owner: (0, 0),
        }
    }

    fn shown(&self) -> String {
        let (mode, (user, group)) = (self.mode, self.owner);
        let kind = match &self.kind {
            Kind::Directory => "directory".to_owned(),
            Kind::File(content) => format!(
                "file of {} bytes {:?}",
                content.len(),
                String::from_utf8_lossy(&content[..content.len().min(40)])
            ),
            Kind::Link(target) => format!("link to {target}"),
        };
        format!("{kind}, {mode:o}, {user}:{group}")
    }
}

/// A tree by paths relative to its root, which itself is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree(pub(super) BTreeMap<String, Entry>);

impl Tree {
    /// Reads what is on the disk.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        let mut waiting = vec![(root.to_owned(), String::new())];
        while let Some((directory, prefix)) = waiting.pop() {
            for entry in fs_err::read_dir(&directory)? {
                let path = entry?.path();
                let name = path.file_name().context("an entry has a name")?;
                let name = format!("{prefix}{}", name.to_string_lossy());
                let metadata = fs_err::symlink_metadata(&path)?;
                let (mut mode, kind) = (metadata.mode() & 0o7777, metadata.file_type());
                let kind = if kind.is_dir() {
                    waiting.push((path, format!("{name}/")));
                    Kind::Directory
                } else if kind.is_file() {
                    Kind::File(fs_err::read(&path)?.into())
                } else if kind.is_symlink() {
                    mode = 0;
                    Kind::Link(fs_err::read_link(&path)?.to_string_lossy().into_owned())
                } else {
                    bail!("{name} is neither file, directory nor link");
                };
                let owner = (metadata.uid(), metadata.gid());
                tree.0.insert(name, Entry { kind, mode, owner });
            }
        }
        Ok(tree)
    }

    /// Returns the paths at and below `path`.
    pub(super) fn below(&self, path: &str) -> Vec<String> {
        let inside = format!("{path}/");
        self.0
            .keys()
            .filter(|name| *name == path || name.starts_with(&inside))
            .cloned()
            .collect()
    }

    /// Takes out a file or a whole directory.
    pub(super) fn remove(&mut self, path: &str) {
        for name in self.below(path) {
            self.0.remove(&name);
        }
    }

    /// Returns what is at `path` in this tree, named as if it were at `to`.
    pub(super) fn moved(&self, path: &str, to: &str) -> Vec<(String, Entry)> {
        self.below(path)
            .into_iter()
            .map(|name| {
                (
                    format!("{to}{}", &name[path.len()..]),
                    self.0[&name].clone(),
                )
            })
            .collect()
    }

    /// Says how `found` differs from this; nothing if it does not.
    pub(super) fn differences(&self, found: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, entry) in &self.0 {
            match found.0.get(name) {
                None => lines.push(format!("/{name} is missing ({})", entry.shown())),
                Some(there) if there != entry => lines.push(format!(
                    "/{name} is {} and should be {}",
                    there.shown(),
                    entry.shown()
                )),
                Some(_) => {}
            }
        }
        for (name, entry) in &found.0 {
            if !self.0.contains_key(name) {
                lines.push(format!("/{name} should not be there ({})", entry.shown()));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Tree};

    fn tree(entries: &[(&str, Entry)]) -> Tree {
        let named = |(name, entry): &(&str, Entry)| ((*name).to_owned(), entry.clone());
        Tree(entries.iter().map(named).collect())
    }

    #[test]
    fn every_difference_is_told() {
        let wanted = tree(&[
            ("a", Entry::file(*b"1")),
            ("b", Entry::link("a")),
            ("d", Entry::directory()),
        ]);
        assert!(wanted.differences(&wanted).is_empty());
        let found = tree(&[
            ("a", Entry::file(*b"2")),
            ("b", Entry::link("a")),
            ("x", Entry::directory()),
        ]);
        let told = wanted.differences(&found).join("\n");
        for name in ["/a is", "/d is missing", "/x should not"] {
            assert!(told.contains(name), "{told}");
        }
        assert!(!told.contains("/b"), "{told}");
    }

    #[test]
    fn what_is_below_goes_along() {
        let mut all = tree(&[
            ("d", Entry::directory()),
            ("d/f", Entry::file(*b"1")),
            ("dx", Entry::file(*b"2")),
        ]);
        let names: Vec<_> = all
            .moved("d", "e")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["e", "e/f"]);
        all.remove("d");
        assert_eq!(all.below("dx"), ["dx"]);
        assert_eq!(all.0.len(), 1);
    }
}
