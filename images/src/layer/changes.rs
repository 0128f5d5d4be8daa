// SPDX-License-Identifier: Apache-2.0
//! What is different between a tree and one that it was made from, as far as a layer tells it.

use super::Times;
use super::touched::candidates;
use crate::tree::diff::{Contents, compare};
use crate::tree::listing::list_paths;
use crate::tree::{Cancelled, Change, ListOptions, Listing, Node, TreeError, list, order};
use bstr::{BStr, BString, ByteSlice};
use obuild_stores::Touched;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The changes that make up a layer, in the order of paths.
pub(super) struct Changes {
    /// Each with everything that shares an inode with it.
    pub(super) changes: Vec<Change>,
    /// The later tree, as far as it was looked at: at least all that changed, and the directories that it is in.
    pub(super) later: Listing,
}

/// Returns where the tree at `later` differs from the one at `earlier`; without that, everything in it.
pub(super) fn changes(
    earlier: Option<BorrowedFd<'_>>,
    later: BorrowedFd<'_>,
    touched: &[Touched],
    times: Times,
    cancelled: Cancelled<'_>,
) -> Result<Changes, TreeError> {
    let whole = |root| list(root, &ListOptions::default(), &mut |_| {}, cancelled);
    let Some(earlier) = earlier else {
        let later = whole(later)?;
        let changes = added(&later);
        return Ok(Changes { changes, later });
    };
    let (was, now) = match candidates(earlier, later, touched)? {
        Some(paths) => (
            list_paths(earlier, &paths, &mut |_| {}, cancelled)?,
            list_paths(later, &paths, &mut |_| {}, cancelled)?,
        ),
        None => std::thread::scope(|scope| {
            let was = scope.spawn(|| whole(earlier));
            let now = whole(later);
            let was = was
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, TreeError>((was?, now?))
        })?,
    };
    let mut contents = Contents::new(earlier, later, cancelled)?;
    let alike = |one: &Node, other: &Node| {
        one.looks_like(other)
            && (one.is_directory() || times.of(one.modified.0) == times.of(other.modified.0))
    };
    let mut changes = compare(&was, &now, alike, |one, other| {
        contents.same(Some(&was), one, other)
    })?;
    leave_out_survivors(&mut changes, &was, &now, alike);
    complete(&mut changes, &was, &now);
    Ok(Changes {
        changes,
        later: now,
    })
}

fn added(tree: &Listing) -> Vec<Change> {
    let leaders = tree.leaders();
    let link = |index: usize| {
        let leader = leaders[index].filter(|leader| *leader != index)?;
        Some(tree.nodes()[leader].path.clone())
    };
    let node = |(index, node): (usize, &std::sync::Arc<Node>)| Change {
        path: node.path.clone(),
        was: None,
        now: Some(node.clone()),
        link: link(index),
        only_names: false,
    };
    tree.nodes().iter().enumerate().map(node).collect()
}

/// Returns, for every path of an inode with several, all of its paths.
fn groups(tree: &Listing) -> HashMap<&BStr, Arc<Vec<&BStr>>> {
    let leaders = tree.leaders();
    let mut groups: BTreeMap<usize, Vec<&BStr>> = BTreeMap::new();
    for (node, leader) in tree.nodes().iter().zip(&leaders) {
        if let Some(leader) = leader {
            groups.entry(*leader).or_default().push(node.path.as_bstr());
        }
    }
    let mut of = HashMap::new();
    for paths in groups.into_values() {
        let paths = Arc::new(paths);
        of.extend(paths.iter().map(|path| (*path, Arc::clone(&paths))));
    }
    of
}

/// Leaves out names of which no more can be told than that other names of the inode have gone: to take those away is enough.
fn leave_out_survivors(
    changes: &mut Vec<Change>,
    was: &Listing,
    now: &Listing,
    alike: impl Fn(&Node, &Node) -> bool,
) {
    if !changes.iter().any(|change| change.only_names) {
        return;
    }
    let (before, after) = (groups(was), groups(now));
    changes.retain(|change| {
        let path = change.path.as_bstr();
        let alone = Arc::new(vec![path]);
        let before = before.get(path).unwrap_or(&alone);
        let after = after.get(path).unwrap_or(&alone);
        let joined = after.iter().any(|other| !before.contains(other));
        // One that looks as before, but is a file of its own now.
        let split = before.iter().any(|other| {
            !after.contains(other)
                && matches!((was.find(other), now.find(other)), (Some(was), Some(now)) if alike(was, now))
        });
        !change.only_names || joined || split
    });
}

/// Adds the other names of every inode that has a changed one: where a layer is unpacked, it may be alone, and what it links to must be in it.
fn complete(changes: &mut Vec<Change>, was: &Listing, now: &Listing) {
    let leaders = now.leaders();
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, leader) in leaders.iter().enumerate() {
        if let Some(leader) = leader {
            groups.entry(*leader).or_default().push(index);
        }
    }
    if groups.is_empty() {
        return;
    }
    let told: HashSet<BString> = changes.iter().map(|change| change.path.clone()).collect();
    for (leader, names) in groups {
        let is_told = |index: &usize| told.contains(&now.nodes()[*index].path);
        if !names.iter().any(is_told) {
            continue;
        }
        for index in names.iter().filter(|index| !is_told(index)) {
            let node = &now.nodes()[*index];
            changes.push(Change {
                path: node.path.clone(),
                was: was.find(&node.path).cloned(),
                now: Some(node.clone()),
                link: (*index != leader).then(|| now.nodes()[leader].path.clone()),
                only_names: true,
            });
        }
    }
    changes.sort_by(|left, right| order(&left.path, &right.path));
}

/// Returns the directories above the changes that are not among these, in the order of paths.
pub(super) fn directories_above(changes: &[Change]) -> Vec<BString> {
    let mut known: HashSet<&[u8]> = changes.iter().map(|change| &**change.path).collect();
    let mut found = Vec::new();
    for change in changes {
        let mut path = change.path.as_bstr();
        while let Some(slash) = path.rfind_byte(b'/') {
            path = path[..slash].as_bstr();
            if !known.insert(path) {
                break;
            }
            found.push(path.to_owned());
        }
    }
    found.sort_by(|left, right| order(left, right));
    found
}
