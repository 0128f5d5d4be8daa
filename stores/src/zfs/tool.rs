// SPDX-License-Identifier: Apache-2.0
//! Running `zfs` and `zpool`: bounded in time, without a shell, with what they say sorted by what it means.
//!
//! Two implementations answer to these names: OpenZFS, whose commands talk to the kernel, and zfs-fuse (Debian), whose
//! commands talk to a daemon. Nobody asks which it is: only options that both know are used, and both
//! ways to say a thing are understood.

use crate::Error;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where systems keep the commands; a library does not read `PATH`, and a daemon's may lack `sbin`.
const DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/sbin",
    "/usr/local/sbin",
    "/usr/bin",
    "/usr/local/bin",
    "/run/current-system/sw/bin",
];

/// Deleting a large tree is work in zfs-fuse's pools, which know no deletion in the background.
const DEADLINE: Duration = Duration::from_mins(5);

/// How long to try again what a dataset is too busy for. A mount lives on for a moment in the mount namespaces that
/// ending sandboxes had it in, and zfs-fuse takes a moment to notice that one has gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the command said, by what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no such dataset or snapshot.
    Missing,
    /// There is no such pool.
    NoPool,
    /// One of that name is there already.
    Exists,
    /// It is in use.
    Busy,
    /// Clones stand on it.
    HasClones,
    /// It is mounted already.
    Mounted,
    /// The pool, or a quota, is full.
    Full,
    /// A property is not known, or not with this value.
    Property,
    /// The command is not there, or what it talks to is not.
    Absent,
    Other,
}

/// A command that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    command: String,
    said: String,
}

impl Failure {
    /// Returns the error for callers of the store.
    pub(super) fn into_error(self) -> Error {
        if self.trouble == Trouble::Full {
            let source = io::Error::new(
                ErrorKind::StorageFull,
                format!("`{}` said: {}", self.command, self.said),
            );
            return Error::io("write to", "the pool", source);
        }
        Error::Tool {
            command: self.command,
            said: self.said,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.into_error()
    }
}

/// Runs `zfs` and returns its standard output.
pub(super) fn zfs(arguments: &[&str]) -> Result<String, Failure> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    run("zfs", &PROGRAM, arguments)
}

/// Runs `zpool` and returns its standard output.
pub(super) fn zpool(arguments: &[&str]) -> Result<String, Failure> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    run("zpool", &PROGRAM, arguments)
}

/// Runs `zfs`, again and again while the dataset is busy, for some seconds at most.
pub(super) fn zfs_patiently(arguments: &[&str]) -> Result<String, Failure> {
    let mut pauses = Pauses::new();
    loop {
        match zfs(arguments) {
            Err(failure) if failure.trouble == Trouble::Busy && pauses.pause() => {}
            result => return result,
        }
    }
}

/// Growing pauses between attempts, which come to an end.
pub(super) struct Pauses {
    next: Duration,
    end: Instant,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self {
            next: Duration::from_millis(2),
            end: Instant::now() + PATIENCE,
        }
    }

    /// Pauses; returns `false`, without a pause, when there have been enough.
    pub(super) fn pause(&mut self) -> bool {
        if Instant::now() >= self.end {
            return false;
        }
        std::thread::sleep(self.next);
        self.next = (self.next * 2).min(Duration::from_millis(100));
        true
    }
}

fn run(
    name: &str,
    program: &OnceLock<Option<PathBuf>>,
    arguments: &[&str],
) -> Result<String, Failure> {
    let command = format!("{name} {}", arguments.join(" "));
    let absent = |said: String| Failure {
        trouble: Trouble::Absent,
        command: command.clone(),
        said,
    };
    let program = program.get_or_init(|| find(name));
    let Some(program) = program else {
        return Err(absent(format!(
            "there is no {name} command on this machine: install OpenZFS (Debian: zfsutils-linux) or zfs-fuse, \
             or choose another kind of store"
        )));
    };
    let lock = turn(false).map_err(|error| absent(format!("cannot lock the command: {error}")))?;
    let output = execute(program, arguments, DEADLINE, lock.into())
        .map_err(|error| absent(format!("{}: {error}", program.display())))?;
    tracing::trace!(%command, success = output.success, "ran");
    if output.success {
        return Ok(output.stdout);
    }
    let (trouble, mut said) = interpret(&output.stderr);
    if let Some(signal) = output.signal {
        // Whatever it said before, it was not what ended it.
        said = format!("it was killed by signal {signal}");
    }
    Err(Failure {
        trouble,
        command,
        said,
    })
}

