// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask bench`: the same work done by `obuild` and by the other builders that are installed, side by side.
//!
//! All contestants of a scenario take turns within one run, so that a busy machine hurts all alike; what counts is
//! the ratio. Everything lives in one scratch directory and is taken down at the end.
//!
//! What is not on btrfs lies on a fresh XFS image: ext4 is slow for minutes in making files after many were deleted
//! (150 ms or 2,050 ms for 10,000 files on a 2-core VM, kernel 6.18), so that on it figures would tell more of what ran before
//! than of the contestants. `--on-host` uses the directory's own file system all the same.
//!
//! `--every-store` adds every kind of store, and the docker sandbox: `cargo xtask bench steps cached --every-store`.

mod archive;
mod buildah;
mod builder;
mod by_hand;
mod docker;
mod images;
mod machine;
pub(crate) mod measure;
mod obuild;
mod pull;
mod scenarios;
mod serve;
mod table;

use crate::cmd::Cmd;
use crate::dockerd::Daemon;
use crate::filesystems::Scratch;
use crate::zfs::Pool;
use crate::{debian, packages, workspace};
use anyhow::{Context, Result, bail};
use builder::Builder;
use measure::Meter;
use scenarios::Scenario;
use std::path::{Path, PathBuf};

/// Size of each image; sparse.
const IMAGE_BYTES: u64 = 32 << 30;

/// What was asked for.
struct Options {
    names: Vec<String>,
    runs: usize,
    install: bool,
    /// Pieces of the names of the contestants that take part beside the first; all if there are none.
    only: Vec<String>,
    /// Where the file systems go.
    directory: PathBuf,
    /// Whether stores lie in `directory` itself, and not on an XFS image in it.
    on_host: bool,
    every_store: bool,
}

/// Runs the task: `[NAME…] [--runs N] [--only BUILDER] [--install] [--dir DIR] [--on-host] [--every-store] [--list]`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let [name, rest @ ..] = arguments
        && name == "serve"
    {
        return serve::run(rest);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for scenario in all() {
            println!("{:<10} {}", scenario.name, scenario.summary);
        }
        println!(
            "{:<10} alone, not among others: the archive's server and nginx",
            "serve"
        );
        return Ok(());
    }
    let options = parse(arguments)?;
    anyhow::ensure!(workspace::is_root(), "the benchmark needs root");
    let is_chosen = |scenario: &&Scenario| {
        options.names.is_empty() || options.names.iter().any(|name| name == scenario.name)
    };
    let chosen: Vec<_> = all().filter(is_chosen).collect();
    let with_builders = scenarios::ALL.iter().any(|scenario| is_chosen(&scenario));
    if options.install {
        packages::ensure(packages::PEERS)?;
    }
    packages::ensure(packages::DEMO)?;
    packages::ensure(packages::BENCH)?;
    Cmd::cargo()
        .args(["build", "--release", "--package", "obuild"])
        .run()?;
    let mut scratch = Scratch::create(&options.directory)?;
    let place = if options.on_host {
        scratch.path().to_owned()
    } else {
        scratch.xfs(IMAGE_BYTES)?
    };
    let meter = Meter::create(&place)?;
    let mut arena = if with_builders {
        let base = debian::tar()?;
        let mut arena = Arena::create(&mut scratch, &place, base, options.runs)?;
        if options.every_store {
            arena.add_stores(&mut scratch, &place)?;
        }
        arena.keep(&options.only);
        arena.prepare(&meter)?;
        arena
    } else {
        Arena::empty(&place, options.runs)?
    };

    let mut head = vec!["# obuild benchmark\n".to_owned()];
    head.push(machine::describe(&place));
    head.push(format!("- processor time: {}", meter.source()));
    head.append(&mut arena.absent);
    let mut sections = Vec::new();
    let mut verdicts = vec!["\n## Targets\n".to_owned()];
    for scenario in chosen {
        eprintln!("\n==> {}", scenario.name);
        let before = machine::load();
        let table = (scenario.run)(&mut arena, &meter)
            .with_context(|| format!("the scenario {}", scenario.name))?;
        let after = machine::load();
        let section = format!("\n{}\n{before} before, {after} after", table.markdown());
        println!("{section}");
        sections.push(section);
        verdicts.extend(
            (scenario.verdicts)(&table)
                .into_iter()
                .map(|line| format!("- {line}")),
        );
    }
    println!("\n{}\n{}", head.join("\n"), verdicts.join("\n"));
    let directory = workspace::target().join("bench");
    fs_err::create_dir_all(&directory)?;
    let file = directory.join("bench.md");
    fs_err::write(&file, [head, sections, verdicts].concat().join("\n") + "\n")?;
    println!("\nwritten to {}", file.display());
    drop(arena);
    drop(meter);
    scratch.close()
}

