// SPDX-License-Identifier: Apache-2.0
//! The docker daemon, killed.

use super::case::Case;
use super::kill::{two_specs, wait_for_moment};
use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use std::time::Duration;

/// Kills the daemon at a random moment; whoever looks after it starts it again, and builds go on.
pub(super) fn kill(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    let mut running = case.start(&second)?;
    wait_for_moment(case, &mut running, 5);
    send(daemon()?, Signal::SIGKILL)?;
    let ran = running.finish()?;
    case.note(&ran)?;
    if !ran.status.success() {
        Case::check_failure(&ran, &[1, 3])?;
    }
    for _ in 0..300 {
        if daemon().is_ok() {
            case.build_well(&second)?;
            return case.build_well(&first).map(drop);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("nobody has started the docker daemon again")
}

/// Returns the daemon's process.
fn daemon() -> Result<Pid> {
    let text = fs_err::read_to_string("/var/run/docker.pid")?;
    let pid = Pid::from_raw(text.trim().parse()?);
    // The file outlives a daemon that was killed.
    send(pid, None)?;
    Ok(pid)
}
