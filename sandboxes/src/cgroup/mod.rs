// SPDX-License-Identifier: Apache-2.0
//! Limits of memory, processors and processes, by cgroups. Nothing is made when no limit is asked for.
//!
//! Version 1 has a tree a controller, version 2 one for all; hosts have either, or both, of which then only version 1 has our three
//! controllers. Groups are made below the caller's own, so that its limits hold too. Their names carry the caller's process id and start
//! time: what a killed caller left behind is found and removed by the next one.

mod layout;
mod v1;
mod v2;

use crate::sandbox::{Error, Limits};
use layout::Layout;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The period of processor bandwidth, in µs: the kernel's default.
pub(crate) const CPU_PERIOD: u64 = 100_000;

/// The prefix of all group names.
const PREFIX: &str = "obuild-";

/// The host's cgroups as the caller may use them.
#[derive(Debug)]
pub(crate) struct Cgroups {
    sandbox: &'static str,
    layout: Layout,
    owner: String,
}

/// Numbers the groups of this process, whichever of its sandboxes makes them.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A group for one step. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    directories: Vec<PathBuf>,
    /// The file that counts what the kernel killed for want of memory.
    events: Option<PathBuf>,
}

impl Cgroups {
    /// Looks at the host and removes what dead callers left.
    pub(crate) fn open(sandbox: &'static str) -> Result<Self, Error> {
        let read = |path: &str| {
            fs_err::read_to_string(path).map_err(|source| Error::Setup {
                action: "look for cgroups".to_owned(),
                source,
            })
        };
        let layout = Layout::parse(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        let own = read("/proc/self/stat")?;
        let start = start_time(&own).unwrap_or_default();
        let cgroups = Self {
            sandbox,
            layout,
            owner: format!("{PREFIX}{}-{start}-", std::process::id()),
        };
        cgroups.sweep();
        Ok(cgroups)
    }

    /// Returns one line for people.
    pub(crate) fn describe(&self) -> String {
        match &self.layout {
            Layout::V1 { controllers, .. } => {
                let writable =
                    |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
                if !controllers.values().all(writable) {
                    return "v1, no limits: the groups are not this user's".to_owned();
                }
                let names: Vec<&str> = controllers.keys().copied().collect();
                format!("v1 ({})", names.join(", "))
            }
            Layout::V2(own) => match v2::base(own) {
                Ok(base) => format!("v2 ({})", base.display()),
                Err(reason) => format!("v2, no limits: {reason}"),
            },
            Layout::None => "none mounted, no limits".to_owned(),
        }
    }

    /// Returns a group name that nobody else uses.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.owner, NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a group with these limits; `None` when there are none.
    pub(crate) fn create(&self, limits: &Limits) -> Result<Option<Group>, Error> {
        let wanted = Wanted::of(limits)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        let name = self.name();
        let made = match &self.layout {
            Layout::V1 { controllers, .. } => v1::create(controllers, &name, &wanted),
            Layout::V2(own) => v2::base(own).and_then(|base| v2::create(&base, &name, &wanted)),
            Layout::None => Err(Problem::no_cgroups()),
        };
        made.map(Some)
            .map_err(|problem| problem.for_sandbox(self.sandbox))
    }

    /// Returns where a runtime has to put its group, and the group as it will be, to be looked at and removed.
    pub(crate) fn for_runtime(
        &self,
        name: &str,
        limits: &Limits,
    ) -> Result<(String, Group, bool), Error> {
        let wanted = Wanted::of(limits)?;
        let placed = match &self.layout {
            Layout::V1 { controllers, all } => v1::for_runtime(controllers, all, name, &wanted),
            Layout::V2(own) => {
                // Without limits the runtime is free to find a place of its own.
                let base = v2::base(own).or_else(|problem| {
                    if wanted.is_empty() {
                        Ok(own.clone())
                    } else {
                        Err(problem)
                    }
                });
                base.map(|base| v2::for_runtime(&base, name))
            }
            Layout::None if wanted.is_empty() => Ok((name.to_owned(), Group::none(), false)),
            Layout::None => Err(Problem::no_cgroups()),
        };
        placed.map_err(|problem| problem.for_sandbox(self.sandbox))
    }

    /// Removes the groups of callers that are gone. Groups in use cannot be removed, so a mistake harms nobody.
    fn sweep(&self) {
        for parent in self.layout.parents() {
            let Ok(entries) = fs_err::read_dir(&parent) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if name.to_str().is_some_and(is_abandoned) {
                    let _ = fs_err::remove_dir(entry.path());
                }
            }
        }
    }
}

/// Looks at the group that another process is in, to be told of what the kernel killed there.
#[cfg(feature = "docker")]
pub(crate) fn of_process(pid: i32) -> Group {
    let read = |path: String| fs_err::read_to_string(path).unwrap_or_default();
    let mounts = read("/proc/self/mountinfo".to_owned());
    let layout = Layout::parse(&read(format!("/proc/{pid}/cgroup")), &mounts);
    let events = match layout {
        Layout::V1 { controllers, .. } => controllers
            .get("memory")
            .map(|directory| directory.join("memory.oom_control")),
        Layout::V2(own) => Some(own.join("memory.events")),
        Layout::None => None,
    };
    Group {
        directories: Vec::new(),
        events,
    }
}

/// Limits that cgroups enforce, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) memory_bytes: Option<u64>,
    /// Microseconds of processor time a period.
    pub(crate) cpu_quota: Option<u64>,
    pub(crate) pids: Option<u64>,
}

