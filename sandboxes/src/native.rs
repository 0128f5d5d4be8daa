// SPDX-License-Identifier: Apache-2.0
//! The native sandbox: Linux namespaces by direct calls, through a helper process that is started once.

use crate::Cancel;
use crate::sandbox::{Command, Error, Exit, Features, Rootfs, Sandbox, Stdio};
use crate::step::{self, Surroundings};
use crate::zygote::{HelperCommand, Zygote};

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
}

impl Native {
    /// Opens the sandbox. The helper is started with the first command, or by [`Native::prepare`].
    pub fn open(options: NativeOptions) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unavailable {
                sandbox: "native",
                reason: "it needs root; run obuild as root".to_owned(),
            });
        }
        Ok(Self {
            zygote: Zygote::new(options.helper),
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

impl Sandbox for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn features(&self) -> Features {
        Features::default()
    }

    fn run(
        &self,
        command: &Command,
        rootfs: &Rootfs,
        stdio: Stdio<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, Error> {
        let surroundings = Surroundings {
            cgroups: Vec::new(),
            runtime: None,
        };
        step::run(&self.zygote, command, rootfs, stdio, cancel, surroundings)
    }
}
