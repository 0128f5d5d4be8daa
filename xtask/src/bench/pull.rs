// SPDX-License-Identifier: Apache-2.0
//! The scenario `pull`: a base in a local registry, from nothing to its first step.

use super::Arena;
use super::builder::{Job, Work};
use super::measure::Meter;
use super::scenarios::{drop_empty, empty_rows, turn};
use super::table::Table;
use crate::cmd::Cmd;
use crate::registries::{Access, Registry};
use anyhow::{Context, Result};
use std::path::Path;

/// The row of Docker, whose command here is `docker pull` and `docker run`.
pub(crate) const DOCKER: &str = "docker build";
const OURS: &str = "obuild overlay+native";

pub(crate) fn run(arena: &mut Arena, meter: &Meter) -> Result<Table> {
    let directory = arena.inputs.join("pull");
    let registry = Registry::start(&directory, Access::Open)?;
    let image = format!("{}/bench/debian:1", registry.host());
    put(&directory, &arena.base, &image)?;
    let mut rows = empty_rows(arena);
    for run in 0..arena.runs {
        let job = Job {
            work: Work::Pull(image.clone()),
            token: format!("pull-{run}"),
            cold: true,
        };
        turn(arena, meter, &job, &mut rows, |label| {
            [OURS, DOCKER].contains(&label)
        })?;
    }
    drop_empty(&mut rows);
    drop(registry);
    fs_err::remove_dir_all(&directory)?;
    Ok(Table {
        title: "a base of 170 MB from a local registry to its first step (docker: pull, then run)"
            .to_owned(),
        per: 1,
        rows,
    })
}

/// Makes an image of the Debian tar, in one layer, and puts it into the registry.
fn put(directory: &Path, base: &Path, image: &str) -> Result<()> {
    let work = directory.join("image");
    fs_err::create_dir_all(&work)?;
    let layer = work.join("layer.tar");
    fs_err::copy(base, &layer)?;
    // Unlike the base that Docker has already: it would find that the layer is there.
    fs_err::write(work.join("unlike"), "the base\n")?;
    let tar = || Cmd::new("tar").arg("-C").arg(&work);
    tar().arg("-rf").arg(&layer).arg("./unlike").output()?;
    let sum = Cmd::new("sha256sum").arg(&layer).output()?;
    let digest = sum.split(' ').next().context("sha256sum says a digest")?;
    let config = format!(
        "{{\"architecture\":\"{}\",\"os\":\"linux\",\"config\":{{\"Env\":[\"PATH=/usr/sbin:/usr/bin:/sbin:/bin\"]}},\
         \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}}}}",
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    );
    fs_err::write(work.join("config.json"), config)?;
    let manifest =
        "[{\"Config\":\"config.json\",\"RepoTags\":[\"x:1\"],\"Layers\":[\"layer.tar\"]}]";
    fs_err::write(work.join("manifest.json"), manifest)?;
    let archive = directory.join("image.tar");
    tar()
        .arg("-cf")
        .arg(&archive)
        .args(["manifest.json", "config.json", "layer.tar"])
        .output()?;
    Cmd::new("skopeo")
        .args([
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            "--dest-compress",
        ])
        .arg(format!("docker-archive:{}", archive.display()))
        .arg(format!("docker://{image}"))
        .output()
        .map(drop)
}
