// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask faults`: breaks things while the real program builds, and checks what is left.
//!
//! Every run has a seed, from which its specs, flags and the moment of the fault follow, and a store of its own. [`case`] says what
//! has to hold in each run, [`leaks`] what may not be left; the faults are in files of their own. See `docs/src/faults.md`.

mod case;
mod damage;
mod disk;
mod docker;
mod full;
mod kill;
mod leaks;
mod many;
mod obuild;
mod processes;
mod random;
mod recipe;
mod table;
mod tree;
mod users;

use crate::cmd::Cmd;
use crate::dockerd::Daemon;
use crate::filesystems::Scratch;
use crate::{packages, workspace};
use anyhow::{Context, Result, bail, ensure};
use case::{Case, Lab, StoreKind};
use disk::Disk;
use random::Random;
use recipe::Surroundings;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use table::{FAULTS, Fault, SANDBOXES, STORES, Table};
use tree::Tree;

pub(crate) use processes::descendants;

/// What was asked for.
#[derive(Debug)]
struct Options {
    stores: Vec<StoreKind>,
    sandboxes: Vec<&'static str>,
    faults: Vec<&'static Fault>,
    count: Option<u64>,
    seed: Option<u64>,
    release: bool,
    /// Leave the files of a run that failed.
    keep: bool,
    /// Only so many as a test may take time for.
    few: bool,
}

/// Runs a few of each, as one of the tests.
pub(crate) fn run_few(scratch: &Scratch) -> Result<()> {
    Cmd::cargo().args(["build", "--bin", "obuild"]).run()?;
    let mut options = parse(&[])?;
    options.few = true;
    let failures = run_all(&options, scratch)?;
    let devices = leaks::loop_devices(&scratch.path().join("faults"));
    ensure!(devices.is_empty(), "loop devices are left: {devices:?}");
    ensure!(failures == 0, "{failures} runs failed");
    Ok(())
}

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    ensure!(workspace::is_root(), "it mounts and kills: run it as root");
    packages::ensure(packages::TEST)?;
    let mut build = Cmd::cargo().args(["build", "--bin", "obuild"]);
    if options.release {
        build = build.arg("--release");
    }
    build.run()?;
    let scratch = Scratch::create(Path::new("/var/tmp"))?;
    let result = run_all(&options, &scratch);
    let devices = leaks::loop_devices(scratch.path());
    let closed = scratch.close();
    let failures = result?;
    closed?;
    ensure!(devices.is_empty(), "loop devices are left: {devices:?}");
    ensure!(failures == 0, "{failures} runs failed");
    Ok(())
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options {
        stores: Vec::new(),
        sandboxes: Vec::new(),
        faults: Vec::new(),
        count: None,
        seed: None,
        release: false,
        keep: false,
        few: false,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || {
            let value = rest.next();
            value.with_context(|| format!("{argument} wants a value"))
        };
        match argument.as_str() {
            "--store" => {
                let wanted = value()?;
                let found = STORES
                    .iter()
                    .filter(|store| store.kind == wanted || store.name() == *wanted);
                let before = options.stores.len();
                options.stores.extend(found);
                if options.stores.len() == before {
                    let names: Vec<_> = STORES.iter().map(|store| store.name()).collect();
                    bail!(
                        "there is no store {wanted:?}; there are {}",
                        names.join(", ")
                    );
                }
            }
            "--sandbox" => {
                let wanted = value()?;
                let found = SANDBOXES.iter().find(|sandbox| *sandbox == wanted);
                options.sandboxes.push(found.with_context(|| {
                    format!("there is no sandbox {wanted:?}; there are {SANDBOXES:?}")
                })?);
            }
            "--fault" => {
                let wanted = value()?;
                let found = FAULTS.iter().find(|fault| fault.name == wanted);
                options.faults.push(found.with_context(|| {
                    let names: Vec<_> = FAULTS.iter().map(|fault| fault.name).collect();
                    format!(
                        "there is no fault {wanted:?}; there are {}",
                        names.join(", ")
                    )
                })?);
            }
            "--count" => options.count = Some(value()?.parse().context("--count wants a number")?),
            "--seed" => options.seed = Some(value()?.parse().context("--seed wants a number")?),
            "--release" => options.release = true,
            "--keep" => options.keep = true,
            other => bail!("what is {other:?}? See `cargo xtask help`"),
        }
    }
    if options.stores.is_empty() {
        options.stores = STORES.to_vec();
    }
    if options.sandboxes.is_empty() {
        options.sandboxes = SANDBOXES.to_vec();
    }
    if options.faults.is_empty() {
        options.faults = FAULTS.iter().collect();
    }
    Ok(options)
}

