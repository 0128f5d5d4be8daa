// SPDX-License-Identifier: Apache-2.0
//! `obuild archive serve`: listeners, signals, and what an update runs.

use crate::cli::{self, ArchiveServe};
use crate::commands::runtime;
use crate::failure::Failure;
use anyhow::{Context, Result};
use obuild_archive::serve::{
    AccessLog, AcmeOptions, Cause, Certificates, Challenge, HookSecret, Listener, LogFormat,
    Options, Patience, Server, TlsFiles, Update,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, setrlimit};
use std::env;
use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::path::Path;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) fn run(options: &ArchiveServe) -> Result<()> {
    // First of all: the numbers of passed descriptors must not be taken for others.
    let listeners = listeners(options)?;
    raise_descriptors();
    let hook_secret = options
        .hook_secret_file
        .as_deref()
        .map(read_secret)
        .transpose()?;
    let workers = options.workers.unwrap_or_else(crate::commands::processors);
    let tls = certificates(options, &listeners)?;
    let access_log = options.access_log.as_ref().map(|path| AccessLog {
        file: (path != Path::new("-")).then(|| path.clone()),
        format: match options.log_format {
            cli::LogFormat::Combined => LogFormat::Combined,
            cli::LogFormat::Json => LogFormat::Json,
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
        updating(options)?,
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

/// Says where the certificate comes from.
fn certificates(
    options: &ArchiveServe,
    listeners: &[Listener],
) -> Result<Option<Certificates>, Failure> {
    if options.acme.is_empty() {
        let files = options
            .tls_certificate
            .clone()
            .zip(options.tls_key.clone())
            .map(|(certificate, key)| TlsFiles { certificate, key });
        return Ok(files.map(Certificates::Files));
    }
    if !listeners.iter().any(Listener::tls) {
        return Err(
            Failure::usage("a certificate is to be ordered, and nothing listens with TLS")
                .hint("add --listen-tls 443"),
        );
    }
    let is_plain = listeners.iter().any(|listener| !listener.tls());
    let challenge = match options.acme_challenge {
        Some(cli::AcmeChallenge::TlsAlpn01) => Challenge::TlsAlpn01,
        None if !is_plain => Challenge::TlsAlpn01,
        Some(cli::AcmeChallenge::Http01) | None => Challenge::Http01,
    };
    if challenge == Challenge::Http01 && !is_plain {
        return Err(Failure::usage(
            "http-01 proves names at port 80, and nothing listens without TLS",
        )
        .hint("add --listen 80, or use --acme-challenge tls-alpn-01"));
    }
    Ok(Some(Certificates::Acme(AcmeOptions {
        names: options.acme.clone(),
        authority: options.acme_directory.clone(),
        contacts: options.acme_contact.clone(),
        challenge,
    })))
}

/// Binds what the options say, and takes what systemd passes.
fn listeners(options: &ArchiveServe) -> Result<Vec<Listener>> {
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

/// Returns what an update runs: this program's own `archive sync`, so that the memory which that takes is not the server's; or a shell command.
fn updating(options: &ArchiveServe) -> Result<Option<Update>> {
    let arguments: Vec<OsString> = if let Some(repository) = &options.sync {
        let own = env::current_exe().context("cannot find this program")?;
        let directory = options.directory.clone().into();
        let words = ["archive", "sync", "--progress", "quiet"].map(OsString::from);
        let rest = [repository.into(), "--to".into(), directory];
        std::iter::once(own.into())
            .chain(words)
            .chain(rest)
            .collect()
    } else if let Some(command) = &options.update {
        vec!["/bin/sh".into(), "-c".into(), command.into()]
    } else {
        return Ok(None);
    };
    // Archives that did not come are no failure: the page tells them, and they are tried again.
    let fine = i32::from(options.sync.is_some());
    Ok(Some(Box::new(move |cause| {
        Box::pin(run_update(arguments.clone(), cause, fine))
    })))
}

/// Runs an update, which learns from `OBUILD_CAUSE` what set it off. `fine` is the highest exit status that is no failure.
async fn run_update(arguments: Vec<OsString>, cause: Cause, fine: i32) -> Result<(), String> {
    let mut child = Command::new(&arguments[0])
        .args(&arguments[1..])
        .env("OBUILD_CAUSE", cause.to_string())
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDS")
        .env_remove("NOTIFY_SOCKET")
        .stdin(std::process::Stdio::null())
        // Standard output may be the access log's.
        .stdout(std::io::stderr())
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
    if status.code().is_some_and(|code| code <= fine) {
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
