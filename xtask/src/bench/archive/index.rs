// SPDX-License-Identifier: Apache-2.0
//! `obuild archive index` against `opam admin index`, on the last 200 merges of opam-repository: from nothing, and after each merge.
//! After every tenth of them the result is compared with one made from nothing.
//!
//! `opam admin index` puts files into its tar in the order in which the file system lists them: on ext4, where Debian has them, that is
//! the order of a hash, and the file is a quarter larger than where directories happen to list files as they were made (XFS, tmpfs). So it is
//! measured on both; the size is judged by ext4, the time by the faster one.

use crate::bench::Arena;
use crate::bench::builder::DEADLINE;
use crate::bench::measure::{Meter, Sample};
use crate::bench::table::{Row, Table};
use crate::cmd::Cmd;
use crate::filesystems::Scratch;
use crate::{opam, workspace};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NOTHING: &str = "obuild archive index, from nothing";
const MERGE: &str = "obuild archive index, after one merge";
const NO_MERGE: &str = "obuild archive index, nothing new";
const ADMIN: &str = "opam admin index, warm checkout on ext4";
const ADMIN_SORTED: &str = "opam admin index, the same on XFS (or --on-host)";

/// Room for a checkout and its index.
const EXT4_BYTES: u64 = 2 << 30;

/// What the issue asks for: processor time after one merge.
const MERGE_LIMIT: Duration = Duration::from_millis(20);

