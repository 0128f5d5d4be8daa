// SPDX-License-Identifier: Apache-2.0
//! The command line's definition: help, completions and manual pages come from here.

mod archive;
mod deferred;

pub(crate) use archive::{
    AcmeChallenge, Archive, ArchiveCheck, ArchiveCommand, ArchiveDeploy, ArchiveGc, ArchiveImage,
    ArchiveImageOptions, ArchiveImport, ArchiveIndex, ArchiveServe, ArchiveStatus, ArchiveSync,
    ArchiveVerify, IndexKind, LogFormat,
};

use crate::outputs::parse_compression;
use crate::values::{parse_cpus, parse_duration, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use deferred::Deferred;
use obuild_images::Compression;
use obuild_images::Platform;
use std::path::PathBuf;
use std::time::Duration;

/// Container builds, step by step.
#[derive(Debug, Parser)]
#[command(
    name = "obuild",
    version,
    about,
    max_term_width = 100,
    propagate_version = true
)]
#[command(
    after_help = "Exit status: 0 done, 1 the build failed, 2 the spec or the usage is wrong, \
3 the host or a service failed, 4 a bug in obuild, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Where results are kept: overlay:PATH, btrfs:PATH, zfs:POOL/DATASET, xfs:PATH, rsync:PATH or docker:PATH [default: the best that the data directory allows]
    #[arg(long, global = true, value_name = "KIND:PATH", env = "OBUILD_STORE")]
    pub(crate) store: Option<String>,
    /// How an rsync store saves room; needed only to make one
    #[arg(long, global = true, value_name = "MODE")]
    pub(crate) rsync_mode: Option<RsyncMode>,
    /// Let an rsync store copy with this program instead of by itself
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub(crate) rsync_program: Option<PathBuf>,
    /// The docker daemon of the docker store and sandbox: a socket of this host [default: /var/run/docker.sock]
    #[arg(long, global = true, value_name = "unix://SOCKET", env = "DOCKER_HOST")]
    pub(crate) docker_host: Option<String>,
    /// Read this configuration file instead of the default one
    #[arg(long, global = true, value_name = "FILE", env = "OBUILD_CONFIG", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Colour the output
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: When,
    /// Tell more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The modes of an rsync store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RsyncMode {
    /// Every result is complete in itself
    Copy,
    /// Unchanged files are hard links to the parent's; contents are compared
    Hardlink,
    /// The same, trusting sizes and times
    #[value(alias = "hardlink_unsafe")]
    HardlinkUnsafe,
}

/// Auto, always or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// When the output is a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a spec and print the result's id
    #[command(visible_alias = "build")]
    Run(Deferred<Run>),
    /// Fetch a base image into the store and print its id
    Pull(Deferred<Pull>),
    /// Report what is wrong in a spec
    Check(Deferred<Check>),
    /// Print a spec canonically, comments kept
    Fmt(Deferred<Fmt>),
    /// Convert a spec to a Dockerfile
    Dockerfile(Deferred<Dockerfile>),
    /// Print a spec's steps as a graph in DOT
    Graph(Deferred<Graph>),
    /// Check that this host can build
    Healthcheck(Deferred<Healthcheck>),
    /// Print a step's log
    Log(Deferred<Log>),
    /// List the steps in the store
    Ls(Deferred<Ls>),
    /// Tell everything about a step, as JSON
    Inspect(Deferred<Id>),
    /// Run a command, or a shell, in a step's result; changes are thrown away
    Shell(Deferred<Shell>),
    /// Write a step's result as an image, or its tree
    Export(Deferred<Export>),
    /// Tell which packages a result holds: a software bill of materials
    Sbom(Deferred<Sbom>),
    /// Make keys that sign
    Key(Deferred<Key>),
    /// Sign an image in a registry, as cosign does
    Sign(Deferred<Sign>),
    /// Verify an image's signature, or a signed statement, and print what was signed
    VerifySignature(Deferred<VerifySignature>),
    /// Push a step's result to a registry
    Push(Deferred<Push>),
    /// Show what differs between two results
    Diff(Deferred<Diff>),
    /// Build a spec twice from its bases, in different circumstances, and show what differs
    #[command(
        after_help = "Exit status: 0 both builds gave the same, 1 they differ (or failed).\n\n\
The second build comes later (in the native sandbox, a year), with another host name, time zone and user name, on one processor, one step at a time, with empty caches, and in memory, where directories give their names in another order. Modification times count only after SOURCE_DATE_EPOCH was set, as in images."
    )]
    Verify(Deferred<Verify>),
    /// Remove steps from the store
    Delete(Deferred<Delete>),
    /// Remove the steps that were not used for longest
    Prune(Deferred<Prune>),
    /// Show what the store holds
    Df(Deferred<Df>),
    /// Run a command, or a shell, in the user namespace that rootless builds have
    Unshare(Deferred<Unshare>),
    /// Look after stores: their state, their health, moving results between them
    Store(Deferred<Store>),
    /// Keep the opam world's source archive and index
    Archive(Deferred<Archive>),
    /// Print a completion script for a shell
    Completions(Deferred<Completions>),
    /// Write the manual pages into a directory
    Man(Deferred<Man>),
}

