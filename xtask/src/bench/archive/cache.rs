// SPDX-License-Identifier: Apache-2.0
//! The source archive against `opam admin cache`: fetching everything from a local server, and having nothing to do.
//!
//! The repositories are generated, with as many packages and archives as the real one has or had, since the real archives are not at
//! hand; their checksums are true. The server runs here and is not measured.

use crate::bench::Arena;
use crate::bench::builder::DEADLINE;
use crate::bench::measure::Meter;
use crate::bench::table::{Row, Table};
use crate::cmd::Cmd;
use crate::packages::{self, Sign};
use crate::workspace;
use anyhow::{Context, Result};
use obuild_fixtures::server::Server;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const OURS: &str = "obuild archive sync";
const OPAM: &str = "opam admin cache";
const NOTHING: &str = "obuild archive sync, nothing new";
const OPAM_NOTHING: &str = "opam admin cache, nothing new";

/// A generated repository and the server of its archives.
pub(super) struct World {
    repository: PathBuf,
    _server: Server,
    directory: PathBuf,
}

impl World {
    /// Makes a repository of so many packages that share so many archives of about so many bytes.
    pub(super) fn create(
        directory: &Path,
        package_count: usize,
        archive_count: usize,
        bytes: usize,
    ) -> Result<Self> {
        packages::ensure(&[
            (Sign::Program("git"), "git"),
            (Sign::Program("opam"), "opam"),
        ])?;
        let (files, repository) = (directory.join("files"), directory.join("repository"));
        fs_err::create_dir_all(&files)?;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for index in 0..archive_count {
            // xorshift64: no compressor helps anybody.
            let length = bytes / 2 + index * 7919 % bytes;
            let mut data = Vec::with_capacity(length + 8);
            while data.len() < length {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                data.extend_from_slice(&random.to_le_bytes());
            }
            fs_err::write(files.join(format!("{index}.tgz")), data)?;
        }
        let sums = ["md5", "sha256", "sha512"].map(|kind| sums(&files, kind));
        let [md5, sha256, sha512] = sums;
        let (md5, sha256, sha512) = (md5?, sha256?, sha512?);
        let server = Server::start();
        server.directory(&files);
        for index in 0..package_count {
            let name = format!("package-{}", index / 4);
            let place = repository.join(format!("packages/{name}/{name}.{}", index % 4));
            fs_err::create_dir_all(&place)?;
            let file = format!("{}.tgz", index % archive_count);
            let url = server.url(&format!("/{file}"));
            // The kinds as the real repository has them, roughly.
            let (first, second) = match index % archive_count % 5 {
                0 | 1 => (&sha256[&file], &sha512[&file]),
                2 | 3 => (&md5[&file], &sha512[&file]),
                _ => (&md5[&file], &sha256[&file]),
            };
            let mut text =
                format!("opam-version: \"2.0\"\nsynopsis: \"{name}\"\ndescription: \"\"\"\n");
            for line in 0..14 {
                writeln!(
                    text,
                    "What {name} does, line {line}: it compiles, links and installs itself."
                )?;
            }
            write!(
                text,
                "\"\"\"\nurl {{\n  src: \"{url}\"\n  checksum: [\n    \"{first}\"\n    \"{second}\"\n  ]\n}}\n"
            )?;
            fs_err::write(place.join("opam"), text)?;
        }
        fs_err::write(repository.join("repo"), "opam-version: \"2.0\"\n")?;
        let git = || Cmd::new("git").quiet().arg("-C").arg(&repository);
        git().args(["init", "-q"]).run()?;
        git().args(["add", "-A"]).run()?;
        git()
            .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
            .args(["commit", "-q", "-m", "everything"])
            .run()?;
        Ok(Self {
            repository,
            _server: server,
            directory: directory.to_owned(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn ours(&self, to: &Path, more: &[&str]) -> Vec<String> {
        let obuild = workspace::target().join("release/obuild");
        let mut command = vec![text(&obuild), "archive".to_owned(), "sync".to_owned()];
        command.extend([text(&self.repository), "--to".to_owned(), text(to)]);
        command.extend(more.iter().map(ToString::to_string));
        command
    }

    fn opam(&self, to: &Path) -> Vec<String> {
        // It works on the repository that it is in; a shell changes there.
        let script = "cd \"$1\" && exec opam admin cache \"$2\" -n";
        ["sh", "-c", script, "sh", &text(&self.repository), &text(to)]
            .map(str::to_owned)
            .into()
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("OPAMROOT", text(&self.path("opam"))),
            ("OPAMROOTISOK", "1".to_owned()),
            ("OPAMYES", "1".to_owned()),
        ]
    }
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Returns the checksums of all files of a directory, as opam files have them, by their names.
fn sums(directory: &Path, kind: &str) -> Result<HashMap<String, String>> {
    let script = format!("cd \"$1\" && find . -name '*.tgz' -print0 | xargs -0 {kind}sum");
    let lines = Cmd::new("sh")
        .args(["-c", &script, "sh"])
        .arg(directory)
        .output()?;
    lines
        .lines()
        .map(|line| {
            let (digest, name) = line.split_once("  ./").context("a line of sha256sum")?;
            Ok((name.to_owned(), format!("{kind}={digest}")))
        })
        .collect()
}

pub(super) fn row(label: &str) -> Row {
    Row {
        label: label.to_owned(),
        samples: Vec::new(),
        note: String::new(),
    }
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() {
        fs_err::remove_dir_all(path)?;
    }
    Ok(())
}

/// 415 archives, 37 MB, from a server on loopback.
pub(super) fn fetch(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let world = World::create(&arena.inputs.join("fetch"), 600, 415, 89_000)?;
    let (mut ours, mut opam) = (row(OURS), row(OPAM));
    for _ in 0..arena.runs {
        let to = world.path("ours");
        remove(&to)?;
        let command = world.ours(&to, &["--no-index"]);
        ours.samples.push(meter.run(&command, &[], DEADLINE)?);
        let to = world.path("theirs");
        remove(&to)?;
        let sample = meter.run(&world.opam(&to), &world.environment(), DEADLINE)?;
        opam.samples.push(sample);
    }
    Ok(Table {
        title: "415 archives (37 MB) from a local server, from nothing".to_owned(),
        per: 1,
        rows: vec![ours, opam],
    })
}

pub(super) fn fetch_verdicts(table: &Table) -> Vec<String> {
    let wall = |label| table.row(label).and_then(Row::wall);
    let (Some(ours), Some(theirs)) = (wall(OURS), wall(OPAM)) else {
        return vec!["not measured: fetching archives".to_owned()];
    };
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    vec![format!(
        "{}: {ratio:.1} × faster than opam admin cache (at least 4)",
        word(ratio >= 4.0)
    )]
}

/// As many packages and archives as opam-repository has.
pub(super) fn scale(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let world = World::create(&arena.inputs.join("scale"), 18_793, 11_495, 6_000)?;
    let to = world.path("ours");
    let mut whole = row(OURS);
    whole
        .samples
        .push(meter.run(&world.ours(&to, &[]), &[], DEADLINE)?);
    let (mut nothing, mut opam) = (row(NOTHING), row(OPAM_NOTHING));
    for _ in 0..arena.runs {
        nothing
            .samples
            .push(meter.run(&world.ours(&to, &[]), &[], DEADLINE)?);
        let command = world.opam(&to.join("cache"));
        opam.samples
            .push(meter.run(&command, &world.environment(), DEADLINE)?);
    }
    Ok(Table {
        title: "18,793 packages, 11,495 archives".to_owned(),
        per: 1,
        rows: vec![whole, nothing, opam],
    })
}

pub(super) fn scale_verdicts(table: &Table) -> Vec<String> {
    let (Some(whole), Some(nothing)) = (table.row(OURS), table.row(NOTHING)) else {
        return vec!["not measured: a sync at full scale".to_owned()];
    };
    let mut verdicts = Vec::new();
    if let Some(wall) = nothing.wall() {
        let limit = Duration::from_millis(100);
        verdicts.push(format!(
            "{}: a sync with nothing new at full scale: {:.0} ms (under 100)",
            word(wall < limit),
            wall.as_secs_f64() * 1e3
        ));
    }
    for (what, row, limit) in [
        ("with nothing new", nothing, 50.0),
        ("of everything", whole, 200.0),
    ] {
        if let Some(peak) = row.peak_mb() {
            verdicts.push(format!(
                "{}: memory of a sync {what} at full scale: {peak:.0} MB (under {limit:.0})",
                word(peak < limit)
            ));
        }
    }
    verdicts
}

pub(super) fn word(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}
