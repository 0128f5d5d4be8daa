// SPDX-License-Identifier: Apache-2.0
//! The user sandbox: isolation by user id alone, for systems without namespaces.
//!
//! Every step runs as one of a pool of build users, in a home directory that is the step's tree. See `docs/decisions/0008-build-users.md`.
//!
//! The code below this module is POSIX but for what stands behind a `cfg`. What it shares with the other sandboxes and another system needs in
//! a form of its own: `wire` and `step` (`SOCK_SEQPACKET`, memory files, descriptors of processes) and `cancel` (`eventfd`).
#![allow(
    clippy::useless_conversion,
    reason = "the types of modes, link counts and times differ between systems"
)]

mod helper;
mod launch;
mod leftovers;
mod links;
mod owners;
mod place;
mod pool;
mod stay;
mod sys;

pub(crate) use helper::serve;

use crate::Cancel;
use crate::sandbox::{Command, Error, Exit, Features, Network, Rootfs, Sandbox, Stdio};
use crate::step::{self, Surroundings};
use crate::zygote::{HelperCommand, Zygote};
use pool::Pool;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The last argument of this sandbox's helper.
pub(crate) const HELPER: &str = "user";

const NAME: &str = "user";

/// The group whose members are the build users when none are named.
const GROUP: &str = "obuild";

/// How to open a [`UserSandbox`].
#[derive(Clone, Debug)]
pub struct UserOptions {
    /// How to start the helper.
    pub helper: HelperCommand,
    /// The build users' names; when empty, the members of the group `obuild`.
    pub users: Vec<String>,
    /// A directory for the users' lock files; made when missing. The same for all who share the users, and one that outlives a restart.
    pub state_dir: PathBuf,
}

/// Runs commands as build users. Needs root and any Unix.
#[derive(Debug)]
pub struct UserSandbox {
    zygote: Zygote,
    pool: Pool,
    told_of_network: AtomicBool,
}

/// A build user's account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Account {
    name: String,
    uid: u32,
    gid: u32,
    #[serde(with = "crate::sandbox::path_bytes")]
    home: PathBuf,
}

impl UserSandbox {
    /// Opens the sandbox: looks the users up and refuses those that are somebody's.
    pub fn open(options: UserOptions) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() || obuild_rootless::current().is_some() {
            return Err(Error::Unavailable {
                sandbox: NAME,
                reason: "only the host's root can run steps as other users; use --sandbox native"
                    .to_owned(),
            });
        }
        let accounts = pool::accounts(&options.users, GROUP)?;
        pool::make_state_dir(&options.state_dir)?;
        let mut helper = options.helper;
        helper.args.push(HELPER.into());
        Ok(Self {
            zygote: Zygote::new(helper),
            pool: Pool::new(accounts, options.state_dir),
            told_of_network: AtomicBool::new(false),
        })
    }

    /// Returns how many steps can run at once.
    pub fn users(&self) -> usize {
        self.pool.accounts().len()
    }

    /// Starts the helper now, so that the first command need not wait for it.
    pub fn prepare(&self) -> Result<(), Error> {
        self.zygote.prepare()
    }

    /// Returns the helper's process id, if it runs.
    pub fn helper_id(&self) -> Option<u32> {
        self.zygote.process_id()
    }

    fn refuse(command: &Command) -> Result<(), Error> {
        let limit = match (&command.limits.memory_bytes, &command.limits.cpus) {
            (Some(_), _) => "memory",
            (None, Some(_)) => "processors",
            (None, None) => return Ok(()),
        };
        Err(Error::Unavailable {
            sandbox: NAME,
            reason: format!(
                "it cannot limit the {limit} of a step, only its time and its processes; leave the limit out or use another sandbox"
            ),
        })
    }
}

impl Sandbox for UserSandbox {
    fn name(&self) -> &'static str {
        NAME
    }

    fn features(&self) -> Features {
        let names: Vec<&str> = self
            .pool
            .accounts()
            .iter()
            .map(|account| account.name.as_str())
            .collect();
        let note = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Features {
            notes: vec![
                note(
                    "isolation",
                    "by user id alone; a step sees the host's programs and files",
                ),
                note("build users", &names.join(", ")),
                note("network", "the host's, also for (network none)"),
                note("limits", "time, processes (not memory, not processors)"),
                note(
                    "trees",
                    "whole directories, as btrfs, xfs and rsync stores have them",
                ),
            ],
        }
    }

    fn run(
        &self,
        command: &Command,
        rootfs: &Rootfs,
        mut stdio: Stdio<'_>,
        cancel: &Cancel,
    ) -> Result<Exit, Error> {
        step::check(command)?;
        Self::refuse(command)?;
        if command.network == Network::None && !self.told_of_network.swap(true, Ordering::Relaxed) {
            tracing::warn!("build users share the host's network: (network none) is not kept");
        }
        let began = Instant::now();
        let until = command
            .limits
            .timeout
            .and_then(|timeout| began.checked_add(timeout));
        let mut waiting = |text: &str| match &mut stdio {
            Stdio::Capture(sink) => sink(text.as_bytes()),
            Stdio::Inherit => tracing::warn!("{}", text.trim_end()),
        };
        let backwards = command.variation.is_some();
        let claim = self.pool.claim(backwards, until, cancel, &mut waiting)?;
        let Some(claim) = claim else {
            return Ok(if cancel.is_cancelled() {
                Exit::Cancelled
            } else {
                Exit::TimedOut
            });
        };
        let lock = claim.lock().map_err(|source| Error::Setup {
            action: format!("hold the build user {}", claim.account.name),
            source,
        })?;
        let surroundings = Surroundings {
            cgroups: Vec::new(),
            runtime: None,
            account: Some((claim.account.clone(), lock)),
        };
        step::run(&self.zygote, command, rootfs, stdio, cancel, surroundings)
    }
}
