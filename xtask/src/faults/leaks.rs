// SPDX-License-Identifier: Apache-2.0
//! Looks for what a dead or finished obuild may have left: processes, mounts, cgroups, files, subvolumes, loop devices.

use super::obuild::Obuild;
use super::processes::Family;
use crate::cmd::Cmd;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Checks everything outside of the store. No obuild may run.
pub(super) fn check_host(obuild: &Obuild, family: &Family, mounts: bool) -> Result<()> {
    family.wait_until_alone()?;
    if mounts {
        check_mounts(obuild)?;
    }
    check_cgroups(obuild)?;
    check_runtime(obuild)?;
    for name in ["tmp", "home"] {
        nothing_in(&obuild.directory().join(name))?;
    }
    Ok(())
}

/// Looks into every mount namespace that still has a process: no line may name the store or what lies below it.
fn check_mounts(obuild: &Obuild) -> Result<()> {
    let places = [
        obuild.store_directory().display().to_string(),
        obuild.directory().display().to_string(),
    ];
    let mut seen = BTreeSet::new();
    for entry in fs_err::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let Ok(namespace) = fs_err::read_link(path.join("ns/mnt")) else {
            continue;
        };
        if !seen.insert(namespace) {
            continue;
        }
        let table = fs_err::read_to_string(path.join("mountinfo")).unwrap_or_default();
        for line in table.lines() {
            // A store of zfs is a mount itself. proc_pid_mountinfo(5): the fifth field is the mount point.
            let own = line.split(' ').nth(4) == Some(&places[0]) && line.contains("zfs");
            let named = !own && places.iter().any(|place| line.contains(place));
            ensure!(
                !named,
                "something is mounted in the namespace of {}: {line}",
                path.display()
            );
        }
    }
    Ok(())
}

/// No group may carry the number of a process that we started.
fn check_cgroups(obuild: &Obuild) -> Result<()> {
    let owners: Vec<String> = obuild
        .started()
        .iter()
        .map(|pid| format!("obuild-{pid}-"))
        .collect();
    let mut waiting = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = waiting.pop() {
        // Groups of others come and go.
        for entry in fs_err::read_dir(&directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure!(
                !owners.iter().any(|owner| name.starts_with(owner)),
                "a cgroup is left: {}",
                entry.path().display()
            );
            waiting.push(entry.path());
        }
    }
    Ok(())
}

/// No container of ours may be left where OCI runtimes keep theirs.
fn check_runtime(obuild: &Obuild) -> Result<()> {
    for place in ["/run/runc", "/run/crun", "/run/netns"] {
        for entry in fs_err::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = obuild
                .started()
                .iter()
                .any(|pid| name.starts_with(&format!("obuild-{pid}-")));
            ensure!(!ours, "{place}/{name} is left");
        }
    }
    Ok(())
}

/// Checks the store at rest: everything that a dead process left has been swept.
pub(super) fn check_store(store: &Path) -> Result<()> {
    for name in ["drafts", "trash", "provisional"] {
        nothing_in(&store.join(name))?;
    }
    no_half_files(&store.join("caches"))
}

/// Checks that the store holds nothing any more: everything has been pruned and the caches deleted.
pub(super) fn check_empty(store: &Path) -> Result<()> {
    check_store(store)?;
    for name in ["snapshots", "caches", "state/leases"] {
        nothing_in(&store.join(name))?;
    }
    Ok(())
}

/// Checks that no subvolume lies below `store`, which is on the btrfs that is mounted at `point`.
pub(super) fn check_subvolumes(point: &Path, store: &Path) -> Result<()> {
    let Ok(inside) = store.strip_prefix(point) else {
        return Ok(());
    };
    let list = Cmd::new("btrfs")
        .args(["subvolume", "list"])
        .arg(point)
        .quiet()
        .output()?;
    let prefix = format!("path {}/", inside.display());
    let left: Vec<&str> = list.lines().filter(|line| line.contains(&prefix)).collect();
    ensure!(left.is_empty(), "subvolumes are left: {left:?}");
    Ok(())
}

fn nothing_in(directory: &Path) -> Result<()> {
    let mut names = Vec::new();
    // A directory that is not there holds nothing.
    for entry in fs_err::read_dir(directory).into_iter().flatten() {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    ensure!(
        names.is_empty(),
        "{} still holds {}",
        directory.display(),
        names.join(", ")
    );
    Ok(())
}

/// No cache may have a layer beside those that its list names, nor a list half written.
fn no_half_files(caches: &Path) -> Result<()> {
    for cache in fs_err::read_dir(caches).into_iter().flatten() {
        let cache = cache?.path();
        let list = fs_err::read_to_string(cache.join("current")).unwrap_or_default();
        for entry in fs_err::read_dir(&cache)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let known = name == "current" || list.contains(&format!("layer {name} "));
            ensure!(known, "{} has {name}, which nothing names", cache.display());
        }
    }
    Ok(())
}

/// Returns the loop devices whose file lies below `directory`.
pub(super) fn loop_devices(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten()
    {
        let file = fs_err::read_to_string(entry.path().join("loop/backing_file"));
        if file.is_ok_and(|file| Path::new(file.trim()).starts_with(directory)) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}
