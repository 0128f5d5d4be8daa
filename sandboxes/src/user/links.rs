// SPDX-License-Identifier: Apache-2.0
//! Links in a tree to what is kept outside of it (secrets, caches), and their removal. Where there are no mounts, this is how they are shown.
//!
//! A tree may hold anything, also links that lead out of it: every part of a path is opened without following one.

use bstr::BString;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Something that was made in a tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Made {
    /// Below the tree's root.
    path: BString,
    kind: Kind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Kind {
    /// A directory that was missing.
    Directory,
    /// A link to this path.
    Link(BString),
    /// A link to this path, in place of an empty directory of this mode.
    InPlace(BString, u32),
}

/// Makes the link `target` to `path` in the tree, and missing directories above it for `owner`. `record` is called before each is made.
pub(super) fn show(
    root: BorrowedFd<'_>,
    target: &[u8],
    path: &Path,
    owner: (u32, u32),
    record: &mut dyn FnMut(Made) -> io::Result<()>,
) -> io::Result<()> {
    let (above, name) = split(target)?;
    let directory = descend(root, above, &mut |parent, part, whole| {
        record(Made {
            path: whole.into(),
            kind: Kind::Directory,
        })?;
        keeping_times(parent, || make_directory(parent, part, owner))
    })?;
    let to = BString::from(path.as_os_str().as_bytes());
    let kind = match look(directory.as_fd(), name)? {
        None => Kind::Link(to),
        Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            Kind::InPlace(to, u32::from(stat.st_mode) & 0o7777)
        }
        Some(_) => return Err(io::Error::other("there is a file of this name in the tree")),
    };
    record(Made {
        path: joined(above, name),
        kind: kind.clone(),
    })?;
    keeping_times(directory.as_fd(), || {
        if matches!(kind, Kind::InPlace(..)) {
            rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR).map_err(|error| match error {
                Errno::NOTEMPTY | Errno::EXIST => io::Error::other(
                    "the tree has files there, and without mounts nothing can be shown over them",
                ),
                error => error.into(),
            })?;
        }
        rustix::fs::symlinkat(path, &directory, name)?;
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(rustix::fs::chownat(
            &directory,
            name,
            Some(uid),
            Some(gid),
            flags,
        )?)
    })
}

/// Makes a directory with all above it that are missing, to stay. Ends quietly at a link: where that leads is for the user to find out.
pub(super) fn make_directories(
    root: BorrowedFd<'_>,
    path: &[u8],
    owner: (u32, u32),
) -> io::Result<()> {
    let made = descend(root, path, &mut |parent, part, _| {
        make_directory(parent, part, owner)
    });
    match made {
        Ok(_) => Ok(()),
        Err(error) if is_link(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes what was made, unless the step put something else in its place. The times of directories stay as the step left them.
pub(super) fn remove(root: BorrowedFd<'_>, made: &[Made]) {
    for entry in made.iter().rev() {
        let Ok((above, name)) = split(&entry.path) else {
            continue;
        };
        // What cannot be found any more was moved or removed by the step.
        let Ok(parent) = descend(root, above, &mut |_, _, _| Err(Errno::NOENT.into())) else {
            continue;
        };
        let _ = keeping_times(parent.as_fd(), || {
            remove_one(parent.as_fd(), name, &entry.kind)
        });
    }
}

fn remove_one(parent: BorrowedFd<'_>, name: &[u8], kind: &Kind) -> io::Result<()> {
    let (to, mode) = match kind {
        // One in which the step has put something stays.
        Kind::Directory => {
            return Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?);
        }
        Kind::Link(to) => (to, None),
        Kind::InPlace(to, mode) => (to, Some(*mode)),
    };
    let found = rustix::fs::readlinkat(parent, name, Vec::new())?;
    if found.as_bytes() == to.as_slice() {
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        if let Some(mode) = mode {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
            // The umask has no say in what was there before.
            let mode = Mode::from_raw_mode(mode.try_into().unwrap_or(0o755));
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
    }
    Ok(())
}

/// Makes a directory that is missing.
type Missing<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &[u8], &[u8]) -> io::Result<()>;

/// Opens a directory of the tree. `missing` is asked to make what is not there: it gets the directory, the name, and the whole path.
fn descend(root: BorrowedFd<'_>, path: &[u8], missing: Missing<'_>) -> io::Result<OwnedFd> {
    let mut directory = root.try_clone_to_owned()?;
    let mut whole = BString::default();
    for part in parts(path)? {
        whole = joined(&whole, part);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |directory: &OwnedFd| rustix::fs::openat(directory, part, flags, Mode::empty());
        directory = match open(&directory) {
            Ok(inner) => inner,
            Err(Errno::NOENT) => {
                missing(directory.as_fd(), part, &whole)?;
                open(&directory)?
            }
            Err(error) => {
                let link = look(directory.as_fd(), part)?
                    .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
                return Err(if link {
                    Errno::LOOP.into()
                } else {
                    error.into()
                });
            }
        };
    }
    Ok(directory)
}

fn is_link(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

fn make_directory(parent: BorrowedFd<'_>, name: &[u8], owner: (u32, u32)) -> io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        flags,
    )?)
}

fn look(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Does something in a directory that keeps its times.
fn keeping_times(
    directory: BorrowedFd<'_>,
    action: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let stat = rustix::fs::fstat(directory)?;
    let result = action();
    // Not more than a nicety.
    let _ = rustix::fs::futimens(directory, &times(&stat));
    result
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_wrap,
    reason = "the types differ between systems"
)]
fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime as _,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime as _,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// Returns the names of a path below the root.
pub(super) fn parts(path: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = path
        .split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(io::Error::other("\"..\" in a path"));
    }
    Ok(parts)
}

