// SPDX-License-Identifier: Apache-2.0
//! Users to run steps as, deleted again at the end.

use crate::cmd::Cmd;
use crate::reaper::{Guard, Item};
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// Makes `count` users with homes, which do not exist yet, below `homes`. Returns their names, and what deletes them.
pub(crate) fn create(prefix: &str, count: usize, homes: &Path) -> Result<(String, Vec<Guard>)> {
    fs_err::create_dir_all(homes)?;
    let (mut names, mut guards) = (Vec::new(), Vec::new());
    for number in 1..=count {
        let name = format!("{prefix}{}-{number}", std::process::id());
        guards.push(Guard::new(Item::User(name.clone()))?);
        Cmd::new("useradd")
            // A group of its own, no home yet, no way to log in.
            .args(["-r", "-M", "-U", "-s", "/usr/sbin/nologin", "-d"])
            .arg(homes.join(&name))
            .arg(&name)
            .deadline(Duration::from_secs(20))
            .output()?;
        names.push(name);
    }
    Ok((names.join(","), guards))
}
