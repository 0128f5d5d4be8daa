// SPDX-License-Identifier: Apache-2.0
//! Which user and group ids exist in the process's user namespace. The facts are the kernel's, never the environment's.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;

/// A line of `/proc/PID/uid_map`: `user_namespaces(7)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first id inside.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many there are.
    pub count: u32,
}

/// The ids of a user namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub(crate) users: Vec<Extent>,
    pub(crate) groups: Vec<Extent>,
    pub(crate) may_set_groups: bool,
    pub(crate) why_single: Option<String>,
}

/// An id that the user namespace does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no {kind} id {id} for an ordinary user here, who has {}; give it a longer range in {file} and start with a new store",
    ranges(extents)
)]
pub struct Unmapped {
    kind: &'static str,
    file: &'static str,
    id: u32,
    extents: Vec<Extent>,
}

impl From<Unmapped> for io::Error {
    fn from(unmapped: Unmapped) -> Self {
        Self::new(io::ErrorKind::InvalidInput, unmapped)
    }
}

static CURRENT: OnceLock<Option<Mapping>> = OnceLock::new();

/// `PROC_USER_INIT_INO`: linux v6.18 `include/linux/proc_ns.h`. The number of the namespace that all others are in.
const INITIAL: u64 = 0xEFFF_FFFD;

/// Returns the ids of the process's user namespace; `None` in the initial one, where all ids are what they seem.
///
/// The kernel is asked once.
pub fn current() -> Option<&'static Mapping> {
    CURRENT
        .get_or_init(|| {
            let namespace = fs_err::metadata("/proc/self/ns/user").ok()?;
            if namespace.ino() == INITIAL {
                return None;
            }
            Mapping::read().ok()
        })
        .as_ref()
}

/// Remembers what [`enter`](crate::enter) has made.
pub(crate) fn set_current(mapping: Mapping) {
    // Should somebody have asked before, there would be nothing to be done about it.
    let _ = CURRENT.set(Some(mapping));
}

/// Returns the ids to use for a file or a process that should belong to `uid` and `gid`.
///
/// They are those, or root's where the namespace has one id only: then everything belongs to that one.
///
/// # Errors
///
/// When the user namespace has ids, but not these.
pub fn owner(uid: u32, gid: u32) -> Result<(u32, u32), Unmapped> {
    match current() {
        None => Ok((uid, gid)),
        Some(mapping) => mapping.owner(uid, gid),
    }
}

impl Mapping {
    /// Reads the process's own.
    pub(crate) fn read() -> io::Result<Self> {
        let read = |name: &str| fs_err::read_to_string(format!("/proc/self/{name}"));
        // The file is not there when the kernel is older than 3.19.
        let may_set_groups = read("setgroups").map_or(true, |text| text.trim() == "allow");
        Ok(Self {
            users: parse(&read("uid_map")?),
            groups: parse(&read("gid_map")?),
            may_set_groups,
            why_single: None,
        })
    }

    /// Returns whether there is one id only, so that everything has to belong to it.
    pub fn is_single(&self) -> bool {
        total(&self.users) <= 1 || total(&self.groups) <= 1
    }

    /// Returns why there is one id only, if this process knows.
    pub fn why_single(&self) -> Option<&str> {
        self.why_single.as_deref()
    }

    /// Returns whether setgroups(2) is allowed. Without newgidmap it is not: a user could get rid of a group that forbids something.
    pub fn may_set_groups(&self) -> bool {
        self.may_set_groups
    }

    /// Returns the user id outside that is root's here.
    pub fn outer_root(&self) -> Option<u32> {
        let first = self.users.iter().find(|extent| extent.inside == 0);
        first.map(|extent| extent.outside)
    }

    /// As [`owner`], for this mapping.
    pub fn owner(&self, uid: u32, gid: u32) -> Result<(u32, u32), Unmapped> {
        if self.is_single() {
            return Ok((0, 0));
        }
        for (kind, file, id, extents) in [
            ("user", "/etc/subuid", uid, &self.users),
            ("group", "/etc/subgid", gid, &self.groups),
        ] {
            if !contains(extents, id) {
                return Err(Unmapped {
                    kind,
                    file,
                    id,
                    extents: extents.clone(),
                });
            }
        }
        Ok((uid, gid))
    }
}

/// The map as a store writes it down: it can be compared, and says who is who.
impl fmt::Display for Mapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, extents) in [("users", &self.users), (" groups", &self.groups)] {
            formatter.write_str(name)?;
            for extent in extents {
                let Extent {
                    inside,
                    outside,
                    count,
                } = extent;
                write!(formatter, " {inside}={outside}+{count}")?;
            }
        }
        Ok(())
    }
}

fn contains(extents: &[Extent], id: u32) -> bool {
    extents.iter().any(|extent| {
        id.checked_sub(extent.inside)
            .is_some_and(|offset| offset < extent.count)
    })
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| u64::from(extent.count)).sum()
}

/// Lists the ids inside, neighbours together.
fn ranges(extents: &[Extent]) -> String {
    let mut sorted: Vec<(u64, u64)> = extents
        .iter()
        .map(|extent| {
            let first = u64::from(extent.inside);
            (first, first + u64::from(extent.count))
        })
        .collect();
    sorted.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (first, end) in sorted {
        match joined.last_mut() {
            Some(last) if last.1 == first => last.1 = end,
            _ => joined.push((first, end)),
        }
    }
    let texts: Vec<String> = joined
        .iter()
        .map(|(first, end)| format!("{first} to {}", end - 1))
        .collect();
    texts.join(", ")
}

/// Parses a map; lines that are none are left out.
fn parse(text: &str) -> Vec<Extent> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Extent {
                inside: next()?,
                outside: next()?,
                count: next()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(users: &str, groups: &str) -> Mapping {
        Mapping {
            users: parse(users),
            groups: parse(groups),
            may_set_groups: true,
            why_single: None,
        }
    }

    #[test]
    fn with_ranges_ids_are_themselves_or_refused() {
        let text = "         0       1000          1\n         1     100000      65536\n";
        let mapping = mapping(text, text);
        assert_eq!(mapping.owner(0, 65536), Ok((0, 65536)));
        let error = mapping.owner(70_000, 0).unwrap_err().to_string();
        assert!(
            error.contains("user id 70000")
                && error.contains("has 0 to 65536;")
                && error.contains("/etc/subuid"),
            "{error}"
        );
        let error = mapping.owner(0, 65537).unwrap_err().to_string();
        assert!(error.contains("/etc/subgid"), "{error}");
        assert_eq!(mapping.outer_root(), Some(1000));
        assert_eq!(
            mapping.to_string(),
            "users 0=1000+1 1=100000+65536 groups 0=1000+1 1=100000+65536"
        );
    }

    #[test]
    fn a_single_id_owns_everything() {
        let mapping = mapping("0 1000 1\n", "0 1000 1\n");
        assert!(mapping.is_single());
        assert_eq!(mapping.owner(33, 5), Ok((0, 0)));
    }

    #[test]
    fn the_whole_range_is_no_single_id() {
        let mapping = mapping("0 0 4294967295\n", "0 0 4294967295\n");
        assert_eq!(mapping.owner(4_294_967_294, 5), Ok((4_294_967_294, 5)));
        assert!(!mapping.is_single());
    }
}
