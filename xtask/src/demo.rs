// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask demo`: from a fresh Debian machine to a finished build, and the same build again from the cache.

use crate::cmd::Cmd;
use crate::{packages, workspace};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The build that is shown, below `examples/`.
const EXAMPLE: &str = "c-project";

/// Runs the task.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    anyhow::ensure!(arguments.is_empty(), "demo takes no arguments");
    anyhow::ensure!(
        workspace::is_root(),
        "the demonstration needs root: debootstrap and the native sandbox do"
    );
    packages::ensure(packages::DEMO)?;
    Cmd::cargo()
        .args(["build", "--release", "--package", "obuild"])
        .run()?;
    let demo = Demo::new();
    // An earlier demonstration's store: this one's first run shall be cold.
    if demo.directory.exists() {
        Cmd::new("rm")
            .args(["-rf", "--one-file-system", "--"])
            .arg(&demo.directory)
            .run()?;
    }

    heading("First run: nothing is cached");
    let (id, cold) = demo.build("plain")?;
    heading("Second run: everything is");
    let (again, cached) = demo.build("quiet")?;
    println!("{again}");
    anyhow::ensure!(
        id == again,
        "the second run came to another result: {id}, {again}"
    );

    heading("The steps in the store (obuild ls)");
    demo.obuild("ls").run()?;
    heading("What they take (obuild df)");
    demo.obuild("df").run()?;
    heading("The built program, run in its result (obuild shell ID -- hello)");
    demo.obuild("shell").args([&id, "--", "hello"]).run()?;

    heading("What happened");
    println!("spec         examples/{EXAMPLE}/spec.sexp");
    println!("result       {id}");
    println!("first run    {:.2} s", cold.as_secs_f64());
    println!("second run   {:.1} ms", cached.as_secs_f64() * 1e3);
    println!("store        {}", demo.store());
    println!(
        "\nTo look around:  {} ls --store {}",
        demo.program.display(),
        demo.store()
    );
    println!("To remove it:    rm -rf {}", demo.directory.display());
    Ok(())
}

/// The built program and its store.
struct Demo {
    program: PathBuf,
    directory: PathBuf,
}

impl Demo {
    fn new() -> Self {
        Self {
            program: workspace::target().join("release/obuild"),
            directory: workspace::target().join("demo"),
        }
    }

    fn store(&self) -> String {
        format!("overlay:{}", self.directory.join("store").display())
    }

    fn obuild(&self, verb: &str) -> Cmd {
        Cmd::new(&self.program)
            .arg(verb)
            .args(["--store", &self.store()])
    }

    /// Runs the example and returns the result's id and the time the whole command took.
    fn build(&self, progress: &str) -> Result<(String, Duration)> {
        fs_err::create_dir_all(&self.directory)?;
        let example = workspace::root().join("examples").join(EXAMPLE);
        let command = self
            .obuild("run")
            .args(["--progress", progress])
            .arg(example.join("spec.sexp"))
            .arg(example.join("src"))
            .deadline(Duration::from_mins(30));
        let start = Instant::now();
        let stdout = command.stdout()?;
        let elapsed = start.elapsed();
        let id = stdout
            .lines()
            .last()
            .context("the id of the result is on stdout")?;
        Ok((id.trim().to_owned(), elapsed))
    }
}

fn heading(text: &str) {
    println!("\n=== {text}");
}
