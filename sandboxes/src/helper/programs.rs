// SPDX-License-Identifier: Apache-2.0
//! Finds a command's program in a tree, and says in plain words why one cannot be run.

use crate::tree::Tree;
use crate::wire::Failure;
use bstr::{BStr, BString, ByteSlice};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use std::io::Read;

// What shells and container tools search when PATH is not set.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where programs are looked for.
pub(crate) trait Files {
    /// Opens a file by its absolute path.
    fn open(&self, path: &[u8], flags: OFlags) -> std::io::Result<OwnedFd>;
}

impl Files for Tree {
    fn open(&self, path: &[u8], flags: OFlags) -> std::io::Result<OwnedFd> {
        Self::open(self, path, flags)
    }
}

/// Returns the program's path in the tree. A name without `/` is looked up in the environment's `PATH`.
pub(crate) fn find(
    tree: &impl Files,
    program: &BStr,
    env: &[(BString, BString)],
    workdir: &[u8],
) -> Result<BString, Failure> {
    let no_program = |reason: String| Failure::NoProgram {
        program: program.to_owned(),
        reason,
    };
    if program.contains(&b'/') {
        let path = below(workdir, program);
        return match runnable(tree, &path) {
            Ok(()) => Ok(path),
            Err(Errno::ACCESS) => Err(no_program("it is not an executable file".to_owned())),
            Err(Errno::NOENT) => Err(no_program("there is no such file".to_owned())),
            Err(error) => Err(no_program(plain(error))),
        };
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH");
    let path = path.map_or(BStr::new(DEFAULT_PATH), |(_, value)| value.as_bstr());
    let mut refused = None;
    for directory in path.split(|&byte| byte == b':') {
        // An empty entry is the working directory: execvp(3).
        let candidate = below(workdir, &join(directory, program));
        match runnable(tree, &candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => refused = refused.or(Some(candidate)),
            Err(_) => {}
        }
    }
    Err(no_program(match refused {
        Some(candidate) => format!("{candidate} is not an executable file"),
        None => format!("it is in no directory of PATH ({path})"),
    }))
}

fn join(directory: &[u8], name: &[u8]) -> BString {
    if directory.is_empty() {
        return name.into();
    }
    let mut path = BString::from(directory);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

fn below(workdir: &[u8], path: &[u8]) -> BString {
    if path.starts_with(b"/") {
        path.into()
    } else {
        join(workdir, path)
    }
}

fn runnable(tree: &impl Files, path: &[u8]) -> Result<(), Errno> {
    let file = tree
        .open(path, OFlags::PATH)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let stat = rustix::fs::fstat(&file)?;
    let executable = stat.st_mode & 0o111 != 0;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && executable {
        Ok(())
    } else {
        Err(Errno::ACCESS)
    }
}

fn plain(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}

/// Returns why execve(2) of `path` failed with `error`, or would: `None` when nothing speaks against it.
pub(crate) fn obstacle(tree: &impl Files, path: &BStr, error: Option<Errno>) -> Option<String> {
    let head = match tree.open(path, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => {
            let mut head = Vec::new();
            let read = std::fs::File::from(file).take(4096).read_to_end(&mut head);
            read.map(|_| head).unwrap_or_default()
        }
        Err(failed) => return Some(failed.to_string()),
    };
    let exists = |wanted: &[u8]| tree.open(wanted, OFlags::PATH).is_ok();
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.lines().next().unwrap_or_default();
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let interpreter = words.next().unwrap_or_default();
        if !interpreter.is_empty() && !exists(interpreter) {
            let interpreter = interpreter.as_bstr();
            return Some(format!("its interpreter {interpreter} is not in the tree"));
        }
    } else if let Some(loader) = elf_loader(&head)
        && !exists(loader)
    {
        let loader = loader.as_bstr();
        return Some(format!(
            "its loader {loader} is not in the tree (the program is for another C library or machine)"
        ));
    }
    let error = error?;
    Some(if error != Errno::NOEXEC {
        plain(error)
    } else if head.is_empty() {
        "the file is empty".to_owned()
    } else if head.starts_with(b"\x7fELF") {
        "the program is for another kind of machine".to_owned()
    } else {
        "it is neither a program nor a script with a \"#!\" line".to_owned()
    })
}

/// Returns the loader that a 64- or 32-bit little-endian ELF file names. elf(5): `PT_INTERP`.
fn elf_loader(head: &[u8]) -> Option<&[u8]> {
    const PT_INTERP: u64 = 3;
    let wide = match head.get(..6)? {
        [0x7f, b'E', b'L', b'F', 2, 1] => true,
        [0x7f, b'E', b'L', b'F', 1, 1] => false,
        _ => return None,
    };
    let number = |offset: usize, bytes: usize| -> Option<u64> {
        let field = head.get(offset..offset.checked_add(bytes)?)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        )
    };
    let place = |value: u64| usize::try_from(value).ok();
    let (table, entry, count) = if wide {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    (0..count).find_map(|index| {
        let header = place(table.checked_add(index.checked_mul(entry)?)?)?;
        if number(header, 4)? != PT_INTERP {
            return None;
        }
        let (offset, size) = if wide {
            (
                number(header.checked_add(8)?, 8)?,
                number(header.checked_add(32)?, 8)?,
            )
        } else {
            (
                number(header.checked_add(4)?, 4)?,
                number(header.checked_add(16)?, 4)?,
            )
        };
        let text = head.get(place(offset)?..place(offset.checked_add(size)?)?)?;
        text.split(|&byte| byte == 0).next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_is_read_from_a_program() {
        let own = fs_err::read("/proc/self/exe").expect("this test");
        let loader = elf_loader(&own[..4096]).expect("tests are linked dynamically");
        assert!(loader.starts_with(b"/lib"), "{}", loader.as_bstr());
    }

    #[test]
    fn broken_programs_have_no_loader() {
        let own = fs_err::read("/proc/self/exe").expect("this test");
        for length in 0..512 {
            let _ = elf_loader(&own[..length]);
        }
        let mut hostile = own[..4096].to_vec();
        hostile[32..64].fill(0xff);
        assert_eq!(elf_loader(&hostile), None);
    }
}
