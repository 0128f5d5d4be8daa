// SPDX-License-Identifier: Apache-2.0
//! `obuild archive index`: make `index.tar.gz` and `repo`, or bring them up to date.

use crate::cli::{ArchiveIndex, Format};
use crate::commands::run::watch_signals;
use crate::commands::{print, print_json, runtime};
use crate::failure::Failure;
use crate::values::{counted, size, time};
use anyhow::Result;
pub(super) use obuild_archive::index::Error;
use obuild_archive::index::{Fields, Index, Report};
use obuild_archive::repository::{Git, Options, Progress, Repository};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stderr};
use std::sync::Arc;
use std::time::Instant;
use tokio_util::sync::CancellationToken;

/// What git, ssh and curl need to reach a server the way their user does (git(1), ssh(1), curl(1)).
const ENVIRONMENT: [&str; 14] = [
    "PATH",
    "HOME",
    "SSH_AUTH_SOCK",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "GIT_SSL_CAINFO",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
];

/// Lets the allocator keep what is given back to it. glibc maps every block of more than 128 KiB by itself and unmaps it again, so that each
/// segment's compressor would be given new pages; but once it was given back a larger block it takes such sizes for short-lived
/// (mallopt(3), `M_MMAP_THRESHOLD`). Of a merge's processor time this is a tenth. Nobody touches the block, so it takes no memory.
fn keep_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
}

pub(super) fn run(options: &ArchiveIndex) -> Result<()> {
    keep_memory();
    let fields = fields(options)?;
    let begun = Instant::now();
    let stop = CancellationToken::new();
    let signals = stop.clone();
    // Beside the work, which blocks. It ends with the process.
    let _watcher = std::thread::spawn(move || {
        runtime()?.block_on(async {
            watch_signals(&signals)?;
            signals.cancelled().await;
            anyhow::Ok(())
        })
    });
    let report = work(options, &fields, &stop)?;
    match options.format {
        Format::Json => print_json(&to_json(&report, begun)),
        Format::Text => print(to_text(&report, begun)),
    }
}

fn work(options: &ArchiveIndex, fields: &Fields, stop: &CancellationToken) -> Result<Report> {
    let private = options.state.clone();
    let private = private.unwrap_or_else(|| options.out.join(".obuild"));
    let open = Options {
        revision: options.branch.clone().or_else(|| options.commit.clone()),
        git: git(),
        cancel: stop.clone(),
        progress: progress(),
        ..Options::default()
    };
    let mut repository = Repository::open(&options.repository, &private.join("repository"), open)?;
    let commit = repository.head()?;
    let stamp = options.stamp.as_deref();
    let state = private.join("index");
    let (index, report) = Index::update(&state, &mut repository, &commit, fields, stamp, stop)?;
    index.publish(&options.out)?;
    if let Some(parts) = &options.parts {
        index.write_parts(parts)?;
    }
    Ok(report)
}

/// Puts together what the options say of the `repo` file; single options win over the file.
fn fields(options: &ArchiveIndex) -> Result<Fields> {
    let mut fields = Fields::default();
    if let Some(path) = &options.fields {
        let text = fs_err::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read the fields: {error}")))?;
        fields.merge(&text)?;
    }
    for (name, texts) in [
        ("archive-mirrors", &options.archive_mirror),
        ("redirect", &options.redirect),
        ("announce", &options.announce),
    ] {
        if !texts.is_empty() {
            fields.set(name, texts);
        }
    }
    for (name, text) in [("upstream", &options.upstream), ("browse", &options.browse)] {
        if let Some(text) = text {
            fields.set(name, std::slice::from_ref(text));
        }
    }
    Ok(fields)
}

/// Returns git with what it needs of our environment.
pub(super) fn git() -> Git {
    let given = |name: &&str| Some((OsString::from(name), std::env::var_os(name)?));
    Git {
        environment: ENVIRONMENT.iter().filter_map(given).collect(),
        ..Git::default()
    }
}

/// Shows what git says while it fetches, on a terminal.
fn progress() -> Option<Progress> {
    stderr().is_terminal().then(|| -> Progress {
        Arc::new(|line| {
            // Nobody reads standard error: the work goes on.
            let _ = write!(stderr(), "\r\x1b[K{line}\r");
        })
    })
}

fn to_json(report: &Report, begun: Instant) -> Value {
    let skipped: Vec<String> = report.skipped.iter().map(ToString::to_string).collect();
    json!({
        "commit": report.commit,
        "from": report.from,
        "files": report.files,
        "segments": {"total": report.segments, "compressed": report.compressed},
        "bytes": {"index": report.bytes, "read": report.raw_bytes, "new": report.new_bytes},
        "skipped": skipped,
        "repo": report.remarks,
        "milliseconds": u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

// Writing to a string cannot fail.
fn to_text(report: &Report, begun: Instant) -> String {
    let mut out = String::new();
    for skipped in &report.skipped {
        let _ = writeln!(out, "{skipped}");
    }
    for remark in &report.remarks {
        let _ = writeln!(out, "repo: {remark}");
    }
    let commit = report.commit.as_str();
    let _ = write!(out, "{}: {}", &commit[..12], counted(report.files, "file"));
    let _ = match &report.from {
        Some(from) => write!(out, " changed since {}", &from.as_str()[..12]),
        None => write!(out, ", made from nothing"),
    };
    let _ = writeln!(
        out,
        "; {} of {} segments compressed, {} of {} new; {}",
        report.compressed,
        report.segments,
        size(report.new_bytes),
        size(report.bytes),
        time(begun.elapsed()),
    );
    out
}
