// SPDX-License-Identifier: Apache-2.0
//! The last part of a build user's process before the command: session, limits, identity, program.

use super::{Account, sys};
use crate::helper::exec::{environment, open_files, strings, variables};
use crate::helper::init::Stdio;
use crate::helper::programs::{self, Files};
use crate::sandbox::Command;
use crate::wire::{Failure, Trying};
use bstr::ByteSlice;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How many processes a step may have when nobody set a limit. The processes that end the step need room beside them.
const PROCESSES: u64 = 8192;

/// All that a command's process needs.
pub(super) struct Launch<'a> {
    pub(super) command: &'a Command,
    pub(super) account: &'a Account,
    pub(super) stdio: Stdio,
}

/// The host's files, as this process may see them.
struct Host;

impl Files for Host {
    fn open(&self, path: &[u8], flags: OFlags) -> std::io::Result<OwnedFd> {
        Ok(rustix::fs::open(
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    }
}

impl Launch<'_> {
    /// Becomes the command; returns only with the reason why it could not.
    pub(super) fn exec(&self) -> Failure {
        match self.try_exec() {
            Ok(infallible) => crate::sys::never(infallible),
            Err(failure) => failure,
        }
    }

    fn try_exec(&self) -> Result<std::convert::Infallible, Failure> {
        let home = self.account.home.as_os_str().as_bytes();
        let env = environment(self.command, home.as_bstr());
        let argv = strings(self.command.argv.iter().cloned())?;
        let entries = variables(&env)?;
        self.stdio.install()?;
        self.limit()?;
        #[cfg(target_os = "linux")]
        {
            crate::sys::own_session_keyring();
            crate::sys::close_on_exec_from(3).trying(|| "keep descriptors from the command")?;
            // A set-uid program would be out of the build user's reach, and so out of reach of what ends the step.
            rustix::thread::set_no_new_privs(true).trying(|| "give up privileges")?;
        }
        sys::become_user(self.account.uid, self.account.gid)
            .trying(|| format!("become the user {}", self.account.name))?;
        let workdir = self.workdir();
        rustix::process::chdir(&workdir)
            .trying(|| format!("enter the working directory {}", self.command.workdir))?;
        crate::sys::default_signals();
        sys::no_child_signals();
        let program = programs::find(
            &Host,
            self.command.argv[0].as_bstr(),
            &env,
            workdir.as_os_str().as_bytes(),
        )?;
        let path = strings([program.clone()])?.remove(0);
        let error = crate::sys::execve(&path, &argv.into(), &entries.into());
        let errno = rustix::io::Errno::from_io_error(&error);
        let reason = programs::obstacle(&Host, program.as_bstr(), errno);
        Err(Failure::NoProgram {
            program: self.command.argv[0].clone(),
            reason: reason.unwrap_or_else(|| error.to_string()),
        })
    }

    /// Returns the working directory below the home, which is the tree's root.
    fn workdir(&self) -> PathBuf {
        let below = self.command.workdir.trim_start_with(|c| c == '/');
        let mut path = self.account.home.clone();
        if !below.is_empty() {
            path.push(OsStr::from_bytes(below));
        }
        path
    }

    fn limit(&self) -> Result<(), Failure> {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let exactly = |value: u64| Rlimit {
            current: Some(value),
            maximum: Some(value),
        };
        rustix::process::setrlimit(Resource::Nofile, open_files())
            .trying(|| "limit the open files")?;
        rustix::process::setrlimit(Resource::Core, exactly(0)).trying(|| "limit core dumps")?;
        let most = rustix::process::getrlimit(Resource::Nproc)
            .maximum
            .unwrap_or(u64::MAX);
        let processes = self.command.limits.pids.unwrap_or(PROCESSES).min(most);
        rustix::process::setrlimit(Resource::Nproc, exactly(processes))
            .trying(|| "limit the processes")
    }
}