/// How steps are run.
#[derive(Debug, Default, Args)]
pub(crate) struct SandboxOptions {
    /// How steps are isolated [default: native]
    #[arg(long, value_name = "KIND", env = "OBUILD_SANDBOX")]
    pub(crate) sandbox: Option<SandboxKind>,
    /// The OCI runtime of the runc sandbox: a path or a name in PATH [default: runc]
    #[arg(long, value_name = "PATH")]
    pub(crate) runtime: Option<PathBuf>,
    /// The build users of the user sandbox [default: the members of the group obuild]
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        env = "OBUILD_BUILD_USERS"
    )]
    pub(crate) build_users: Vec<String>,
}

/// The sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SandboxKind {
    /// Namespaces made by obuild itself
    Native,
    /// Any OCI runtime
    Runc,
    /// Build users: isolation by user id alone, for systems without namespaces
    User,
    /// Containers of a docker daemon of this host
    Docker,
}

/// How a build tells what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProgressKind {
    /// tty on a terminal, else plain
    Auto,
    /// Live steps with time and last lines
    Tty,
    /// Every line, prefixed by its step
    Plain,
    /// One JSON object a line
    Json,
    /// Nothing but the result and errors
    Quiet,
}

/// `obuild run`.
#[derive(Debug, Args)]
#[command(
    after_help = "The id of the result goes to standard output, everything else to standard error.\n\n\
An OBuilder command line works after changing the verb: obuild run -f SPEC CONTEXT --store btrfs:/path"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag")]
pub(crate) struct Run {
    /// The spec (- for standard input) and the directory that copies read from [default: the spec's]; with -f only the latter
    #[arg(value_name = "SPEC [CONTEXT]", num_args = 0..=2, value_hint = ValueHint::AnyPath)]
    pub(crate) paths: Vec<PathBuf>,
    /// The spec
    #[arg(short, long, value_name = "SPEC", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    /// How many steps run at once [default: the number of processors]
    #[arg(short, long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// Build only the nested build of this name (outer/inner for one inside another)
    #[arg(long, value_name = "NAME")]
    pub(crate) target: Option<String>,
    /// Give the value of a secret: id=NAME,src=FILE, or NAME:FILE as with OBuilder
    #[arg(long = "secret", value_name = "SECRET")]
    pub(crate) secrets: Vec<String>,
    /// Memory limit of each step, for example 512m or 2g
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory: Option<u64>,
    /// Processor limit of each step, for example 1.5
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub(crate) cpus: Option<f64>,
    /// Limit of processes and threads of each step
    #[arg(long, value_name = "N")]
    pub(crate) pids_limit: Option<u64>,
    /// Time limit of each step, for example 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) timeout: Option<Duration>,
    /// Let steps skip fsync and its like (the store syncs by itself before it counts on a result)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) fast_sync: bool,
    /// Run steps with `no_new_privs`: setuid programs gain nothing
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Run every step but the bases, also those whose result is there
    #[arg(long, conflicts_with = "no_cache_from")]
    pub(crate) no_cache: bool,
    /// Run this step and those that stand on it again: a nested build's name, or a piece of one step's text
    #[arg(long, value_name = "STEP")]
    pub(crate) no_cache_from: Option<String>,
    /// When to ask registries what the tags of base images mean
    #[arg(long, value_name = "WHEN", default_value = "missing", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pub(crate) pull: PullWhen,
    /// Record the digest of the result and of all that it stands on, which obuild store check else does later
    #[arg(long)]
    pub(crate) record_digests: bool,
    /// Write into this file how the result was built: SLSA provenance; records digests too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) provenance: Option<PathBuf>,
    /// Share the steps' results: type=registry,ref=NAME or type=local,dest=DIRECTORY; with mode=max those of every step, not only the target's chain
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_to: Vec<String>,
    /// Take steps' results from where another machine has shared them: type=registry,ref=NAME or type=local,src=DIRECTORY
    #[arg(long, value_name = "CACHE")]
    pub(crate) cache_from: Vec<String>,
    /// Use caches of registries only if this public key has signed them, as obuild sign does
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "cache_from")]
    pub(crate) cache_verify: Option<PathBuf>,
    /// Keep the tree of a step that fails, for obuild shell
    #[arg(long)]
    pub(crate) keep_failed: bool,
    #[command(flatten)]
    pub(crate) outputs: OutputOptions,
    /// How to tell what happens [default: auto]
    #[arg(long, value_name = "KIND", env = "OBUILD_PROGRESS")]
    pub(crate) progress: Option<ProgressKind>,
    /// Nothing but the result and errors; the same as --progress quiet
    #[arg(short, long, conflicts_with = "progress")]
    pub(crate) quiet: bool,
}

