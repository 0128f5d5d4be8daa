// SPDX-License-Identifier: Apache-2.0
//! From an error to what a person sees: message, causes, hint, exit status (design decision 12).

use obuild_engine::Kind;
use std::fmt::Write as _;

/// An error that the command line itself makes, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// The spec or the usage is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Usage,
            message: message.into(),
            hint: None,
        }
    }

    /// The host failed.
    pub(crate) fn host(message: impl Into<String>) -> Self {
        Self {
            kind: Kind::Host,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A spec is wrong; the diagnostics have been printed.
#[derive(Debug, thiserror::Error)]
#[error("the spec has errors")]
pub(crate) struct SpecErrors;

/// Nothing was wrong but the answer is no (`fmt --check`); nothing more is printed.
#[derive(Debug, thiserror::Error)]
#[error("no")]
pub(crate) struct Negative;

/// Returns the exit status that the error is for.
pub(crate) fn exit_status(error: &anyhow::Error) -> u8 {
    match kind(error) {
        Kind::Build => 1,
        Kind::Usage => 2,
        Kind::Host => 3,
        Kind::Bug => 4,
        Kind::Interrupted => 130,
    }
}

const NO_DAEMON: &str =
    "is the docker daemon running? `systemctl start docker`, or name its socket with --docker-host";

fn kind(error: &anyhow::Error) -> Kind {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.kind;
        }
        if let Some(error) = cause.downcast_ref::<obuild_engine::Error>() {
            return error.kind();
        }
        if let Some(kind) = crate::commands::archive::kind(cause) {
            return kind;
        }
        if cause.is::<SpecErrors>() {
            return Kind::Usage;
        }
        if cause.is::<Negative>() {
            return Kind::Build;
        }
        if let Some(error) = cause.downcast_ref::<obuild_stores::Error>() {
            return match error {
                obuild_stores::Error::BadUrl { .. } | obuild_stores::Error::RsyncMode { .. } => {
                    Kind::Usage
                }
                _ => Kind::Host,
            };
        }
    }
    Kind::Host
}

/// Returns the error with its causes on one line, and the hint if there is one.
pub(crate) fn describe(error: &anyhow::Error) -> (String, Option<String>) {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        // A wrapper that shows its source as its own message adds nothing.
        if text.is_empty() {
            text = part;
        } else if !text.ends_with(&part) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {part}");
        }
    }
    (text, hint(error))
}

fn hint(error: &anyhow::Error) -> Option<String> {
    const MISSING: &str = "files of the store were removed by somebody else; run the build again, and what is missing is made anew";
    let mut io = None;
    let mut below_store = false;
    for cause in error.chain() {
        below_store |= cause.is::<obuild_stores::Error>()
            || matches!(
                cause.downcast_ref(),
                Some(obuild_sandboxes::Error::Setup { .. })
            );
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.hint.clone();
        }
        if let Some(hint) = crate::commands::archive::hint(cause) {
            return Some(hint);
        }
        if let Some(hint) = cause
            .downcast_ref::<obuild_engine::Error>()
            .and_then(engine_hint)
        {
            return Some(hint);
        }
        if let Some(hint) = cause
            .downcast_ref::<obuild_images::Error>()
            .and_then(obuild_images::Error::hint)
        {
            return Some(hint);
        }
        if let Some(obuild_stores::Error::Newer { .. }) = cause.downcast_ref() {
            return Some("use the newer obuild, or another --store".to_owned());
        }
        if let Some(hint) = cause
            .downcast_ref::<obuild_stores::Error>()
            .and_then(obuild_stores::Error::hint)
        {
            return Some(hint.to_owned());
        }
        if let Some(obuild_stores::Error::NoSuchSnapshot(_)) = cause.downcast_ref() {
            return Some(MISSING.to_owned());
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            // What a store looks for it has seen before.
            if error.kind() == std::io::ErrorKind::NotFound && below_store {
                return Some(MISSING.to_owned());
            }
            // An error that says more than the kernel's hides the number.
            let failed = error.to_string().contains("(os error 5)");
            let code = failed.then(|| rustix::io::Errno::IO.raw_os_error());
            io = Some((error.kind(), error.raw_os_error().or(code)));
        }
    }

    let (kind, code) = io?;
    match kind {
        std::io::ErrorKind::StorageFull => {
            Some("the disk is full; make room with `obuild prune --free SIZE` or elsewhere. Nothing that was cached is lost".to_owned())
        }
        std::io::ErrorKind::PermissionDenied => Some("run obuild as a user who may do this, or name another store with --store".to_owned()),
        std::io::ErrorKind::ReadOnlyFilesystem => {
            Some("the file system is mounted read-only; name another store with --store".to_owned())
        }
        std::io::ErrorKind::NotConnected => Some(NO_DAEMON.to_owned()),
        std::io::ErrorKind::ConnectionAborted => Some(
            "the docker daemon went away in the middle; run the build again when it is back. Nothing that was cached is lost".to_owned(),
        ),
        std::io::ErrorKind::QuotaExceeded => {
            Some("the disk quota is used up; make room with `obuild prune`. Nothing that was cached is lost".to_owned())
        }
        _ if code == Some(rustix::io::Errno::IO.raw_os_error()) => Some("the file system has gone wrong; `dmesg` tells why. What was cached is found again once it is mounted anew".to_owned()),
        _ => None,
    }
}

fn engine_hint(error: &obuild_engine::Error) -> Option<String> {
    use obuild_engine::Error as E;
    match error {
        E::StepFailed { id, .. } => {
            let short = &id.to_string()[..12];
            Some(format!(
                "`obuild log {short}` shows the whole log; with --keep-failed, `obuild shell {short}` looks into the tree"
            ))
        }
        E::MissingSecret { id, .. } => Some(format!("give it with --secret id={id},src=FILE")),
        E::NoSuchStep(_) => Some("`obuild ls` lists the steps".to_owned()),
        E::AmbiguousId { .. } => Some("give more digits of it".to_owned()),
        E::InUse(_) => Some("try again when that build is done".to_owned()),
        E::HasChildren { .. } => Some("--recursive removes those too".to_owned()),
        E::NewerDatabase { .. } => Some("use the newer obuild, or another --store".to_owned()),
        E::Bug(_) => Some("please report this".to_owned()),
        E::Base { source, .. } => source.hint(),
        E::Sandbox {
            source: obuild_sandboxes::Error::Helper(_),
            ..
        } => Some(
            "nothing that was cached is lost: run the build again. `dmesg` tells if the kernel killed it for want of memory"
                .to_owned(),
        ),
        E::Sandbox {
            source:
                obuild_sandboxes::Error::Unavailable {
                    sandbox: "docker", ..
                },
            ..
        } => Some(NO_DAEMON.to_owned()),
        E::Sandbox {
            source: obuild_sandboxes::Error::Unavailable { .. },
            ..
        } => Some(
            "nothing that was cached is lost: run the build again. `obuild healthcheck` tells whether this host can build"
                .to_owned(),
        ),
        E::Database { .. } => Some(
            "the database is bookkeeping, and no result is lost with it. Make sure that the disk has room and can be written, and try again"
                .to_owned(),
        ),
        E::Shared(error) => engine_hint(error),
        _ => None,
    }
}
