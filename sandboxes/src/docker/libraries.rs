// SPDX-License-Identifier: Apache-2.0
//! How the helper's program starts in a container that has no files: with this process's own dynamic loader and libraries.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a container needs to start the program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// Files and directories with their places in the container.
    pub(super) binds: Vec<(PathBuf, String)>,
    /// The command line without the helper's own arguments.
    pub(super) argv: Vec<String>,
}

/// Looks at what this process has loaded; the helper is this program, or built as it was.
pub(super) fn look(program: &Path) -> io::Result<Start> {
    let program = fs_err::canonicalize(program)?;
    Ok(plan(program, &fs_err::read("/proc/self/maps")?))
}

fn plan(program: PathBuf, maps: &[u8]) -> Start {
    const PROGRAM: &str = "/obuild/helper";
    let mut directories: Vec<PathBuf> = Vec::new();
    let mut loader = None;
    for line in maps.split(|&byte| byte == b'\n') {
        // proc_pid_maps(5): the path is the rest of the line from the first slash on.
        let Some(start) = line.iter().position(|&byte| byte == b'/') else {
            continue;
        };
        let path = Path::new(OsStr::from_bytes(&line[start..]));
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let name = name.to_string_lossy();
        if !name.ends_with(".so") && !name.contains(".so.") {
            continue;
        }
        let known = directories.iter().position(|known| known == directory);
        let index = known.unwrap_or_else(|| {
            directories.push(directory.to_owned());
            directories.len() - 1
        });
        // ld.so(8): ld-linux-x86-64.so.2, ld-linux-aarch64.so.1, ld-musl-x86_64.so.1; the file may also be named ld-2.31.so.
        if name.starts_with("ld-") {
            loader = Some(format!("/obuild/lib{index}/{name}"));
        }
    }
    let mut binds = vec![(program, PROGRAM.to_owned())];
    // Without a loader it is linked statically.
    let Some(loader) = loader else {
        return Start {
            binds,
            argv: vec![PROGRAM.to_owned()],
        };
    };
    let places: Vec<String> = (0..directories.len())
        .map(|index| format!("/obuild/lib{index}"))
        .collect();
    let search = places.join(":");
    binds.extend(directories.into_iter().zip(places));
    Start {
        binds,
        argv: vec![
            loader,
            "--library-path".to_owned(),
            search,
            PROGRAM.to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_and_libraries_are_found() {
        let maps = b"55d0-55d1 r--p 00000000 08:01 1 /usr/bin/obuild\n\
            7f00-7f01 r-xp 00000000 08:01 2                  /usr/lib/x86_64-linux-gnu/libc.so.6\n\
            7f02-7f03 r-xp 00000000 08:01 3                  /opt/gcc/libgcc_s.so.1\n\
            7f04-7f05 r-xp 00000000 08:01 4                  /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2\n\
            7ffc-7ffd rw-p 00000000 00:00 0                  [stack]\n";
        let start = plan("/usr/bin/obuild".into(), maps);
        assert_eq!(
            start.argv,
            [
                "/obuild/lib0/ld-linux-x86-64.so.2",
                "--library-path",
                "/obuild/lib0:/obuild/lib1",
                "/obuild/helper",
            ]
        );
        assert_eq!(start.binds.len(), 3);
        assert_eq!(start.binds[2], ("/opt/gcc".into(), "/obuild/lib1".into()));
    }

    #[test]
    fn a_static_program_needs_nothing() {
        let start = plan(
            "/usr/bin/obuild".into(),
            b"55d0-55d1 r--p 0 08:01 1 /usr/bin/obuild\n",
        );
        assert_eq!(start.argv, ["/obuild/helper"]);
        assert_eq!(start.binds.len(), 1);
    }
}
