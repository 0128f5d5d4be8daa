// SPDX-License-Identifier: Apache-2.0
//! Compares two git trees from the top: only what differs is read.
//!
//! The format of a tree object is `mode SP name NUL id`, again and again (git's Documentation/gitdatamodel, "tree"). Nothing in it is
//! trusted: git checks names only in work trees, and there is none here.

use super::cat_file::{Header, Kind, broken};
use super::names::{self, Reason, Skipped, Verdict};
use super::objects::Objects;
use super::{Change, Commit, Error, Limits, Options};
use bstr::{BString, ByteSlice};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// How many objects are asked for at once: enough that git never waits for us, few enough to remember.
const BATCH: usize = 2048;

/// The largest tree that is read: a million entries.
const TREE_BYTES: u64 = 64 << 20;

/// An entry of a tree that is a directory or a plain file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry<'a> {
    kind: EntryKind,
    id: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryKind {
    Directory,
    File { executable: bool },
}

/// What a file became.
#[derive(Debug)]
struct Blob {
    id: Vec<u8>,
    executable: bool,
}

/// A directory that may differ: its path (empty, or with a slash at its end), its tree before, its tree after.
type Directory = (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>);

/// The directories that are still to be compared, and what was found.
struct Comparison<'a> {
    directories: Vec<Directory>,
    /// Files that differ: gone, or what they are now.
    files: BTreeMap<BString, Option<Blob>>,
    skipped: Vec<Skipped>,
    limits: &'a Limits,
}

/// See [`super::Repository::changes`].
pub(super) fn changes<E: From<Error>>(
    objects: &mut Objects,
    from: Option<&Commit>,
    to: &Commit,
    options: &Options,
    visit: &mut dyn FnMut(Change) -> Result<(), E>,
) -> Result<Vec<Skipped>, E> {
    let unknown = |commit: &Commit| Error::NoSuchCommit {
        commit: commit.to_string(),
    };
    let old = match from {
        Some(from) => Some(objects.root(from)?.ok_or_else(|| unknown(from))?),
        None => None,
    };
    let new = objects.root(to)?.ok_or_else(|| unknown(to))?;
    let mut comparison = Comparison {
        directories: vec![(Vec::new(), old, Some(new))],
        files: BTreeMap::new(),
        skipped: Vec::new(),
        limits: &options.limits,
    };
    while !comparison.directories.is_empty() {
        let level = std::mem::take(&mut comparison.directories);
        in_batches(objects, &level, ask_for, |objects, batch| {
            comparison.compare(objects, batch)
        })?;
    }
    let Comparison {
        files, mut skipped, ..
    } = comparison;
    pass_on(objects, files, &options.limits, &mut skipped, visit)?;
    Ok(skipped)
}

/// Asks for what batches need and goes through them, asking one batch ahead: so git is never idle, and all processors have work.
fn in_batches<T, E: From<Error>>(
    objects: &mut Objects,
    items: &[T],
    ask: impl Fn(&mut Objects, &[T]) -> Result<(), Error>,
    mut visit: impl FnMut(&mut Objects, &[T]) -> Result<(), E>,
) -> Result<(), E> {
    let mut batches = items.chunks(BATCH);
    let mut next = batches.next();
    if let Some(first) = next {
        ask(objects, first)?;
    }
    while let Some(batch) = next {
        next = batches.next();
        if let Some(following) = next {
            ask(objects, following)?;
        }
        visit(objects, batch)?;
    }
    Ok(())
}

/// Returns those that are not the same before and after.
fn differing(batch: &[Directory]) -> impl Iterator<Item = &Directory> {
    batch.iter().filter(|(_, old, new)| old != new)
}

fn ask_for(objects: &mut Objects, batch: &[Directory]) -> Result<(), Error> {
    objects.ask(differing(batch).flat_map(|(_, old, new)| {
        let ids = old.iter().chain(new);
        ids.map(Vec::as_slice)
    }))
}

