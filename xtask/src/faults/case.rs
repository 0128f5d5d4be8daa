// SPDX-License-Identifier: Apache-2.0
//! One run of one fault: a fresh store, what has been built on it, and what has to hold whatever happens.

use super::disk::Disk;
use super::leaks;
use super::obuild::{Obuild, Ran, Running};
use super::processes::Family;
use super::random::Random;
use super::recipe::{CACHES, Recipe, Surroundings};
use super::tree::Tree;
use super::users::Users;
use crate::cmd::Cmd;
use crate::dockerd::Daemon;
use crate::zfs;
use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What all runs have in common.
pub(super) struct Lab {
    pub(super) binary: PathBuf,
    /// On a real disk, for everything but the stores.
    pub(super) directory: PathBuf,
    pub(super) surroundings: Surroundings,
    pub(super) family: Family,
    /// For stores and sandboxes of docker's. Its data is on the lab's disk, not on the store's.
    pub(super) docker: RefCell<Option<Daemon>>,
    /// The daemon of zfs-fuse, if it is ours.
    pub(super) zfs: RefCell<Option<zfs::Daemon>>,
}

impl Lab {
    /// Starts the daemon of zfs-fuse again if it hung or has died. Returns whether it was.
    pub(super) fn start_zfs_again(&self) -> Result<bool> {
        let mut daemon = self.zfs.borrow_mut();
        if !daemon.as_mut().is_some_and(zfs::Daemon::is_lost) {
            return Ok(false);
        }
        *daemon = None;
        *daemon = zfs::daemon(&self.directory)?;
        if let Some(daemon) = &*daemon {
            self.family.admit(daemon.id());
        }
        Ok(true)
    }
}

/// A kind of store on a kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreKind {
    /// As in the store's URL.
    pub(super) kind: &'static str,
    pub(super) file_system: &'static str,
}

impl StoreKind {
    pub(super) fn name(self) -> String {
        format!("{}:{}", self.kind, self.file_system)
    }
}

/// One run.
pub(super) struct Case<'a> {
    pub(super) lab: &'a Lab,
    surroundings: Surroundings,
    pub(super) random: Random,
    pub(super) obuild: Obuild,
    /// The store's file system.
    pub(super) disk: &'a mut Disk,
    /// What is worth telling of this run.
    pub(super) notes: Vec<String>,
    directory: PathBuf,
    /// The store's name on its disk.
    name: String,
    /// Steps that were told to be done, and must never run again.
    done: BTreeSet<String>,
    /// Those of them whose build has ended well, so that they survive a power cut.
    durable: BTreeSet<String>,
    recipes: usize,
    /// Whether the power is gone: what is told now has happened to nobody.
    pub(super) cut_off: bool,
    /// Whether the disk was full: a result stands although there was no room for all of its log, and a warning said so.
    pub(super) logs_may_lack: bool,
}

impl<'a> Case<'a> {
    /// Makes a fresh store on `disk`.
    pub(super) fn begin(
        lab: &'a Lab,
        store: StoreKind,
        sandbox: &str,
        disk: &'a mut Disk,
        seed: u64,
    ) -> Result<Self> {
        let directory = lab.directory.join(format!("case-{seed}"));
        fs_err::create_dir_all(&directory)?;
        std::os::unix::fs::symlink(lab.directory.join("context"), directory.join("context"))?;
        let name = format!("store-{seed}");
        let url = format!("{}:{}", store.kind, disk.place(&name));
        let place = disk.path().join(&name);
        let mut random = Random::new(seed);
        let users = disk.users().filter(|_| sandbox == "user");
        let configuration = users.map(Users::configuration).unwrap_or_default();
        let mut obuild = Obuild::new(&lab.binary, url, place, sandbox, &directory, &configuration)?;
        let surroundings = Surroundings {
            by_users: users.is_some(),
            ..lab.surroundings.clone()
        };
        let mut shared = lab.docker.borrow_mut();
        let daemon = disk.daemon().or(shared.as_mut());
        obuild.docker_host = daemon.map(|daemon| format!("unix://{}", daemon.socket().display()));
        obuild.flags = flags(&mut random, surroundings.by_users);
        Ok(Self {
            lab,
            surroundings,
            random,
            obuild,
            disk,
            notes: Vec::new(),
            directory,
            name,
            done: BTreeSet::new(),
            durable: BTreeSet::new(),
            recipes: 0,
            cut_off: false,
            logs_may_lack: false,
        })
    }

    /// Writes a spec of its own.
    pub(super) fn recipe(&mut self, steps: usize) -> Recipe {
        self.recipes += 1;
        let token = format!("r{}", self.recipes);
        Recipe::random(&self.surroundings, self.random.fork(), &token, steps)
    }