/// When a registry is asked what a tag means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullWhen {
    /// Each time
    Always,
    /// When the image was never resolved before
    Missing,
    /// Never, and nothing is fetched
    Never,
}

/// `obuild pull`.
#[derive(Debug, Args)]
#[command(
    after_help = "The image's id in the store goes to standard output. Credentials come from ~/.docker/config.json, as `docker login` writes it."
)]
pub(crate) struct Pull {
    /// The image, as (from …) has it: `[HOST/]REPOSITORY[:TAG|@DIGEST]`, oci:PATH…
    pub(crate) image: String,
    /// Of an image for several platforms, take the one for this, for example linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(crate) platform: Option<Platform>,
    /// When to ask the registry what the tag means
    #[arg(long = "pull", value_name = "WHEN", default_value = "always")]
    pub(crate) when: PullWhen,
    /// How to tell what happens [default: auto]
    #[arg(long, value_name = "KIND", env = "OBUILD_PROGRESS")]
    pub(crate) progress: Option<ProgressKind>,
    /// Nothing but the result and errors; the same as --progress quiet
    #[arg(short, long, conflicts_with = "progress")]
    pub(crate) quiet: bool,
}

fn parse_platform(text: &str) -> Result<Platform, String> {
    text.parse()
        .map_err(|error: obuild_images::Error| error.to_string())
}

/// Where a result goes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Outputs")]
pub(crate) struct OutputOptions {
    /// Write the result: type=oci, docker, tar, local or image, with dest=PATH (- for standard output); a bare path is a directory
    #[arg(short, long, value_name = "OUTPUT")]
    pub(crate) output: Vec<String>,
    /// Name the image
    #[arg(short, long, value_name = "NAME[:TAG]")]
    pub(crate) tag: Vec<String>,
    /// Push the image to the registries of its names
    #[arg(long)]
    pub(crate) push: bool,
    #[command(flatten)]
    pub(crate) image: ImageOptions,
}

/// How an image is made.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Outputs")]
pub(crate) struct ImageOptions {
    /// What becomes a layer of its own: each step, or the build as one
    #[arg(long, value_name = "WHAT", default_value = "step")]
    pub(crate) layers: Layers,
    /// How layers are compressed: gzip, zstd or uncompressed, with a level after a colon (zstd:9) [default: gzip:6]
    #[arg(long, value_name = "METHOD", value_parser = parse_compression)]
    pub(crate) compression: Option<Compression>,
    /// Change the image's configuration by a Dockerfile's instruction, for example 'USER 1000' or 'ENTRYPOINT /bin/app'; may be repeated
    #[arg(long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<String>,
    /// Add an annotation to the image's manifest
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) annotation: Vec<String>,
    /// Write the image's digests to a file, as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) iidfile: Option<PathBuf>,
    /// Attach a signed statement to the pushed image: type=provenance or type=sbom
    #[arg(long, value_name = "ATTEST", requires = "sign_key")]
    pub(crate) attest: Vec<String>,
    /// Sign the pushed image, what is attached to it and the provenance with this private key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) sign_key: Option<PathBuf>,
}

/// What becomes a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layers {
    /// What each step changed
    Step,
    /// What the whole build changed
    Build,
}

/// `obuild check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The specs (- for standard input)
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub(crate) specs: Vec<PathBuf>,
    /// How to report
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// Text or JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// `obuild fmt`.
#[derive(Debug, Args)]
pub(crate) struct Fmt {
    /// The specs (- for standard input)
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub(crate) specs: Vec<PathBuf>,
    /// Rewrite the files instead of printing
    #[arg(short, long, conflicts_with = "check")]
    pub(crate) write: bool,
    /// Only say which files are not canonical; exit status 1 if any
    #[arg(long)]
    pub(crate) check: bool,
}