/// Runs everything that was asked for. Returns how many runs failed.
fn run_all(options: &Options, scratch: &Scratch) -> Result<u64> {
    let seed = match options.seed {
        Some(seed) => seed,
        None => fresh_seed()?,
    };
    eprintln!("seed {seed}");
    let directory = scratch.directory("faults")?;
    let lab = set_up(options, &directory)?;
    let mut table = Table::default();
    for store in &options.stores {
        let directory = directory.join(format!("{}-{}", store.kind, store.file_system));
        fs_err::create_dir_all(&directory)?;
        let mut disk = Disk::create(&directory, "large", store.file_system, 8 << 30)?;
        for sandbox in &options.sandboxes {
            if let Some(reason) = table::refused(*store, sandbox) {
                eprintln!("SKIPPED {}+{sandbox}: {reason}", store.name());
                continue;
            }
            for fault in &options.faults {
                if let Some(reason) = (fault.lacks)(*store, sandbox) {
                    eprintln!(
                        "SKIPPED {} on {}+{sandbox}: {reason}",
                        fault.name,
                        store.name()
                    );
                    table.skip(fault, *store, sandbox);
                    continue;
                }
                let usual = if options.few {
                    table::few(fault, *store, sandbox)
                } else {
                    fault.count
                };
                let count = options.count.unwrap_or(usual);
                if count == 0 {
                    continue;
                }
                if *sandbox == "user" {
                    disk.with_users("obl")?;
                }
                for number in 0..count {
                    let seed = seed.wrapping_add(number);
                    let mut result = one(&lab, *store, sandbox, fault, &mut disk, &directory, seed);
                    if store.kind == "zfs"
                        && let Err(error) = &result
                        && lab.start_zfs_again()?
                    {
                        eprintln!("AGAIN seed {seed}, as zfs-fuse was lost: {error:#}");
                        table.lose(fault, *store, sandbox);
                        disk.close().ok();
                        disk = Disk::create(&directory, "large", store.file_system, 8 << 30)?;
                        result = one(&lab, *store, sandbox, fault, &mut disk, &directory, seed);
                    }
                    table.add(fault, *store, sandbox, result.as_ref().ok().cloned());
                    if let Err(error) = result {
                        eprintln!(
                            "FAILED {} on {}+{sandbox}: {error:#}\n\
                             again: cargo xtask faults --store {} --sandbox {sandbox} --fault {} --seed {seed} --count 1\n",
                            fault.name,
                            store.name(),
                            store.name(),
                            fault.name
                        );
                        if options.keep {
                            eprintln!("kept in {}; Enter ends", scratch.path().display());
                            std::io::stdin().read_line(&mut String::new())?;
                        }
                    }
                }
                eprintln!("{}", table.line(fault, *store, sandbox));
            }
        }
        disk.close()?;
    }
    println!("{table}");
    Ok(table.failures())
}

fn fresh_seed() -> Result<u64> {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    // Short enough to be typed.
    Ok(Random::new(u64::try_from(now.as_nanos() & u128::from(u64::MAX))?).below(1_000_000) as u64)
}

