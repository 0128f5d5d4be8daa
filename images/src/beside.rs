// SPDX-License-Identifier: Apache-2.0
//! Files that are written beside their place and renamed when they are whole: half a file never has the name.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file beside its place and gives it the name when `write` has succeeded; what was there before is replaced. `failed` says what an
/// error of the file itself means.
///
/// # Errors
///
/// Those of `write`, and of making and renaming the file. Nothing is left then.
pub fn replace<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), E> {
    let mut prefix = OsString::from(path.file_name().unwrap_or_default());
    prefix.push(".");
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        // As creat(2) makes them: the umask applies.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(&failed)?;
    write(file.as_file_mut())?;
    file.persist(path)
        .map(drop)
        .map_err(|error| failed(error.error))
}
