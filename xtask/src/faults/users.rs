// SPDX-License-Identifier: Apache-2.0
//! Build users with their homes on a disk, and what steps of theirs may have left.

use super::processes;
use crate::accounts;
use crate::reaper::Guard;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// How many there are: fewer than eight processes want at once, so that they have to wait for each other.
const COUNT: usize = 3;

/// The users of one disk, deleted when this is dropped.
pub(super) struct Users {
    names: String,
    ids: Vec<u32>,
    homes: PathBuf,
    guards: Vec<Guard>,
}

impl Users {
    /// Makes them, with homes on the file system that is mounted at `point`. `prefix` sets them apart from those of other disks.
    pub(super) fn create(point: &Path, prefix: &str) -> Result<Self> {
        let homes = point.join("homes");
        let (names, guards) = accounts::create(prefix, COUNT, &homes)?;
        // They outlive a power cut.
        for directory in [&homes, point] {
            fs_err::File::open(directory)?.sync_all()?;
        }
        let ids = names.split(',').map(id).collect::<Result<_>>()?;
        Ok(Self {
            names,
            ids,
            homes,
            guards,
        })
    }

    /// Returns the line that names them in obuild's configuration.
    pub(super) fn configuration(&self) -> String {
        let names: Vec<String> = self.names.split(',').map(|n| format!("{n:?}")).collect();
        format!("build-users = [{}]\n", names.join(", "))
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Checks that no process is theirs, no home is there, and nothing of theirs is in memory.
    pub(super) fn check(&self) -> Result<()> {
        let running = processes::of_users(&self.ids);
        ensure!(
            running.is_empty(),
            "processes of build users are left: {running:?}"
        );
        for id in &self.ids {
            let memory = PathBuf::from(format!("/dev/shm/obuild-{id}"));
            ensure!(!memory.exists(), "{} is left", memory.display());
        }
        for entry in fs_err::read_dir(&self.homes)? {
            let home = entry?.path();
            ensure!(false, "{} is left", home.display());
        }
        Ok(())
    }

    /// Deletes them, and reports what could not be.
    pub(super) fn close(self) -> Result<()> {
        self.guards.into_iter().try_for_each(Guard::close)
    }
}

fn id(name: &str) -> Result<u32> {
    let user = nix::unistd::User::from_name(name)?;
    let user = user.with_context(|| format!("{name} was just made"))?;
    Ok(user.uid.as_raw())
}
