// SPDX-License-Identifier: Apache-2.0
//! The project's tasks: `cargo xtask TASK`. Without a task it lists them.
//!
//! One file a task. What the tasks share: children go through [`cmd`], everything that must be undone through
//! [`reaper`], missing programs through [`packages`].
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the terminal: results on stdout, what it does on stderr"
)]

mod accounts;
mod bench;
mod bless;
mod cmd;
mod debian;
mod demo;
mod dockerd;
mod docs;
mod examples;
mod faults;
mod filesystems;
mod fuzz;
mod lint;
mod opam;
mod packages;
mod reaper;
mod registries;
mod report;
mod rootless;
mod test;
mod workspace;
mod zfs;

use anyhow::{Result, bail};
use std::process::ExitCode;

/// One task: its name, its arguments and what it does, and the function that does it.
struct Task {
    name: &'static str,
    arguments: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "demo",
        arguments: "",
        summary: "set up this machine, build an example twice (cold, cached) and show what happened",
        run: demo::run,
    },
    Task {
        name: "test",
        arguments: "[CARGO TEST ARGUMENTS]",
        summary: "set up what tests need and run every check; with arguments only `cargo test` with them (--as-users: only suites without root)",
        run: test::run,
    },
    Task {
        name: "examples",
        arguments: "",
        summary: "run every example as its comment says",
        run: examples::run,
    },
    Task {
        name: "lint",
        arguments: "",
        summary: "format, clippy, file headers, dependency and spelling checks",
        run: lint::run,
    },
    Task {
        name: "docs",
        arguments: "",
        summary: "build the API documentation and the guide, warnings are errors",
        run: docs::run,
    },
    Task {
        name: "bench",
        arguments: "[NAME…] [--runs N] [--only BUILDER] [--install] [--dir DIR] [--on-host] [--list]",
        summary: "compare with the other builders installed here; a Markdown table in target/bench",
        run: bench::run,
    },
    Task {
        name: "faults",
        arguments: "[--store KIND[:FS]] [--sandbox S] [--fault NAME] [--count N] [--seed S] [--release]",
        summary: "kill, fill, cut off and garble while it builds, and check that nothing is lost or left",
        run: faults::run,
    },
    Task {
        name: "fuzz",
        arguments: "[TARGET] [--seconds N]",
        summary: "fuzz one target or all (needs a nightly toolchain)",
        run: fuzz::run,
    },
    Task {
        name: "bless",
        arguments: "",
        summary: "accept the snapshots that changed tests produce",
        run: bless::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        list();
        return Ok(());
    };
    match name.as_str() {
        "help" | "--help" | "-h" => {
            list();
            Ok(())
        }
        reaper::VERB => {
            reaper::serve();
            Ok(())
        }
        bench::measure::VERB => bench::measure::serve(rest),
        name => {
            let Some(task) = TASKS.iter().find(|task| task.name == name) else {
                list();
                bail!("there is no task {name:?}");
            };
            (task.run)(rest)
        }
    }
}

fn list() {
    println!("Usage: cargo xtask TASK\n\nTasks:");
    for task in TASKS {
        println!("  {:<8} {}", task.name, task.arguments);
        println!("           {}", task.summary);
    }
}
