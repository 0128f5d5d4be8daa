// SPDX-License-Identifier: Apache-2.0
//! Looks up a named user in a tree's `/etc/passwd`, for the owner of copied files and caches.

use crate::Error;
use rustix::fd::BorrowedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// More than any real file; a tree could hold an endless one.
const LIMIT_BYTES: u64 = 4 << 20;

/// Returns the user's numeric user and group id, from the tree itself and never through a link out of it.
pub(crate) fn look_up(root: BorrowedFd<'_>, name: &[u8]) -> Result<(u32, u32), Error> {
    let missing = || Error::NoUser {
        name: String::from_utf8_lossy(name).into_owned(),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, "etc/passwd", flags, Mode::empty(), resolve).map_err(|_| missing())?;
    let mut text = Vec::new();
    File::from(file)
        .take(LIMIT_BYTES)
        .read_to_end(&mut text)
        .map_err(|source| Error::Io {
            action: "read",
            path: PathBuf::from("/etc/passwd"),
            source,
        })?;
    find(&text, name).ok_or_else(missing)
}

/// `passwd(5)`: name:password:uid:gid:gecos:home:shell.
fn find(passwd: &[u8], name: &[u8]) -> Option<(u32, u32)> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        if fields.next()? != name {
            return None;
        }
        let mut number = |index| std::str::from_utf8(fields.nth(index)?).ok()?.parse().ok();
        Some((number(1)?, number(0)?))
    })
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken:x\nopam:x:1000:1001::/home/opam:\n";
        assert_eq!(find(passwd, b"opam"), Some((1000, 1001)));
        assert_eq!(find(passwd, b"root"), Some((0, 0)));
        assert_eq!(find(passwd, b"op"), None);
        assert_eq!(find(passwd, b"broken"), None);
    }
}
