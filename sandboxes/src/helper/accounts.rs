// SPDX-License-Identifier: Apache-2.0
//! Who a command runs as, looked up in the tree's own `/etc/passwd` and `/etc/group`.

use crate::sandbox::User;
use crate::tree::Tree;
use crate::wire::{Failure, Trying};
use bstr::{BString, ByteSlice};
use rustix::fs::Gid;

/// The identity of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<Gid>,
    pub(super) home: BString,
}

/// Finds a user's account.
pub(super) fn find(tree: &Tree, user: &User) -> Result<Account, Failure> {
    let read = |path: &str| {
        let content = tree
            .read(path.as_bytes())
            .trying(|| format!("read the tree's {path}"))?;
        Ok(content.unwrap_or_default())
    };
    let unmapped = |error: obuild_rootless::Unmapped| Failure::Unmapped(error.to_string());
    let passwd = read("/etc/passwd")?;
    let mut account = match user {
        User::Ids { uid, gid } => Account {
            uid: *uid,
            gid: *gid,
            groups: Vec::new(),
            home: entry(&passwd, |found| found.uid == *uid)
                .map_or_else(|| BString::from("/"), |found| found.home),
        },
        User::Name(name) => {
            let found = entry(&passwd, |found| found.name == name.as_slice())
                .ok_or_else(|| Failure::NoUser(name.clone()))?;
            let groups = groups(&read("/etc/group")?, name, found.gid)
                .into_iter()
                .map(|gid| Ok(Gid::from_raw(obuild_rootless::owner(0, gid)?.1)))
                .collect::<Result<_, _>>()
                .map_err(unmapped)?;
            Account {
                uid: found.uid,
                gid: found.gid,
                groups,
                home: found.home,
            }
        }
    };
    (account.uid, account.gid) =
        obuild_rootless::owner(account.uid, account.gid).map_err(unmapped)?;
    Ok(account)
}

struct Entry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: BString,
}

/// Returns the first line of passwd(5) that is whole and fits.
fn entry<'a>(passwd: &'a [u8], fits: impl Fn(&Entry<'a>) -> bool) -> Option<Entry<'a>> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next()?;
        let (_password, uid, gid) = (fields.next()?, id(fields.next()?)?, id(fields.next()?)?);
        let home = fields
            .nth(1)
            .filter(|home| !home.is_empty())
            .unwrap_or(b"/");
        let entry = Entry {
            name,
            uid,
            gid,
            home: home.into(),
        };
        fits(&entry).then_some(entry)
    })
}

/// Returns the groups of group(5) that list the user, with the user's own one first.
fn groups(group: &[u8], user: &[u8], own: u32) -> Vec<u32> {
    let mut groups = vec![own];
    for line in group.lines() {
        let mut fields = line.splitn(4, |&byte| byte == b':').skip(2);
        let (Some(gid), Some(members)) = (fields.next().and_then(id), fields.next()) else {
            continue;
        };
        let member = members
            .split(|&byte| byte == b',')
            .any(|member| member == user);
        if member && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    groups
}

fn id(field: &[u8]) -> Option<u32> {
    field.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# note\nbroken:x:1\nuser:x:1000:1001::/home/user:\nbare:x:5:5::\n";

    #[test]
    fn whole_lines_are_read() {
        let user = entry(PASSWD, |entry| entry.name == b"user").expect("there");
        assert_eq!(
            (user.uid, user.gid, user.home),
            (1000, 1001, "/home/user".into())
        );
        assert!(entry(PASSWD, |entry| entry.name == b"broken").is_none());
        let bare = entry(PASSWD, |entry| entry.uid == 5).expect("there");
        assert_eq!(bare.home, "/");
    }

    #[test]
    fn groups_are_those_that_list_the_user() {
        let group = b"root:x:0:\nuser:x:1001:\none:x:7:a,user\ntwo:x:8:auser\nthree:x:9:user,b\nmany:x:7:user\n";
        assert_eq!(groups(group, b"user", 1001), [1001, 7, 9]);
    }
}
