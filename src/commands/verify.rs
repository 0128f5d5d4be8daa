// SPDX-License-Identifier: Apache-2.0
//! `obuild verify SPEC`: build twice, in circumstances as different as can be made, and show what differs.

use super::print;
use super::run::build_spec;
use crate::cli::{Global, Verify};
use crate::differences::text;
use crate::failure::{Failure, Negative};
use crate::outputs::{Outputs, source_date_epoch};
use anyhow::Result;
use obuild_engine::{Engine, Error, NoCache};
use obuild_images::{Times, differences};
use obuild_stores::SnapshotId;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between the beginnings of the builds at least: times in seconds are others then.
const DELAY: Duration = Duration::from_millis(1100);

pub(crate) fn run(global: &Global, options: &Verify) -> Result<()> {
    let options = &options.build;
    let outputs = || Outputs::parse(&options.outputs, None, options.quiet);
    let times = source_date_epoch()?.map_or_else(Times::default, Times::Latest);
    if !outputs()?.is_empty() || !options.cache_to.is_empty() {
        return Err(Failure::usage("verify writes no outputs")
            .hint("obuild run writes them when both builds are the same")
            .into());
    }
    let began = Instant::now();
    let all = Some(NoCache::All);
    let (engine, first) = build_spec(global, options, options.jobs, all.clone(), outputs()?)?;
    drop(engine);
    std::thread::sleep(DELAY.saturating_sub(began.elapsed()));
    one_processor()?;
    // Directories are filled in another order where steps ran at once before.
    let (engine, second) = build_spec(global, options, Some(1), all, outputs()?)?;
    let headings: HashMap<SnapshotId, String> = super::runtime()?
        .block_on(engine.steps())?
        .into_iter()
        .map(|step| (step.id, step.heading))
        .collect();
    let one = chain(&engine, first.snapshot)?;
    let other = chain(&engine, second.snapshot)?;
    let mut known = BTreeSet::new();
    let mut answer = String::new();
    for (one, other) in one.iter().zip(&other).filter(|(one, other)| one != other) {
        let mut found = differences(engine.store(), *one, *other, times, &|| false)?;
        // What a step begins with is told of the step that it comes from.
        found.retain(|difference| known.insert(difference.path.clone()));
        if found.is_empty() {
            continue;
        }
        let heading = headings.get(one).map_or("(unknown step)", String::as_str);
        for line in [
            heading,
            "\n  ",
            &one.to_string(),
            "\n  ",
            &other.to_string(),
            "\n",
        ] {
            answer.push_str(line);
        }
        answer.extend(found.iter().map(text));
    }
    if answer.is_empty() {
        return Ok(());
    }
    print(answer)?;
    Err(Negative.into())
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
