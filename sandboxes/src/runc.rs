// SPDX-License-Identifier: Apache-2.0
//! The sandbox of an OCI runtime: `runc`, or any other program with the same command line.

use crate::Cancel;
use crate::cgroup::Cgroups;
use crate::helper::is_runtime;
use crate::sandbox::{Command, Error, Exit, Features, Rootfs, Sandbox, Stdio};
use crate::step::{self, Surroundings};
use crate::wire::Runtime;
use crate::zygote::{HelperCommand, Zygote};
use std::path::{Path, PathBuf};

/// How to open a [`Runc`] sandbox.
#[derive(Clone, Debug)]
pub struct RuncOptions {
    /// How to start the helper.
    pub helper: HelperCommand,
    /// The runtime. A name without `/` is looked for where system programs are.
    pub runtime: PathBuf,
    /// A directory of this sandbox's own; made when missing. Nothing is kept in it: it is where bundles are mounted, each in its step's
    /// own mount namespace. Several sandboxes may share it.
    pub state_dir: PathBuf,
}

/// Runs commands through an OCI runtime. Needs root and Linux 5.12.
///
/// With a terminal, a command that a signal ended is reported as status 128+n, since the runtime says no more then.
#[derive(Debug)]
pub struct Runc {
    zygote: Zygote,
    cgroups: Cgroups,
    program: PathBuf,
    bundle: PathBuf,
}

const NAME: &str = "runc";

// Where Debian, Fedora, Alpine and the BSDs put system programs.
const PLACES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

impl Runc {
    /// Opens the sandbox. The helper is started with the first command, or by [`Runc::prepare`].
    pub fn open(options: RuncOptions) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(unavailable("it needs root; run obuild as root".to_owned()));
        }
        if obuild_rootless::current().is_some() {
            let reason = "OCI runtimes are not supported in a user namespace; use --sandbox native";
            return Err(unavailable(reason.to_owned()));
        }
        let program = find(&options.runtime)?;
        let bundle = options.state_dir.join("bundle");
        fs_err::create_dir_all(&bundle).map_err(|source| Error::Setup {
            action: "make the runtime's state directory".to_owned(),
            source,
        })?;
        let bundle = fs_err::canonicalize(&bundle).map_err(|source| Error::Setup {
            action: "find the runtime's state directory".to_owned(),
            source,
        })?;
        Ok(Self {
            zygote: Zygote::new(options.helper),
            cgroups: Cgroups::open(NAME)?,
            program,
            bundle,
        })
    }

    /// Starts the helper now, so that the first command need not wait for it.
    pub fn prepare(&self) -> Result<(), Error> {
        self.zygote.prepare()
    }

    /// Returns the helper's process id, if it runs.
    pub fn helper_id(&self) -> Option<u32> {
        self.zygote.process_id()
    }
}

fn unavailable(reason: String) -> Error {
    Error::Unavailable {
        sandbox: NAME,
        reason,
    }
}

fn find(runtime: &Path) -> Result<PathBuf, Error> {
    let candidates: Vec<PathBuf> = if runtime.components().count() > 1 {
        vec![runtime.to_owned()]
    } else {
        PLACES
            .iter()
            .map(|place| Path::new(place).join(runtime))
            .collect()
    };
    let found = candidates
        .into_iter()
        .find(|candidate| is_runtime(candidate));
    let found = found.ok_or_else(|| {
        unavailable(format!(
            "there is no program {}; install it (Debian: `apt install runc`), give another --runtime, \
             or use --sandbox native",
            runtime.display()
        ))
    })?;
    std::path::absolute(&found).map_err(|source| Error::Setup {
        action: format!("find {}", found.display()),
        source,
    })
}

impl Sandbox for Runc {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        let version = std::process::Command::new(&self.program)
            .arg("--version")
            .output();
        let version = match version {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout);
                text.lines()
                    .next()
                    .unwrap_or("of unknown version")
                    .to_owned()
            }
            Ok(output) => format!("broken: `--version` gives {}", output.status),
            Err(error) => format!("broken: {error}"),
        };
        let note = |name: &str, value: String| (name.to_owned(), value);
        Features {
            notes: vec![
                note("runtime", format!("{} ({version})", self.program.display())),
                note("cgroup", self.cgroups.describe()),
            ],
        }
    }

    fn run(
        &self,
        command: &Command,
        rootfs: &Rootfs,
        stdio: Stdio<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, Error> {
        let name = self.cgroups.name();
        let (cgroup, group, swap) = self.cgroups.for_runtime(&name, &command.limits)?;
        let surroundings = Surroundings {
            cgroups: Vec::new(),
            runtime: Some(Runtime {
                program: self.program.clone(),
                bundle: self.bundle.clone(),
                name,
                cgroup,
                swap,
            }),
            account: None,
        };
        let exit = step::run(&self.zygote, command, rootfs, stdio, cancel, surroundings)?;
        Ok(match exit {
            Exit::Status(1..) | Exit::Signal(_) if group.was_out_of_memory() => Exit::OutOfMemory,
            exit => exit,
        })
    }
}
