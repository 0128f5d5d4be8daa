// SPDX-License-Identifier: Apache-2.0
//! The archive as an image in a registry: what a push sends after one new package, and over many merges.
//!
//! The archives are generated, as many as the real repository has, since the real ones are not at hand; the index is the real one, and
//! each merge is a real merge of opam-repository with a generated archive. Bytes are counted by a door before the registry, requests and all.

use super::cache::{World, row, text, word};
use crate::bench::Arena;
use crate::bench::builder::DEADLINE;
use crate::bench::images::Server;
use crate::bench::measure::Meter;
use crate::bench::table::{Row, Table};
use crate::cmd::Cmd;
use crate::packages::{self, Sign};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

const PARTS: &str = "index in parts";
const FILE: &str = "index as one file";
const MERGES: &str = "merges";

/// Bytes of the new package's archive.
const PACKAGE: u64 = 100_000;
/// What the issue allows beside it on the wire.
const PARTS_LIMIT: u64 = 64 << 10;
const FILE_LIMIT: u64 = 4_200_000;
const WALL_LIMIT: Duration = Duration::from_secs(2);
/// How many merges are simulated.
const MERGE_COUNT: usize = 1000;
/// How many of the real merges there are: they are gone through forth and back.
const REAL_MERGES: usize = 200;

/// An archive with the real one's number of archives, and the history of the index.
struct Mirror {
    directory: PathBuf,
    replay: PathBuf,
    commits: Vec<String>,
    random: u64,
    at: usize,
    registry: Server,
}

impl Mirror {
    fn create(directory: &Path, data: &Path) -> Result<Self> {
        packages::ensure(&[(Sign::Program("docker-registry"), "docker-registry")])?;
        let world = World::create(&directory.join("world"), 18_793, 11_495, 6_000)?;
        let archive = directory.join("archive");
        let mut sync = world.ours(&archive, &["--no-index", "--progress", "quiet"]);
        Cmd::new(sync.remove(0)).quiet().args(sync).output()?;
        let (replay, commits) = super::replay(directory, data)?;
        let mirror = Self {
            directory: archive,
            replay,
            commits,
            random: 0x9e37_79b9_7f4a_7c15,
            at: 0,
            registry: Server::start(&directory.join("registry"))?,
        };
        ensure!(
            mirror.commits.len() > REAL_MERGES,
            "the replay has {REAL_MERGES} merges"
        );
        mirror.index()?;
        Ok(mirror)
    }

    fn index(&self) -> Result<()> {
        // There and back again.
        let turn = self.at % (2 * REAL_MERGES);
        let commit = &self.commits[turn.min(2 * REAL_MERGES - turn)];
        Cmd::new(obuild())
            .quiet()
            .args(["archive", "index", &text(&self.replay), "--commit", commit])
            .args(["--archive-mirror", "cache", "--out", &text(&self.directory)])
            .output()
            .map(drop)
    }

    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Merges: the index of the next commit, and an archive of so many bytes.
    fn merge(&mut self, bytes: u64) -> Result<()> {
        self.at += 1;
        self.index()?;
        let directory = self.directory.with_extension("new");
        fs_err::create_dir_all(&directory)?;
        let mut data = Vec::new();
        while (data.len() as u64) < bytes {
            data.extend_from_slice(&self.next().to_le_bytes());
        }
        data.truncate(usize::try_from(bytes)?);
        fs_err::write(directory.join("new.tgz"), data)?;
        Cmd::new(obuild())
            .quiet()
            .args([
                "archive",
                "import",
                "--all",
                "--copy",
                "--progress",
                "quiet",
            ])
            .args([&text(&directory), "--to", &text(&self.directory)])
            .output()?;
        Ok(fs_err::remove_dir_all(&directory)?)
    }

    fn push(&self, kind: &str) -> Vec<String> {
        let name = format!("{}/archive-{kind}:live", self.registry.address);
        let (program, directory) = (obuild(), text(&self.directory));
        [
            program.as_str(),
            "archive",
            "image",
            &directory,
            "--push",
            &name,
            "--program",
            &program,
            "--index",
            kind,
            "--format",
            "json",
            "--progress",
            "quiet",
        ]
        .map(str::to_owned)
        .into()
    }

    fn sent(&self) -> u64 {
        self.registry.sent.load(Ordering::Relaxed)
    }
}

fn obuild() -> String {
    text(&workspace::target().join("release/obuild"))
}

fn no_data(title: &str) -> Table {
    let mut none = row(PARTS);
    "no data: OBUILD_TEST_OPAM_DATA names its directory".clone_into(&mut none.note);
    Table {
        title: title.to_owned(),
        per: 1,
        rows: vec![none],
    }
}

