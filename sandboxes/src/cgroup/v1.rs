// SPDX-License-Identifier: Apache-2.0
//! Groups of version 1: one directory a controller. linux v6.18 Documentation/admin-guide/cgroup-v1/.

use super::{CPU_PERIOD, Group, Problem, Wanted, make};
use std::collections::BTreeMap;
use std::path::PathBuf;

type Controllers = BTreeMap<&'static str, PathBuf>;

pub(super) fn create(
    controllers: &Controllers,
    name: &str,
    wanted: &Wanted,
) -> Result<Group, Problem> {
    let mut group = Group::none();
    let mut enter = |controller: &str, limits: &[(&str, String)]| {
        let directory = find(controllers, controller)?.join(name);
        // Before it is filled: a group that was made only in part is removed with the rest.
        group.directories.push(directory.clone());
        make(&directory, limits).map(|()| directory)
    };
    let mut events = None;
    if let Some(bytes) = wanted.memory_bytes {
        let mut limits = vec![("memory.limit_in_bytes", bytes.to_string())];
        if has_swap_limit(controllers) {
            // Memory and swap together: no more in all.
            limits.push(("memory.memsw.limit_in_bytes", bytes.to_string()));
        }
        events = Some(enter("memory", &limits)?.join("memory.oom_control"));
    }
    if let Some(quota) = wanted.cpu_quota {
        let limits = [
            ("cpu.cfs_period_us", CPU_PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ];
        enter("cpu", &limits)?;
    }
    if let Some(pids) = wanted.pids {
        enter("pids", &[("pids.max", pids.to_string())])?;
    }
    group.events = events;
    Ok(group)
}

/// Returns the path for a runtime, which takes it below its own groups, the group that comes of it, and whether swap can be limited.
pub(super) fn for_runtime(
    controllers: &Controllers,
    all: &[PathBuf],
    name: &str,
    wanted: &Wanted,
) -> Result<(String, Group, bool), Problem> {
    for (controller, asked) in [
        ("memory", wanted.memory_bytes.is_some()),
        ("cpu", wanted.cpu_quota.is_some()),
        ("pids", wanted.pids.is_some()),
    ] {
        if asked {
            find(controllers, controller)?;
        }
    }
    let mut group = Group::none();
    group.directories = all.iter().map(|own| own.join(name)).collect();
    group.events = controllers
        .get("memory")
        .map(|own| own.join(name).join("memory.oom_control"));
    Ok((name.to_owned(), group, has_swap_limit(controllers)))
}

fn find<'a>(controllers: &'a Controllers, controller: &str) -> Result<&'a PathBuf, Problem> {
    controllers.get(controller).ok_or_else(|| {
        Problem::Missing(format!(
            "this limit needs the cgroup controller {controller}, which is not mounted; mount it \
             (`mount -t cgroup -o {controller} cgroup /sys/fs/cgroup/{controller}`) or run without the limit"
        ))
    })
}

fn has_swap_limit(controllers: &Controllers) -> bool {
    controllers
        .get("memory")
        .is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_controller_is_named() {
        let wanted = Wanted {
            memory_bytes: None,
            cpu_quota: None,
            pids: Some(5),
        };
        let problem = create(&BTreeMap::new(), "obuild-test", &wanted).expect_err("no controller");
        assert!(problem.to_string().contains("pids"), "{problem}");
    }
}
