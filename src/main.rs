// SPDX-License-Identifier: Apache-2.0
//! The `obuild` command: command line, progress, wiring. No build logic: one file a subcommand in `commands`.

mod attest;
mod cli;
mod commands;
mod config;
mod differences;
mod failure;
mod outputs;
mod progress;
mod sharing;
mod values;

use clap::Parser;
use cli::{Cli, Command};
use failure::{Negative, SpecErrors};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

/// The hidden first argument under which the program is its own sandbox helper.
pub(crate) const HELPER: &str = "__sandbox-helper";

fn main() -> ExitCode {
    // Before anything else: the helper forks, and must have one thread and little memory.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == HELPER)
    {
        return obuild_sandboxes::helper::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let status = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    let colour = progress::colour(cli.global.color);
    start_logging(cli.global.verbose, colour);
    match become_root(&cli.command).and_then(|()| dispatch(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<SpecErrors>() && !error.is::<Negative>() && !is_broken_pipe(&error) {
                report(&error, colour);
            }
            ExitCode::from(failure::exit_status(&error))
        }
    }
}

/// Makes an ordinary user root of a user namespace for a command that needs it. Threads come later.
fn become_root(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Archive(_)
        | Command::Check(_)
        | Command::Fmt(_)
        | Command::Dockerfile(_)
        | Command::Graph(_)
        | Command::Key(_)
        | Command::Completions(_)
        | Command::Man(_) => Ok(()),
        _ => Ok(obuild_rootless::enter()?),
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    match &cli.command {
        Command::Run(options) => commands::run::run(global, options),
        Command::Pull(options) => commands::pull::run(global, options),
        Command::Check(options) => commands::check::run(global, options),
        Command::Fmt(options) => commands::fmt::run(global, options),
        Command::Dockerfile(options) => commands::dockerfile::run(global, options),
        Command::Graph(options) => commands::graph::run(global, options),
        Command::Healthcheck(options) => commands::healthcheck::run(global, options),
        Command::Log(options) => commands::log::run(global, options),
        Command::Ls(options) => commands::ls::run(global, options),
        Command::Inspect(options) => commands::inspect::run(global, options),
        Command::Shell(options) => commands::shell::run(global, options),
        Command::Export(options) => commands::export::run(global, options),
        Command::Sbom(options) => commands::sbom::run(global, options),
        Command::Key(options) => commands::key::run(&options.command),
        Command::Sign(options) => commands::sign::run(global, options),
        Command::VerifySignature(options) => commands::verify_signature::run(global, options),
        Command::Push(options) => commands::push::run(global, options),
        Command::Diff(options) => commands::diff::run(global, options),
        Command::Verify(options) => commands::verify::run(global, options),
        Command::Delete(options) => commands::delete::run(global, options),
        Command::Prune(options) => commands::prune::run(global, options),
        Command::Df(options) => commands::df::run(global, options),
        Command::Unshare(options) => commands::unshare::run(options),
        Command::Store(options) => commands::store::run(global, &options.command),
        Command::Archive(options) => commands::archive::run(global, &options.command),
        Command::Completions(options) => commands::completions::run(options),
        Command::Man(options) => commands::man::run(options),
    }
}

fn report(error: &anyhow::Error, colour: bool) {
    let (message, hint) = failure::describe(error);
    let (red, cyan, off) = if colour {
        ("\x1b[1;31m", "\x1b[36m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let mut text = format!("{red}error{off}: {message}\n");
    if let Some(hint) = hint {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{cyan}hint{off}: {hint}");
    }
    // Nobody reads standard error: the exit status still tells.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Whoever read our standard output has gone, as in `obuild log ID | head`: no reason to complain.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn start_logging(verbose: u8, colour: bool) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("OBUILD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .without_time()
        .with_target(verbose > 1)
        .init();
}