/// Returns all scenarios: those of the builders, then those of the archive, which need no builders.
fn all() -> impl Iterator<Item = &'static Scenario> {
    scenarios::ALL.iter().chain(archive::ALL)
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        names: Vec::new(),
        runs: 5,
        install: false,
        only: Vec::new(),
        directory: "/var/tmp".into(),
        on_host: false,
        every_store: false,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--install" => options.install = true,
            "--only" => options
                .only
                .push(rest.next().context("--only needs a name")?.clone()),
            "--runs" => {
                let value = rest.next().context("--runs needs a number")?;
                options.runs = value.parse().context("--runs needs a number")?;
                anyhow::ensure!(options.runs > 0, "--runs must be at least 1");
            }
            "--on-host" => options.on_host = true,
            "--every-store" => options.every_store = true,
            "--dir" => options.directory = rest.next().context("--dir needs a directory")?.into(),
            name if all().any(|scenario| scenario.name == name) => {
                options.names.push(name.to_owned());
            }
            other => bail!("unexpected {other:?}; `cargo xtask bench --list` names the scenarios"),
        }
    }
    Ok(options)
}

/// The contestants and what they share.
pub(crate) struct Arena {
    /// Those that could be prepared, `obuild` on overlay first.
    pub(crate) builders: Vec<Box<dyn Builder>>,
    /// How often each scenario is run.
    pub(crate) runs: usize,
    /// A directory for inputs.
    pub(crate) inputs: PathBuf,
    /// The Debian tar.
    pub(crate) base: PathBuf,
    /// A directory on btrfs.
    pub(crate) btrfs: Option<PathBuf>,
    /// Markdown lines about contestants that are not there.
    absent: Vec<String>,
    /// What the stores of docker and ZFS need.
    daemons: (Option<Daemon>, Option<Pool>),
}

impl Arena {
    fn create(scratch: &mut Scratch, place: &Path, base: PathBuf, runs: usize) -> Result<Self> {
        let directory = |name: &str| -> Result<PathBuf> {
            let path = place.join(name);
            fs_err::create_dir_all(&path)?;
            Ok(path)
        };
        let has = |name: &str| workspace::find_program(name).is_some();
        let mut absent = Vec::new();
        let overlay = |name: &str| format!("overlay:{}", place.join(name).display());
        let specs = directory("specs")?;
        let obuild = |store, sandbox| obuild::Obuild::new(store, sandbox, &base, &specs);
        let mut builders: Vec<Box<dyn Builder>> =
            vec![Box::new(obuild(overlay("obuild"), "native"))];
        if has("runc") {
            // A store of its own: the sandbox is no part of a step's id, so it would find the native one's results.
            builders.push(Box::new(obuild(overlay("obuild-runc"), "runc")));
        }
        let mut on_btrfs = None;
        if has("mkfs.btrfs") {
            let btrfs = scratch.btrfs(IMAGE_BYTES)?;
            on_btrfs = Some(btrfs.clone());
            let store = format!("btrfs:{}", btrfs.join("obuild").display());
            builders.push(Box::new(obuild(store, "native")));
            if has("runc") {
                let root = btrfs.join("by-hand");
                fs_err::create_dir(&root)?;
                builders.push(Box::new(by_hand::ByHand::new(&root, &base)));
            }
        }
        if has("dockerd") && has("docker") {
            let root = directory("docker")?;
            builders.push(Box::new(docker::Docker::new(&root, &base)));
        }
        if has("buildah") {
            let root = directory("buildah")?;
            builders.push(Box::new(buildah::Buildah::new(&root, &base)));
        }
        let peers = packages::missing(packages::PEERS);
        if !peers.is_empty() {
            absent.push(format!(
                "- not installed (`--install` does): {}",
                peers.join(" ")
            ));
        }
        Ok(Self {
            builders,
            runs,
            inputs: directory("inputs")?,
            base,
            btrfs: on_btrfs,
            absent,
            daemons: (None, None),
        })
    }