/// One new package of 100 kB, pushed.
pub(super) fn push(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let title =
        "a package of 100 kB added to an image of 11,495 archives and the real index, pushed";
    let Some(data) = workspace::opam_data() else {
        return Ok(no_data(title));
    };
    let mut rows = Vec::new();
    for (label, kind) in [(PARTS, "parts"), (FILE, "file")] {
        let mut mirror = Mirror::create(&arena.inputs.join(format!("image-{kind}")), &data)?;
        let mut found = row(label);
        let mut sent = Vec::new();
        meter.run(&mirror.push(kind), &[], DEADLINE)?;
        for _ in 0..arena.runs.max(20) {
            mirror.merge(PACKAGE)?;
            let before = mirror.sent();
            found
                .samples
                .push(meter.run(&mirror.push(kind), &[], DEADLINE)?);
            sent.push((mirror.sent() - before).saturating_sub(PACKAGE));
        }
        sent.sort_unstable();
        let (median, last) = (sent[sent.len() / 2], sent[sent.len() - 1]);
        found.note = format!("{median} bytes beside the package in the median, {last} at most");
        rows.push(found);
    }
    Ok(Table {
        title: title.to_owned(),
        per: 1,
        rows,
    })
}

pub(super) fn push_verdicts(table: &Table) -> Vec<String> {
    let mut verdicts = Vec::new();
    for (label, limit) in [(PARTS, PARTS_LIMIT), (FILE, FILE_LIMIT)] {
        let found = table.row(label);
        let sent = found.and_then(|row| row.note.split(' ').next()?.parse::<u64>().ok());
        let (Some(sent), Some(wall)) = (sent, found.and_then(Row::wall)) else {
            verdicts.push(format!("not measured: a push, {label}"));
            continue;
        };
        verdicts.push(format!(
            "{}: a push of a new package, {label}: {sent} bytes beside it (under {limit})",
            word(sent < limit)
        ));
        verdicts.push(format!(
            "{}: a push of a new package, {label}: {:.0} ms (under {})",
            word(wall < WALL_LIMIT),
            wall.as_secs_f64() * 1e3,
            WALL_LIMIT.as_millis()
        ));
    }
    verdicts
}

/// A thousand merges, each pushed.
pub(super) fn merges(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let title = "1,000 merges, each pushed: a real merge of the index, an archive of 2 kB to 2 MB";
    let Some(data) = workspace::opam_data() else {
        return Ok(no_data(title));
    };
    let mut mirror = Mirror::create(&arena.inputs.join("merges"), &data)?;
    meter.run(&mirror.push("parts"), &[], DEADLINE)?;
    let (mut arrived, mut most) = (0, 0);
    let begun = mirror.sent();
    let mut found = row(MERGES);
    for turn in 0..MERGE_COUNT {
        // Sizes over three decades, as many in each: most are small.
        let size = (2_000 << (mirror.next() % 10)) + mirror.next() % 2_000;
        arrived += size;
        mirror.merge(size)?;
        let command = mirror.push("parts");
        if turn % 100 == 99 {
            found.samples.push(meter.run(&command, &[], DEADLINE)?);
            continue;
        }
        let output = Cmd::new(&command[0]).quiet().args(&command[1..]).output()?;
        let report: Value = serde_json::from_str(&output)?;
        let layers = report["layers"].as_array().context("layers")?;
        most = most.max(layers.len());
        let base = layers
            .iter()
            .find(|layer| {
                layer["contents"]
                    .as_str()
                    .is_some_and(|what| what.contains("archives"))
            })
            .context("a layer of archives")?;
        ensure!(
            base["action"] == "keep",
            "merge {turn}: the base was {base}"
        );
    }
    let sent = mirror.sent() - begun;
    // In hundredths: a table's note is read by the verdict.
    let times = sent * 100 / arrived.max(1);
    found.note = format!("{most} layers at most, {times} bytes sent for 100 that came");
    Ok(Table {
        title: title.to_owned(),
        per: 1,
        rows: vec![found],
    })
}

pub(super) fn merges_verdicts(table: &Table) -> Vec<String> {
    let figures = table.row(MERGES).map(|row| {
        let numbers = row
            .note
            .split(' ')
            .filter_map(|word| word.parse::<u64>().ok());
        numbers.collect::<Vec<_>>()
    });
    let Some([layers, times, ..]) = figures.as_deref() else {
        return vec!["not measured: a thousand merges".to_owned()];
    };
    vec![
        format!("{}: {layers} layers at most (40)", word(*layers <= 40)),
        format!(
            "{}: {times} bytes sent for 100 that came, the base never again (at most 400)",
            word(*times <= 400)
        ),
    ]
}