/// `obuild dockerfile`.
#[derive(Debug, Args)]
pub(crate) struct Dockerfile {
    /// The spec (- for standard input)
    #[arg(value_name = "SPEC", value_hint = ValueHint::FilePath, required_unless_present = "file")]
    pub(crate) spec: Option<PathBuf>,
    /// The spec
    #[arg(short, long, value_name = "SPEC", conflicts_with = "spec", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Use what only `BuildKit` understands: cache and secret mounts, here-documents
    #[arg(long)]
    pub(crate) buildkit: bool,
    /// The Dockerfile's escape character
    #[arg(long, value_name = "KIND", default_value = "unix")]
    pub(crate) escape: EscapeKind,
}

/// The escape character of a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EscapeKind {
    /// Backslash
    Unix,
    /// Backquote
    Windows,
}

/// `obuild graph`.
#[derive(Debug, Args)]
pub(crate) struct Graph {
    /// The spec (- for standard input)
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) spec: PathBuf,
}

/// `obuild healthcheck`.
#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    /// Run the trial step in this base image instead of over this host's own files
    #[arg(long, value_name = "IMAGE")]
    pub(crate) base: Option<String>,
}

/// `obuild log`.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// A step's id, or its beginning
    pub(crate) id: String,
}

/// `obuild ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only the ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// A step's id.
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// A step's id, or its beginning
    pub(crate) id: String,
}

/// `obuild shell`.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// A step's id, or its beginning; also of a step that failed under --keep-failed
    pub(crate) id: String,
    /// The command [default: bash, else sh]
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
    #[command(flatten)]
    pub(crate) sandbox: SandboxOptions,
    /// Give it the host's network
    #[arg(long)]
    pub(crate) network_host: bool,
    /// Run as this user: a name, or `uid:gid` [default: the step's]
    #[arg(short, long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Start in this directory [default: the step's]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<std::ffi::OsString>,
    /// Set a variable, besides the step's
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub(crate) env: Vec<std::ffi::OsString>,
}

/// `obuild export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A step's id, or its beginning
    pub(crate) id: String,
    /// Where the tree goes to: dir:PATH (new or empty), tar:FILE, or tar:- for standard output
    #[arg(long, value_name = "WHERE")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) outputs: OutputOptions,
}

/// `obuild push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// A step's id, or its beginning
    pub(crate) id: String,
    /// What to push it as
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) image: ImageOptions,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `obuild verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Where the second build's results go, on another kind of file system than the first's [default: into memory, and away at the end]
    #[arg(long, value_name = "KIND:PATH")]
    pub(crate) second_store: Option<String>,
    #[command(flatten)]
    pub(crate) build: Run,
}

/// `obuild diff`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 the trees are the same, 1 they differ, 3 they could not be compared."
)]
pub(crate) struct Diff {
    /// A step's id, or its beginning
    #[arg(value_name = "ID1")]
    pub(crate) one: String,
    /// Another step's
    #[arg(value_name = "ID2")]
    pub(crate) other: String,
    /// Take no notice of modification times
    #[arg(long)]
    pub(crate) ignore_times: bool,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild sbom`.
#[derive(Debug, Args)]
#[command(
    after_help = "The databases of dpkg, apk and opam are read. The same result gives the same bytes: the time in the document is \
SOURCE_DATE_EPOCH, or else that of the build."
)]
pub(crate) struct Sbom {
    /// A step's id, or its beginning; or an image, as in (from IMAGE), which is fetched if it is not here
    #[arg(value_name = "ID|IMAGE")]
    pub(crate) what: String,
    /// When to ask the registry what an image's tag means
    #[arg(long = "pull", value_name = "WHEN", default_value = "missing")]
    pub(crate) when: PullWhen,
    /// Of an image for several platforms, take the one for this [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = parse_platform)]
    pub(crate) platform: Option<Platform>,
    /// The document's format
    #[arg(long, value_name = "FORMAT", default_value = "spdx")]
    pub(crate) format: SbomFormat,
    /// Write it into this file instead of to standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
}

/// The formats of bills of materials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SbomFormat {
    /// SPDX 2.3
    Spdx,
    /// `CycloneDX` 1.6
    #[value(name = "cyclonedx")]
    CycloneDx,
}

/// `obuild key`.
#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

/// The subcommands of `obuild key`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a pair of keys, ECDSA P-256, that cosign reads too
    Generate(KeyGenerate),
}

