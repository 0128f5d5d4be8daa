// SPDX-License-Identifier: Apache-2.0
//! What others do to the store's files behind obuild's back.

use super::case::{Case, remove_tree};
use super::kill::{two_specs, wait_for_moment};
use super::recipe::Recipe;
use anyhow::{Result, ensure};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;

/// signal(7), on every Linux that obuild runs on.
const SIGBUS: i32 = 7;

/// Removes snapshots between builds and while one runs.
pub(super) fn snapshot_deleted(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    for _ in 0..=case.random.below(2) {
        let mut running = case.start(&second)?;
        let in_the_middle = case.random.once_in(2);
        if in_the_middle {
            wait_for_moment(case, &mut running, 5);
            remove_some(case)?;
        }
        let ran = running.finish()?;
        if !in_the_middle {
            remove_some(case)?;
        }
        // Whatever stood on what is gone has to be made again.
        case.forgive_all();
        if !ran.status.success() {
            ensure!(in_the_middle, "it failed before: {}", ran.told());
            // A step whose tree vanishes under it may fail in any way.
            Case::check_failure(&ran, &[1, 3])?;
        }
    }
    case.build_well(&second)?;
    // A step behind one that is there is not looked at, and so may be missing still.
    case.forgive_all();
    case.build_well(&first)?;
    case.forgive_all();
    case.build_well(&second).map(drop)
}

fn remove_some(case: &mut Case<'_>) -> Result<()> {
    let snapshots = case.obuild.store_directory().join("snapshots");
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in fs_err::read_dir(&snapshots).into_iter().flatten() {
        names.push(entry?.path());
    }
    names.sort();
    for _ in 0..=case.random.below(2) {
        if names.is_empty() {
            break;
        }
        let path = names.swap_remove(case.random.below(names.len()));
        match case.random.below(4) {
            0 => remove_tree(&path.join("fs"))?,
            1 => {
                fs_err::remove_file(path.join("meta")).ok();
            }
            _ => remove_tree(&path)?,
        }
    }
    Ok(())
}

/// Damages the database in every way, between builds and while one runs.
pub(super) fn database(case: &mut Case<'_>) -> Result<()> {
    let (first, second) = two_specs(case)?;
    for _ in 0..=case.random.below(3) {
        let mut running = case.start(&second)?;
        let in_the_middle = case.random.once_in(3);
        if in_the_middle {
            wait_for_moment(case, &mut running, 5);
            damage(case)?;
        }
        let ran = running.finish()?;
        case.note(&ran)?;
        // Who cuts off a file that SQLite has mapped, as its -shm is, ends every process that has it open.
        let cut_off = in_the_middle && ran.status.signal() == Some(SIGBUS);
        if !ran.status.success() && !cut_off {
            Case::check_failure(&ran, &[3])?;
        }
        if !in_the_middle {
            damage(case)?;
        }
    }
    late(case, &second)?;
    // The database is bookkeeping: no result is lost with it.
    case.build_well(&second)?;
    case.build_well(&first)?;
    case.obuild.ok(&["df"])?;
    damage(case)?;
    late(case, &second)?;
    case.obuild.ok(&["ls"]).map(drop)
}

/// Damage that is not in the head of the file shows when the damaged part is read: one run may fail of it, and no more.
fn late(case: &mut Case<'_>, recipe: &Recipe) -> Result<()> {
    for arguments in [&["ls"][..], &["df"]] {
        let ran = case.obuild.run(arguments)?;
        if !ran.status.success() {
            Case::check_failure(&ran, &[3])?;
        }
    }
    let ran = case.start(recipe)?.finish()?;
    case.note(&ran)?;
    if !ran.status.success() {
        Case::check_failure(&ran, &[3])?;
    }
    Ok(())
}

fn damage(case: &mut Case<'_>) -> Result<()> {
    match try_damage(case) {
        // It is not there yet, or put aside by a build while we are at it.
        Err(error)
            if error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) =>
        {
            Ok(())
        }
        done => done,
    }
}

fn try_damage(case: &mut Case<'_>) -> Result<()> {
    let database = case.obuild.store_directory().join("state/obuild.db");
    let length = usize::try_from(fs_err::metadata(&database)?.len())?;
    let garbage: Vec<u8> = (0..4096 * 3)
        .map(|_| u8::try_from(case.random.below(256)).expect("it is below 256"))
        .collect();
    let garble = |from: usize, to: usize| {
        let mut content = fs_err::read(&database)?;
        let to = to.min(content.len());
        for (at, byte) in content.iter_mut().enumerate().take(to).skip(from) {
            *byte = garbage[at % garbage.len()];
        }
        fs_err::write(&database, content)
    };
    let wal = database.with_extension("db-wal");
    match case.random.below(8) {
        0 => fs_err::File::options()
            .write(true)
            .open(&database)?
            .set_len(0)?,
        1 => {
            let shorter = case.random.below(length.max(1)) as u64;
            fs_err::File::options()
                .write(true)
                .open(&database)?
                .set_len(shorter)?;
        }
        2 => fs_err::remove_file(&database)?,
        // The head, with which nothing can be a database.
        3 => garble(0, 100)?,
        // All but the head, which passes for one until it is read.
        4 => garble(100, length)?,
        5 => {
            let page = 4096 * (1 + case.random.below((length / 4096).max(2) - 1));
            garble(page, page + 4096)?;
        }
        6 => fs_err::write(&wal, &garbage)?,
        _ => {
            fs_err::write(&wal, &garbage)?;
            fs_err::write(database.with_extension("db-shm"), &garbage)?;
        }
    }
    Ok(())
}
