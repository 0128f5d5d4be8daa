// SPDX-License-Identifier: Apache-2.0
//! Takes down a tree that is an overlay layer over a tree already taken down: the cost is that of the layer.
//!
//! What a layer's entries mean is in Linux `Documentation/filesystems/overlayfs.rst`: a character device 0/0 is a whiteout, and a
//! directory with the attribute `overlay.opaque` = `y` hides what is below it.

use super::read::{ListOptions, Reader, Reading, failed};
use super::{Content, Listing, Node, is_below, order};
use crate::tree::Cancelled;
use crate::tree::error::TreeError;
use crate::tree::walk::{Step, Walk};
use crate::tree::xattr;
use bstr::{BStr, BString};
use std::cmp::Ordering;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What a layer does to one path.
struct Deed {
    path: BString,
    /// What is there now; nothing behind a whiteout.
    node: Option<Node>,
    /// Whether what was below the path has gone.
    clears: bool,
}

/// Takes down the tree that the overlay layer at `layer` makes of the tree `below`. All contents of the layer are read, whatever
/// `below` knows; for an overlay that was written to without `redirect_dir` and `metacopy`.
pub fn list_layer(
    below: &Listing,
    layer: BorrowedFd<'_>,
    reading: Reading<'_>,
    cancelled: Cancelled<'_>,
) -> Result<Listing, TreeError> {
    let options = ListOptions {
        contents: true,
        known: None,
    };
    let mut reader = Reader {
        options: &options,
        buffer: Vec::new(),
        newest: below.newest,
        reading,
        cancelled,
    };
    let top = BStr::new("/");
    let mut walk = Walk::new(layer).map_err(|error| failed("open", top, error))?;
    let mut deeds = vec![Deed {
        path: BString::default(),
        node: Some(reader.top(walk.directory())?),
        clears: false,
    }];
    while let Some(step) = walk
        .next()
        .map_err(|error| failed("read", walk.path(), error))?
    {
        let Step::Entry(stat) = step else { continue };
        let path = walk.path().to_owned();
        let Some(node) = reader.node(&walk, &stat)? else {
            // A socket hides what was there as everything else does.
            deeds.push(Deed {
                path,
                node: None,
                clears: true,
            });
            continue;
        };
        let whiteout = Content::Device {
            block: false,
            major: 0,
            minor: 0,
        };
        let deed = if node.content == whiteout {
            Deed {
                path,
                node: None,
                clears: true,
            }
        } else if node.is_directory() {
            walk.enter()
                .map_err(|error| failed("open", walk.path(), error))?;
            let opaque = is_opaque(walk.directory())
                .map_err(|error| failed("read the attributes of", walk.path(), error))?;
            Deed {
                path,
                node: Some(node),
                clears: opaque,
            }
        } else {
            Deed {
                path,
                node: Some(node),
                clears: true,
            }
        };
        deeds.push(deed);
    }
    Ok(Listing::new(merge(&below.nodes, deeds), reader.newest))
}

pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool, rustix::io::Errno> {
    // An overlay mounted without privileges keeps its attributes in `user` (overlayfs.rst, "userxattr").
    let names: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
    let found = xattr::read(xattr::Owner::Open(directory), |name| names.contains(&name))?;
    Ok(found.iter().any(|(_, value)| value == "y"))
}

fn merge(below: &[Arc<Node>], deeds: Vec<Deed>) -> Vec<Arc<Node>> {
    let mut nodes = Vec::with_capacity(below.len() + deeds.len());
    let mut rest = below;
    for deed in deeds {
        let before = rest.partition_point(|node| order(&node.path, &deed.path) == Ordering::Less);
        nodes.extend_from_slice(&rest[..before]);
        rest = &rest[before..];
        if rest.first().is_some_and(|node| node.path == deed.path) {
            rest = &rest[1..];
        }
        if deed.clears {
            rest = &rest[rest.partition_point(|node| is_below(&node.path, &deed.path))..];
        }
        nodes.extend(deed.node.map(Arc::new));
    }
    nodes.extend_from_slice(rest);
    nodes
}