    /// Writes a spec of `steps` steps that others may have, too, and one that checks what they did.
    pub(super) fn numbers(&mut self, steps: usize) -> Recipe {
        let mut recipe = Recipe::new(&self.surroundings, self.random.fork(), "s");
        for _ in 0..steps {
            recipe.append_number();
        }
        recipe.check_numbers();
        recipe
    }

    /// Returns whether a step costs tenths of a second, as it does where the store is a program's.
    pub(super) fn is_slow(&self) -> bool {
        ["docker:", "zfs:"]
            .iter()
            .any(|kind| self.obuild.store.starts_with(kind))
    }

    /// Writes a spec that begins as another.
    pub(super) fn branch(&mut self, of: &Recipe, steps: usize) -> Recipe {
        self.recipes += 1;
        let token = format!("r{}", self.recipes);
        let mut recipe = of.branch(self.random.fork(), &token);
        recipe.add(steps);
        recipe
    }

    /// Starts to build.
    pub(super) fn start(&self, recipe: &Recipe) -> Result<Running> {
        self.obuild.build("spec", &recipe.text())
    }

    /// Notes what a build has told, and checks that it has run nothing that was done before.
    pub(super) fn note(&mut self, ran: &Ran) -> Result<()> {
        let built = ran.finished(&["built"]);
        let again: Vec<_> = built.intersection(&self.done).collect();
        ensure!(
            again.is_empty(),
            "steps that were done have run again: {again:?}\n{}",
            ran.told()
        );
        self.done
            .extend(ran.finished(&["built", "shared", "cached"]));
        if ran.status.success() && !self.cut_off {
            self.durable
                .extend(ran.finished(&["built", "shared", "cached"]));
        }
        no_panic(ran)
    }

    /// Counts the daemon of the disk as ours.
    pub(super) fn admit_daemon(&mut self) {
        if let Some(id) = self.disk.daemon().and_then(|daemon| daemon.id()) {
            self.lab.family.admit(id);
        }
    }

    /// Lets these steps run again: the fault has taken their results.
    pub(super) fn forgive_all(&mut self) {
        self.done.clear();
        self.durable.clear();
    }

    /// Has the next process think that the machine has been booted since.
    pub(super) fn reboot(&mut self) -> Result<()> {
        let boot = self.obuild.store_directory().join("boot");
        if boot.exists() {
            fs_err::write(boot, "another boot\n")?;
        }
        self.done = self.durable.clone();
        Ok(())
    }

    /// Builds, which must go well, and checks the result. Returns its id.
    pub(super) fn build_well(&mut self, recipe: &Recipe) -> Result<String> {
        let ran = self.start(recipe)?.finish()?;
        if !ran.status.success() {
            bail!("the build failed: {}\nspec:\n{}", ran.told(), recipe.text());
        }
        self.note(&ran)?;
        self.check_result(recipe, &ran)?;
        Ok(ran.stdout)
    }

    /// Checks content and logs of a build that went well.
    pub(super) fn check_result(&self, recipe: &Recipe, ran: &Ran) -> Result<()> {
        for (heading, said) in ran.logs() {
            let wanted = recipe
                .logs
                .iter()
                .find(|(token, _)| heading.contains(&format!("begin {token};")));
            if let Some((_, wanted)) = wanted {
                // Who followed a build that was killed has seen its output, too.
                let followed = ran
                    .events
                    .iter()
                    .any(|event| event["event"] == "step_shared");
                ensure!(
                    said == *wanted
                        || (followed && said.ends_with(wanted))
                        || (self.logs_may_lack && wanted.starts_with(&said)),
                    "the log of {heading} is {said:?} and should be {wanted:?}"
                );
            }
        }
        let target = self.directory.join("export");
        self.obuild
            .ok(&[
                "export",
                &ran.stdout,
                "--to",
                &format!("dir:{}", target.display()),
            ])
            .with_context(|| format!("export a result just built: {}", ran.told()))?;
        let found = Tree::read(&target)?;
        fs_err::remove_dir_all(&target)?;
        let mut lines = recipe.tree.differences(&found);
        lines.truncate(20);
        ensure!(
            lines.is_empty(),
            "the result {} is wrong:\n{}\nspec:\n{}",
            ran.stdout,
            lines.join("\n"),
            recipe.text()
        );
        Ok(())
    }

