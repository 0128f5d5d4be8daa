// SPDX-License-Identifier: Apache-2.0
//! The scenarios, and the targets that the figures are held against.

use super::Arena;
use super::builder::{Builder, DEADLINE, Job, Work};
use super::images;
use super::measure::{Meter, Sample};
use super::obuild::Obuild;
use super::table::{Row, Table};
use crate::cmd::Cmd;
use anyhow::Result;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One comparison.
pub(crate) struct Scenario {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What is compared.
    pub(crate) summary: &'static str,
    /// Takes the samples.
    pub(crate) run: fn(&mut Arena, &Meter) -> Result<Table>,
    /// Says of each target whether it is met.
    pub(crate) verdicts: fn(&Table) -> Vec<String>,
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "steps",
        summary: "50 cold steps of `true` on Debian, per step",
        run: steps,
        verdicts: steps_verdicts,
    },
    Scenario {
        name: "cached",
        summary: "the same 50 steps again, all cached; the whole command",
        run: cached,
        verdicts: |table| {
            vec![at_most(
                "cached build",
                ours(table).and_then(Row::wall),
                8.0,
            )]
        },
    },
    Scenario {
        name: "parallel",
        summary: "8 independent builds of `sleep 1` and a last that copies from them, 8 jobs",
        run: parallel,
        verdicts: |table| {
            vec![at_most(
                "8 × sleep 1",
                ours(table).and_then(Row::wall),
                1500.0,
            )]
        },
    },
    Scenario {
        name: "copy",
        summary: "a context of 10,000 files, 100 MB: cold, against `cp -a`",
        run: copy,
        verdicts: copy_verdicts,
    },
    Scenario {
        name: "unchanged",
        summary: "the same context again, unchanged and cached; the whole command",
        run: unchanged,
        verdicts: |table| {
            vec![at_most(
                "unchanged context",
                ours(table).and_then(Row::wall),
                60.0,
            )]
        },
    },
    Scenario {
        name: "cancel",
        summary: "a step that ignores signals and has detached a child, from Ctrl-C to the command's end",
        run: cancel,
        verdicts: |table| {
            vec![at_most(
                "from Ctrl-C to the end",
                ours(table).and_then(Row::wall),
                1000.0,
            )]
        },
    },
    Scenario {
        name: "pull",
        summary: "a base of 170 MB from a local registry to its first step, against `docker pull` and `docker run`",
        run: super::pull::run,
        verdicts: |table| {
            vec![at_least(
                "pull to the first step, against docker",
                table.row(super::pull::DOCKER).and_then(Row::wall),
                ours(table).and_then(Row::wall),
                2.0,
            )]
        },
    },
    Scenario {
        name: "memory",
        summary: "peak memory of `obuild`: a large base imported, a log of 200 MB",
        run: memory,
        verdicts: memory_verdicts,
    },
    Scenario {
        name: "layer",
        summary: "the layer of one changed file in a tree of 100,000",
        run: images::layer,
        verdicts: images::layer_verdicts,
    },
    Scenario {
        name: "archive-push",
        summary: "a file added to an image of 1,000 files of 100 kB, built and pushed",
        run: images::archive_push,
        verdicts: images::archive_push_verdicts,
    },
];

/// How many steps a chain has.
const STEPS: u32 = 50;
/// How many independent builds.
const BUILDS: u32 = 8;
/// How many turns of cached builds there are, and how many builds a turn has: the first of a turn pays for what the contestant before it has left in the
/// processor's caches, which would be another price for each.
const CACHED_TURNS: usize = 5;
const IN_A_ROW: usize = 4;
/// A contestant that has used up this much time in a scenario is not run again in it.
const PATIENCE: Duration = Duration::from_secs(45);
const BY_HAND: &str = "OBuilder's way (btrfs and runc commands)";

fn steps(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let title = format!("{STEPS} cold steps of `true`, per step");
    let rows = turns(arena, meter, arena.runs, |run| Job {
        work: Work::Steps(STEPS),
        token: format!("steps-{run}"),
        cold: true,
    })?;
    Ok(Table {
        title,
        per: STEPS,
        rows,
    })
}