impl Comparison<'_> {
    /// Compares directories of one level, which were [asked for](ask_for).
    fn compare(&mut self, objects: &mut Objects, batch: &[Directory]) -> Result<(), Error> {
        for (prefix, old, new) in differing(batch) {
            let mut read = |id: &Option<Vec<u8>>| match id {
                Some(id) => read_tree(objects, id),
                None => Ok(Vec::new()),
            };
            let (old_tree, new_tree) = (read(old)?, read(new)?);
            let id_bytes = old.as_ref().or(new.as_ref()).map_or(20, Vec::len);
            // What was wrong before is no news.
            let old = entries(prefix, &old_tree, id_bytes, None)?;
            let new = entries(prefix, &new_tree, id_bytes, Some(&mut self.skipped))?;
            self.compare_entries(prefix, &old, &new)?;
        }
        Ok(())
    }

    fn compare_entries(
        &mut self,
        prefix: &[u8],
        old: &[(&[u8], Entry<'_>)],
        new: &[(&[u8], Entry<'_>)],
    ) -> Result<(), Error> {
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((before, _)), Some((after, _))) => before.cmp(after),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            let Some((name, _)) = before.or(after) else {
                break;
            };
            let (before, after) = (before.map(|side| &side.1), after.map(|side| &side.1));
            if before != after {
                self.differ(prefix, name, before, after);
            }
        }
        // Directories count too: a tree can name itself's likes for ever without a single file.
        if self.files.len() + self.directories.len() > self.limits.files {
            return Err(Error::TooMany {
                limit: self.limits.files,
            });
        }
        Ok(())
    }

    fn differ(
        &mut self,
        prefix: &[u8],
        name: &[u8],
        old: Option<&Entry<'_>>,
        new: Option<&Entry<'_>>,
    ) {
        let path = [prefix, name].concat();
        let file = |entry: Option<&Entry<'_>>| match entry {
            Some(Entry {
                kind: EntryKind::File { executable },
                id,
            }) => Some(Blob {
                id: id.to_vec(),
                executable: *executable,
            }),
            _ => None,
        };
        let directory = |entry: Option<&Entry<'_>>| match entry {
            Some(Entry {
                kind: EntryKind::Directory,
                id,
            }) => Some(id.to_vec()),
            _ => None,
        };
        if file(old).is_some() || file(new).is_some() {
            self.files.insert(path.clone().into(), file(new));
        }
        let (old, new) = (directory(old), directory(new));
        if old.is_some() || new.is_some() {
            self.directories
                .push(([&path, &b"/"[..]].concat(), old, new));
        }
    }
}

fn read_tree(objects: &mut Objects, id: &[u8]) -> Result<Vec<u8>, Error> {
    match objects.header()? {
        Some(header) if header.kind == Kind::Tree && header.size <= TREE_BYTES => {
            objects.content(&header)
        }
        Some(Header {
            kind: Kind::Tree,
            size,
        }) => Err(broken(format!("a tree has {size} bytes"))),
        Some(_) => Err(broken(format!("{} is no tree", hex::encode(id)))),
        None => Err(broken(format!("the tree {} is missing", hex::encode(id)))),
    }
}

/// Returns what is to be looked at in a tree, sorted by name, and reports the rest.
fn entries<'a>(
    prefix: &[u8],
    mut tree: &'a [u8],
    id_bytes: usize,
    mut skipped: Option<&mut Vec<Skipped>>,
) -> Result<Vec<(&'a [u8], Entry<'a>)>, Error> {
    let mut judged = Vec::new();
    let mut report = |name: &[u8], reason: Reason| {
        if let Some(skipped) = &mut skipped {
            skipped.push(Skipped {
                path: [prefix, name].concat().into(),
                reason,
            });
        }
    };
    let is_root = prefix.is_empty();
    while !tree.is_empty() {
        let (Raw { mode, name, id }, rest) =
            split_entry(tree, id_bytes).ok_or_else(|| broken("a tree has no form".to_owned()))?;
        tree = rest;
        // The rest of the root is no part of an opam repository.
        if is_root && !matches!(name, b"packages" | b"repo" | b"version") {
            continue;
        }
        match names::judge(prefix, name) {
            Verdict::Keep => {}
            Verdict::Ignore => continue,
            Verdict::Skip(reason) => {
                report(name, reason);
                continue;
            }
        }
        judged.push((name, mode, id));
    }
    sort(&mut judged);
    let mut entries = Vec::with_capacity(judged.len());
    let mut last = None;
    for (name, mode, id) in judged {
        // Before its kind is looked at, so that a link and a file of one name are not two different things.
        if last.replace(name) == Some(name) {
            report(name, Reason::Twice);
            continue;
        }
        // The file types of stat(2), as far as git has them: git's object.h.
        let kind = match mode & 0o170_000 {
            0o040_000 => EntryKind::Directory,
            0o100_000 => EntryKind::File {
                executable: mode & 0o100 != 0,
            },
            kind => {
                let reason = match kind {
                    0o120_000 => Reason::Link,
                    0o160_000 => Reason::Submodule,
                    _ => Reason::Special,
                };
                report(name, reason);
                continue;
            }
        };
        if is_root && (name == b"packages") != (kind == EntryKind::Directory) {
            report(name, Reason::Special);
            continue;
        }
        entries.push((name, Entry { kind, id }));
    }
    if let Some(skipped) = skipped {
        let names = entries.iter().map(|(name, _)| *name);
        for name in names::case_twins(names) {
            skipped.push(Skipped {
                path: [prefix, name].concat().into(),
                reason: Reason::Case,
            });
        }
    }
    Ok(entries)
}