pub(super) fn run(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let row = |label: &str| Row {
        label: label.to_owned(),
        samples: Vec::new(),
        note: String::new(),
    };
    let mut table = Table {
        title: "the index of opam-repository (18,793 opam files), 200 merges".to_owned(),
        per: 1,
        rows: [NOTHING, MERGE, NO_MERGE, ADMIN, ADMIN_SORTED]
            .map(row)
            .into(),
    };
    let Some(data) = workspace::opam_data() else {
        "no data: OBUILD_TEST_OPAM_DATA names its directory".clone_into(&mut table.rows[0].note);
        return Ok(table);
    };
    let directory = arena.inputs.join("index");
    fs_err::create_dir_all(&directory)?;
    let (replay, commits) = super::replay(&directory, &data)?;
    let last = commits.last().context("the replay has commits")?;

    let mut scratch = Scratch::create(&directory)?;
    let admins = [
        Admin::prepare(&scratch.ext4(EXT4_BYTES)?, &replay, meter)?,
        Admin::prepare(&directory.join("sorted"), &replay, meter)?,
    ];
    for run in 0..arena.runs {
        let out = directory.join(format!("nothing{run}"));
        let sample = index(meter, &replay, last, &out)?;
        table.rows[0].samples.push(sample);
        for (admin, row) in admins.iter().zip(3..) {
            table.rows[row].samples.push(admin.run(meter)?);
        }
    }
    let theirs = admins.iter().map(|admin| Ok(read(&admin.tree)?.len()));
    let theirs = theirs.collect::<Result<Vec<usize>>>()?;
    scratch.close()?;
    let out = directory.join("merges");
    index(meter, &replay, &commits[0], &out)?;
    for (turn, commit) in commits.iter().enumerate().skip(1) {
        let sample = index(meter, &replay, commit, &out)?;
        table.rows[1].samples.push(sample);
        if turn % 10 == 0 {
            let fresh = directory.join("fresh");
            index(meter, &replay, commit, &fresh)?;
            ensure!(
                read(&out)? == read(&fresh)?,
                "merge {turn}: the index is not what one from nothing is"
            );
            fs_err::remove_dir_all(&fresh)?;
        }
    }
    for _ in 0..arena.runs {
        table.rows[2]
            .samples
            .push(index(meter, &replay, last, &out)?);
    }
    ensure!(
        read(&out)? == read(&directory.join("nothing0"))?,
        "the last index is not what one from nothing is"
    );
    let ours = read(&out)?.len();
    table.rows[0].note = format!("{ours} bytes");
    for (theirs, row) in theirs.iter().zip(3..) {
        let less = less(ours, *theirs);
        table.rows[row].note = format!("{theirs} bytes; ours has {less} % less");
    }
    let merges = sorted(&table.rows[1].samples);
    let at = |percent: usize| merges[(merges.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    table.rows[1].note = format!(
        "processor time: median {:.1} ms, p95 {:.1}, max {:.1}",
        at(50),
        at(95),
        at(100)
    );
    Ok(table)
}

fn index(meter: &Meter, replay: &Path, commit: &str, out: &Path) -> Result<Sample> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let command = [
        &text(&workspace::target().join("release/obuild")),
        "archive",
        "index",
        &text(replay),
        "--commit",
        commit,
        "--out",
        &text(out),
    ]
    .map(str::to_owned);
    meter.run(&command, &[], DEADLINE)
}

fn read(out: &Path) -> Result<Vec<u8>> {
    Ok(fs_err::read(out.join("index.tar.gz"))?)
}

/// `opam admin index` on a checkout.
struct Admin {
    tree: PathBuf,
    command: Vec<String>,
    environment: [(&'static str, String); 2],
}

impl Admin {
    /// Makes the checkout in `place`, and runs it once for the page cache.
    fn prepare(place: &Path, replay: &Path, meter: &Meter) -> Result<Self> {
        let program = opam::own()?;
        let tree = place.join("tree");
        Cmd::new("git")
            .args(["clone", "-q"])
            .arg(replay)
            .arg(&tree)
            .run()?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let command = ["env", "-C", &text(&tree), &text(&program), "admin", "index"];
        let admin = Self {
            command: command.map(str::to_owned).into(),
            environment: [
                ("OPAMROOTISOK", "1".to_owned()),
                ("OPAMROOT", text(&place.join("root"))),
            ],
            tree,
        };
        admin.run(meter)?;
        Ok(admin)
    }

    fn run(&self, meter: &Meter) -> Result<Sample> {
        meter.run(&self.command, &self.environment, DEADLINE)
    }
}

/// Returns by how many percent the first is smaller.
fn less(ours: usize, theirs: usize) -> usize {
    100 * theirs.saturating_sub(ours) / theirs.max(1)
}

fn sorted(samples: &[Sample]) -> Vec<Duration> {
    let mut times: Vec<Duration> = samples.iter().map(|sample| sample.cpu).collect();
    times.sort_unstable();
    times
}

pub(super) fn verdicts(table: &Table) -> Vec<String> {
    let word = |met: bool| if met { "met" } else { "MISSED" };
    let row = |label: &str| table.row(label).filter(|row| !row.samples.is_empty());
    let rows = (row(NOTHING), row(MERGE), row(ADMIN), row(ADMIN_SORTED));
    let (Some(nothing), Some(merge), Some(admin), Some(other)) = rows else {
        return vec!["not measured: the index of opam-repository".to_owned()];
    };
    let mut verdicts = Vec::new();
    if let (Some(ours), Some(theirs)) = (nothing.wall(), admin.wall().min(other.wall())) {
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        verdicts.push(format!(
            "{}: from nothing in {ratio:.2} of the time of opam admin index where it is faster (at most 0.5)",
            word(ratio <= 0.5)
        ));
    }
    let bytes = |row: &Row| row.note.split(' ').next()?.parse().ok();
    if let (Some(ours), Some(theirs)) = (bytes(nothing), bytes(admin)) {
        let less = less(ours, theirs);
        verdicts.push(format!(
            "{}: the file is {less} % smaller than that of opam admin index on ext4 (at least 20)",
            word(less >= 20)
        ));
    }
    if let Some(cpu) = merge.cpu() {
        verdicts.push(format!(
            "{}: {:.1} ms of processor time after one merge (under {})",
            word(cpu < MERGE_LIMIT),
            cpu.as_secs_f64() * 1e3,
            MERGE_LIMIT.as_millis()
        ));
    }
    verdicts
}
