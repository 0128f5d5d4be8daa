// SPDX-License-Identifier: Apache-2.0
//! Many processes on one store at once.

use super::case::Case;
use super::recipe::Recipe;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// How many build at once, as the stores' own promise has it: any number.
const PROCESSES: usize = 8;

/// Eight processes build specs that overlap, with a prune now and then; one or the other is killed.
pub(super) fn eight_processes(case: &mut Case<'_>) -> Result<()> {
    let trunk = case.recipe(2);
    let branch = case.branch(&trunk, 1);
    let specs: Vec<Recipe> = vec![
        case.branch(&branch, 2),
        case.branch(&branch, 2),
        case.branch(&trunk, 2),
        branch,
    ];
    let mut builds = Vec::new();
    let mut pruned = false;
    for number in 0..PROCESSES {
        let recipe = case.random.below(specs.len());
        let text = specs[recipe].text();
        let running = case.obuild.build(&format!("spec-{number}"), &text)?;
        let victim = case.random.once_in(4);
        builds.push((recipe, running, victim));
        std::thread::sleep(case.random.time(Duration::from_millis(30)));
        if case.random.once_in(4) {
            pruned = true;
            let ran = case.obuild.run(&["prune", "--all"])?;
            ensure!(ran.status.success(), "a prune failed: {}", ran.told());
        }
        if let Some((_, victim, _)) = builds.iter().find(|(_, _, victim)| *victim)
            && case.random.once_in(2)
        {
            victim.kill();
        }
    }
    for (recipe, running, victim) in builds {
        if victim {
            running.kill();
        }
        let ran = running.finish()?;
        ensure!(
            ran.status.success() || (victim && ran.was_killed()),
            "one of {PROCESSES} failed: {}",
            ran.told()
        );
        if !pruned && ran.status.success() {
            case.check_result(&specs[recipe], &ran)?;
        }
    }
    for recipe in &specs {
        case.build_well(recipe)?;
    }
    Ok(())
}

/// What OBuilder's stress program does (`stress/stress.ml`): many random builds of five steps with a cache, ten at a time;
/// all must go well. Half of them share steps with others, as all of OBuilder's do. Then everything is pruned, as at the end of each case.
pub(super) fn stress(case: &mut Case<'_>) -> Result<()> {
    const AT_ONCE: usize = 10;
    let builds = if case.is_slow() { 20 } else { 100 };
    let began = Instant::now();
    let mut running = Vec::new();
    let mut ended = Vec::new();
    let mut recipes = Vec::new();
    for number in 0..builds {
        let recipe = if number % 2 == 0 {
            let mut recipe = case.recipe(4);
            recipe.use_cache();
            recipe
        } else {
            case.numbers(4)
        };
        running.push((
            number,
            case.obuild
                .build(&format!("spec-{number}"), &recipe.text())?,
        ));
        recipes.push(recipe);
        while running.len() == AT_ONCE || (number + 1 == builds && !running.is_empty()) {
            let (number, oldest) = running.remove(0);
            ended.push((number, oldest.finish()?));
        }
    }
    let tenths = 10_000 * builds as u128 / began.elapsed().as_millis().max(1);
    for (number, ran) in &ended {
        ensure!(ran.status.success(), "a build failed: {}", ran.told());
        // An export costs more than a build: a fifth of them will do.
        if number % 10 < 2 {
            case.check_result(&recipes[*number], ran)?;
        }
    }
    case.notes
        .push(format!("{}.{} builds/s", tenths / 10, tenths % 10));
    descriptors(case)
}

/// One process that runs many steps must not hold ever more files open.
fn descriptors(case: &mut Case<'_>) -> Result<()> {
    let steps = if case.is_slow() { 50 } else { 150 };
    let mut recipe = case.recipe(0);
    for _ in 0..steps {
        recipe.leave_word();
    }
    let mut running = case.start(&recipe)?;
    let open = |pid| {
        let list = fs_err::read_dir(format!("/proc/{pid}/fd"));
        list.map_or(0, Iterator::count)
    };
    let count = |running: &super::obuild::Running| {
        let below = super::processes::descendants(running.id());
        // The helper is the first; steps come and go below it.
        let helper = below.first().map_or(0, |pid| pid.as_raw());
        open(running.id().cast_signed()) + open(helper)
    };
    // A step tells its beginning, what it says, and its end.
    running.wait_for_events(steps, Duration::ZERO);
    let early = count(&running);
    running.wait_for_events(3 * steps, Duration::ZERO);
    let late = count(&running);
    let ran = running.finish()?;
    ensure!(
        ran.status.success(),
        "the long build failed: {}",
        ran.told()
    );
    ensure!(
        late <= early + 10,
        "{early} files were open early in a long build, and {late} late in it"
    );
    case.check_result(&recipe, &ran)
}
