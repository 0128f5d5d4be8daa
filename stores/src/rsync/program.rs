// SPDX-License-Identifier: Apache-2.0
//! Copying with the program `rsync`, for those who name one.

use crate::place::Place;
use crate::{Error, Rootfs, sys};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// What rsync keeps as well as we do, but for times of access. `-a` is everything usual, then hard links, access control
/// lists, extended attributes and holes; names of users would be looked up in the host's lists.
const OPTIONS: [&str; 3] = ["-aHAXS", "--numeric-ids", "--quiet"];

/// Copies the tree `source` to `SLOT/fs`.
pub(super) fn copy(
    program: &Path,
    place: &Place,
    source: &str,
    slot: &str,
) -> Result<Rootfs, Error> {
    let name = format!("{slot}/fs");
    let target = place.path(&name);
    place.make_directory(&name, 0o700)?;
    let mut command = Command::new(program);
    command
        .args(OPTIONS)
        .arg("--")
        // A trailing slash: its content, not itself.
        .arg(place.path(&format!("{source}/")))
        .arg(&target)
        // No locale, and none of the variables by which rsync takes further options.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null());
    // A copy that goes on after us would fill a draft that others delete.
    sys::die_with_parent(&mut command);
    tracing::debug!(?command, "copying a tree");
    let output = command
        .output()
        .map_err(|error| Error::io("run", program, error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim_end().lines().rev().take(5).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("; ");
        let reason = format!("{} ended with {}: {last}", program.display(), output.status);
        let full = last.contains("No space left on device");
        let kind = if full {
            io::ErrorKind::StorageFull
        } else {
            io::ErrorKind::Other
        };
        return Err(place.error("copy", source, io::Error::new(kind, reason)));
    }
    Ok(Rootfs::Directory(target))
}