    /// Adds every store with the native sandbox, and every sandbox with a store that is its own or the overlay.
    fn add_stores(&mut self, scratch: &mut Scratch, place: &Path) -> Result<()> {
        let specs = place.join("specs");
        let base = self.base.clone();
        let at = |kind: &str| format!("{kind}:{}", place.join(format!("obuild-{kind}")).display());
        let mut add = |store: String, sandbox, host: Option<&Path>| {
            let mut obuild = obuild::Obuild::new(store, sandbox, &base, &specs);
            obuild.docker_host = host.map(|socket| format!("unix://{}", socket.display()));
            self.builders.push(Box::new(obuild));
        };
        add(at("xfs"), "native", None);
        add(at("rsync"), "native", None);
        let pool = Pool::create(scratch.path(), IMAGE_BYTES)?;
        add(format!("zfs:{}/obuild", pool.name()), "native", None);
        let root = place.join("every-docker");
        fs_err::create_dir_all(&root)?;
        let mut daemon = Daemon::start(&root, &[])?;
        daemon.wait()?;
        let socket = daemon.socket();
        add(at("docker"), "native", Some(&socket));
        add(
            at("docker").replace("obuild-docker", "obuild-docker-2"),
            "docker",
            Some(&socket),
        );
        let store = at("overlay").replace("obuild-overlay", "obuild-overlay-docker");
        add(store, "docker", Some(&socket));
        self.daemons = (Some(daemon), Some(pool));
        Ok(())
    }

    /// Makes one without builders, and so without a base.
    fn empty(place: &Path, runs: usize) -> Result<Self> {
        let inputs = place.join("inputs");
        fs_err::create_dir_all(&inputs)?;
        Ok(Self {
            builders: Vec::new(),
            runs,
            inputs,
            base: PathBuf::new(),
            btrfs: None,
            absent: Vec::new(),
            daemons: (None, None),
        })
    }

    /// Sends away those whose names have none of the pieces; the first stays, the others are compared with it.
    fn keep(&mut self, pieces: &[String]) {
        let mut first = true;
        self.builders.retain(|builder| {
            let label = builder.label();
            std::mem::take(&mut first)
                || pieces.is_empty()
                || pieces.iter().any(|piece| label.contains(piece))
        });
    }

    /// Prepares every contestant; a peer that cannot be prepared is left out, saying so.
    fn prepare(&mut self, meter: &Meter) -> Result<()> {
        let mut ready = Vec::new();
        for mut builder in std::mem::take(&mut self.builders) {
            eprintln!("\n==> prepare {}", builder.label());
            match builder.prepare(meter) {
                Ok(()) => ready.push(builder),
                Err(error) if scenarios::is_ours(&builder.label()) => return Err(error),
                Err(error) => {
                    eprintln!("SKIPPED {}: {error:#}", builder.label());
                    let label = builder.label();
                    self.absent
                        .push(format!("- could not be prepared: {label}: {error:#}"));
                }
            }
        }
        self.builders = ready;
        Ok(())
    }
}
