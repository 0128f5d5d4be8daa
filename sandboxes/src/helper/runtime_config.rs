// SPDX-License-Identifier: Apache-2.0
//! The OCI configuration of a step: OCI runtime-spec v1.0.2, which every runtime of these days takes. The content is OBuilder's (614c8ac
//! `lib/runc_sandbox.ml`) with the native sandbox's capabilities, filter and masks, so that both show a step the same.
//!
//! It is written as JSON values; a test reads it back through `oci-spec`'s types.

use super::accounts::Account;
use super::{exec, mounts};
use crate::cgroup::{CPU_PERIOD, quota};
use crate::sandbox::{Command, Network};
use crate::seccomp::{Action, CALLS};
use crate::wire::{Failure, Runtime};
use bstr::{BString, ByteSlice};
use serde_json::{Value, json};

/// Something that the runtime mounts.
pub(super) struct Shown {
    source: Source,
    /// The place in the tree.
    place: String,
}

enum Source {
    /// What belongs to the place.
    System,
    /// An entry of the bundle.
    Bundle { name: String, readonly: bool },
}

impl Shown {
    pub(super) fn system(place: &str) -> Self {
        Self {
            source: Source::System,
            place: place.to_owned(),
        }
    }

    pub(super) fn bind(name: String, place: String, readonly: bool) -> Self {
        Self {
            source: Source::Bundle { name, readonly },
            place,
        }
    }
}

/// What a configuration is made of.
pub(super) struct Input<'a> {
    pub(super) command: &'a Command,
    pub(super) account: &'a Account,
    pub(super) runtime: &'a Runtime,
    pub(super) shown: &'a [Shown],
    pub(super) terminal: bool,
    pub(super) readonly: bool,
}

/// Returns the text of `config.json`.
pub(super) fn config(input: &Input<'_>) -> Result<String, Failure> {
    let Input {
        command, account, ..
    } = input;
    let env = exec::environment(command, account.home.as_bstr());
    let env: Vec<String> = env
        .iter()
        .map(|(name, value)| Ok(format!("{}={}", text(name)?, text(value)?)))
        .collect::<Result<_, Failure>>()?;
    let args: Vec<&str> = command
        .argv
        .iter()
        .map(|argument| text(argument))
        .collect::<Result<_, _>>()?;
    let capabilities: Vec<&str> = exec::capabilities(command.network)
        .map(|(name, _)| *name)
        .collect();
    let files = exec::open_files();
    let mut namespaces = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    if command.network == Network::None {
        namespaces.push("network");
    }
    let namespaces: Vec<Value> = namespaces
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let mut shown = Vec::new();
    for mount in input.shown {
        shown.extend(mounts_of(mount, input)?);
    }
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": input.terminal,
            "user": {
                "uid": account.uid,
                "gid": account.gid,
                "umask": 0o022,
                "additionalGids": account.groups.iter().map(|gid| gid.as_raw()).collect::<Vec<_>>(),
            },
            "args": args,
            "env": env,
            "cwd": text(&command.workdir)?,
            // Inheritable is empty as in the native sandbox: CVE-2022-24769.
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
            },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "soft": files.current, "hard": files.maximum },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            ],
            "noNewPrivileges": command.no_new_privs,
        },
        "root": { "path": "rootfs", "readonly": input.readonly },
        "hostname": command.hostname,
        "mounts": shown,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": input.runtime.cgroup,
            "resources": resources(command, input.runtime.swap),
            "seccomp": seccomp(command.fast_sync),
            "maskedPaths": mounts::MASKED,
            "readonlyPaths": mounts::READ_ONLY,
        },
    });
    Ok(config.to_string())
}

fn text(bytes: &BString) -> Result<&str, Failure> {
    std::str::from_utf8(bytes).map_err(|_| {
        Failure::Unavailable(format!(
            "{bytes:?} is not UTF-8, and an OCI configuration can hold nothing else; use --sandbox native"
        ))
    })
}

fn mounts_of(shown: &Shown, input: &Input<'_>) -> Result<Vec<Value>, Failure> {
    let place = &shown.place;
    let below = |name: &str| format!("{}/{name}", place.trim_end_matches('/'));
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    Ok(match (&shown.source, place.as_str()) {
        (Source::System, "/proc") => vec![mount("proc", place, &["nosuid", "noexec", "nodev"])],
        (Source::System, "/dev") => vec![
            mount(
                "tmpfs",
                place,
                &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"],
            ),
            mount(
                "devpts",
                &below("pts"),
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ],
            ),
            mount(
                "tmpfs",
                &below("shm"),
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            ),
            mount("mqueue", &below("mqueue"), &["nosuid", "noexec", "nodev"]),
        ],
        (Source::System, _) => {
            let protected = ["nosuid", "noexec", "nodev", "ro"];
            vec![
                mount("sysfs", place, &protected),
                mount("cgroup", &below("fs/cgroup"), &protected),
            ]
        }
        (Source::Bundle { name, readonly }, _) => {
            let source = input.runtime.bundle.join(name);
            let source = source.to_str().ok_or_else(|| {
                Failure::Unavailable(format!(
                    "the state directory {} is not UTF-8",
                    input.runtime.bundle.display()
                ))
            })?;
            let mut options = vec!["rbind", "rprivate", "nosuid", "nodev"];
            if *readonly {
                options.push("ro");
            }
            vec![json!({
                "destination": place, "type": "bind", "source": source, "options": options,
            })]
        }
    })
}