fn cached(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let job = Job {
        work: Work::Steps(STEPS),
        token: "cached".to_owned(),
        cold: false,
    };
    // Fills the caches; the same job follows.
    turns(arena, meter, 1, |_| job.clone())?;
    let rows = turns(arena, meter, CACHED_TURNS, |_| job.clone())?;
    Ok(Table {
        title: format!("the same {STEPS} steps, all cached, whole command"),
        per: 1,
        rows,
    })
}

fn parallel(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let rows = turns(arena, meter, arena.runs, |run| Job {
        work: Work::Parallel(BUILDS),
        token: format!("parallel-{run}"),
        cold: true,
    })?;
    Ok(Table {
        title: format!("{BUILDS} independent `sleep 1` and a copy from each, {BUILDS} jobs"),
        per: 1,
        rows,
    })
}

fn copy(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let context = context(arena)?;
    let mut cp = row("cp -a", None);
    let mut rows = empty_rows(arena);
    // First those that delete nothing: file systems differ in how they take new files after many were deleted.
    let runs = arena.runs;
    for (turn_of_ours, run) in (0..2 * runs).map(|index| (index < runs, index % runs)) {
        // New times, so that no digest of an earlier run is known.
        touch(&context)?;
        if turn_of_ours {
            settle();
            let target = arena.inputs.join(format!("copy-{run}"));
            let command = [
                "cp",
                "-a",
                &context.to_string_lossy(),
                &target.to_string_lossy(),
            ];
            cp.samples
                .push(meter.run(&command.map(str::to_owned), &[], DEADLINE)?);
        }
        let job = Job {
            work: Work::Copy(context.clone()),
            token: format!("copy-{run}"),
            cold: true,
        };
        turn(arena, meter, &job, &mut rows, |label| {
            is_ours(label) == turn_of_ours
        })?;
    }
    for run in 0..arena.runs {
        fs_err::remove_dir_all(arena.inputs.join(format!("copy-{run}")))?;
    }
    rows.push(cp);
    drop_empty(&mut rows);
    Ok(Table {
        title: "copy of a context of 10,000 files, 100 MB, cold".to_owned(),
        per: 1,
        rows,
    })
}

fn unchanged(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let context = context(arena)?;
    let job = Job {
        work: Work::Copy(context),
        token: "unchanged".to_owned(),
        cold: false,
    };
    turns(arena, meter, 1, |_| job.clone())?;
    let rows = turns(arena, meter, CACHED_TURNS, |_| job.clone())?;
    Ok(Table {
        title: "the same context, unchanged and cached, whole command".to_owned(),
        per: 1,
        rows,
    })
}

