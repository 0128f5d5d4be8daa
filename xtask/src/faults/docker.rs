// SPDX-License-Identifier: Apache-2.0
//! The docker daemon, killed.

use super::case::Case;
use super::kill::{two_specs, wait_for_moment};
use super::obuild::Ran;
use crate::dockerd::Daemon;
use anyhow::{Context, Result};

fn judge(case: &mut Case<'_>, ran: &Ran) -> Result<()> {
    case.note(ran)?;
    if ran.status.success() {
        return Ok(());
    }
    Case::check_failure(ran, &[1, 3])
}

/// Kills the daemon at a random moment, once or several times in a row, starts it again, and builds go on.
pub(super) fn kill(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    for _ in 0..=case.random.below(2) {
        let mut running = case.start(&second)?;
        wait_for_moment(case, &mut running, 5);
        let mut daemon = case.lab.docker.borrow_mut();
        let daemon = daemon.as_mut().context("the lab has a daemon")?;
        daemon.kill();
        let ran = running.finish();
        daemon.start_again()?;
        if let Some(id) = daemon.id() {
            case.lab.family.admit(id);
        }
        let ran = ran?;
        judge(case, &ran)?;
    }
    case.build_well(&second)?;
    case.build_well(&first)?;
    end_lost_shims(case)
}

/// Ends what docker has lost of its own, and tells: obuild cannot know it from others'.
pub(super) fn end_lost_shims(case: &mut Case<'_>) -> Result<()> {
    let daemon = case.lab.docker.borrow();
    let lost = daemon.as_ref().map_or(Ok(0), Daemon::end_lost_shims)?;
    if lost > 0 {
        case.notes.push(format!("docker has lost {lost} shims"));
    }
    Ok(())
}
