// SPDX-License-Identifier: Apache-2.0
//! The options of the commands that keep the source archive.

use super::deferred::Deferred;
use super::{Format, ProgressKind};
use crate::values::{parse_duration, parse_size};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use obuild_archive::serve::{Authority, HostName};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

/// `obuild archive`.
#[derive(Debug, Args)]
pub(crate) struct Archive {
    #[command(subcommand)]
    pub(crate) command: ArchiveCommand,
}

/// The subcommands of `obuild archive`.
#[derive(Debug, Subcommand)]
pub(crate) enum ArchiveCommand {
    /// Report what is wrong in opam files: their syntax, and sources that cannot be kept or verified
    Check(Deferred<ArchiveCheck>),
    /// Fetch what a repository's packages declare, as far as it changed
    Sync(Deferred<ArchiveSync>),
    /// Make the index that opam clients read, or bring it up to date
    Index(Deferred<ArchiveIndex>),
    /// Tell what is there, what is missing and why
    Status(Deferred<ArchiveStatus>),
    /// Read every archive again and compare it with its checksums
    Verify(Deferred<ArchiveVerify>),
    /// Remove archives that no package has named for a while
    Gc(Deferred<ArchiveGc>),
    /// Take over archives that are on this machine already; nothing is downloaded
    Import(Deferred<ArchiveImport>),
    /// Serve an archive over HTTP
    Serve(Deferred<ArchiveServe>),
    /// Make an image of the archive, of which only what is new is pushed
    Image(Deferred<ArchiveImage>),
    /// From merge to live: sync, make the image, push it, run a command
    Deploy(Deferred<ArchiveDeploy>),
}

/// How a command shows how far it is, and reports.
#[derive(Debug, Args)]
pub(crate) struct Reporting {
    /// How to show what is going on
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) progress: ProgressKind,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// How many files a command reads at once.
#[derive(Debug, Args)]
pub(crate) struct Readers {
    /// How many files are read at once [default: one a processor]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) jobs: Option<u32>,
}

/// `obuild archive check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing worse than warnings, 1 there are errors, 2 there is no such file or directory."
)]
pub(crate) struct ArchiveCheck {
    /// opam files, and directories of them, such as a repository
    #[arg(required = true, value_name = "REPO|FILE", value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

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
    /// Keep the archives only: no index.tar.gz and no repo file
    #[arg(long)]
    pub(crate) no_index: bool,
    /// Where the index says that archives are, relative to it or a URL; may be given more than once
    #[arg(long, value_name = "URL", default_value = "cache")]
    pub(crate) archive_mirror: Vec<String>,
    /// Take other fields of the index from this file, written as in opam's repo file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) fields: Option<PathBuf>,
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
    #[command(flatten)]
    pub(crate) output: Reporting,
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
    #[command(flatten)]
    pub(crate) readers: Readers,
    #[command(flatten)]
    pub(crate) output: Reporting,
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
    #[command(flatten)]
    pub(crate) readers: Readers,
    #[command(flatten)]
    pub(crate) output: Reporting,
}

/// `obuild archive serve`.
#[derive(Debug, Args)]
#[command(
    after_help = "SIGTERM and SIGINT end the server when the requests at hand are done; SIGHUP opens the access log anew and reads the certificate again. \
Sockets that systemd passes are listened on; one whose FileDescriptorName is tls or https speaks TLS."
)]
pub(crate) struct ArchiveServe {
    /// The archive's directory: index.tar.gz, repo, cache, packages
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    /// Listen here, without TLS [default: 127.0.0.1:8080 if nothing else is listened on]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_address)]
    pub(crate) listen: Vec<SocketAddr>,
    /// Listen here, with TLS
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_address, requires = "certificates")]
    pub(crate) listen_tls: Vec<SocketAddr>,
    /// The certificate and its chain, in PEM; read again when it changes
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key", group = "certificates")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_certificate")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Order a certificate for this name of the server by ACME, and renew it; may be given more than once
    #[arg(
        long,
        value_name = "NAME",
        requires = "acme_agree_terms",
        group = "certificates"
    )]
    pub(crate) acme: Vec<HostName>,
    /// Agree to the terms of service of the certificate authority
    #[arg(long, requires = "acme")]
    pub(crate) acme_agree_terms: bool,
    /// The authority's directory
    #[arg(
        long,
        value_name = "URL",
        value_hint = ValueHint::Url,
        default_value = "https://acme-v02.api.letsencrypt.org/directory"
    )]
    pub(crate) acme_directory: Authority,
    /// A mail address that the authority can write to; may be given more than once
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::EmailAddress, requires = "acme")]
    pub(crate) acme_contact: Vec<String>,
    /// How it is proved that the names are this server's: at port 80 or at port 443 [default: http-01 if it listens without TLS, else tls-alpn-01]
    #[arg(long, value_name = "CHALLENGE", requires = "acme")]
    pub(crate) acme_challenge: Option<AcmeChallenge>,
    /// Let another server of the same user listen on the same addresses, so that a new one can begin before the old one ends
    #[arg(long)]
    pub(crate) reuse_port: bool,
    /// A directory for what DIR does not have
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) legacy: Option<PathBuf>,
    /// Write an access log; - is standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) access_log: Option<PathBuf>,
    /// How a line of the access log looks
    #[arg(long, value_name = "FORMAT", default_value = "combined")]
    pub(crate) log_format: LogFormat,
    /// Bring the archive up to date from this opam repository, as `obuild archive sync REPO --to DIR` does, when --poll and --hook-secret-file say
    #[arg(long, value_name = "REPO", group = "updates")]
    pub(crate) sync: Option<String>,
    /// Run this shell command instead, for example to deploy elsewhere, too
    #[arg(long, value_name = "COMMAND", group = "updates", value_hint = ValueHint::CommandString)]
    pub(crate) update: Option<String>,
    /// Update at the start and then this often
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "updates")]
    pub(crate) poll: Option<Duration>,
    /// Update when a hook is posted to /hooks/update that is signed with the secret in this file, as GitHub does it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "updates")]
    pub(crate) hook_secret_file: Option<PathBuf>,
    /// Threads that serve [default: the number of processors]
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Connections at once; when there are more, idle ones make room
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) max_connections: usize,
    /// Connections at once from one address, or one /64 of IPv6
    #[arg(long, value_name = "N")]
    pub(crate) max_per_address: Option<usize>,
    /// The time that a client has for a request's header
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "20s")]
    pub(crate) header_timeout: Duration,
    /// The time that a client may take nothing of what is sent to it
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    pub(crate) send_timeout: Duration,
    /// The time that a connection is kept between requests
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "75s")]
    pub(crate) idle_timeout: Duration,
    /// The time that requests have to be finished when the server ends
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "30s")]
    pub(crate) stop_timeout: Duration,
}