fn resources(command: &Command, swap: bool) -> Value {
    let limits = &command.limits;
    let mut resources = json!({
        // The nodes that OCI runtimes always allow are all that a step needs.
        "devices": [{ "allow": false, "access": "rwm" }],
    });
    if let Some(bytes) = limits.memory_bytes {
        resources["memory"] = json!({ "limit": bytes });
        if swap {
            resources["memory"]["swap"] = json!(bytes);
        }
    }
    if let Some(cpus) = limits.cpus {
        resources["cpu"] = json!({ "quota": quota(cpus), "period": CPU_PERIOD });
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    resources
}

/// Returns the native filter in OCI's form. libseccomp compares all 64 bits of an argument of which the kernel may use 32, so every
/// comparison is masked.
fn seccomp(fast_sync: bool) -> Value {
    const ERRNO: &str = "SCMP_ACT_ERRNO";
    let masked = |argument: u8, mask: u64, value: u32| json!([{ "index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" }]);
    let names = |wanted: Action| -> Vec<&str> {
        let calls = CALLS.iter().filter(|call| call.action == wanted);
        calls.map(|call| call.name).collect()
    };
    let mut rules = vec![
        json!({ "names": names(Action::Deny), "action": ERRNO, "errnoRet": libc::EPERM }),
        json!({ "names": names(Action::Missing), "action": ERRNO, "errnoRet": libc::ENOSYS }),
    ];
    if fast_sync {
        rules.push(json!({ "names": names(Action::Skip), "action": ERRNO, "errnoRet": 0 }));
    }
    for call in CALLS {
        let mut refuse = |args: Value| {
            rules.push(json!({
                "names": [call.name], "action": ERRNO, "errnoRet": libc::EPERM, "args": args,
            }));
        };
        match call.action {
            Action::DenyBits {
                argument,
                mask,
                unless,
            } => {
                for bit in (0..u32::BITS)
                    .map(|bit| 1 << bit)
                    .filter(|bit| mask & bit != 0)
                {
                    refuse(masked(argument, u64::from(bit | unless), bit));
                }
            }
            Action::DenyValues { argument, values } => {
                for &value in values {
                    refuse(masked(argument, u64::from(u32::MAX), value));
                }
            }
            Action::Deny | Action::Missing | Action::Skip => {}
        }
    }
    let architectures = if cfg!(target_arch = "x86_64") {
        ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    } else {
        ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": rules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    #[test]
    fn the_configuration_is_what_the_specification_says() {
        let mut command = Command::new(["/bin/true"]);
        command.limits.memory_bytes = Some(1 << 20);
        command.limits.cpus = Some(1.5);
        command.limits.pids = Some(9);
        command.fast_sync = true;
        let account = Account {
            uid: 1,
            gid: 2,
            groups: [2, 3].map(rustix::fs::Gid::from_raw).to_vec(),
            home: "/home".into(),
        };
        let runtime = Runtime {
            program: "/usr/sbin/runc".into(),
            bundle: "/state/bundle".into(),
            name: "obuild-1".to_owned(),
            cgroup: "obuild-1".to_owned(),
            swap: true,
        };
        let shown = [
            Shown::system("/proc"),
            Shown::system("/dev"),
            Shown::system("/sys"),
            Shown::bind("hosts".to_owned(), "/etc/hosts".to_owned(), true),
        ];
        let config = config(&Input {
            command: &command,
            account: &account,
            runtime: &runtime,
            shown: &shown,
            terminal: false,
            readonly: false,
        })
        .expect("made");
        let spec: Spec = serde_json::from_str(&config).expect("the specification's types fit");
        let process = spec.process().as_ref().expect("a process");
        assert_eq!(
            process.env().as_deref(),
            Some(&["HOME=/home".to_owned()][..])
        );
        let linux = spec.linux().as_ref().expect("a linux part");
        let memory = linux
            .resources()
            .as_ref()
            .and_then(|all| all.memory().as_ref())
            .expect("limits");
        assert_eq!(memory.limit(), Some(1 << 20));
        let filter = linux.seccomp().as_ref().expect("a filter");
        let rules = filter.syscalls().as_ref().expect("rules");
        let skipped = rules
            .iter()
            .find(|rule| rule.names().iter().any(|name| name == "fsync"));
        assert_eq!(skipped.expect("fast sync").errno_ret(), Some(0));
        assert_eq!(spec.mounts().as_ref().expect("mounts").len(), 8);
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let mut command = Command::new(["/bin/true"]);
        command.argv.push(BString::from(&b"\xff"[..]));
        assert!(text(&command.argv[1]).is_err());
    }
}
