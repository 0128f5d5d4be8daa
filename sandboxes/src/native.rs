// SPDX-License-Identifier: Apache-2.0
//! The native sandbox: Linux namespaces by direct calls, through a helper process that is started once.

use crate::Cancel;
use crate::cgroup::{Cgroups, Group};
use crate::sandbox::{Command, Error, Exit, Features, Rootfs, Sandbox, Stdio};
use crate::step::{self, Surroundings};
use crate::zygote::{HelperCommand, Zygote};
use std::sync::OnceLock;

/// How to open a [`Native`] sandbox.
#[derive(Clone, Debug)]
pub struct NativeOptions {
    /// How to start the helper.
    pub helper: HelperCommand,
}

/// Runs commands in namespaces of its own making. Needs root and Linux 5.12.
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
                reason: "it needs root; run obuild as root".to_owned(),
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
        Features {
            notes: vec![
                note(
                    "isolation",
                    "pid, mount, ipc, uts, net, cgroup namespaces; seccomp".to_owned(),
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
        let group = self.cgroups()?.create(&command.limits)?;
        let surroundings = Surroundings {
            cgroups: group.as_ref().map_or_else(Vec::new, Group::entries),
            runtime: None,
        };
        let exit = step::run(&self.zygote, command, rootfs, stdio, cancel, surroundings)?;
        let out_of_memory = group.is_some_and(|group| group.was_out_of_memory());
        Ok(match exit {
            Exit::Status(1..) | Exit::Signal(_) if out_of_memory => Exit::OutOfMemory,
            exit => exit,
        })
    }
}
