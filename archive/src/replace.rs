// SPDX-License-Identifier: Apache-2.0
//! Files that get their names when they are whole: written beside, synced, renamed.

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::io::{self, Write as _};
use std::path::Path;

/// For everybody to read, as far as the umask lets them.
const MODE: u32 = 0o644;

/// Puts a file in the place of another, or leaves that: there is no time at which it is neither. Then it is on the disk, and so is its name.
/// Only one process may do it at a time.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, MODE, true, &|file| file.write_all(content))?;
    sync_name(path)
}

/// What writes a file.
pub(crate) type Write<'a> = dyn Fn(&mut fs::File) -> io::Result<()> + 'a;

/// The same for files of one directory, one after the other; their names are waited for once.
pub(crate) fn replace_several(directory: &Path, files: &[(&str, &Write<'_>)]) -> io::Result<()> {
    for (name, write) in files {
        put(&directory.join(name), MODE, true, write)?;
    }
    if files.is_empty() {
        return Ok(());
    }
    fs::File::open(directory)?.sync_all()
}

/// The same for a file that only its owner may read.
pub(crate) fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, 0o600, true, &|file| file.write_all(content))?;
    sync_name(path)
}

fn sync_name(path: &Path) -> io::Result<()> {
    // fsync(2), "Description": the name is its directory's affair.
    fs::File::open(path.parent().unwrap_or(path))?.sync_all()
}

/// The same, but a power failure may leave anything: for what has a checksum and can be made anew.
pub(crate) fn replace_unsynced(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, MODE, false, &|file| file.write_all(content))
}

fn put(path: &Path, mode: u32, sync: bool, write: &Write<'_>) -> io::Result<()> {
    let mut unfinished = path.to_owned();
    unfinished.add_extension("unfinished");
    let put = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&unfinished)?;
        write(&mut file)?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&unfinished, path)
    };
    put().inspect_err(|_| {
        // On a full disk its room is needed.
        let _ = fs::remove_file(&unfinished);
    })
}