/// A lock that a command runs under. The command inherits it, and so holds it to its end even if we are killed.
///
/// Waiting for it `alone` waits for the commands of killed processes too: what they were making is there after that.
///
/// With zfs-fuse everybody has it alone, since its daemon does not bear two at once. It hands a new mount from one thread to
/// another through a pipe, in several writes without a lock (zfs-fuse 0.7 `src/zfs-fuse/fuse_listener.c`): two mix, and the
/// reader waits for ever, with the lock held that all its mounts need. Unmounts amid other commands had it hang too. The
/// lock is on the program, since the daemon is one for all stores of the machine. OpenZFS is known by the device
/// that its commands talk to.
pub(super) fn turn(alone: bool) -> io::Result<OwnedFd> {
    static DAEMON: OnceLock<bool> = OnceLock::new();
    let daemon = *DAEMON.get_or_init(|| !Path::new("/dev/zfs").exists());
    let operation = if alone || daemon {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    let program = find("zfs").ok_or(ErrorKind::NotFound)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(program, flags, Mode::empty())?;
    let end = Instant::now() + DEADLINE;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(Duration::from_micros(500));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Returns where a command is.
fn find(name: &str) -> Option<PathBuf> {
    let mut places = DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name));
    places.find(|place| place.exists())
}

struct Output {
    success: bool,
    /// What it was killed by, if it was.
    signal: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a program to its end, or kills it after `deadline`.
fn execute(
    program: &Path,
    arguments: &[&str],
    deadline: Duration,
    stdin: Stdio,
) -> io::Result<Output> {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    let end = Instant::now() + deadline;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        // Messages are matched against, so they must be the untranslated ones; zfs calls other programs to mount.
        .env("LC_ALL", "C")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        // The lock travels as the standard input, which the commands do not read.
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C at the terminal ends us in good order; it must not end the command half-way.
        .process_group(0)
        .spawn()?;
    let output = read_both(&mut child, end).and_then(|(stdout, stderr)| {
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() >= end => return Err(ErrorKind::TimedOut.into()),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        };
        Ok(Output {
            success: status.success(),
            signal: status.signal(),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    });
    output.map_err(|error| {
        let _ = child.kill();
        if error.kind() == ErrorKind::TimedOut {
            let reason = format!("it did not end within {deadline:?} and was killed");
            return io::Error::new(ErrorKind::TimedOut, reason);
        }
        error
    })
}

/// Reads both outputs of a child to their ends.
fn read_both(child: &mut Child, end: Instant) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while stdout.is_some() || stderr.is_some() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(left).ok();
        let (ready_out, ready_err) = {
            let mut waiting = Vec::new();
            waiting.extend(stdout.as_ref().map(|pipe| readable(pipe)));
            waiting.extend(stderr.as_ref().map(|pipe| readable(pipe)));
            match rustix::event::poll(&mut waiting, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let mut ready = waiting.iter().map(|fd| !fd.revents().is_empty());
            let ready_out = stdout.is_some() && ready.next() == Some(true);
            (ready_out, ready.next() == Some(true))
        };
        if ready_out && !read_some(stdout.as_mut(), &mut out)? {
            stdout = None;
        }
        if ready_err && !read_some(stderr.as_mut(), &mut err)? {
            stderr = None;
        }
    }
    Ok((out, err))
}

fn readable(pipe: &impl AsFd) -> PollFd<'_> {
    PollFd::new(pipe, PollFlags::IN)
}

/// Reads what there is; returns `false` at the end.
fn read_some(pipe: Option<&mut impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(false) };
    let mut buffer = [0; 8192];
    let count = pipe.read(&mut buffer)?;
    into.extend_from_slice(&buffer[..count]);
    Ok(count > 0)
}

