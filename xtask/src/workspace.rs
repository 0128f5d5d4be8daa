// SPDX-License-Identifier: Apache-2.0
//! Where things are: the checkout, its build directory, programs on the search path.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Returns the top directory of the checkout.
pub(crate) fn root() -> &'static Path {
    // The manifest directory is `<root>/xtask`.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
}

/// Returns cargo's build directory.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// Returns the cargo that runs us.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Returns whether `CI=true`: then nothing may be skipped.
pub(crate) fn in_ci() -> bool {
    env::var("CI").as_deref() == Ok("true")
}

/// Returns the search path with the directories of system programs, which non-login shells often lack.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&path).collect();
    for extra in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !directories
            .iter()
            .any(|directory| directory == Path::new(extra))
        {
            directories.push(extra.into());
        }
    }
    env::join_paths(directories).unwrap_or(path)
}

/// Returns where a program is, if it is installed.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path())
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// Returns the directory of opam-repository's files and of what OCaml's parser makes of them: `OBUILD_TEST_OPAM_DATA`, or `shared/data` beside
/// the checkout. They are other people's files and no part of the project.
pub(crate) fn opam_data() -> Option<PathBuf> {
    let directory = env::var_os("OBUILD_TEST_OPAM_DATA")
        .map_or_else(|| root().join("../shared/data"), PathBuf::from);
    directory.join("golden").is_dir().then_some(directory)
}

/// Returns whether we are root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs_err::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
