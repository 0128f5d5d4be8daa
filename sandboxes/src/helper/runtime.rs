// SPDX-License-Identifier: Apache-2.0
//! A step in an OCI runtime: bundle, root and secrets are mounted in the step's own mount namespace, and the runtime runs below the step's
//! init process. It ends with that, and all it keeps on a file system (its state, the bundle, the secrets) is in memory and ends too.

use super::init::Stdio;
use super::private::{Private, is_readonly};
use super::{accounts, exec, mounts, native, programs, runtime_config};
use crate::sandbox::Network;
use crate::sys;
use crate::tree::{Attributes, Kind, Tree, attach, file_system};
use crate::wire::{Failure, Request, Runtime, Trying};
use bstr::{BString, ByteSlice};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, WaitStatus};
use rustix::thread::UnshareFlags;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

/// A runtime that was started.
pub(super) struct Child<'a> {
    pub(super) process: Pid,
    runtime: &'a Runtime,
    detached: bool,
}

/// Prepares the bundle and starts the runtime.
pub(super) fn start<'a>(
    request: &Request,
    runtime: &'a Runtime,
    stdio: Stdio,
    secrets: &[Vec<u8>],
    slot: &mut Option<Tree>,
) -> Result<Child<'a>, Failure> {
    let command = &request.command;
    sys::unshare(UnshareFlags::NEWNS).trying(|| "make a mount namespace")?;
    native::own_mounts()?;
    // The runtime has to see the process ids that it gets itself.
    let proc = file_system("proc", &[], Attributes::NO_EXEC).trying(|| "make /proc")?;
    attach(&proc, native::open_host("/proc")?.as_fd()).trying(|| "mount /proc")?;

    let private = Private::new(native::open_host(&runtime.bundle)?);
    private.make_directory("rootfs")?;
    let root = private.mount_tree(&request.rootfs, "root", Attributes::ROOT)?;
    mount(&private, "rootfs", &root)?;
    let tree = slot.insert(Tree::new(root));
    let account = accounts::find(tree, &command.user)?;
    let owner = (account.uid, account.gid);

    // What is mounted by the runtime, in order, with its place as it is inside the tree, all links followed.
    let mut shown = Vec::new();
    for target in ["/proc", "/dev", "/sys"] {
        let place = resolve(tree, target.as_bytes(), Kind::Directory)?;
        // runc 1.1.5 fills /dev by its path on the host before it enters the tree, and follows a link there.
        if place != target {
            return Err(Failure::Unavailable(format!(
                "the tree's {target} is a link, which OCI runtimes may follow out of the tree; use --sandbox native"
            )));
        }
        shown.push(runtime_config::Shown::system(target));
    }
    mounts::write_host_files(&private, command.network)?;
    let mut files = vec![("hosts", "/etc/hosts")];
    if command.network == Network::Host {
        files.push(("resolv.conf", "/etc/resolv.conf"));
    }
    for (name, target) in files {
        let place = resolve(tree, target.as_bytes(), Kind::File)?;
        shown.push(runtime_config::Shown::bind(name.to_owned(), place, true));
    }
    let extra = mounts::extra(&private, &command.mounts)?;
    for (index, ((made, kind, target), asked)) in extra.iter().zip(&command.mounts).enumerate() {
        let name = format!("shown-{index}");
        match kind {
            Kind::Directory => private.make_directory(&name)?,
            Kind::File => private.write(&name, b"", 0o644, (0, 0))?,
        }
        mount(&private, &name, made)?;
        let place = resolve_data(tree, target, *kind)?;
        let readonly = asked.readonly || mounts::shows_readonly(asked);
        shown.push(runtime_config::Shown::bind(name, place, readonly));
    }
    for (index, (secret, value)) in command.secrets.iter().zip(secrets).enumerate() {
        let name = format!("secret-{index}");
        private.write(&name, value, 0o400, owner)?;
        let place = resolve_data(tree, &secret.target, Kind::File)?;
        shown.push(runtime_config::Shown::bind(name, place, true));
    }
    tree.directory(&command.workdir)
        .trying(|| format!("enter the working directory {}", command.workdir))?;
    tree.restore_times()
        .trying(|| "restore the times of the tree's directories")?;
    let readonly = is_readonly(&request.rootfs);
    if readonly {
        Attributes::ROOT
            .readonly()
            .set(tree.root())
            .trying(|| "make the root read-only")?;
    }

    let name = command.argv[0].as_bstr();
    let program = programs::find(tree, name, &command.env, &command.workdir)?;
    if let Some(reason) = programs::obstacle(tree, program.as_bstr(), None) {
        return Err(Failure::NoProgram {
            program: name.to_owned(),
            reason,
        });
    }

    let config = runtime_config::config(&runtime_config::Input {
        command,
        account: &account,
        runtime,
        shown: &shown,
        terminal: stdio.terminal,
        readonly,
    })?;
    private.write("config.json", config.as_bytes(), 0o600, (0, 0))?;
    run(runtime, stdio)
}

/// Mounts something on one of the private directory's own entries.
fn mount(private: &Private, name: &str, made: &OwnedFd) -> Result<(), Failure> {
    let action = || format!("mount the sandbox's own {name}");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place =
        rustix::fs::openat(private.directory()?, name, flags, Mode::empty()).trying(action)?;
    attach(made, place.as_fd()).trying(action)
}