/// Returns what the text on standard error means, and the text on one line with a remedy where there is one.
///
/// The texts are those of libzfs: OpenZFS 2.x `lib/libzfs/libzfs_util.c`, `cmd/zfs/zfs_main.c`, and zfs-fuse 0.7.
fn interpret(stderr: &str) -> (Trouble, String) {
    let has = |text: &str| stderr.contains(text);
    let trouble = if has("no such pool") {
        Trouble::NoPool
    } else if has("does not exist") || has("could not find any snapshots") {
        Trouble::Missing
    } else if has("already exists") {
        Trouble::Exists
    } else if has("dependent clones") {
        Trouble::HasClones
    } else if has("already mounted") {
        Trouble::Mounted
    } else if has("out of space") || has("quota exceeded") || has("No space left") {
        Trouble::Full
    } else if has("is busy") {
        Trouble::Busy
    } else if has("zfs-fuse daemon") || has("modules") || has("initialize") || has("/dev/zfs") {
        Trouble::Absent
    } else if has("invalid property") || has("must be one of") || has("bad property") {
        Trouble::Property
    } else {
        Trouble::Other
    };
    // After a mistake in the arguments the usage follows, which is long.
    let lines = stderr
        .lines()
        .take_while(|line| !line.starts_with("usage:"));
    let mut said = lines
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    if said.is_empty() {
        "it failed without a word".clone_into(&mut said);
    }
    let remedy = if has("ermission denied") {
        Some("run it as root")
    } else if has("zfs-fuse daemon") {
        Some("start it with `systemctl start zfs-fuse`, or run `zfs-fuse`")
    } else if trouble == Trouble::Absent {
        Some("load the module with `modprobe zfs`")
    } else {
        None
    };
    if let Some(remedy) = remedy {
        said = format!("{said} ({remedy})");
    }
    (trouble, said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_commands_say_is_understood() {
        // First zfs-fuse 0.7 as it answered, then OpenZFS 2.1 and 2.2 by their sources.
        for (said, meant) in [
            (
                "cannot open 'tank/x@s': dataset does not exist\n",
                Trouble::Missing,
            ),
            (
                "cannot create 'nopool/x': no such pool 'nopool'\n",
                Trouble::NoPool,
            ),
            (
                "cannot create snapshot 't@s': dataset already exists\n",
                Trouble::Exists,
            ),
            ("cannot destroy 't/a': dataset is busy\n", Trouble::Busy),
            (
                "cannot mount 't/b': mountpoint or dataset is busy\n",
                Trouble::Busy,
            ),
            (
                "cannot destroy 't/a': filesystem has dependent clones\nuse '-R' to destroy …\nt/b\n",
                Trouble::HasClones,
            ),
            (
                "cannot mount 't/a': filesystem already mounted\n",
                Trouble::Mounted,
            ),
            (
                "cannot create 't/x': invalid property 'acltype'\n",
                Trouble::Property,
            ),
            (
                "cannot create 't/x': 'xattr' must be one of 'on | off'\n",
                Trouble::Property,
            ),
            (
                "connect: Connection refused\nPlease make sure that the zfs-fuse daemon is running.\n\
                 internal error: failed to initialize ZFS library\n",
                Trouble::Absent,
            ),
            ("cannot create 't/x': out of space\n", Trouble::Full),
            (
                "cannot unmount '/t/a': pool or dataset is busy\n",
                Trouble::Busy,
            ),
            (
                "could not find any snapshots to destroy; check snapshot names.\n",
                Trouble::Missing,
            ),
            (
                "The ZFS modules are not loaded.\nTry running '/sbin/modprobe zfs' as root to load them.\n",
                Trouble::Absent,
            ),
            ("something new\n", Trouble::Other),
        ] {
            assert_eq!(interpret(said).0, meant, "{said}");
        }
    }

    #[test]
    fn remedies_are_named() {
        let said = |text: &str| interpret(text).1;
        assert_eq!(
            said("connect: Permission denied\ninternal error: failed to initialize ZFS library\n"),
            "connect: Permission denied; internal error: failed to initialize ZFS library (run it as root)"
        );
        assert!(
            said("Please make sure that the zfs-fuse daemon is running.")
                .contains("systemctl start")
        );
        assert!(said("The ZFS modules are not loaded.").contains("modprobe zfs"));
        assert_eq!(
            said("invalid option 'p'\nusage:\n\tlist [-rH]\n"),
            "invalid option 'p'"
        );
        assert_eq!(said(""), "it failed without a word");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let started = Instant::now();
        let hanging = execute(
            Path::new("/bin/sleep"),
            &["60"],
            Duration::from_millis(50),
            Stdio::null(),
        );
        assert_eq!(hanging.err().unwrap().kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_program_that_is_killed_is_known() {
        let shell = Path::new("/bin/sh");
        let limit = Duration::from_secs(30);
        let killed = execute(shell, &["-c", "kill -9 $$"], limit, Stdio::null()).unwrap();
        assert_eq!((killed.success, killed.signal), (false, Some(9)));
    }

    #[test]
    fn both_outputs_are_read() {
        let script = "head -c 200000 /dev/zero | tr '\\0' x; echo wrong >&2; exit 3";
        let arguments = ["-c", script];
        let output = execute(
            Path::new("/bin/sh"),
            &arguments,
            Duration::from_secs(30),
            Stdio::null(),
        )
        .unwrap();
        assert!(!output.success);
        assert_eq!(
            (output.stdout.len(), output.stderr.as_str()),
            (200_000, "wrong\n")
        );
    }
}
