// SPDX-License-Identifier: Apache-2.0
//! `kill -9` at any moment: of obuild itself, and of what it starts.

use super::case::Case;
use super::docker;
use super::obuild::Running;
use super::processes;
use super::recipe::Recipe;
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use std::time::Duration;

/// After the event that a moment is counted from, this much time passes at most.
const AFTER: Duration = Duration::from_millis(25);

/// Waits for a random moment of a build of about `steps` steps.
pub(super) fn wait_for_moment(case: &mut Case<'_>, running: &mut Running, steps: usize) {
    // A step tells its beginning, its output and its end; the build its beginning and end.
    let events = case.random.below(4 * steps + 6);
    let after = case.random.time(AFTER);
    running.wait_for_events(events, after);
}

/// Prepares a store with history, and a spec that may share steps with it.
pub(super) fn two_specs(case: &mut Case<'_>) -> Result<(Recipe, Recipe)> {
    let steps = 1 + case.random.below(3);
    let first = case.recipe(steps);
    if !case.random.once_in(4) {
        case.build_well(&first)?;
    }
    let second = if case.random.once_in(3) {
        case.branch(&first, 3)
    } else {
        case.recipe(5)
    };
    Ok((first, second))
}

/// Kills obuild, once or several times in a row, and pretends now and then that the machine was booted after it.
pub(super) fn obuild(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    for _ in 0..=case.random.below(3) {
        let mut running = case.start(&second)?;
        wait_for_moment(case, &mut running, 5);
        running.kill();
        let ran = running.finish()?;
        ensure!(
            ran.was_killed() || ran.status.success(),
            "it neither was killed nor went well: {}",
            ran.told()
        );
        case.note(&ran)?;
        if case.random.once_in(4) {
            case.lab.family.wait_until_alone()?;
            case.reboot()?;
        }
    }
    case.build_well(&second)?;
    if case.random.once_in(3) {
        // What a build has reported to be done is durable, also if it found all of it there.
        case.reboot()?;
    }
    case.build_well(&first)?;
    case.build_well(&second).map(drop)
}

/// Kills the sandbox's helper, a step's init, or the runtime: whoever it meets of obuild's descendants.
pub(super) fn init(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    let mut met = 0;
    for _ in 0..=case.random.below(3) {
        let mut running = case.start(&second)?;
        wait_for_moment(case, &mut running, 5);
        let mut found = processes::descendants(running.id());
        found.extend(case.lab.family.below_orphans(running.id()));
        // A step whose own process is killed may take that as it likes.
        found.retain(|pid| !processes::is_of_a_step(*pid, case.disk.user_ids()));
        if !found.is_empty() {
            let pid = *case.random.pick(&found);
            // It may have ended by itself.
            met += u32::from(kill(pid, Signal::SIGKILL).is_ok());
        }
        let ran = running.finish()?;
        case.note(&ran)?;
        if !ran.status.success() {
            // A step whose own processes are killed has failed; one whose walls come down is the host's trouble.
            Case::check_failure(&ran, &[1, 3])?;
            ensure!(met > 0, "nothing was killed and it failed: {}", ran.told());
        }
    }
    case.build_well(&second)?;
    case.build_well(&first)?;
    docker::end_lost_shims(case)
}
