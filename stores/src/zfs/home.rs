// SPDX-License-Identifier: Apache-2.0
//! The dataset that a store lives in: found, mounted, or made.

use super::dataset::mount_point_of;
use super::tool::{Trouble, zfs, zpool};
use crate::place::Place;
use crate::{Error, Kind, StoreUrl, sys};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Properties of a new store's dataset, inherited by its trees. Access times would be a write for every file that a
/// step reads. zfs-fuse does not know the second list, which makes extended attributes and ACLs cheap.
const PROPERTIES: [&str; 2] = ["-o", "atime=off"];
const OPENZFS_PROPERTIES: [&str; 4] = ["-o", "xattr=sa", "-o", "acltype=posixacl"];

/// Returns the directory where the store's dataset is mounted. Makes and mounts it if it is not there.
///
/// A store that is mounted is found without a command.
pub(super) fn locate(url: &StoreUrl) -> Result<PathBuf, Error> {
    let name = url.path.to_string_lossy();
    if let Some(path) = mount_point_of(&name) {
        return alive(&name, path);
    }
    let unsuitable = |reason: String| Error::Unsuitable {
        path: url.path.clone(),
        kind: Kind::Zfs.name(),
        reason,
    };
    if !sys::is_root() {
        let reason =
            "it is not mounted, and mounting and making datasets needs root: run it as root";
        return Err(unsuitable(reason.to_owned()));
    }
    make(&name)?;
    let wanted = zfs(&["get", "-H", "-o", "value", "mountpoint", &name])?;
    let wanted = wanted.trim();
    if !Path::new(wanted).is_absolute() {
        return Err(unsuitable(format!(
            "its mountpoint is {wanted}: give it a directory, for example \
             `zfs set mountpoint=/srv/obuild {name}`"
        )));
    }
    match zfs(&["mount", &name]) {
        Ok(_) => {}
        // Making it has mounted it, or another process has.
        Err(failure) if failure.trouble == Trouble::Mounted => {}
        Err(failure) => return Err(failure.into()),
    }
    match mount_point_of(&name) {
        Some(path) => Ok(path),
        None => Err(unsuitable(format!(
            "it is mounted, but not where this process could see it: `zfs unmount {name}` where it is \
             mounted, then `zfs mount {name}`"
        ))),
    }
}

/// Makes the dataset unless it is there.
fn make(name: &str) -> Result<(), Error> {
    let Err(missing) = zfs(&["list", "-H", "-o", "name", name]) else {
        return Ok(());
    };
    if missing.trouble != Trouble::Missing {
        return Err(missing.into());
    }
    let create = |more: &[&str]| {
        let mut arguments = vec!["create", "-p"];
        arguments.extend(PROPERTIES);
        arguments.extend(more);
        arguments.push(name);
        zfs(&arguments)
    };
    let made = match create(&OPENZFS_PROPERTIES) {
        Err(failure) if failure.trouble == Trouble::Property => create(&[]),
        result => result,
    };
    match made {
        Ok(_) => Ok(()),
        Err(failure) if failure.trouble == Trouble::Exists => Ok(()),
        Err(failure) => match no_such_pool(name) {
            Some(error) => Err(error),
            None => Err(failure.into()),
        },
    }
}

/// Returns the error that says which pools there are, if the dataset's is none of them.
fn no_such_pool(name: &str) -> Option<Error> {
    let pool = pool_of(name);
    let pools = zpool(&["list", "-H", "-o", "name"]).ok()?;
    let pools: Vec<&str> = pools.lines().collect();
    if pools.contains(&pool) {
        return None;
    }
    let there = if pools.is_empty() {
        "none is imported".to_owned()
    } else {
        format!("there are {}", pools.join(", "))
    };
    Some(Error::Unsuitable {
        path: name.into(),
        kind: Kind::Zfs.name(),
        reason: format!(
            "there is no pool {pool} ({there}): make it with `zpool create {pool} DEVICE`, or import it with \
             `zpool import {pool}`"
        ),
    })
}

/// Returns the pool that a dataset is in.
pub(super) fn pool_of(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

/// Checks that somebody answers for the mount.
fn alive(name: &str, path: PathBuf) -> Result<PathBuf, Error> {
    match Place::open(&path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotConnected => {
            Err(Error::Unsuitable {
                path: name.into(),
                kind: Kind::Zfs.name(),
                reason: format!(
                    "the zfs-fuse daemon that mounted it at {path} is gone: `umount -l {path}`, start zfs-fuse, \
                     import the pool, and `zfs mount {name}`",
                    path = path.display()
                ),
            })
        }
        _ => Ok(path),
    }
}