/// Returns a path's directory, without a slash at its beginning, and its last name.
fn split(path: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let name = *parts(path)?.last().ok_or(io::ErrorKind::InvalidInput)?;
    let at = path.windows(name.len()).rposition(|found| found == name);
    Ok((&path[..at.unwrap_or(0)], name))
}

fn joined(directory: &[u8], name: &[u8]) -> BString {
    let mut path = BString::from(directory);
    if !path.is_empty() && !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split() {
        for (path, above, name) in [
            ("/run/secrets/a", "/run/secrets/", "a"),
            ("a", "", "a"),
            ("/aa/./a//", "/aa/./", "a"),
        ] {
            let (found, last) = split(path.as_bytes()).expect("a path");
            assert_eq!((found, last), (above.as_bytes(), name.as_bytes()), "{path}");
        }
        assert!(split(b"/").is_err() && split(b"/a/../b").is_err());
    }

    #[test]
    fn what_is_made_goes_again_and_links_are_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = std::fs::File::from(
            rustix::fs::open(directory.path(), OFlags::RDONLY, Mode::empty()).expect("open"),
        );
        let owner = (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        let mut made = Vec::new();
        let mut show_at = |target: &str, to: &str| {
            show(
                root.as_fd(),
                target.as_bytes(),
                Path::new(to),
                owner,
                &mut |entry| {
                    made.push(entry);
                    Ok(())
                },
            )
        };
        fs_err::create_dir(directory.path().join("empty")).expect("a directory");
        let before = fs_err::metadata(directory.path())
            .expect("metadata")
            .modified()
            .expect("a time");
        show_at("/run/secrets/token", "/etc/hostname").expect("shown");
        show_at("/empty", "/etc").expect("shown");
        let seen = fs_err::read_link(directory.path().join("run/secrets/token")).expect("a link");
        assert_eq!(seen, Path::new("/etc/hostname"));
        std::os::unix::fs::symlink("/etc", directory.path().join("out")).expect("a link");
        assert!(show_at("/out/new", "/etc/hostname").is_err());
        fs_err::remove_file(directory.path().join("out")).expect("removed");
        remove(root.as_fd(), &made);
        let left: Vec<_> = fs_err::read_dir(directory.path())
            .expect("a directory")
            .flatten()
            .collect();
        assert_eq!(left.len(), 1);
        assert!(left[0].file_type().expect("a type").is_dir());
        // Removing the test's own link above has changed the time; the making had not.
        let after = fs_err::metadata(directory.path())
            .expect("metadata")
            .modified()
            .expect("a time");
        assert!(after >= before);
    }
}
