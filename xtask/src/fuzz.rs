// SPDX-License-Identifier: Apache-2.0
//! `cargo xtask fuzz`: runs the libFuzzer targets of `fuzz/`, with cargo-fuzz or without.

use crate::cmd::Cmd;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// What cargo-fuzz passes to the compiler (cargo-fuzz 0.13, `src/project.rs`): coverage for libFuzzer, the address
/// sanitizer, and checks that release builds leave out.
const RUSTFLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1 \
    -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs the task: `[TARGET] [--seconds N]`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (target, seconds) = parse(arguments)?;
    let fuzz = workspace::root().join("fuzz");
    let all = targets(&fuzz)?;
    let chosen = match &target {
        None => all,
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!(
            "there is no fuzz target {name:?}; there are: {}",
            all.join(" ")
        ),
    };
    let by_hand = workspace::find_program("cargo-fuzz").is_none();
    let host = host_triple()?;
    if by_hand {
        Cmd::new("cargo")
            .args(["+nightly", "build", "--release", "--manifest-path"])
            .arg(fuzz.join("Cargo.toml"))
            .args(["--target", &host, "--bins"])
            .env("RUSTFLAGS", RUSTFLAGS)
            // Set by the cargo that runs us; they would pin the child to its toolchain.
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
            .run()
            .context("build the fuzz targets (`rustup toolchain install nightly`)")?;
    }
    for name in &chosen {
        let corpus = fuzz.join("corpus").join(name);
        let artifacts = fuzz.join("artifacts").join(name);
        fs_err::create_dir_all(&corpus)?;
        fs_err::create_dir_all(&artifacts)?;
        let limit = format!("-max_total_time={seconds}");
        let command = if by_hand {
            Cmd::new(fuzz.join("target").join(&host).join("release").join(name))
                .arg(&corpus)
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .args([
                    &limit,
                    "-rss_limit_mb=2048",
                    "-timeout=10",
                    "-print_final_stats=1",
                ])
        } else {
            Cmd::new("cargo")
                .args(["+nightly", "fuzz", "run", name])
                .arg("--")
                .args([&limit, "-rss_limit_mb=2048", "-timeout=10"])
                .env_remove("RUSTUP_TOOLCHAIN")
                .env_remove("CARGO")
        };
        command.run().with_context(|| {
            format!(
                "{name} found something; the input is in {}",
                artifacts.display()
            )
        })?;
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<(Option<String>, u64)> {
    let mut target = None;
    let mut seconds = 60;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == "--seconds" {
            let value = rest.next().context("--seconds needs a number")?;
            seconds = value.parse().context("--seconds needs a number")?;
        } else if argument.starts_with('-') || target.is_some() {
            bail!("unexpected {argument:?}; usage: cargo xtask fuzz [TARGET] [--seconds N]");
        } else {
            target = Some(argument.clone());
        }
    }
    Ok((target, seconds))
}

/// Returns the names of the fuzz targets: one file each.
fn targets(fuzz: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(fuzz.join("fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn host_triple() -> Result<String> {
    let version = Cmd::new("rustc").arg("-vV").quiet().output()?;
    let line = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc names its host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        let parse = |text: &str| {
            parse(
                &text
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
            .ok()
        };
        assert_eq!(parse(""), Some((None, 60)));
        assert_eq!(
            parse("reader --seconds 5"),
            Some((Some("reader".into()), 5))
        );
        assert_eq!(parse("--seconds"), None);
        assert_eq!(parse("a b"), None);
    }
}