/// Interrupts builds; the time is from the signal to the end of the command, when nothing of the step may run any more.
fn cancel(arena: &mut Arena, _: &Meter) -> Result<Table> {
    let mut rows = Vec::new();
    for sandbox in ["native", "runc"] {
        let store = format!("overlay:{}", arena.inputs.join("cancel").display());
        let obuild = Obuild::new(store, sandbox, &arena.base, &arena.inputs);
        let mut row = row(&obuild.label(), None);
        for run in 0..arena.runs {
            // A number that nobody else sleeps for.
            let sleep = format!("sleep 9{}", std::process::id());
            let job = Job {
                work: Work::Command(format!(
                    "trap '' INT TERM; (setsid {sleep} &); {sleep} # {run}"
                )),
                token: format!("cancel-{run}"),
                cold: true,
            };
            let command = obuild.command(&job)?;
            let mut child = Command::new(&command[0])
                .args(&command[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            while running(&sleep)? < 2 {
                anyhow::ensure!(child.try_wait()?.is_none(), "the build has ended by itself");
                std::thread::sleep(Duration::from_millis(20));
            }
            let begun = Instant::now();
            let pid = Pid::from_raw(i32::try_from(child.id())?);
            nix::sys::signal::kill(pid, Signal::SIGINT)?;
            let status = child.wait()?;
            row.samples.push(Sample {
                wall: begun.elapsed(),
                cpu: Duration::ZERO,
                peak_kib: 0,
            });
            anyhow::ensure!(status.code() == Some(130), "the build ended with {status}");
            anyhow::ensure!(running(&sleep)? == 0, "something of the step still runs");
        }
        rows.push(row);
    }
    Ok(Table {
        title: "from Ctrl-C to the end of the command".to_owned(),
        per: 1,
        rows,
    })
}

/// Returns how many processes have this command line.
fn running(line: &str) -> Result<usize> {
    let wanted = format!("{}\0", line.replace(' ', "\0")).into_bytes();
    let processes = fs_err::read_dir("/proc")?.flatten();
    let lines = processes.filter_map(|entry| fs_err::read(entry.path().join("cmdline")).ok());
    Ok(lines.filter(|line| *line == wanted).count())
}

fn memory(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let mut rows = Vec::new();
    let large = large_base(arena)?;
    let store = |name: &str| format!("overlay:{}", arena.inputs.join(name).display());
    let obuild = Obuild::new(store("memory"), "native", &arena.base, &arena.inputs);
    let mut job = Job {
        work: Work::Command("true".to_owned()),
        token: "memory".to_owned(),
        cold: true,
    };
    let sample = obuild.with_base(&large).build(meter, &job)?;
    rows.push(row("import of a base of 1.2 GB", sample));
    let line = "a line of output as long as those of a compiler that means well and says much";
    job.work = Work::Command(format!("yes '{line}' | head -c 200000000"));
    let mut obuild = obuild;
    rows.push(row(
        "a step that writes a log of 200 MB",
        obuild.build(meter, &job)?,
    ));
    rows.push(row(
        "the same, replayed from the cache",
        obuild.build(meter, &job)?,
    ));
    fs_err::remove_file(large)?;
    Ok(Table {
        title: "peak memory of `obuild`".to_owned(),
        per: 1,
        rows,
    })
}

pub(super) fn row(label: &str, sample: Option<Sample>) -> Row {
    Row {
        label: label.to_owned(),
        samples: sample.into_iter().collect(),
        note: String::new(),
    }
}

/// Lets every contestant run `count` times, taking turns.
fn turns(
    arena: &mut Arena,
    meter: &Meter,
    count: usize,
    job: impl Fn(usize) -> Job,
) -> Result<Vec<Row>> {
    let mut rows = empty_rows(arena);
    for run in 0..count {
        turn(arena, meter, &job(run), &mut rows, |_| true)?;
    }
    drop_empty(&mut rows);
    Ok(rows)
}

pub(super) fn drop_empty(rows: &mut Vec<Row>) {
    rows.retain(|row| !row.samples.is_empty() || !row.note.is_empty());
}

/// Returns whether the contestant of that name is `obuild`.
pub(crate) fn is_ours(label: &str) -> bool {
    label.starts_with("obuild ")
}

pub(super) fn empty_rows(arena: &Arena) -> Vec<Row> {
    arena
        .builders
        .iter()
        .map(|builder| row(&builder.label(), None))
        .collect()
}

/// Lets every contestant that `takes_part` run once, or several times in a row if nothing is built.
///
/// A peer that fails says why in its row and is left out from then on; a failure of ours ends the benchmark.
pub(super) fn turn(
    arena: &mut Arena,
    meter: &Meter,
    job: &Job,
    rows: &mut [Row],
    takes_part: impl Fn(&str) -> bool,
) -> Result<()> {
    for (builder, row) in arena.builders.iter_mut().zip(rows) {
        let spent: Duration = row.samples.iter().map(|sample| sample.wall).sum();
        if !row.note.is_empty() || spent > PATIENCE || !takes_part(&row.label) {
            continue;
        }
        if job.cold {
            settle();
        }
        for _ in 0..if job.cold { 1 } else { IN_A_ROW } {
            match builder.build(meter, job) {
                Ok(Some(sample)) => {
                    eprintln!("{}: {:.1?}", row.label, sample.wall);
                    row.samples.push(sample);
                }
                Ok(None) => {}
                Err(error) if is_ours(&row.label) => return Err(error),
                Err(error) => {
                    row.note = format!("failed: {error:#}");
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Writes out what earlier commands left dirty, so that nobody pays for others.
pub(super) fn settle() {
    Cmd::new("sync").quiet().run().ok();
}

/// Makes the context once: 100 directories with 100 files of 10 kB each.
fn context(arena: &Arena) -> Result<PathBuf> {
    let top = arena.inputs.join("context");
    if top.exists() {
        return Ok(top);
    }
    let mut content = vec![0_u8; 10_000];
    let mut state = 1_u32;
    for directory in 0..100 {
        let path = top.join(format!("directory-{directory}"));
        fs_err::create_dir_all(&path)?;
        for file in 0..100 {
            // Different in every file: a linear congruential generator will do.
            for byte in &mut content {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = state.to_be_bytes()[0];
            }
            fs_err::write(path.join(format!("file-{file}")), &content)?;
        }
    }
    Ok(top)
}

fn touch(context: &Path) -> Result<()> {
    Cmd::new("find")
        .quiet()
        .arg(context)
        .args(["-type", "f", "-exec", "touch", "{}", "+"])
        .run()
}

/// Makes a base of about 1.2 GB: the Debian root and a gigabyte that does not compress.
fn large_base(arena: &Arena) -> Result<PathBuf> {
    let tar = arena.inputs.join("large.tar");
    let blob = arena.inputs.join("blob");
    fs_err::copy(&arena.base, &tar)?;
    Cmd::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "count=1024", "status=none"])
        .arg(format!("of={}", blob.display()))
        .run()?;
    Cmd::new("tar")
        .arg("-rf")
        .arg(&tar)
        .arg("-C")
        .arg(&arena.inputs)
        .arg("./blob")
        .run()?;
    fs_err::remove_file(blob)?;
    Ok(tar)
}

pub(super) fn ours(table: &Table) -> Option<&Row> {
    table.row("obuild overlay+native")
}

fn steps_verdicts(table: &Table) -> Vec<String> {
    let Some(row) = ours(table) else {
        return Vec::new();
    };
    let (wall, cpu) = (row.wall(), row.cpu());
    let per_step = |time: Option<Duration>| time.map(|time| time / STEPS);
    let by_hand = table.row(BY_HAND);
    let docker = table.row("docker build").and_then(Row::wall);
    vec![
        at_most("cold step, wall", per_step(wall), 4.0),
        at_most("cold step, processor", per_step(cpu), 3.0),
        at_least(
            "wall against OBuilder's way",
            by_hand.and_then(Row::wall),
            wall,
            12.0,
        ),
        at_least(
            "processor against OBuilder's way",
            by_hand.and_then(Row::cpu),
            cpu,
            12.0,
        ),
        at_least("wall against docker build", docker, wall, 80.0),
    ]
}

fn copy_verdicts(table: &Table) -> Vec<String> {
    let ours = ours(table).and_then(Row::wall);
    let cp = table.row("cp -a").and_then(Row::wall);
    let verdict = match (ours, cp) {
        (Some(ours), Some(cp)) => {
            let ratio = ours.as_secs_f64() / cp.as_secs_f64();
            format!(
                "{}: cold copy is {ratio:.2} × cp -a (at most 1.5)",
                word(ratio <= 1.5)
            )
        }
        _ => "not measured: cold copy against cp -a".to_owned(),
    };
    vec![verdict]
}

fn memory_verdicts(table: &Table) -> Vec<String> {
    let verdict = |row: &Row| {
        let peak = row.peak_mb()?;
        Some(format!(
            "{}: {}: {peak:.0} MB (under 60)",
            word(peak < 60.0),
            row.label
        ))
    };
    table.rows.iter().filter_map(verdict).collect()
}

pub(super) fn at_most(what: &str, time: Option<Duration>, limit_ms: f64) -> String {
    let Some(time) = time else {
        return format!("not measured: {what}");
    };
    let ms = time.as_secs_f64() * 1e3;
    format!(
        "{}: {what}: {ms:.2} ms (at most {limit_ms})",
        word(ms <= limit_ms)
    )
}

fn at_least(what: &str, theirs: Option<Duration>, ours: Option<Duration>, limit: f64) -> String {
    let (Some(theirs), Some(ours)) = (theirs, ours) else {
        return format!("not measured: {what}");
    };
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    format!(
        "{}: {what}: {ratio:.1} × less (at least {limit})",
        word(ratio >= limit)
    )
}

pub(super) fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
