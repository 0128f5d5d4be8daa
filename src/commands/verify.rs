// SPDX-License-Identifier: Apache-2.0
//! `obuild verify SPEC`: build twice, in circumstances as different as can be made, and show what differs.

use super::run::{How, build_spec};
use super::{open_engine, print, runtime};
use crate::cli::{Global, RsyncMode, Run, SandboxKind, Verify};
use crate::config::{Config, parse_store};
use crate::differences::text;
use crate::failure::{Failure, Negative};
use crate::outputs::{Outputs, source_date_epoch};
use anyhow::Result;
use nix::sched::{CloneFlags, unshare};
use obuild_engine::{BuildResult, CopyOptions, Engine, Error, NoCache};
use obuild_images::{Times, differences};
use obuild_stores::{Kind, SnapshotId, StoreUrl};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between the beginnings of the builds at least. The kernel gives files the true time, which is kept to two seconds in ZIP archives.
const DELAY: Duration = Duration::from_millis(2100);

pub(crate) fn run(global: &Global, options: &Verify) -> Result<()> {
    let second_store = options.second_store.as_deref();
    let options = &options.build;
    let outputs = || Outputs::parse(&options.outputs, None, options.quiet);
    let times = source_date_epoch()?.map_or_else(Times::default, Times::Latest);
    if !outputs()?.is_empty() || !options.cache_to.is_empty() {
        return Err(Failure::usage("verify writes no outputs")
            .hint("obuild run writes them when both builds are the same")
            .into());
    }
    let began = Instant::now();
    let how = How {
        jobs: options.jobs,
        no_cache: Some(NoCache::All),
        elsewhere: false,
    };
    let (engine, first) = build_spec(global, options, &how, outputs()?)?;
    std::thread::sleep(DELAY.saturating_sub(began.elapsed()));
    let elsewhere = elsewhere(global, options, &engine, second_store)?;
    if elsewhere.store != global.store {
        copy_bases(&elsewhere, &engine, &first)?;
    }
    one_processor()?;
    let how = How {
        // Steps that ran at once before come one after the other.
        jobs: Some(1),
        elsewhere: true,
        ..how
    };
    let built = build_spec(&elsewhere, options, &how, outputs()?);
    let (other_engine, second) = built.map_err(|error| {
        if second_store.is_some() || elsewhere.store == global.store {
            return error;
        }
        error.context(
            "the second build, in other circumstances and with its files in memory (--second-store puts them elsewhere)",
        )
    })?;
    let headings: HashMap<SnapshotId, String> = runtime()?
        .block_on(engine.steps())?
        .into_iter()
        .map(|step| (step.id, step.heading))
        .collect();
    let one = chain(&engine, first.snapshot)?;
    let other = chain(&other_engine, second.snapshot)?;
    let mut known = BTreeSet::new();
    let mut answer = String::new();
    for (one, other) in one.iter().zip(&other).filter(|(one, other)| one != other) {
        let (was, now) = ((engine.store(), *one), (other_engine.store(), *other));
        let mut found = differences(was, now, times, &|| false)?;
        // What a step begins with is told of the step that it comes from.
        found.retain(|difference| known.insert(difference.path.clone()));
        if found.is_empty() {
            continue;
        }
        let heading = headings.get(one).map_or("(unknown step)", String::as_str);
        // Writing to a string cannot fail.
        let _ = writeln!(answer, "{heading}\n  {one}\n  {other}");
        answer.extend(found.iter().map(text));
    }
    if answer.is_empty() {
        return Ok(());
    }
    print(answer)?;
    Err(Negative.into())
}

/// Returns the options of the second build: with a store of another kind of file system, whose directories give their names in another order.
///
/// That of tmpfs gives what was made last first; others sort by hashes, or give what was made first first. The docker sandbox keeps to the
/// store of the first build: its daemon does not see what is mounted here.
fn elsewhere(
    global: &Global,
    options: &Run,
    first: &Engine,
    second_store: Option<&str>,
) -> Result<Global> {
    let mut global = global.clone();
    let config = Config::read(&global)?;
    if let Some(text) = second_store {
        let url = parse_store(text)?;
        let is_rsync = url.kind == Kind::Rsync;
        global.rsync_mode = global.rsync_mode.filter(|_| is_rsync);
        // A new one has to have some mode; what the options say of that is for the first store.
        if is_rsync && !url.path.exists() && config.rsync_mode.is_none() {
            global.rsync_mode.get_or_insert(RsyncMode::Copy);
        }
        global.store = Some(url.to_string());
        return Ok(global);
    }
    let runtime = options.sandbox.runtime.is_some();
    let asked = options.sandbox.sandbox;
    let asked = asked.or(runtime.then_some(SandboxKind::Runc));
    let kind = match asked.or(config.sandbox) {
        Some(SandboxKind::Docker) => return Ok(global),
        Some(SandboxKind::User) => {
            global.rsync_mode = Some(RsyncMode::Copy);
            Kind::Rsync
        }
        _ => Kind::Overlay,
    };
    let path = in_memory(&first.store().state_dir().join("verify"))
        .map_err(|error| Failure::host(format!("cannot make a file system in memory: {error}")))?;
    global.store = Some(StoreUrl { kind, path }.to_string());
    Ok(global)
}

/// Mounts a file system in memory for this process and those that it starts; it goes with them. Others see an empty directory.
fn in_memory(directory: &Path) -> std::io::Result<PathBuf> {
    fs_err::create_dir_all(directory)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // mount_namespaces(7): what is mounted here must not show outside.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    mount("obuild", directory, "tmpfs", MountFlags::empty(), None)?;
    Ok(directory.join("store"))
}

/// Puts the bases into the second store, as they are in the first.
fn copy_bases(elsewhere: &Global, first: &Arc<Engine>, result: &BuildResult) -> Result<()> {
    let second = open_engine(elsewhere)?;
    let bases = result.steps.iter().filter(|step| step.parent.is_none());
    let wanted = CopyOptions {
        ids: Some(bases.map(|step| step.snapshot).collect()),
        ..CopyOptions::default()
    };
    let cancel = CancellationToken::new();
    let report = runtime()?.block_on(async {
        super::run::watch_signals(&cancel)?;
        anyhow::Ok(
            first
                .copy_to(&second, wanted, Arc::default(), &cancel)
                .await?,
        )
    })?;
    match report.failed.first() {
        None => Ok(()),
        Some((id, why)) => Err(Failure::host(format!("cannot copy the base {id}: {why}"))
            .hint("--second-store KIND:PATH names a store with more room than the memory has")
            .into()),
    }
}

/// Returns the snapshots from the base up to a result.
fn chain(engine: &Arc<Engine>, id: SnapshotId) -> Result<Vec<SnapshotId>> {
    let mut chain = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        chain.push(id);
        let snapshot = engine.store().get(id)?;
        next = snapshot
            .ok_or_else(|| Error::NoSuchStep(id.to_string()))?
            .parent;
    }
    chain.reverse();
    Ok(chain)
}

/// Leaves one processor to everything that is started from now on.
fn one_processor() -> Result<()> {
    let failed = |error| Failure::host(format!("cannot choose a processor: {error}"));
    let allowed = sched_getaffinity(None).map_err(failed)?;
    let mut one = CpuSet::new();
    if let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)) {
        one.set(first);
        sched_setaffinity(None, &one).map_err(failed)?;
    }
    Ok(())
}
