// SPDX-License-Identifier: Apache-2.0
//! Where the caller's own cgroups are, from `/proc/self/cgroup` and `/proc/self/mountinfo`. See cgroups(7), `proc_pid_mountinfo(5)`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The version 1 controllers that limits need.
pub(super) const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// The caller's own cgroups.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One directory a controller.
    V1 {
        /// Those of our controllers.
        controllers: BTreeMap<&'static str, PathBuf>,
        /// Those of all: a runtime uses more than we do.
        all: Vec<PathBuf>,
    },
    /// One directory.
    V2(PathBuf),
    /// Nothing is mounted.
    None,
}

struct Mounted {
    root: PathBuf,
    point: PathBuf,
    kind: String,
    options: String,
}

impl Layout {
    pub(super) fn parse(cgroup: &str, mountinfo: &str) -> Self {
        let mounts: Vec<Mounted> = mountinfo.lines().filter_map(mounted).collect();
        let own = |wanted: &str| {
            // hierarchy id : controllers : path
            cgroup.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                controllers
                    .split(',')
                    .any(|name| name == wanted)
                    .then_some(path)
            })
        };
        let mut controllers = BTreeMap::new();
        for controller in CONTROLLERS {
            let mount = mounts.iter().find(|mount| {
                mount.kind == "cgroup" && mount.options.split(',').any(|name| name == controller)
            });
            if let (Some(path), Some(mount)) = (own(controller), mount) {
                controllers.insert(controller, directory(mount, path));
            }
        }
        if !controllers.is_empty() {
            let all = cgroup.lines().filter_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (names, path) = (fields.next()?, fields.next()?);
                let first = names.split(',').next()?;
                let mount = mounts.iter().find(|mount| {
                    if first.is_empty() {
                        return mount.kind == "cgroup2";
                    }
                    // `name=systemd` is an option like the controllers.
                    mount.kind == "cgroup" && mount.options.split(',').any(|name| name == first)
                })?;
                Some(directory(mount, path))
            });
            return Self::V1 {
                all: all.collect(),
                controllers,
            };
        }
        let mount = mounts.iter().find(|mount| mount.kind == "cgroup2");
        match (own(""), mount) {
            (Some(path), Some(mount)) => Self::V2(directory(mount, path)),
            _ => Self::None,
        }
    }

    /// Returns the directories in which groups may have been made.
    pub(super) fn parents(&self) -> Vec<PathBuf> {
        match self {
            Self::V1 { all, .. } => all.clone(),
            Self::V2(own) => super::v2::candidates(own),
            Self::None => Vec::new(),
        }
    }
}

/// Returns where a cgroup's path is on a mount that may show a part of the tree only.
fn directory(mount: &Mounted, path: &str) -> PathBuf {
    let path = Path::new(path);
    let below = path.strip_prefix(&mount.root).unwrap_or(Path::new(""));
    let mut directory = mount.point.clone();
    directory.extend(
        below
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_))),
    );
    directory
}

fn mounted(line: &str) -> Option<Mounted> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, place.next()?);
    let mut file_system = file_system.split(' ');
    let kind = file_system.next()?.to_owned();
    let options = file_system.nth(1)?.to_owned();
    Some(Mounted {
        root: unescape(root),
        point: unescape(point),
        kind,
        options,
    })
}

/// Turns `\040` and the like back into bytes.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = || {
            let digits = after.get(..3).filter(|_| first == b'\\')?;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
        };
        if let Some(byte) = octal() {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID_MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_hosts_use_version_1() {
        let cgroup = "8:pids:/\n4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/\n";
        let Layout::V1 { controllers, all } = Layout::parse(cgroup, HYBRID_MOUNTS) else {
            panic!("not version 1");
        };
        assert_eq!(all.len(), 4);
        assert!(all.contains(&PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(
            controllers["memory"],
            Path::new("/sys/fs/cgroup/memory/a/b")
        );
        assert_eq!(
            controllers["cpu"],
            Path::new("/sys/fs/cgroup/cpu,cpuacct/c")
        );
        assert_eq!(controllers["pids"], Path::new("/sys/fs/cgroup/pids"));
    }

    #[test]
    fn unified_hosts_use_version_2() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let layout = Layout::parse("0::/system.slice/obuild.service\n", mounts);
        let own = PathBuf::from("/sys/fs/cgroup/system.slice/obuild.service");
        assert_eq!(layout, Layout::V2(own));
    }

    #[test]
    fn a_container_sees_a_part_of_the_tree() {
        let mounts = "30 23 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let Layout::V1 { controllers, .. } = Layout::parse("4:memory:/docker/abc/x\n", mounts)
        else {
            panic!("not version 1");
        };
        assert_eq!(controllers["memory"], Path::new("/sys/fs/cgroup/memory/x"));
        assert_eq!(controllers.len(), 1);
        // Seen from outside the part that is shown, the own path makes no sense.
        let Layout::V1 { controllers, .. } = Layout::parse("4:memory:/../other\n", mounts) else {
            panic!("not version 1");
        };
        assert_eq!(controllers["memory"], Path::new("/sys/fs/cgroup/memory"));
    }

    #[test]
    fn blanks_in_paths_are_read() {
        assert_eq!(unescape("/a\\040b\\"), Path::new("/a b\\"));
    }

    #[test]
    fn hosts_without_cgroups() {
        assert_eq!(Layout::parse("", ""), Layout::None);
    }
}