/// Makes a mount point and returns its path in the tree without any link: runtimes refuse or follow links each in their own way.
fn resolve(tree: &mut Tree, target: &[u8], kind: Kind) -> Result<String, Failure> {
    let action = || format!("mount {} in the tree", target.as_bstr());
    let point = tree.point(target, kind).trying(action)?;
    let path = |descriptor: i32| {
        rustix::fs::readlink(format!("/proc/self/fd/{descriptor}"), Vec::new())
            .map(std::ffi::CString::into_bytes)
            .trying(action)
    };
    let (root, point) = (path(tree.root().as_raw_fd())?, path(point.as_raw_fd())?);
    let inside = point
        .strip_prefix(root.as_slice())
        .unwrap_or(&point)
        .to_vec();
    String::from_utf8(inside).map_err(|_| {
        Failure::Unavailable(
            "a mount's path is not UTF-8, and an OCI configuration can hold nothing else"
                .to_owned(),
        )
    })
}

/// As [`resolve`], but not in the kernel's own file systems: the runtime mounts those first, and looks up what is mounted on them by paths
/// that they can lead astray.
fn resolve_data(tree: &mut Tree, target: &[u8], kind: Kind) -> Result<String, Failure> {
    let place = resolve(tree, target, kind)?;
    let first = place.split('/').nth(1);
    if matches!(first, Some("proc" | "sys")) {
        return Err(rustix::io::Errno::INVAL)
            .trying(|| format!("mount {} in the tree", target.as_bstr()));
    }
    Ok(place)
}

fn run(runtime: &Runtime, stdio: Stdio) -> Result<Child<'_>, Failure> {
    let bundle = &runtime.bundle;
    let path = |name: &str| BString::from(bundle.join(name).as_os_str().as_bytes());
    let mut argv: Vec<BString> = vec![
        BString::from(runtime.program.as_os_str().as_bytes()),
        "--root".into(),
        path("state"),
        "--log".into(),
        path("log"),
        "--log-format".into(),
        "json".into(),
        "run".into(),
    ];
    // A runtime that stays copies the command's output, standard output and error apart and so out of order. One that does not gives the
    // command its streams, and then the command becomes our child. With a terminal the runtime has to stay, as its own end of it.
    let detached = !stdio.terminal;
    if detached {
        argv.push("--detach".into());
    } else {
        // The group is looked at and removed afterwards, whether the runtime ended well or not.
        argv.push("--keep".into());
    }
    argv.extend([
        "--pid-file".into(),
        path("pid"),
        "--bundle".into(),
        path(""),
        runtime.name.as_str().into(),
    ]);
    let argv = exec::strings(argv)?;
    let program = argv[0].clone();
    let argv = argv.into();
    let env = exec::strings([BString::from(
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    )])?;
    let env = env.into();
    let process = sys::spawn(&|| {
        let ready = rustix::process::chdir(bundle).is_ok()
            && stdio.install().is_ok()
            && sys::close_on_exec_from(3).is_ok();
        sys::default_signals();
        if ready {
            sys::execve(&program, &argv, &env);
        }
        127
    })
    .trying(|| "start a process for the runtime")?;
    // The command's streams end with the command.
    drop(stdio);
    Ok(Child {
        process,
        runtime,
        detached,
    })
}

impl Child<'_> {
    /// Says, when the runtime has ended, which process is the command; `None` when the runtime's own status is the command's.
    pub(super) fn command(&self, status: WaitStatus) -> Result<Option<Pid>, Failure> {
        let program = self.runtime.program.display();
        let pid = fs_err::read_to_string(self.runtime.bundle.join("pid")).ok();
        let pid = pid
            .and_then(|pid| pid.trim().parse().ok())
            .and_then(Pid::from_raw);
        let log = fs_err::read_to_string(self.runtime.bundle.join("log")).ok();
        let message = log.as_deref().and_then(last_error);
        let well = !self.detached || status.exit_status() == Some(0);
        match (pid, message) {
            (Some(pid), None) if well => Ok(self.detached.then_some(pid)),
            (Some(_), message) => {
                let message = message.unwrap_or_else(|| ended(status));
                Err(Failure::Helper(format!("{program}: {message}")))
            }
            (None, Some(message)) => Err(Failure::Unavailable(format!(
                "{program} could not start a container: {message}; try `{program} --version`, or --sandbox native"
            ))),
            (None, None) if status.terminating_signal().is_some() => Err(Failure::Helper(format!(
                "{program} was killed from outside ({})",
                ended(status)
            ))),
            (None, None) => Err(Failure::Unavailable(format!(
                "{program} did not start a container ({}); is it an OCI runtime? Try another --runtime, \
                 or --sandbox native",
                ended(status)
            ))),
        }
    }
}

fn ended(status: WaitStatus) -> String {
    ExitStatus::from_raw(status.as_raw()).to_string()
}

/// Returns the last error of a runtime's log: a JSON object a line, or text.
fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let Ok(entry) = serde_json::from_str::<serde_json::Value>(line) else {
            return (!line.trim().is_empty()).then(|| line.trim().to_owned());
        };
        let text = |key: &str| entry.get(key).and_then(serde_json::Value::as_str);
        let level = text("level").unwrap_or("error");
        let grave = matches!(level, "error" | "fatal" | "panic");
        grave.then(|| text("msg").unwrap_or(line).to_owned())
    })
}

/// Returns whether a path can be a runtime at all; the rest shows when it runs.
pub(crate) fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs_err::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_in_logs() {
        let log =
            "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"warning\",\"msg\":\"later\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("first"));
        assert_eq!(last_error("{\"level\":\"warning\",\"msg\":\"x\"}\n"), None);
        assert_eq!(
            last_error("\nplain words\n").as_deref(),
            Some("plain words")
        );
        assert_eq!(last_error(""), None);
    }
}
