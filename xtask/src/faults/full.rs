// SPDX-License-Identifier: Apache-2.0
//! Disks that fill up, turn read-only or go away while a build runs.

use super::case::Case;
use super::kill::{two_specs, wait_for_moment};
use super::obuild::Ran;
use anyhow::{Result, ensure};

/// Fills the disk at a random moment up to a random rest, or lets a step do it; makes room, and goes on.
pub(super) fn full(case: &mut Case<'_>) -> Result<()> {
    let (first, mut second) = two_specs(case)?;
    case.logs_may_lack = true;
    let way = case.random.below(4);
    match way {
        // One step writes more than there is.
        0 => second.write_much(usize::try_from(case.disk.bytes())? + (1 << 20)),
        // The log of one step does not fit into what is left.
        1 => second.say_much(20_000),
        _ => {}
    }
    for _ in 0..=case.random.below(2) {
        let left = case.random.below(3 << 20) as u64;
        let filler = (case.random.once_in(3) && way > 0)
            .then(|| case.disk.fill(left))
            .transpose()?;
        let mut running = case.start(&second)?;
        let filler = if way > 0 && filler.is_none() {
            wait_for_moment(case, &mut running, 5);
            Some(case.disk.fill(left)?)
        } else {
            filler
        };
        let ran = running.finish()?;
        judge(case, &ran)?;
        drop(filler);
        case.disk.settle();
    }
    if way == 0 {
        // Such a step fails however often it is tried. The store is as good as before.
        let ran = case.start(&second)?.finish()?;
        Case::check_failure(&ran, &[1])?;
        case.disk.settle();
        second = case.branch(&first, 3);
    }
    case.build_well(&second)?;
    case.build_well(&first).map(drop)
}

/// A build on a disk in trouble has gone well all the same, or said what was wrong. A step's command may fail as well.
fn judge(case: &mut Case<'_>, ran: &Ran) -> Result<()> {
    case.note(ran)?;
    if ran.status.success() {
        return Ok(());
    }
    Case::check_failure(ran, &[1, 3])?;
    let step_failed = ran.stderr.iter().any(|line| {
        // Docker tells the exit status of a helper of its own.
        line.contains("exit status") && !line.contains("docker cannot")
    });
    ensure!(
        step_failed == (ran.status.code() == Some(1)),
        "only a step's own failure is the build's: {}",
        ran.told()
    );
    Ok(())
}

/// Makes the file system read-only before or in the middle of a build, and writable again.
pub(super) fn read_only(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    // While somebody has a file open for writing, only the kernel itself can do it; we can between two builds.
    let mut running = case.start(&second)?;
    wait_for_moment(case, &mut running, 5);
    let mut done = false;
    while !done && !running.has_ended() {
        done = case.disk.set_read_only(true);
    }
    let ran = running.finish()?;
    judge(case, &ran)?;
    ensure!(
        done || case.disk.set_read_only(true),
        "the disk cannot be made read-only"
    );
    let again = case.start(&second)?.finish()?;
    let found = case.start(&first)?.finish()?;
    for ran in [&again, &found] {
        case.note(ran)?;
        if !ran.status.success() {
            Case::check_failure(ran, &[3])?;
        }
    }
    ensure!(
        case.disk.set_read_only(false),
        "the disk cannot be made writable"
    );
    case.build_well(&second)?;
    case.build_well(&first).map(drop)
}

/// Cuts the power: what is not on the disk is lost. The machine boots, and builds go on.
pub(super) fn power_cut(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    for _ in 0..=case.random.below(2) {
        let mut running = case.start(&second)?;
        wait_for_moment(case, &mut running, 5);
        let cut = case.disk.cut_off();
        ensure!(cut, "the disk cannot be cut off");
        case.cut_off = true;
        // A machine without power runs nothing.
        running.kill();
        let ran = running.finish()?;
        // Between the two it may have met the dead disk, and have ended of it in any way.
        if ran.was_killed() || ran.status.success() {
            case.note(&ran)?;
        }
        if let Some(daemon) = case.disk.daemon() {
            daemon.kill_all()?;
        }
        case.lab.family.wait_until_alone()?;
        case.disk.revive()?;
        case.admit_daemon();
        case.reboot()?;
        case.cut_off = false;
    }
    case.build_well(&second)?;
    case.build_well(&first).map(drop)
}
