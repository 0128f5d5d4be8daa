// SPDX-License-Identifier: Apache-2.0
//! `obuild archive serve`: listeners, signals, and what an update runs.

use crate::commands::runtime;
use crate::failure::Failure;
use crate::values::parse_duration;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum, ValueHint};
use obuild_archive::serve::{
    AccessLog, Cause, HookSecret, Listener, LogFormat, Options, Patience, Server, TlsFiles, Update,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};
use std::env;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// `obuild archive serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "SIGTERM and SIGINT end the server when the requests at hand are done; SIGHUP opens the access log anew and reads the certificate again. \
Sockets that systemd passes are listened on; one whose FileDescriptorName is tls or https speaks TLS."
)]
pub(crate) struct Serve {
    /// The archive's directory: index.tar.gz, repo, cache, packages
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
    /// Listen here, without TLS [default: 127.0.0.1:8080 if nothing else is listened on]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_address)]
    listen: Vec<SocketAddr>,
    /// Listen here, with TLS
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_address, requires = "tls_certificate")]
    listen_tls: Vec<SocketAddr>,
    /// The certificate and its chain, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Let another server of the same user listen on the same addresses, so that a new one can begin before the old one ends
    #[arg(long)]
    reuse_port: bool,
    /// A directory for what DIR does not have
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    legacy: Option<PathBuf>,
    /// Write an access log; - is standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    access_log: Option<PathBuf>,
    /// How a line of the access log looks
    #[arg(long, value_name = "FORMAT", default_value = "combined")]
    log_format: Format,
    /// Run this shell command to bring the archive up to date, as --poll and --hook-secret-file say
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    update: Option<String>,
    /// Update at the start and then this often
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "update")]
    poll: Option<Duration>,
    /// Update when a hook is posted to /hooks/update that is signed with the secret in this file, as GitHub does it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "update")]
    hook_secret_file: Option<PathBuf>,
    /// Threads that serve [default: the number of processors]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Connections at once; when there are more, idle ones make room
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_connections: usize,
    /// Connections at once from one address, or one /64 of IPv6
    #[arg(long, value_name = "N")]
    max_per_address: Option<usize>,
    /// The time that a client has for a request's header
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "20s")]
    header_timeout: Duration,
    /// The time that a client may take nothing of what is sent to it
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    send_timeout: Duration,
    /// The time that a connection is kept between requests
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "75s")]
    idle_timeout: Duration,
    /// The time that requests have to be finished when the server ends
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    stop_timeout: Duration,
}

/// The formats of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Apache's combined format
    Combined,
    /// One JSON object a line
    Json,
}

pub(crate) fn run(options: &Serve) -> Result<()> {
    // First of all: the numbers of passed descriptors must not be taken for others.
    let listeners = listeners(options)?;
    raise_descriptors();
    let hook_secret = options
        .hook_secret_file
        .as_deref()
        .map(read_secret)
        .transpose()?;
    let workers = options
        .workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let tls = options
        .tls_certificate
        .clone()
        .zip(options.tls_key.clone())
        .map(|(certificate, key)| TlsFiles { certificate, key });
    let access_log = options.access_log.as_ref().map(|path| AccessLog {
        file: (path != Path::new("-")).then(|| path.clone()),
        format: match options.log_format {
            Format::Combined => LogFormat::Combined,
            Format::Json => LogFormat::Json,
        },
    });
    let addresses: Vec<_> = listeners
        .iter()
        .map(|listener| (listener.address(), listener.tls()))
        .collect();
    let server = Server::start(
        Options {
            directory: options.directory.clone(),
            legacy: options.legacy.clone(),
            workers,
            max_connections: options.max_connections,
            max_per_address: options.max_per_address,
            access_log,
            tls,
            hook_secret,
            poll: options.poll,
            patience: Patience {
                header: options.header_timeout,
                send: options.send_timeout,
                idle: options.idle_timeout,
                stop: options.stop_timeout,
                ..Patience::default()
            },
        },
        listeners,
        options.update.clone().map(update),
    )?;
    runtime()?.block_on(async {
        let handle = server.handle();
        let mut hangup = signal(SignalKind::hangup()).context("cannot wait for signals")?;
        let reloading = async {
            while hangup.recv().await.is_some() {
                handle.reload();
            }
        };
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let stopping = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            notify("STOPPING=1");
        };
        for (address, tls) in addresses {
            let scheme = if tls { "https" } else { "http" };
            // Nobody reads standard error: the server serves.
            let _ = writeln!(std::io::stderr(), "listening on {scheme}://{address}");
        }
        notify("READY=1");
        tokio::select! {
            result = server.run(stopping) => Ok(result?),
            () = reloading => Ok(()),
        }
    })
}

/// Binds what the options say, and takes what systemd passes.
fn listeners(options: &Serve) -> Result<Vec<Listener>> {
    let mut listeners = passed()?;
    let bind = |address: &SocketAddr, tls| Listener::bind(*address, tls, options.reuse_port);
    for address in &options.listen {
        listeners.push(bind(address, false)?);
    }
    for address in &options.listen_tls {
        listeners.push(bind(address, true)?);
    }
    if listeners.is_empty() {
        listeners.push(bind(&SocketAddr::from(([127, 0, 0, 1], 8080)), false)?);
    }
    Ok(listeners)
}

/// Takes the sockets of `sd_listen_fds(3)`, if they are meant for us.
fn passed() -> Result<Vec<Listener>> {
    let number = |name| env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").and_then(|count| u16::try_from(count).ok());
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<_> = names.split(':').collect();
    Ok(Listener::passed(count.unwrap_or(0), &names)?)
}

/// Tells systemd how we are, if it asked (`sd_notify(3)`).
fn notify(state: &str) {
    let Ok(path) = env::var("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.strip_prefix('@') {
        Some(name) => UnixAddress::from_abstract_name(name),
        None => UnixAddress::from_pathname(&path),
    };
    // Whoever does not listen does not hear it.
    let _ = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
}

/// Allows as many descriptors as the system lets us have: each connection takes one or two.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // As many as there are, then.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

fn read_secret(path: &Path) -> Result<HookSecret> {
    let text = fs_err::read(path)
        .map_err(|error| Failure::usage(format!("cannot read the secret of hooks: {error}")))?;
    HookSecret::new(&text).ok_or_else(|| {
        Failure::usage(format!("{} is empty, and so is no secret", path.display())).into()
    })
}

/// Makes a shell command an update. It learns from `OBUILD_CAUSE` what set it off.
fn update(command: String) -> Update {
    Box::new(move |cause| Box::pin(run_update(command.clone(), cause)))
}

async fn run_update(command: String, cause: Cause) -> Result<(), String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", &command])
        .env("OBUILD_CAUSE", cause.to_string())
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("NOTIFY_SOCKET")
        .stdin(std::process::Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start the update: {error}"))?;
    let mut group = Group(child.id());
    let status = child
        .wait()
        .await
        .map_err(|error| format!("cannot wait for the update: {error}"))?;
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    Err(format!("the update ended with {status}"))
}

/// Ends an update with all that it started, when the server stops meanwhile.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // It may have ended just now.
            let _ = kill_process_group(pid, Signal::TERM);
        }
    }
}

/// Reads `PORT`, `:PORT` or `ADDRESS:PORT`; a port alone is on every address.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return Ok(SocketAddr::from(([0_u16; 8], port)));
    }
    text.to_socket_addrs()
        .map_err(|error| format!("{error}; write for example 8080, 127.0.0.1:8080 or [::1]:8080"))?
        .next()
        .ok_or_else(|| "this name has no address".to_owned())
}
