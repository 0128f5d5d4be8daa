// SPDX-License-Identifier: Apache-2.0
//! The native sandbox: Linux namespaces by direct calls, through a helper process that is started once.

use crate::Cancel;
use crate::cgroup::{Cgroups, Group};
use crate::sandbox::{Command, Error, Exit, Features, Rootfs, Sandbox, Stdio, User};
use crate::step::{self, Surroundings};
use crate::zygote::{HelperCommand, Zygote};
use std::sync::{Once, OnceLock};

/// How to open a [`Native`] sandbox.
#[derive(Clone, Debug)]
pub struct NativeOptions {
    /// How to start the helper.
    pub helper: HelperCommand,
}

/// Runs commands in namespaces of its own making. Needs root, if only of a user namespace, and Linux 5.12.
#[derive(Debug)]
pub struct Native {
    zygote: Zygote,
    /// Looked for with the first command: a build that finds everything cached needs none.
    cgroups: OnceLock<Cgroups>,
}

const NAME: &str = "native";

impl Native {
    /// Opens the sandbox. The helper is started with the first command, or by [`Native::prepare`].
    pub fn open(options: NativeOptions) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unavailable {
                sandbox: NAME,
                reason: "it needs root, if only of a user namespace".to_owned(),
            });
        }
        Ok(Self {
            zygote: Zygote::new(options.helper),
            cgroups: OnceLock::new(),
        })
    }

    /// Starts the helper now, so that the first command need not wait for it.
    pub fn prepare(&self) -> Result<(), Error> {
        self.zygote.prepare()
    }

    fn cgroups(&self) -> Result<&Cgroups, Error> {
        if let Some(cgroups) = self.cgroups.get() {
            return Ok(cgroups);
        }
        let found = Cgroups::open(NAME)?;
        Ok(self.cgroups.get_or_init(|| found))
    }

    /// Returns the helper's process id, if it runs.
    pub fn helper_id(&self) -> Option<u32> {
        self.zygote.process_id()
    }
}

/// Says once that a command runs as another user than it asks for.
fn tell_of_single_id(user: &User) {
    static TOLD: Once = Once::new();
    let root = match user {
        User::Ids { uid, gid } => (*uid, *gid) == (0, 0),
        User::Name(name) => name == "root",
    };
    if !root && obuild_rootless::current().is_some_and(obuild_rootless::Mapping::is_single) {
        TOLD.call_once(|| {
            tracing::warn!("there is one user id only here: steps of all users run as root");
        });
    }
}

impl Sandbox for Native {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        let overlay = if crate::tree::overlay_appends() {
            "up to 500 layers"
        } else {
            "as many layers as fit a page (Linux before 6.7)"
        };
        let cgroups = match self.cgroups() {
            Ok(cgroups) => cgroups.describe(),
            Err(error) => error.to_string(),
        };
        let note = |name: &str, value: String| (name.to_owned(), value);
        let user = if obuild_rootless::current().is_some() {
            "user, "
        } else {
            ""
        };
        Features {
            notes: vec![
                note(
                    "isolation",
                    format!("{user}pid, mount, ipc, uts, net, cgroup namespaces; seccomp"),
                ),
                note("cgroup", cgroups),
                note("overlay", overlay.to_owned()),
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
        tell_of_single_id(&command.user);
        let group = self.cgroups()?.create(&command.limits)?;
        let surroundings = Surroundings {
            cgroups: group.as_ref().map_or_else(Vec::new, Group::entries),
            runtime: None,
            account: None,
        };
        let exit = step::run(&self.zygote, command, rootfs, stdio, cancel, surroundings)?;
        let out_of_memory = group.is_some_and(|group| group.was_out_of_memory());
        Ok(match exit {
            Exit::Status(1..) | Exit::Signal(_) if out_of_memory => Exit::OutOfMemory,
            exit => exit,
        })
    }
}
