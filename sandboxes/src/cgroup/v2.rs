// SPDX-License-Identifier: Apache-2.0
//! Groups of version 2. linux v6.18 Documentation/admin-guide/cgroup-v2.rst.
//!
//! A group with processes cannot pass controllers on to groups below it ("no internal processes"), and the caller's own has at least the
//! caller. So groups are made beside the caller's own unless that is the root: this fits a systemd unit with `Delegate=yes` and
//! `DelegateSubgroup=`, and root anywhere.

use super::{CPU_PERIOD, Group, Problem, Wanted, make};
use std::path::{Path, PathBuf};

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Returns where groups may be made, best first.
pub(super) fn candidates(own: &Path) -> Vec<PathBuf> {
    let parent = own
        .parent()
        .filter(|parent| parent.join("cgroup.subtree_control").exists());
    [Some(own), parent]
        .into_iter()
        .flatten()
        .map(Path::to_owned)
        .collect()
}

/// Returns a group below which others get the controllers.
pub(super) fn base(own: &Path) -> Result<PathBuf, Problem> {
    candidates(own).into_iter().find(|candidate| delegates(candidate)).ok_or_else(|| {
        Problem::Missing(format!(
            "limits need the cgroup controllers cpu, memory and pids, and neither {} nor its parent passes \
             them on; start obuild with `systemd-run -p Delegate=yes -p DelegateSubgroup=main`, or run \
             without limits",
            own.display()
        ))
    })
}

/// Returns whether a group passes our controllers on, after asking it to.
fn delegates(directory: &Path) -> bool {
    let control = directory.join("cgroup.subtree_control");
    let all_on = || {
        fs_err::read_to_string(&control).is_ok_and(|on| {
            let on: Vec<&str> = on
                .split_whitespace()
                .map(|name| name.trim_start_matches('+'))
                .collect();
            CONTROLLERS.iter().all(|wanted| on.contains(wanted))
        })
    };
    // EBUSY: it has processes of its own. ENOENT, EOPNOTSUPP, EACCES: it has not got them or is not ours.
    all_on() || (fs_err::write(&control, "+cpu +memory +pids").is_ok() && all_on())
}

pub(super) fn create(base: &Path, name: &str, wanted: &Wanted) -> Result<Group, Problem> {
    let directory = base.join(name);
    let group = Group {
        events: Some(directory.join("memory.events")),
        directories: vec![directory.clone()],
    };
    let mut limits = Vec::new();
    if let Some(bytes) = wanted.memory_bytes {
        limits.push(("memory.max", bytes.to_string()));
    }
    if let Some(quota) = wanted.cpu_quota {
        limits.push(("cpu.max", format!("{quota} {CPU_PERIOD}")));
    }
    if let Some(pids) = wanted.pids {
        limits.push(("pids.max", pids.to_string()));
    }
    make(&directory, &limits)?;
    // Only kernels with swap have the file.
    if wanted.memory_bytes.is_some() && directory.join("memory.swap.max").exists() {
        let path = directory.join("memory.swap.max");
        fs_err::write(&path, "0").map_err(|source| Problem::Failed {
            action: format!("write 0 to {}", path.display()),
            source,
        })?;
    }
    Ok(group)
}

/// Returns the path for a runtime, the group that comes of it, and whether swap can be limited.
pub(super) fn for_runtime(base: &Path, name: &str) -> (String, Group, bool) {
    let directory = base.join(name);
    // OCI runtime-spec v1.2 config-linux.md "Cgroups Path": absolute paths are relative to the mount point.
    let root = base
        .ancestors()
        .take_while(|place| place.join("cgroup.subtree_control").exists())
        .last()
        .unwrap_or(base);
    let path = Path::new("/").join(directory.strip_prefix(root).unwrap_or(Path::new(name)));
    let group = Group {
        events: Some(directory.join("memory.events")),
        directories: vec![directory],
    };
    (path.to_string_lossy().into_owned(), group, true)
}

/// A directory stands for the cgroup file system here: what is checked is which files get which values. That the kernel takes them can
/// only be seen on a host with version 2.
#[cfg(test)]
mod tests {
    use super::*;

    fn fake() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().expect("a directory");
        let own = root.path().join("service/main");
        fs_err::create_dir_all(&own).expect("a directory");
        for place in [
            root.path().to_owned(),
            root.path().join("service"),
            own.clone(),
        ] {
            fs_err::write(place.join("cgroup.subtree_control"), "").expect("a file");
        }
        (root, own)
    }

    #[test]
    fn the_own_group_is_asked_first() {
        let (_root, own) = fake();
        assert_eq!(base(&own).expect("found"), own);
        let asked = fs_err::read_to_string(own.join("cgroup.subtree_control")).expect("a file");
        assert_eq!(asked, "+cpu +memory +pids");
    }

    #[test]
    fn a_busy_group_gives_way_to_its_parent() {
        let (root, own) = fake();
        // A directory in place of the file refuses to be written, as the kernel's does with EBUSY.
        fs_err::remove_file(own.join("cgroup.subtree_control")).expect("removed");
        fs_err::create_dir(own.join("cgroup.subtree_control")).expect("made");
        assert_eq!(base(&own).expect("found"), root.path().join("service"));
    }

    #[test]
    fn without_a_delegated_group_the_remedy_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        let problem = base(&root.path().join("missing")).expect_err("nothing is there");
        assert!(problem.to_string().contains("Delegate=yes"), "{problem}");
    }

    #[test]
    fn limits_are_written() {
        let (_root, own) = fake();
        let wanted = Wanted {
            memory_bytes: Some(1 << 20),
            cpu_quota: Some(150_000),
            pids: Some(7),
        };
        let group = create(&own, "obuild-1-2-3", &wanted).expect("made");
        let read = |name: &str| {
            fs_err::read_to_string(own.join("obuild-1-2-3").join(name)).expect("written")
        };
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("pids.max"), "7");
        assert_eq!(group.entries(), [own.join("obuild-1-2-3/cgroup.procs")]);
        fs_err::write(
            own.join("obuild-1-2-3/memory.events"),
            "low 0\noom 1\noom_kill 0\n",
        )
        .expect("a file");
        assert!(!group.was_out_of_memory());
        fs_err::write(
            own.join("obuild-1-2-3/memory.events"),
            "low 0\noom 1\noom_kill 2\n",
        )
        .expect("a file");
        assert!(group.was_out_of_memory());
        std::mem::forget(group);
    }

    #[test]
    fn runtimes_get_a_path_from_the_root() {
        let (_root, own) = fake();
        let (path, group, _) = for_runtime(&own, "obuild-x");
        assert_eq!(path, "/service/main/obuild-x");
        assert_eq!(group.directories, [own.join("obuild-x")]);
    }
}