/// Runs one run of one fault, on `large` or on a small disk of its own. What it leaves on a failure is removed.
fn one(
    lab: &Lab,
    store: StoreKind,
    sandbox: &str,
    fault: &Fault,
    large: &mut Disk,
    directory: &Path,
    seed: u64,
) -> Result<Vec<String>> {
    if !fault.small {
        return on_disk(lab, store, sandbox, fault, large, seed);
    }
    let bytes = disk::small_bytes(store);
    let name = format!("small-{seed}");
    let create = if fault.cuts {
        Disk::create_fragile
    } else {
        Disk::create
    };
    let mut small = create(directory, &name, store.file_system, bytes)?;
    if sandbox == "user" {
        small.with_users("obs")?;
    }
    if store.kind == "docker" && fault.images_too {
        small.with_daemon()?;
        if let Some(id) = small.daemon().and_then(|daemon| daemon.id()) {
            lab.family.admit(id);
        }
    }
    let result = on_disk(lab, store, sandbox, fault, &mut small, seed);
    let closed = small.close();
    let notes = result?;
    closed?;
    Ok(notes)
}

fn on_disk(
    lab: &Lab,
    store: StoreKind,
    sandbox: &str,
    fault: &Fault,
    disk: &mut Disk,
    seed: u64,
) -> Result<Vec<String>> {
    let mut case = Case::begin(lab, store, sandbox, disk, seed)?;
    let result = (fault.run)(&mut case).and_then(|()| case.end());
    if result.is_err() {
        case.give_up();
    }
    result
}

/// Makes the base and the context.
fn set_up(options: &Options, directory: &Path) -> Result<Lab> {
    let directory = directory.join("lab");
    let root = directory.join("root");
    for name in [
        "bin", "dev", "etc", "proc", "run", "sys", "tmp", "w", "cache",
    ] {
        fs_err::create_dir_all(root.join(name))?;
    }
    fs_err::copy("/bin/busybox", root.join("bin/busybox")).context("copy a static busybox")?;
    for applet in [
        "cat", "chmod", "chown", "echo", "head", "ln", "mkdir", "mv", "rm", "sh", "sleep", "test",
        "wc", "yes",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    let base: Arc<Path> = directory.join("base.tar").into();
    Cmd::new("tar")
        .args(["--numeric-owner", "-C"])
        .arg(&root)
        .arg("-cf")
        .arg(base.as_ref())
        .arg(".")
        .quiet()
        .output()?;
    let context = directory.join("context");
    fs_err::create_dir_all(context.join("many/deep"))?;
    for (name, size) in [
        ("empty", 0),
        ("small", 10),
        ("large", 700_000),
        ("many/one", 4096),
        ("many/deep/two", 70_000),
    ] {
        let bytes: Vec<u8> = name.bytes().cycle().take(size).collect();
        fs_err::write(context.join(name), bytes)?;
    }
    std::os::unix::fs::symlink("../small", context.join("many/link"))?;
    let profile = if options.release { "release" } else { "debug" };
    // The process that cleans up after us is a child as well: it must be there before the family is counted.
    crate::reaper::Guard::new(crate::reaper::Item::Remove(directory.clone()))?.release()?;
    // So must the daemons.
    let zfs = options.stores.iter().any(|store| store.kind == "zfs");
    let zfs = zfs.then(|| crate::zfs::daemon(&directory)).transpose()?;
    let docker = options.stores.iter().any(|store| store.kind == "docker")
        || options.sandboxes.contains(&"docker");
    let mut docker = docker
        .then(|| {
            let root = directory.join("docker");
            fs_err::create_dir_all(&root)?;
            Daemon::start(&root, &[])
        })
        .transpose()?;
    if let Some(daemon) = &mut docker {
        daemon.wait()?;
    }
    Ok(Lab {
        docker: RefCell::new(docker),
        zfs: RefCell::new(zfs.flatten()),
        binary: workspace::target().join(profile).join("obuild"),
        surroundings: Surroundings {
            base,
            base_tree: Arc::new(Tree::read(&root)?),
            context: Arc::new(Tree::read(&context)?),
            by_users: false,
        },
        directory,
        family: processes::Family::adopt()?,
    })
}