/// Sorts by name what is nearly sorted: git puts `a-b` before the directory `a`. Of two of one name the first stays first.
fn sort<T>(named: &mut [(&[u8], T, &[u8])]) {
    // Enough for any tree that git makes of opam's names; what somebody thought out is not sorted by squares.
    let mut steps = 16 * named.len();
    for place in 1..named.len() {
        let (before, [(name, ..), ..]) = named.split_at(place) else {
            break;
        };
        let behind = before.iter().rev().take_while(|(other, ..)| other > name);
        let behind = behind.take(steps + 1).count();
        if behind > steps {
            return named.sort_by_key(|(name, ..)| *name);
        }
        steps -= behind;
        named[place - behind..=place].rotate_right(1);
    }
}

/// An entry as it stands in a tree.
struct Raw<'a> {
    mode: u32,
    name: &'a [u8],
    id: &'a [u8],
}

/// Takes an entry off a tree, and returns it and the rest.
fn split_entry(tree: &[u8], id_bytes: usize) -> Option<(Raw<'_>, &[u8])> {
    let space = tree.find_byte(b' ')?;
    let mode = std::str::from_utf8(&tree[..space]).ok()?;
    let mode = u32::from_str_radix(mode, 8).ok()?;
    let rest = &tree[space + 1..];
    let end = rest.find_byte(0)?;
    let id = rest.get(end + 1..end + 1 + id_bytes)?;
    let name = &rest[..end];
    Some((Raw { mode, name, id }, &rest[end + 1 + id_bytes..]))
}

/// Reads the files and passes them on, in the order of their paths.
fn pass_on<E: From<Error>>(
    objects: &mut Objects,
    files: BTreeMap<BString, Option<Blob>>,
    limits: &Limits,
    skipped: &mut Vec<Skipped>,
    visit: &mut dyn FnMut(Change) -> Result<(), E>,
) -> Result<(), E> {
    let files: Vec<(BString, Option<Blob>)> = files.into_iter().collect();
    let ask = |objects: &mut Objects, batch: &[(BString, Option<Blob>)]| {
        let blobs = batch.iter().filter_map(|(_, blob)| blob.as_ref());
        objects.ask(blobs.map(|blob| blob.id.as_slice()))
    };
    in_batches(objects, &files, ask, |objects, batch| {
        for (path, blob) in batch {
            let mut change = Change {
                path: path.clone(),
                content: None,
                executable: false,
            };
            if let Some(blob) = blob {
                let header = objects.header()?.ok_or_else(|| {
                    broken(format!("the file {} is missing", hex::encode(&blob.id)))
                })?;
                if header.kind != Kind::Blob {
                    return Err(broken(format!("{} is no file", hex::encode(&blob.id))).into());
                }
                if header.size > limits.file_bytes {
                    objects.skip(&header)?;
                    skipped.push(Skipped {
                        path: path.clone(),
                        reason: Reason::Large { bytes: header.size },
                    });
                } else {
                    change.content = Some(objects.content(&header)?);
                    change.executable = blob.executable;
                }
            }
            visit(change)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorting_is_sorting(names in proptest::collection::vec("[a-c]{0,2}(-[a-c])?", 0..300)) {
            let numbered = || names.iter().enumerate().map(|(number, name)| (name.as_bytes(), number, &[][..]));
            let mut sorted: Vec<(&[u8], usize, &[u8])> = numbered().collect();
            let mut ours = sorted.clone();
            sorted.sort();
            super::sort(&mut ours);
            prop_assert_eq!(&ours, &sorted);
            ours.reverse();
            super::sort(&mut ours);
            prop_assert!(ours.is_sorted_by_key(|(name, ..)| *name));
        }
    }
}
