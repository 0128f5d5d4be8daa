// SPDX-License-Identifier: Apache-2.0
//! Comparisons of the archive's parts with opam's own tools, on the real opam-repository.

mod cache;
mod image;
mod index;
mod opam;

use super::scenarios::Scenario;
use crate::cmd::Cmd;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "index",
        summary: "the index of opam-repository from nothing and over 200 merges, against opam admin index",
        run: index::run,
        verdicts: index::verdicts,
    },
    Scenario {
        name: "opam",
        summary: "parsing every opam file of opam-repository, against OCaml's parser",
        run: opam::run,
        verdicts: opam::verdicts,
    },
    Scenario {
        name: "archive",
        summary: "fetching 415 archives from a local server, against opam admin cache",
        run: cache::fetch,
        verdicts: cache::fetch_verdicts,
    },
    Scenario {
        name: "archive-scale",
        summary: "the archive with as many packages as opam-repository has: all of it, and nothing new",
        run: cache::scale,
        verdicts: cache::scale_verdicts,
    },
    Scenario {
        name: "archive-image",
        summary: "a push of an image with as many archives as the real one, after one new package",
        run: image::push,
        verdicts: image::push_verdicts,
    },
    Scenario {
        name: "archive-merges",
        summary: "a thousand merges, each pushed: layers, and bytes sent for those that came (ten minutes)",
        run: image::merges,
        verdicts: image::merges_verdicts,
    },
];

/// Clones the real history of 200 merges; returns the repository and its commits, oldest first.
fn replay(directory: &Path, data: &Path) -> Result<(PathBuf, Vec<String>)> {
    let replay = directory.join("replay.git");
    Cmd::new("git")
        .args(["clone", "-q", "--bare", "-b", "replay"])
        .arg(data.join("replay-200.bundle"))
        .arg(&replay)
        .run()?;
    let printed = Cmd::new("git")
        .arg("-C")
        .arg(&replay)
        .args(["rev-list", "--reverse", "replay"])
        .output()?;
    Ok((replay, printed.lines().map(str::to_owned).collect()))
}
