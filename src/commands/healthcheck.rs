// SPDX-License-Identifier: Apache-2.0
//! `obuild healthcheck`: check that this host can build, with the parts that a build uses.

use super::run::tools;
use super::{open_sandbox, open_store, print, runtime};
use crate::cli::{Global, Healthcheck};
use crate::config::Config;
use crate::failure::Failure;
use anyhow::{Context, Result};
use bstr::BString;
use obuild_engine::Engine;
use obuild_sandboxes::{
    Cancel, Command, Exit, Limits, Mount, MountSource, Network, OverlayMount, Rootfs, Stdio, Upper,
    User,
};
use obuild_stores::SnapshotId;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// As `OBuilder`'s healthcheck.
const TIMEOUT: Duration = Duration::from_mins(5);

pub(crate) fn run(global: &Global, options: &Healthcheck) -> Result<()> {
    if let Some(mapping) = obuild_rootless::current() {
        print(format!("{}\n", rootless(mapping)))?;
    }
    let config = Config::read(global)?;
    let store = open_store(global, &config)?;
    let sandbox = open_sandbox(global, &options.sandbox, &config, &*store)?;
    print(format!("store: {}\n", store.url()))?;

    let began = Instant::now();
    let id = random_id()?;
    let draft = store.prepare(id, None)?;
    store.commit(draft)?;
    store.remove(id)?;
    print(format!(
        "snapshot made and removed in {:.1} ms\n",
        milliseconds(began)
    ))?;

    print(format!("sandbox: {}\n", sandbox.name()))?;
    for (name, value) in sandbox.features().notes {
        print(format!("  {name}: {value}\n"))?;
    }

    let mut output = Vec::new();
    let mut sink = |data: &[u8]| output.extend_from_slice(data);
    let mut command = Command {
        argv: ["/bin/sh", "-c", "echo healthcheck"]
            .map(BString::from)
            .to_vec(),
        env: vec![(BString::from("PATH"), BString::from("/usr/bin:/bin"))],
        workdir: BString::from("/"),
        user: User::Ids { uid: 0, gid: 0 },
        hostname: "builder".to_owned(),
        network: Network::None,
        mounts: Vec::new(),
        secrets: Vec::new(),
        limits: Limits {
            timeout: Some(TIMEOUT),
            ..Limits::default()
        },
        fast_sync: true,
        no_new_privs: false,
        variation: None,
    };
    let cancel = Cancel::new()?;
    let exit = if let Some(base) = &options.base {
        let engine = Engine::open(Arc::clone(&store), Arc::clone(&sandbox), 1)?;
        let parent = import(&engine, &config, base)?;
        let draft = store.prepare(random_id()?, Some(parent))?;
        let exit = sandbox.run(
            &command,
            &obuild_engine::sandbox_rootfs(draft.rootfs()),
            Stdio::Capture(&mut sink),
            &cancel,
        );
        store.discard(draft)?;
        exit
    } else if sandbox.name() == "user" {
        // The host's programs are a build user's own; its home may be empty.
        let draft = store.prepare(random_id()?, None)?;
        let rootfs = obuild_engine::sandbox_rootfs(draft.rootfs());
        let began = Instant::now();
        let exit = sandbox.run(&command, &rootfs, Stdio::Capture(&mut sink), &cancel);
        print(format!("a command ran in {:.1} ms\n", milliseconds(began)))?;
        store.discard(draft)?;
        exit
    } else {
        // This host's own tree, read-only below an overlay that is thrown away.
        let scratch = Scratch::create(store.state_dir())?;
        let lower = if obuild_rootless::current().is_some() {
            command.mounts = scratch.programs()?;
            scratch.0.join("lower")
        } else {
            PathBuf::from("/")
        };
        let rootfs = Rootfs::Overlay(OverlayMount {
            lower: vec![lower],
            upper: Some(Upper {
                upper: scratch.0.join("upper"),
                work: scratch.0.join("work"),
            }),
        });
        // The first run also starts what later ones find running.
        sandbox.run(&command, &rootfs, Stdio::Capture(&mut |_| {}), &cancel)?;
        let began = Instant::now();
        let exit = sandbox.run(&command, &rootfs, Stdio::Capture(&mut sink), &cancel);
        print(format!("a command ran in {:.1} ms\n", milliseconds(began)))?;
        exit
    };
    match exit? {
        Exit::Status(0) if output == b"healthcheck\n" => print("healthy\n"),
        Exit::TimedOut => Err(Failure::host(format!(
            "the trial command did not end in {} s",
            TIMEOUT.as_secs()
        ))
        .into()),
        exit => {
            let text = String::from_utf8_lossy(&output).trim().to_owned();
            Err(Failure::host(format!("the trial command failed ({exit:?}): {text}")).into())
        }
    }
}

/// Tells which ids an ordinary user has, and what would give it more.
fn rootless(mapping: &obuild_rootless::Mapping) -> String {
    let root = mapping
        .outer_root()
        .map_or_else(String::new, |uid| format!(", where user id {uid} is root"));
    if mapping.is_single() {
        let why = mapping.why_single().unwrap_or("the namespace is like that");
        format!(
            "rootless: in a user namespace{root}, with that id only: {why}\n  \
             steps run as root whatever user they ask for, and all files are root's"
        )
    } else {
        format!("rootless: in a user namespace{root} ({mapping})")
    }
}

/// A directory that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn create(state: &Path) -> Result<Self> {
        let path = state.join(format!("healthcheck-{}", std::process::id()));
        fs_err::create_dir_all(path.join("upper"))?;
        fs_err::create_dir_all(path.join("work"))?;
        Ok(Self(path))
    }

    /// Makes a tree with the host's programs in it: links where the host has links, mounts for the rest.
    ///
    /// In a user namespace the kernel lets nobody use a directory as a layer in which the host has mounted something, such as `/`.
    fn programs(&self) -> Result<Vec<Mount>> {
        let tree = self.0.join("lower");
        fs_err::create_dir(&tree)?;
        let mut mounts = Vec::new();
        for name in ["usr", "bin", "sbin", "lib", "lib32", "lib64", "nix"] {
            let host = Path::new("/").join(name);
            if let Ok(target) = fs_err::read_link(&host) {
                fs_err::os::unix::fs::symlink(target, tree.join(name))?;
            } else if host.is_dir() {
                mounts.push(Mount {
                    source: MountSource::Tree(Rootfs::Directory(host)),
                    target: BString::from(format!("/{name}")),
                    readonly: true,
                });
            }
        }
        Ok(mounts)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The kernel leaves a directory without permissions in `work`; root does not mind.
        let _ = fs_err::remove_dir_all(&self.0);
    }
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}

fn random_id() -> Result<SnapshotId> {
    let mut digest = [0; 32];
    rustix::rand::getrandom(&mut digest, rustix::rand::GetRandomFlags::empty())?;
    Ok(SnapshotId::from_digest(digest))
}

fn import(engine: &Arc<Engine>, config: &Config, base: &str) -> Result<SnapshotId> {
    let directory = std::env::current_dir()?;
    let resolved = runtime()?.block_on(engine.resolve(
        base,
        &directory,
        tools(config, engine.store()),
        &CancellationToken::new(),
    ))?;
    // A base that is not there yet is unpacked, as the first step of a build would.
    obuild_images::import(&resolved, engine.store(), &mut |_| {}, &|| false)
        .context("cannot import the base")
}