/// The proofs of ACME that the server can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcmeChallenge {
    /// A file at port 80
    #[value(name = "http-01")]
    Http01,
    /// A certificate at port 443
    #[value(name = "tls-alpn-01")]
    TlsAlpn01,
}

/// The formats of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Apache's combined format
    Combined,
    /// One JSON object a line
    Json,
}

/// `obuild archive index`.
#[derive(Debug, Args)]
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

/// `obuild archive image`.
#[derive(Debug, Args)]
#[command(
    after_help = "Everything is below /srv in the image: cache, index.tar.gz, repo, legacy, www. Archives that were not there before become one \
small layer; now and then small layers become one, the first never. There are at most 36 layers with a base image of eight.\n\n\
Exit status: 0 done, or nothing to do, 2 the usage is wrong, 3 the registry or the disk failed, 130 interrupted."
)]
pub(crate) struct ArchiveImage {
    /// The directory of the archive
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
    #[command(flatten)]
    pub(crate) image: ArchiveImageOptions,
    /// Write an OCI image layout
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) to: Option<PathBuf>,
    /// The image's name in the layout
    #[arg(long, value_name = "TAG", requires = "to")]
    pub(crate) tag: Option<String>,
    /// Only tell what would be added, merged and pushed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Reporting,
}

/// What goes into an image of an archive, and where it goes.
#[derive(Debug, Args)]
pub(crate) struct ArchiveImageOptions {
    /// Push to this name, if the image is not what was pushed there the last time; may be given more than once
    #[arg(long, value_name = "REG/REPO:TAG")]
    pub(crate) push: Vec<String>,
    /// Also push what was pushed the last time
    #[arg(long, requires = "push")]
    pub(crate) force: bool,
    /// Make layers anew that lost archives to `obuild archive gc`; without it, a registry that has them keeps them, and a new layer hides what is gone
    #[arg(long)]
    pub(crate) rebase: bool,
    /// The image below: a name in a registry, or `oci:PATH[:TAG]`
    #[arg(long, value_name = "IMAGE", default_value = "scratch")]
    pub(crate) base: String,
    /// Put this program at /usr/bin/obuild, and serve the archive with it when the image is run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) program: Option<PathBuf>,
    /// How the index is in the image; in parts, only those that changed are pushed, and `obuild archive serve` puts it together
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) index: IndexKind,
    /// A directory that never changes, for /srv/legacy
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) legacy: Option<PathBuf>,
    /// The pages of a site, for /srv/www
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) site: Option<PathBuf>,
}

/// How the index is in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IndexKind {
    /// In parts if obuild serves it: with --program, or a base whose entry point is obuild
    Auto,
    /// In parts
    Parts,
    /// As one file, for any server
    File,
}

/// `obuild archive deploy`.
#[derive(Debug, Args)]
#[command(
    after_help = "The stages are sync, image, push and command; each does only what is left to do, so that a deployment that failed is run again \
with the same command. Nothing new in the repository and nothing left to do: nothing is done.\n\n\
Exit status: 0 done, 1 archives did not come or the command failed (the rest is done), 2 the usage is wrong, 3 the repository, the registry or \
the disk failed, 130 interrupted."
)]
pub(crate) struct ArchiveDeploy {
    #[command(flatten)]
    pub(crate) sync: ArchiveSync,
    #[command(flatten)]
    pub(crate) image: ArchiveImageOptions,
    /// Run this shell command when the image is new; its environment says `OBUILD_IMAGE` and `OBUILD_COMMIT`
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    pub(crate) then: Option<String>,
}
