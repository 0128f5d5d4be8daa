// SPDX-License-Identifier: Apache-2.0
//! The configuration file and the default places (XDG directories; root's are the system's).

use crate::cli::{Global, ProgressKind, RsyncMode, SandboxKind};
use crate::failure::Failure;
use anyhow::{Context, Result};
use obuild_images::registry::{Client, ClientOptions, DIRECTORY, HostOptions};
use obuild_stores::{Kind, Options, Store, StoreUrl};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a configuration file may say; the command line and the environment win over it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Config {
    pub(crate) store: Option<String>,
    pub(crate) rsync_mode: Option<RsyncMode>,
    pub(crate) rsync_program: Option<PathBuf>,
    pub(crate) sandbox: Option<SandboxKind>,
    pub(crate) runtime: Option<PathBuf>,
    pub(crate) build_users: Option<Vec<String>>,
    pub(crate) docker_host: Option<String>,
    pub(crate) jobs: Option<usize>,
    pub(crate) memory: Option<String>,
    pub(crate) cpus: Option<f64>,
    pub(crate) pids_limit: Option<u64>,
    pub(crate) timeout: Option<String>,
    pub(crate) progress: Option<ProgressKind>,
    pub(crate) record_digests: Option<bool>,
    pub(crate) builder_id: Option<String>,
    /// Caches that are used when the command line names none.
    #[serde(default)]
    pub(crate) cache_from: Vec<String>,
    pub(crate) cache_verify: Option<PathBuf>,
    /// What is special about registries, by host.
    #[serde(default)]
    pub(crate) registry: BTreeMap<String, Registry>,
}

/// What a configuration file may say of a registry.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Registry {
    insecure: Option<bool>,
    ca: Option<PathBuf>,
    #[serde(default)]
    mirrors: Vec<String>,
}

impl Config {
    /// Reads the file that the options name, or the first default one that is there.
    pub(crate) fn read(global: &Global) -> Result<Self> {
        let path = if let Some(path) = &global.config {
            path.clone()
        } else {
            let home = home_directory("XDG_CONFIG_HOME", ".config")
                .map(|path| path.join("obuild/config.toml"));
            let system = PathBuf::from("/etc/obuild/config.toml");
            match home.into_iter().chain([system]).find(|path| path.exists()) {
                Some(path) => path,
                None => return Ok(Self::default()),
            }
        };
        let text = fs_err::read_to_string(&path)
            .map_err(|error| Failure::usage(format!("cannot read the configuration: {error}")))?;
        toml::from_str(&text)
            .map_err(|error| Failure::usage(format!("{} is wrong: {error}", path.display())).into())
    }

    /// Returns the store that the options, the environment or the file name, else the default one.
    pub(crate) fn store_url(&self, global: &Global) -> Result<StoreUrl> {
        let Some(text) = global.store.as_deref().or(self.store.as_deref()) else {
            return Ok(obuild_stores::best(&default_store()?));
        };
        parse_store(text)
    }

    /// Returns what talks to registries; what it fetches is kept with the store. Cheap: nothing is done before it is used.
    pub(crate) fn registry_client(&self, store: &dyn Store) -> Arc<Client> {
        self.registry_client_in(&store.state_dir().join(DIRECTORY))
    }

    /// The same, but what it fetches is kept in this directory.
    pub(crate) fn registry_client_in(&self, directory: &Path) -> Arc<Client> {
        let mut options = ClientOptions::new(directory);
        // As Docker's own programs find it.
        options.credentials = env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".docker")))
            .map(|directory| directory.join("config.json"));
        options.search_path = env::var_os("PATH").unwrap_or_default();
        options.proxies = proxies();
        let hosts = self.registry.iter().map(|(host, registry)| {
            let options = HostOptions {
                insecure: registry.insecure,
                ca: registry.ca.clone(),
                mirrors: registry.mirrors.clone(),
            };
            (host.clone(), options)
        });
        options.hosts = hosts.collect();
        Arc::new(Client::new(options))
    }

    /// Returns how to open the store at `url`. What the file says of rsync stores is no matter for other kinds.
    pub(crate) fn store_options(&self, global: &Global, url: &StoreUrl) -> Result<Options> {
        let rsync = url.kind == Kind::Rsync;
        let mode = global.rsync_mode.or(self.rsync_mode.filter(|_| rsync));
        let program = global.rsync_program.clone();
        let mut options = Options {
            rsync_mode: mode.map(|mode| match mode {
                RsyncMode::Copy => obuild_stores::RsyncMode::Copy,
                RsyncMode::Hardlink => obuild_stores::RsyncMode::Hardlink,
                RsyncMode::HardlinkUnsafe => obuild_stores::RsyncMode::HardlinkUnsafe,
            }),
            rsync_program: program.or_else(|| self.rsync_program.clone()),
            ..Options::default()
        };
        if url.kind == Kind::Docker {
            options.docker_socket = self.docker_socket(global)?;
        }
        Ok(options)
    }

    /// Returns the docker daemon's socket that the options, the environment or the file name, else the usual one. Wrong text is
    /// no matter for a command that has nothing to do with docker, so it is told only by whoever asks.
    pub(crate) fn docker_socket(&self, global: &Global) -> Result<PathBuf> {
        let named = global
            .docker_host
            .as_deref()
            .or(self.docker_host.as_deref());
        // As for docker's own command, empty is unset.
        let Some(text) = named.filter(|text| !text.is_empty()) else {
            return Ok(obuild_stores::Options::default().docker_socket);
        };
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            return Ok(path.into());
        }
        Err(Failure::usage(format!(
            "{text:?} is no docker daemon that obuild can use: it must be of this host, since its files are read directly"
        ))
        .hint("write unix:///PATH/TO/SOCKET; for another host, run obuild there")
        .into())
    }
}

/// Returns the variables of the environment that name proxies.
pub(crate) fn proxies() -> Vec<(OsString, OsString)> {
    let names = [
        "http_proxy",
        "https_proxy",
        "ftp_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
    ];
    let value = |name: &str| Some((OsString::from(name), env::var_os(name)?));
    names.into_iter().filter_map(value).collect()
}

/// Parses a store's URL, whose path may be relative.
pub(crate) fn parse_store(text: &str) -> Result<StoreUrl> {
    Ok(absolute(text)?.parse()?)
}

/// Makes the path in a store's URL absolute, so that `--store overlay:./store` works.
fn absolute(text: &str) -> Result<String> {
    match text.split_once(':') {
        // A dataset's name is no path.
        Some(("zfs", _)) => Ok(text.to_owned()),
        Some((kind, path)) if !path.is_empty() && !Path::new(path).is_absolute() => {
            let path =
                std::path::absolute(path).context("the current directory is not there any more")?;
            Ok(format!("{kind}:{}", path.display()))
        }
        _ => Ok(text.to_owned()),
    }
}

/// `/var/lib/obuild` for root, else below the user's data directory; root of a user namespace is an ordinary user.
fn default_store() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() && obuild_rootless::current().is_none() {
        return Ok(PathBuf::from("/var/lib/obuild"));
    }
    let directory = home_directory("XDG_DATA_HOME", ".local/share")
        .ok_or_else(|| Failure::usage("HOME is not set").hint("name a store with --store"))?;
    Ok(directory.join("obuild"))
}

fn home_directory(variable: &str, below_home: &str) -> Option<PathBuf> {
    match env::var_os(variable) {
        Some(path) if Path::new(&path).is_absolute() => Some(PathBuf::from(path)),
        _ => env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(|home| Path::new(&home).join(below_home)),
    }
}
