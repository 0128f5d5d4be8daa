// SPDX-License-Identifier: Apache-2.0
//! The seam: what every sandbox does and promises.

use crate::Cancel;
use bstr::BString;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Runs commands, each isolated in its own tree.
///
/// What callers may rely on, for every backend:
///
/// * When [`Sandbox::run`] returns, nothing of the command runs any more, detached children included, and nothing is
///   mounted on the host.
/// * When the calling process dies, even by `kill -9`, the command's processes die with it.
/// * Mount points that the sandbox had to create in the tree (`/proc`, `/etc/hosts`, secrets, caches…) are gone again
///   afterwards and their parent directories' times are as the command left them.
/// * Cancelling ends the command within a second.
/// * A secret's value is never on a disk, on a command line or in an environment.
pub trait Sandbox: Send + Sync {
    /// Returns the backend's name: `native`, `runc`, ….
    fn name(&self) -> &'static str;

    /// Returns what the sandbox can do on this host, for `healthcheck`.
    fn features(&self) -> Features;

    /// Runs `command` in `rootfs` until it ends, its time is up, or `cancel` fires.
    ///
    /// # Errors
    ///
    /// When the command could not be started for a reason that is the host's or the tree's; a command that fails is not an error
    /// but an [`Exit`].
    fn run(
        &self,
        command: &Command,
        rootfs: &Rootfs,
        stdio: Stdio<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, Error>;
}

/// A command and its surroundings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments. A program without `/` is looked up in the environment's `PATH` inside the tree.
    pub argv: Vec<BString>,
    /// The environment. `HOME` is added from the tree's `/etc/passwd` when it is missing, as every OCI runtime does.
    pub env: Vec<(BString, BString)>,
    /// Absolute working directory inside the tree; made (root, 0755) when missing, and then stays.
    pub workdir: BString,
    /// Who runs it.
    pub user: User,
    /// Host name inside.
    pub hostname: String,
    /// Which network it sees.
    pub network: Network,
    /// Extra mounts (caches, bind mounts), in order.
    pub mounts: Vec<Mount>,
    /// Secrets, each a read-only file.
    pub secrets: Vec<Secret>,
    /// Limits of memory, processor, processes and time.
    pub limits: Limits,
    /// Skips `fsync` and its like inside, by a seccomp filter that answers success (OBuilder's `--fast-sync`).
    pub fast_sync: bool,
    /// Sets `no_new_privs`: setuid programs and file capabilities no longer give privileges.
    pub no_new_privs: bool,
    /// Surroundings other than usual, as far as the native sandbox and that of build users can make them; runtimes refuse it.
    pub variation: Option<Variation>,
}

/// What a command cannot choose, other than usual: to find out whether what it makes depends on that. Where build users run commands, it is
/// another of them, and nothing else.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Variation {
    /// How much later than it is the wall clock says, and a kernel of another release. Programs for x86-64 see that, others do not.
    pub clock_ahead: Duration,
    /// The id of the process before the command's, where the kernel allows to choose.
    pub last_process: u32,
}

impl Command {
    /// Returns `argv` as root in `/` with an empty environment, no network, no mounts, no limits.
    pub fn new<A: Into<BString>>(argv: impl IntoIterator<Item = A>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            workdir: BString::from("/"),
            user: User::Ids { uid: 0, gid: 0 },
            // OBuilder 614c8ac lib/build.ml: every step sees this name.
            hostname: "builder".to_owned(),
            network: Network::None,
            mounts: Vec::new(),
            secrets: Vec::new(),
            limits: Limits::default(),
            fast_sync: false,
            no_new_privs: false,
            variation: None,
        }
    }
}

/// The user of a command. Supplementary groups come from the tree's `/etc/group` only for a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// Numeric ids, no supplementary groups.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// A name, looked up in the tree's `/etc/passwd` and `/etc/group`.
    Name(BString),
}

/// Which network a command sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Its own loopback only.
    None,
    /// The host's, with the host's `resolv.conf`.
    Host,
}

/// A tree that can be entered; the same notion as a store's, so that neither crate needs the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// The directory is the tree.
    Directory(#[serde(with = "path_bytes")] PathBuf),
    /// To be mounted in the sandbox's own mount namespace.
    Overlay(OverlayMount),
}