    /// Checks that a failure was told as it should be: one error, a remedy, the right exit status.
    pub(super) fn check_failure(ran: &Ran, statuses: &[i32]) -> Result<()> {
        no_panic(ran)?;
        let told = ran.told();
        let status = ran.status.code();
        ensure!(
            status.is_some_and(|status| statuses.contains(&status)),
            "the exit status should be one of {statuses:?}: {told}"
        );
        let count = |word: &str| {
            let begins = |line: &&String| line.starts_with(word);
            ran.stderr.iter().filter(begins).count()
        };
        ensure!(count("error: ") == 1, "there should be one error: {told}");
        // What is wrong with a step's own tree is for its author to know.
        let of_the_tree = status == Some(1) && told.contains("in this tree");
        ensure!(
            count("hint: ") == 1 || of_the_tree,
            "there should be one hint: {told}"
        );
        Ok(())
    }

    /// Checks that nothing is left over, removes everything from the store, and checks again.
    pub(super) fn end(&mut self) -> Result<Vec<String>> {
        let store = self.obuild.store_directory().to_owned();
        let zfs = self.obuild.store.starts_with("zfs:");
        // Those that a killed process had mounted stay until another comes.
        leaks::check_host(&self.obuild, &self.lab.family, !zfs)?;
        self.disk.users().map_or(Ok(()), Users::check)?;
        // Any command sweeps what dead processes left.
        self.obuild.ok(&["ls", "-q"])?;
        leaks::check_store(&store)?;
        self.obuild.ok(&["prune", "--all"])?;
        let left = self.obuild.ok(&["ls", "-q"])?;
        ensure!(left.is_empty(), "prune --all has left {left}");
        for cache in CACHES {
            self.obuild.ok(&["delete", "--cache", cache])?;
        }
        leaks::check_empty(&store)?;
        leaks::check_host(&self.obuild, &self.lab.family, true)?;
        let datasets = self.disk.datasets(&self.name)?;
        ensure!(datasets.is_empty(), "datasets are left: {datasets:?}");
        self.check_docker(&store)?;
        if self.obuild.store.starts_with("btrfs:") {
            leaks::check_subvolumes(self.disk.path(), &store)?;
        }
        self.remove()?;
        Ok(std::mem::take(&mut self.notes))
    }

    /// Removes the files of the run.
    fn remove(&self) -> Result<()> {
        remove_tree(&self.directory)?;
        self.disk.remove(&self.name)
    }

    /// Removes what a run that failed has left.
    pub(super) fn give_up(&self) {
        self.lab.family.wait_until_alone().ok();
        self.remove().ok();
    }

    /// Checks that the daemon has nothing of the store's and no container of the sandbox's.
    fn check_docker(&self, store: &Path) -> Result<()> {
        let Some(host) = &self.obuild.docker_host else {
            return Ok(());
        };
        let ask = |arguments: &[&str]| {
            let docker = Cmd::new("docker").args(arguments).quiet();
            docker.env("DOCKER_HOST", host).quiet().output()
        };
        let label = format!("label=obuild.store={}", store.display());
        for what in [["ps", "-aq"], ["images", "-aq"]] {
            let left = ask(&[&what[..], &["--filter", &label]].concat())?;
            ensure!(left.is_empty(), "docker {} still has {left}", what[0]);
        }
        let names = ask(&["ps", "-a", "--format", "{{.Names}}"])?;
        let ours = |name: &&str| {
            let mut all = self.obuild.started().into_iter();
            all.any(|pid| name.starts_with(&format!("obuild-{pid}-")))
        };
        let left: Vec<&str> = names.lines().filter(ours).collect();
        ensure!(left.is_empty(), "containers are left: {left:?}");
        Ok(())
    }
}

/// Removes a directory, subvolumes in it included.
pub(super) fn remove_tree(directory: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        match fs_err::remove_dir_all(directory) {
            // A build may just have put something in.
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty && tries < 10 => tries += 1,
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => return Ok(()),
        }
    }
}

/// Returns flags that a build may be run with; none of them changes a result.
fn flags(random: &mut Random, by_users: bool) -> Vec<String> {
    let mut flags = vec![format!("--jobs={}", 1 + random.below(4))];
    if random.once_in(3) {
        flags.push("--pids-limit=500".to_owned());
        if !by_users {
            flags.push("--memory=500m".to_owned());
        }
    }
    if random.once_in(4) {
        flags.push("--fast-sync=false".to_owned());
    }
    flags
}

fn no_panic(ran: &Ran) -> Result<()> {
    let told = ran.told();
    let bad = ["panicked", "please report this", "RUST_BACKTRACE"];
    ensure!(
        !bad.iter().any(|word| told.contains(word)) && ran.status.code() != Some(4),
        "a bug shows: {told}"
    );
    Ok(())
}