impl Wanted {
    pub(crate) fn of(limits: &Limits) -> Result<Self, Error> {
        let cpu_quota = match limits.cpus {
            None => None,
            Some(cpus) if cpus.is_finite() && cpus > 0.0 => Some(quota(cpus)),
            Some(cpus) => {
                return Err(Error::Setup {
                    action: format!("limit a step to {cpus} processors"),
                    source: io::ErrorKind::InvalidInput.into(),
                });
            }
        };
        Ok(Self {
            memory_bytes: limits.memory_bytes,
            cpu_quota,
            pids: limits.pids,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self
            == Self {
                memory_bytes: None,
                cpu_quota: None,
                pids: None,
            }
    }
}

/// Returns the bandwidth of this many processors. The kernel takes at least 1 ms.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the value is positive, and a float conversion saturates"
)]
pub(crate) fn quota(cpus: f64) -> u64 {
    ((cpus * CPU_PERIOD as f64).round() as u64).clamp(1_000, u64::MAX / 1_000)
}

/// Why there can be no group.
#[derive(Debug)]
enum Problem {
    /// The host or its set-up lacks something; with what to do.
    Missing(String),
    /// A call failed.
    Failed { action: String, source: io::Error },
}

/// Why an ordinary user has no limits.
const NOT_OURS: &str = "limits of memory, processors and processes need a cgroup that this user may change; \
     start obuild with `systemd-run --user --scope -p Delegate=yes` (cgroups of version 2), or run without limits";

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

impl Problem {
    fn no_cgroups() -> Self {
        Self::Missing(
            "limits of memory, processors and processes need cgroups, and none are mounted; \
             mount them on /sys/fs/cgroup or run without limits"
                .to_owned(),
        )
    }

    fn for_sandbox(self, sandbox: &'static str) -> Error {
        match self {
            Self::Missing(reason) => Error::Unavailable { sandbox, reason },
            Self::Failed { source, .. }
                if obuild_rootless::current().is_some() && is_refusal(&source) =>
            {
                let reason = NOT_OURS.to_owned();
                Error::Unavailable { sandbox, reason }
            }
            Self::Failed { action, source } => Error::Setup { action, source },
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(reason) => formatter.write_str(reason),
            Self::Failed { action, source } => write!(formatter, "{action}: {source}"),
        }
    }
}

impl Group {
    fn none() -> Self {
        Self {
            directories: Vec::new(),
            events: None,
        }
    }

    /// Returns the files that put a process into the group when it writes `0` to them.
    pub(crate) fn entries(&self) -> Vec<PathBuf> {
        self.directories
            .iter()
            .map(|directory| directory.join("cgroup.procs"))
            .collect()
    }

    /// Returns whether the kernel killed a process of the group because of its memory limit.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let Some(events) = &self.events else {
            return false;
        };
        // cgroup v1 memory.oom_control and v2 memory.events have this line alike.
        fs_err::read_to_string(events).is_ok_and(|text| {
            text.lines().any(|line| {
                line.strip_prefix("oom_kill ")
                    .is_some_and(|count| count.trim() != "0")
            })
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in &self.directories {
            // A group stays busy for a moment after its last process is gone.
            for _ in 0..50 {
                match remove_group(directory) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(%error, "a cgroup could not be removed");
                        break;
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Removes a group, with those that a step's own processes made in it.
fn remove_group(directory: &Path) -> io::Result<()> {
    for entry in fs_err::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path())?;
        }
    }
    // std's is used for its plain errno.
    fs_err::remove_dir(directory).map_err(|error| {
        error.raw_os_error().map_or_else(
            || io::Error::from(error.kind()),
            io::Error::from_raw_os_error,
        )
    })
}

/// Makes a group's directory and writes its limits.
fn make(directory: &Path, limits: &[(&str, String)]) -> Result<(), Problem> {
    let failed = |action: String| move |source| Problem::Failed { action, source };
    fs_err::create_dir(directory)
        .map_err(failed(format!("make the cgroup {}", directory.display())))?;
    for (file, value) in limits {
        let path = directory.join(file);
        fs_err::write(&path, value)
            .map_err(failed(format!("write {value} to {}", path.display())))?;
    }
    Ok(())
}

/// Returns whether a group's name says that its maker is dead.
pub(crate) fn is_abandoned(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let mut parts = rest.split('-');
    let (Some(pid), Some(time)) = (parts.next(), parts.next()) else {
        return false;
    };
    if pid.parse::<u32>().is_err() || time.parse::<u64>().is_err() {
        return false;
    }
    match fs_err::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => start_time(&stat) != Some(time),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Returns the start time of `proc_pid_stat(5)`, field 22; the second field may hold blanks and parentheses.
fn start_time(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split_whitespace().nth(19)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_what_the_kernel_takes() {
        assert_eq!(quota(1.5), 150_000);
        assert_eq!(quota(0.000_1), 1_000);
        assert_eq!(quota(1e300), u64::MAX / 1_000);
    }

    #[test]
    fn senseless_limits_are_refused() {
        for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let limits = Limits {
                cpus: Some(cpus),
                ..Limits::default()
            };
            assert!(Wanted::of(&limits).is_err(), "{cpus}");
        }
    }

    #[test]
    fn only_dead_owners_groups_are_abandoned() {
        let own = fs_err::read_to_string("/proc/self/stat").expect("proc");
        let start = start_time(&own).expect("field 22");
        let pid = std::process::id();
        assert!(!is_abandoned(&format!("obuild-{pid}-{start}-3")));
        assert!(is_abandoned(&format!("obuild-{pid}-1-3")));
        assert!(is_abandoned("obuild-4194999-5-0"));
        assert!(!is_abandoned("obuild-x-5-0"));
        assert!(!is_abandoned("obuild.service"));
        assert!(!is_abandoned("other-4194999-5-0"));
    }
}
