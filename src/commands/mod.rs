// SPDX-License-Identifier: Apache-2.0
//! One file a subcommand, and what several of them need.

pub(crate) mod archive;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod delete;
pub(crate) mod df;
pub(crate) mod diff;
pub(crate) mod dockerfile;
pub(crate) mod export;
pub(crate) mod fmt;
pub(crate) mod graph;
pub(crate) mod healthcheck;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod log;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod run;
pub(crate) mod sbom;
pub(crate) mod shell;
pub(crate) mod sign;
pub(crate) mod store;
pub(crate) mod unshare;
pub(crate) mod verify;
pub(crate) mod verify_signature;

use crate::cli::{Global, SandboxKind, SandboxOptions};
use crate::config::Config;
use crate::failure::Failure;
use anyhow::Result;
use obuild_engine::Engine;
use obuild_sandboxes::{
    HelperCommand, Native, NativeOptions, Runc, RuncOptions, Sandbox, UserOptions, UserSandbox,
};
use obuild_specs::Spec;
use obuild_stores::Store;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// Reads a spec's text; `-` is standard input.
pub(crate) fn read_spec(path: &Path) -> Result<Vec<u8>> {
    if path.as_os_str() == "-" {
        let mut text = Vec::new();
        std::io::stdin()
            .read_to_end(&mut text)
            .map_err(|error| Failure::host(format!("cannot read standard input: {error}")))?;
        return Ok(text);
    }
    fs_err::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::usage(format!("there is no spec {}", path.display()))
                .hint("obuild run SPEC [CONTEXT]")
                .into()
        }
        std::io::ErrorKind::IsADirectory => {
            Failure::usage(format!("{} is a directory, not a spec", path.display()))
                .hint("name the spec first and the context second: obuild run SPEC CONTEXT")
                .into()
        }
        _ => Failure::usage(format!("cannot read the spec: {error}")).into(),
    })
}

/// Parses a spec, or prints what is wrong with it.
pub(crate) fn parse_spec(path: &Path, text: &[u8], colour: bool) -> Result<Spec> {
    Spec::parse(text).map_err(|diagnostics| {
        let rendered =
            obuild_specs::diagnostic::render(&diagnostics, &path.to_string_lossy(), text, colour);
        // Nobody reads standard error: the exit status still tells.
        let _ = std::io::stderr().write_all(rendered.as_bytes());
        crate::failure::SpecErrors.into()
    })
}

/// Returns how many processors there are for this process. To find out takes reading several files of the cgroup: once is enough.
pub(crate) fn processors() -> usize {
    static COUNT: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
    *COUNT
}

/// The runtime that everything asynchronous runs on: one thread, with more for what blocks.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::host(format!("cannot start: {error}")).into())
}

/// Opens the store that options and configuration name.
pub(crate) fn open_store(global: &Global, config: &Config) -> Result<Arc<dyn Store>> {
    let url = config.store_url(global)?;
    let options = config.store_options(global, &url)?;
    Ok(obuild_stores::open(&url, &options)?)
}

/// Where the locks of the build users are: one place a host, which outlives a restart. hier(7) of each.
const BUILD_USERS: &str = if cfg!(target_os = "linux") {
    "/var/lib/obuild-users"
} else {
    "/var/db/obuild-users"
};

/// Refuses a store whose trees have to be mounted.
fn check_trees(store: &dyn Store) -> Result<()> {
    let url = store.url();
    if ["overlay:", "docker:"]
        .iter()
        .any(|kind| url.starts_with(kind))
    {
        return Err(Failure::usage(format!(
            "the user sandbox has no mounts, but the trees of {url} have to be mounted"
        ))
        .hint("use a store that keeps whole directories: btrfs:PATH, xfs:PATH or rsync:PATH")
        .into());
    }
    Ok(())
}

/// Opens the sandbox that options and configuration name. Cheap: nothing is started before it is needed.
pub(crate) fn open_sandbox(
    global: &Global,
    options: &SandboxOptions,
    config: &Config,
    store: &dyn Store,
) -> Result<Arc<dyn Sandbox>> {
    let helper = HelperCommand {
        program: PathBuf::from("/proc/self/exe"),
        args: vec![OsString::from(crate::HELPER)],
    };
    let runtime = options.runtime.clone().or_else(|| config.runtime.clone());
    // Naming a runtime asks for the sandbox that uses it.
    let asked = options
        .sandbox
        .or(options.runtime.is_some().then_some(SandboxKind::Runc));
    Ok(
        match asked.or(config.sandbox).unwrap_or(SandboxKind::Native) {
            SandboxKind::Native => Arc::new(Native::open(NativeOptions { helper })?),
            SandboxKind::Runc => Arc::new(Runc::open(RuncOptions {
                helper,
                runtime: runtime.unwrap_or_else(|| PathBuf::from("runc")),
                state_dir: store.state_dir().join("sandbox"),
            })?),
            SandboxKind::User => {
                let users = if options.build_users.is_empty() {
                    config.build_users.clone().unwrap_or_default()
                } else {
                    options.build_users.clone()
                };
                let sandbox = UserSandbox::open(UserOptions {
                    helper,
                    users,
                    state_dir: PathBuf::from(BUILD_USERS),
                })?;
                check_trees(store)?;
                Arc::new(sandbox)
            }
            SandboxKind::Docker => open_docker(helper, config.docker_socket(global)?, store)?,
        },
    )
}

#[cfg(feature = "docker")]
fn open_docker(
    helper: HelperCommand,
    socket: PathBuf,
    store: &dyn Store,
) -> Result<Arc<dyn Sandbox>> {
    Ok(Arc::new(obuild_sandboxes::Docker::open(
        obuild_sandboxes::DockerOptions {
            helper,
            socket,
            state_dir: store.state_dir().join("docker"),
        },
    )?))
}

#[cfg(not(feature = "docker"))]
fn open_docker(_: HelperCommand, _: PathBuf, _: &dyn Store) -> Result<Arc<dyn Sandbox>> {
    Err(Failure::usage("this obuild was built without the docker sandbox").into())
}

/// Opens the engine for a command that runs no step.
pub(crate) fn open_engine(global: &Global) -> Result<Arc<Engine>> {
    engine_with(global, &Config::read(global)?)
}

/// The same, for a command that wants more of the configuration.
pub(crate) fn engine_with(global: &Global, config: &Config) -> Result<Arc<Engine>> {
    let store = open_store(global, config)?;
    let sandbox = open_sandbox(global, &SandboxOptions::default(), config, &*store)?;
    Ok(Engine::open(store, sandbox, 1)?)
}

/// Writes an answer to standard output.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_ref())?;
    Ok(out.flush()?)
}

/// Writes a JSON answer to standard output.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<()> {
    print(format!("{value:#}\n"))
}
