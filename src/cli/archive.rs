// SPDX-License-Identifier: Apache-2.0
//! The options of the commands that keep the source archive.

use super::{Format, ProgressKind};
use crate::values::{parse_duration, parse_size};
use clap::{Args, ValueHint};
use std::path::PathBuf;
use std::time::Duration;

/// `obuild archive sync`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[command(
    after_help = "Exit status: 0 done, 1 archives did not come (the rest is done), 2 the usage is wrong, 3 the repository or the \
disk failed, 130 interrupted."
)]
pub(crate) struct ArchiveSync {
    /// The opam repository: a git URL, a local git repository or a directory
    #[arg(value_name = "REPO")]
    pub(crate) repository: String,
    /// The directory of the archive; made if it is not there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) to: PathBuf,
    /// The branch or tag to read [default: the repository's own choice]
    #[arg(long, value_name = "NAME", conflicts_with = "commit")]
    pub(crate) branch: Option<String>,
    /// The commit to read
    #[arg(long, value_name = "ID")]
    pub(crate) commit: Option<String>,
    /// Ask this cache of another mirror too (`https://opam.ocaml.org/cache`); may be given more than once
    #[arg(long, value_name = "URL")]
    pub(crate) upstream_cache: Vec<String>,
    /// Ask the caches first, not after the URLs that packages declare
    #[arg(long, requires = "upstream_cache")]
    pub(crate) cache_first: bool,
    /// Try everything that is missing now, whenever its turn is
    #[arg(long)]
    pub(crate) retry: bool,
    /// How many archives are fetched at once
    #[arg(short, long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: u32,
    /// How many of them from one host
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) per_host: u32,
    /// How often a URL is tried before it is left for a later sync
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) attempts: u32,
    /// How long a connection may take to come about
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub(crate) connect_timeout: Duration,
    /// Give up a server that sends less than 1 KiB a second over this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) stall_timeout: Duration,
    /// Refuse archives that are larger
    #[arg(long, value_name = "SIZE", default_value = "4g", value_parser = parse_size)]
    pub(crate) largest: u64,
    /// Use this HTTP proxy
    #[arg(long, value_name = "URL")]
    pub(crate) proxy: Option<String>,
    /// Follow file: URLs though the repository is not a local one
    #[arg(long)]
    pub(crate) file_urls: bool,
    /// Fail when another process works on the archive, and do not wait for it
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How to show what is going on
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) progress: ProgressKind,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild archive status`.
#[derive(Debug, Args)]
pub(crate) struct ArchiveStatus {
    /// The directory of the archive
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    /// List every problem of every opam file too
    #[arg(long)]
    pub(crate) problems: bool,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild archive verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 all is well, 1 something was damaged (it is in quarantine, and the next sync fetches it), 3 the \
disk failed, 130 interrupted."
)]
pub(crate) struct ArchiveVerify {
    /// The directory of the archive
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    /// How many archives are read at once [default: one a processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: Option<u32>,
    /// How to show what is going on
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) progress: ProgressKind,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild archive gc`.
#[derive(Debug, Args)]
pub(crate) struct ArchiveGc {
    /// The directory of the archive
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    /// Remove only what no package has named for this long
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse_duration)]
    pub(crate) grace: Duration,
    /// Only tell what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild archive import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 done, 1 files were not what they are called (the rest is done), 3 the source or the disk failed, \
130 interrupted."
)]
pub(crate) struct ArchiveImport {
    /// A directory (what `opam admin cache` made, an image's /cache, any other), or a tar file, also compressed
    #[arg(value_name = "DIR|TAR", value_hint = ValueHint::AnyPath)]
    pub(crate) source: PathBuf,
    /// The directory of the archive; made if it is not there
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) to: PathBuf,
    /// Take every file, also one that is not called by a checksum and that no package names
    #[arg(long)]
    pub(crate) all: bool,
    /// Never share files with the source, not even by hard links
    #[arg(long)]
    pub(crate) copy: bool,
    /// How many files are read at once [default: one a processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: Option<u32>,
    /// How to show what is going on
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) progress: ProgressKind,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild archive index`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit status: 0 done, 2 the usage is wrong, 3 the repository or the disk failed, 130 interrupted."
)]
pub(crate) struct ArchiveIndex {
    /// The opam repository: a git URL, a local git repository or a directory
    #[arg(value_name = "REPO")]
    pub(crate) repository: String,
    /// The directory that index.tar.gz and repo go into; made if it is not there
    #[arg(long, visible_alias = "to", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) out: PathBuf,
    /// The branch or tag to read [default: the repository's own choice]
    #[arg(long, value_name = "NAME", conflicts_with = "commit")]
    pub(crate) branch: Option<String>,
    /// The commit to read
    #[arg(long, value_name = "ID")]
    pub(crate) commit: Option<String>,
    /// Where clients find archives, relative to the index or a URL; may be given more than once [default: the repository's own]
    #[arg(long, visible_alias = "archive-mirrors", value_name = "URL")]
    pub(crate) archive_mirror: Vec<String>,
    /// Where the repository comes from
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<String>,
    /// Where people can look at packages
    #[arg(long, value_name = "URL")]
    pub(crate) browse: Option<String>,
    /// Send clients to another repository for good; may be given more than once
    #[arg(long, value_name = "URL")]
    pub(crate) redirect: Vec<String>,
    /// Tell clients something at each update; may be given more than once
    #[arg(long, value_name = "TEXT")]
    pub(crate) announce: Vec<String>,
    /// Take fields from this file, written as in opam's repo file; for what has filters
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) fields: Option<PathBuf>,
    /// What clients compare to see whether they are up to date [default: the commit]
    #[arg(long, value_name = "TEXT")]
    pub(crate) stamp: Option<String>,
    /// Keep what is remembered between two runs here [default: .obuild in the directory]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) state: Option<PathBuf>,
    /// Write the index in parts into this directory too: a file a segment, for a server to put together
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) parts: Option<PathBuf>,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}