/// The recipe for an overlay mount; all paths absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayMount {
    /// Read-only layers, topmost first; at least one.
    #[serde(with = "path_list")]
    pub lower: Vec<PathBuf>,
    /// Where writes go; `None` makes the mount read-only.
    pub upper: Option<Upper>,
}

/// The writable layer of an overlay mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// Receives changed files.
    #[serde(with = "path_bytes")]
    pub upper: PathBuf,
    /// The kernel's scratch directory, on the same file system.
    #[serde(with = "path_bytes")]
    pub work: PathBuf,
}

/// An extra mount, always nosuid and nodev.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: MountSource,
    /// Absolute path inside the tree, created for the step when missing.
    pub target: BString,
    /// Whether the step may not write to it.
    pub readonly: bool,
}

/// What an extra mount shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host, or an overlay.
    Tree(Rootfs),
    /// An empty directory in memory, with a size limit in bytes.
    Tmpfs {
        /// Size limit; the kernel's default when `None`.
        size_bytes: Option<u64>,
    },
}

/// A secret, mounted read-only from memory.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secret {
    /// Absolute path inside the tree.
    pub target: BString,
    /// The bytes. Never part of a serialized form: they travel in memory files only.
    #[serde(skip)]
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Secret")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// Limits of one command with all its children.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes, by cgroup.
    pub memory_bytes: Option<u64>,
    /// Processors, by cgroup bandwidth: 1.5 is one and a half.
    pub cpus: Option<f64>,
    /// Processes and threads, by cgroup.
    pub pids: Option<u64>,
    /// Wall-clock time.
    pub timeout: Option<Duration>,
}

/// Where a command's input and output go.
pub enum Stdio<'a> {
    /// Input is empty; standard output and error together go to the function in pieces as they come.
    Capture(&'a mut (dyn FnMut(&[u8]) + Send)),
    /// The caller's own standard streams, for an interactive shell: a terminal stays a terminal.
    Inherit,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// A signal killed it.
    Signal(i32),
    /// The memory limit was exceeded and the kernel killed it.
    OutOfMemory,
    /// The time limit was exceeded.
    TimedOut,
    /// The caller cancelled it.
    Cancelled,
}

/// What a sandbox can do on this host.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// Lines of `name: value` for people, for example `cgroup: v1 (memory, cpu, pids)`.
    pub notes: Vec<(String, String)>,
}

/// Why a command could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part of the set-up failed.
    #[error("{action}")]
    Setup {
        /// What was tried, with the path: `mount the root at /x`.
        action: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The program is not in the tree or cannot be executed.
    #[error("cannot run {program:?} in this tree: {reason}")]
    NoProgram {
        /// The program as asked for.
        program: BString,
        /// What the kernel said, and what that usually means.
        reason: String,
    },
    /// The named user is not in the tree.
    #[error("there is no user {0:?} in the tree's /etc/passwd")]
    NoUser(BString),
    /// The user does not exist in the caller's user namespace.
    #[error("{0}")]
    Unmapped(String),
    /// This host or this caller cannot run this kind of sandbox.
    #[error("the {sandbox} sandbox cannot run here: {reason}")]
    Unavailable {
        /// The backend.
        sandbox: &'static str,
        /// What is missing and what to do.
        reason: String,
    },
    /// The helper process or runtime broke the protocol.
    #[error("the sandbox helper failed: {0}")]
    Helper(String),
}

/// Paths as bytes, since serde refuses those that are not UTF-8.
pub(crate) mod path_bytes {
    use bstr::BString;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        BString::from(path.as_os_str().as_bytes()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        BString::deserialize(from).map(|bytes| OsString::from_vec(bytes.into()).into())
    }
}

/// As [`path_bytes`], for lists.
mod path_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::path::PathBuf;

    #[derive(Serialize, Deserialize)]
    struct One(#[serde(with = "super::path_bytes")] PathBuf);

    #[expect(clippy::ptr_arg, reason = "serde passes the field by reference")]
    pub(super) fn serialize<S: Serializer>(
        paths: &Vec<PathBuf>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let list: Vec<One> = paths.iter().cloned().map(One).collect();
        list.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<One>::deserialize(from)?
            .into_iter()
            .map(|one| one.0)
            .collect())
    }
}