/// `obuild key generate`.
#[derive(Debug, Args)]
pub(crate) struct KeyGenerate {
    /// Write PREFIX.key, which is not encrypted, and PREFIX.pub
    #[arg(short, long, value_name = "PREFIX", default_value = "obuild", value_hint = ValueHint::FilePath)]
    pub(crate) output: PathBuf,
}

/// `obuild sign`.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// The image: REGISTRY/NAME:TAG, or with @DIGEST
    pub(crate) image: String,
    /// The private key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key: PathBuf,
    /// Also attach what this file says, signed, as said of the image: unsigned provenance, or a bill of materials; may be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) attest: Vec<PathBuf>,
}

/// `obuild verify-signature`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 the signature is by the key, 1 it is not.")]
pub(crate) struct VerifySignature {
    /// An image in a registry: REGISTRY/NAME:TAG, or with @DIGEST
    #[arg(required_unless_present = "file")]
    pub(crate) image: Option<String>,
    /// Instead of an image a signed statement, in an envelope as run --provenance --sign-key writes it
    #[arg(long, value_name = "FILE", conflicts_with = "image", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// The public key
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key: PathBuf,
}

/// `obuild delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Ids of steps, or their beginnings
    #[arg(required_unless_present = "cache")]
    pub(crate) ids: Vec<String>,
    /// Also remove the steps that stand on them
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Remove the persistent cache of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) cache: Vec<String>,
}

/// `obuild prune`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["older_than", "keep_storage", "free", "all"]))]
pub(crate) struct Prune {
    /// Remove steps that no build has used for this long, for example 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) older_than: Option<Duration>,
    /// Remove until the steps hold no more than this, for example 20g
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) keep_storage: Option<u64>,
    /// Remove until the file system has this much free
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) free: Option<u64>,
    /// Remove everything that no running build uses
    #[arg(long)]
    pub(crate) all: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
}

/// `obuild df`.
#[derive(Debug, Args)]
pub(crate) struct Df {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild unshare`.
#[derive(Debug, Args)]
#[command(
    after_help = "An ordinary user's store holds files of ids that only this namespace has. In it the user is root, \
and may look at them, or remove a store: obuild unshare -- rm -r ~/.local/share/obuild. For root nothing changes."
)]
pub(crate) struct Unshare {
    /// The command [default: the user's shell]
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// `obuild store`.
#[derive(Debug, Args)]
pub(crate) struct Store {
    #[command(subcommand)]
    pub(crate) command: StoreCommand,
}

/// The subcommands of `obuild store`.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Tell what the store is, what it can do, and how it is
    Info(StoreInfo),
    /// Verify every snapshot against its recorded digest, and put the books right
    Check(StoreCheck),
    /// Copy results from one store to another, of any kinds
    Copy(StoreCopy),
}

/// `obuild store info`.
#[derive(Debug, Args)]
pub(crate) struct StoreInfo {
    /// Measure what has not been measured yet, and the caches; can take long
    #[arg(long)]
    pub(crate) sizes: bool,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild store check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 the store is healthy, 1 damage was found (also if it was removed), 3 the check could not be done.\n\n\
Builds may go on meanwhile. A snapshot without a recorded digest is read, and its digest recorded."
)]
pub(crate) struct StoreCheck {
    /// Look at the books only, and read no snapshot
    #[arg(long)]
    pub(crate) quick: bool,
    /// Remove damaged snapshots, with what stands on them, so that the next build makes them again
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) repair: bool,
    /// Change nothing, not even wrong books, and record nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// How many chains of snapshots are read at once [default: the number of processors]
    #[arg(short, long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild store copy`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["ids", "all"]))]
#[command(
    after_help = "Exit status: 0 everything was copied, 1 something was damaged and left out, 3 the copy could not be done.\n\n\
Both stores may be in use. A copy that was interrupted is taken up where it ended."
)]
pub(crate) struct StoreCopy {
    /// The store to copy from
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// The store to copy to; made if there is none
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    /// Ids of steps, or their beginnings: copied with all that they stand on
    #[arg(value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Copy every step
    #[arg(long)]
    pub(crate) all: bool,
    /// Also copy the caches that the new store does not have
    #[arg(long)]
    pub(crate) caches: bool,
    /// How many chains of snapshots are copied at once [default: the number of processors]
    #[arg(short, long, value_name = "N")]
    pub(crate) jobs: Option<usize>,
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

/// `obuild completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `obuild man`.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
}
