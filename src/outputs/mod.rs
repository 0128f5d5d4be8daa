// SPDX-License-Identifier: Apache-2.0
//! Where results go: what `--output`, `--tag`, `--push` and their kin ask for, and doing it.
//!
//! Options are those of `docker buildx build`, as far as they mean the same; `--change` is that of `docker commit`.

mod change;
mod output;

use crate::cli::{Layers, OutputOptions};
use crate::failure::Failure;
use crate::values;
use anyhow::{Context, Result};
use obuild_engine::{Engine, ImageSettings};
use obuild_images::registry::{Client, ImageName, PushProgress, Signed, push};
use obuild_images::{ArchiveFormat, Compression, Image, LayerOptions, Times, tree};
use obuild_stores::SnapshotId;
pub(crate) use output::parse_compression;
use output::{Kind, Output};
use std::collections::BTreeMap;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What was asked for, checked before anything is built.
pub(crate) struct Outputs {
    places: Vec<Output>,
    names: Vec<ImageName>,
    times: Option<i64>,
    settings: ImageSettings,
    changes: Vec<change::Change>,
    metadata_file: Option<std::path::PathBuf>,
    iidfile: Option<std::path::PathBuf>,
    quiet: bool,
}

/// Buffer of archives that are written.
const BUFFER: usize = 1 << 18;

impl Outputs {
    /// Sorts out the options; `to` is that of `obuild export`.
    pub(crate) fn parse(options: &OutputOptions, to: Option<&str>, quiet: bool) -> Result<Self> {
        let mut outputs: Vec<Output> = to.map(Output::to).transpose()?.into_iter().collect();
        for text in &options.output {
            outputs.push(Output::parse(text)?);
        }
        let mut names = Vec::new();
        for text in &options.tag {
            names.push(name(text)?);
        }
        for output in &outputs {
            for text in &output.names {
                names.push(name(text)?);
            }
        }
        names.sort();
        names.dedup();
        if options.push {
            outputs.push(Output::push());
        }
        let pushes = outputs
            .iter()
            .any(|output| matches!(output.kind, Kind::Push));
        if pushes && names.is_empty() {
            return Err(Failure::usage("the image has no name to be pushed as")
                .hint("give one: -t REGISTRY/NAME:TAG")
                .into());
        }
        if outputs.is_empty() && !names.is_empty() {
            return Err(
                Failure::usage("the image has a name, but is not to go anywhere")
                    .hint("add --push, or --output type=docker,dest=FILE")
                    .into(),
            );
        }
        let to_stdout = outputs.iter().filter(|output| output.to_stdout()).count();
        if to_stdout > 1 {
            return Err(Failure::usage("two outputs cannot both go to standard output").into());
        }
        if to_stdout == 1 && std::io::stdout().is_terminal() {
            return Err(Failure::usage("an archive would garble the terminal")
                .hint("redirect it, or name a file with dest=")
                .into());
        }
        let compression = compression(options, &outputs)?;
        let times = source_date_epoch()?;
        let mut annotations = BTreeMap::new();
        for text in &options.image.annotation {
            let (key, value) = text
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| {
                    Failure::usage(format!("{text:?} is no annotation")).hint("give KEY=VALUE")
                })?;
            annotations.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self {
            places: outputs,
            names,
            times,
            settings: ImageSettings {
                per_step: options.image.layers == Layers::Step,
                layers: LayerOptions {
                    times: times.map_or_else(Times::default, Times::Latest),
                    compression,
                    threads: crate::commands::processors(),
                },
                annotations,
                ..ImageSettings::default()
            },
            changes: options
                .image
                .change
                .iter()
                .map(|text| change::Change::parse(text))
                .collect::<Result<_>>()?,
            metadata_file: options.image.metadata_file.clone(),
            iidfile: options.image.iidfile.clone(),
            quiet,
        })
    }

    /// Returns whether nothing was asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.metadata_file.is_none() && self.iidfile.is_none()
    }

    /// Returns whether an archive goes to standard output, which holds nothing else then.
    pub(crate) fn takes_stdout(&self) -> bool {
        self.places.iter().any(Output::to_stdout)
    }

    /// Writes everything that was asked for. Returns the images that were pushed.
    pub(crate) async fn write(
        mut self,
        engine: &Arc<Engine>,
        client: Option<Arc<Client>>,
        id: SnapshotId,
        cancel: &CancellationToken,
    ) -> Result<Vec<Signed>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let wants_image = self.metadata_file.is_some()
            || self.iidfile.is_some()
            || self.places.iter().any(|output| output.kind.is_image());
        let image = if wants_image {
            let mut settings = std::mem::take(&mut self.settings);
            settings.config = engine.image_config(id).await?;
            for change in &self.changes {
                change.apply(&mut settings.config);
            }
            Some(Arc::new(engine.image(id, settings, cancel).await?))
        } else {
            None
        };
        let engine = Arc::clone(engine);
        let token = cancel.clone();
        tokio::task::spawn_blocking(move || {
            let cancelled = || token.is_cancelled();
            let mut pushed = Vec::new();
            for output in &self.places {
                match (&image, output.kind) {
                    (_, Kind::Tar | Kind::Local) => self.tree(output, &engine, id, &cancelled)?,
                    (Some(image), Kind::Push) => {
                        let client = client
                            .as_deref()
                            .ok_or_else(|| Failure::host("there is no client for registries"))?;
                        self.push(image, client, &cancelled)?;
                        pushed = self.pushed(image);
                    }
                    (Some(image), _) => self.image(output, image)?,
                    (None, _) => {}
                }
            }
            if let Some(image) = &image {
                self.metadata(image)?;
            }
            Ok(pushed)
        })
        .await
        .context("writing the outputs ended early")?
    }

    fn image(&self, output: &Output, image: &Image) -> Result<()> {
        let format = match output.kind {
            Kind::Docker => ArchiveFormat::Docker,
            Kind::Oci { tar: false } => {
                image.write_layout(&output.dest, &self.names)?;
                self.tell(image, &output.dest);
                return Ok(());
            }
            _ => ArchiveFormat::Oci,
        };
        write_to(&output.dest, |file| {
            image.write_archive(format, &self.names, &output.dest, file)?;
            Ok(())
        })?;
        self.tell(image, &output.dest);
        Ok(())
    }

    /// Pushes the image as each of its names. What one repository of a registry has, the next takes from there.
    fn push(&self, image: &Image, client: &Client, cancelled: &dyn Fn() -> bool) -> Result<()> {
        let parts = image.to_push();
        let shown = !self.quiet && std::io::stderr().is_terminal();
        for name in &self.names {
            let mut last = None;
            let mut progress = |progress: PushProgress| {
                if shown && last != Some(progress.done_bytes) {
                    last = Some(progress.done_bytes);
                    let (done, total) = (progress.done_bytes, progress.total_bytes);
                    let text = format!(
                        "\r\x1b[Kpushing {name}: {} of {}",
                        values::size(done),
                        values::size(total)
                    );
                    // Nobody reads standard error: the exit status still tells.
                    let _ = std::io::stderr().write_all(text.as_bytes());
                }
            };
            let report = push(client, name, &parts, &mut progress, cancelled);
            if shown {
                let _ = std::io::stderr().write_all(b"\r\x1b[K");
            }
            let report = report?;
            if !self.quiet {
                let text = format!(
                    "pushed {name}@{}: {} sent, {} spared\n",
                    report.digest,
                    values::size(report.sent_bytes),
                    values::size(report.spared_bytes)
                );
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
        }
        Ok(())
    }

    fn pushed(&self, image: &Image) -> Vec<Signed> {
        let digest = image.digest();
        let names = self.names.iter().cloned();
        names.map(|name| Signed { name, digest }).collect()
    }

    /// Returns whether an image is to be pushed.
    pub(crate) fn pushes(&self) -> bool {
        let mut kinds = self.places.iter().map(|output| output.kind);
        kinds.any(|kind| matches!(kind, Kind::Push))
    }

    fn tree(
        &self,
        output: &Output,
        engine: &Engine,
        id: SnapshotId,
        cancelled: tree::Cancelled<'_>,
    ) -> Result<()> {
        let snapshot = engine
            .store()
            .get(id)?
            .ok_or_else(|| obuild_engine::Error::NoSuchStep(id.to_string()))?;
        let root = snapshot.rootfs.open()?;
        let result = if let Kind::Local = output.kind {
            tree::export_dir(root.as_fd(), &output.dest, &mut |_| {}, cancelled)
                .map(drop)
                .context("cannot export")
        } else {
            write_to(&output.dest, |file| {
                tree::export_tar(root.as_fd(), file, self.times, &mut |_| {}, cancelled)
                    .map(drop)
                    .context("cannot export")
            })
        };
        if cancelled() {
            return Err(obuild_engine::Error::Cancelled.into());
        }
        result
    }

    /// Says in one line what an image was written to.
    fn tell(&self, image: &Image, dest: &Path) {
        if self.quiet || dest.as_os_str() == "-" {
            return;
        }
        let bytes: u64 = image.layers.iter().map(|layer| layer.blob.size).sum();
        let own = image.layers.iter().filter(|layer| !layer.of_base).count();
        let text = format!(
            "{}: {}, {own} of them new, {}, {}\n",
            dest.display(),
            values::counted(image.layers.len(), "layer"),
            values::size(bytes),
            image.digest()
        );
        // Nobody reads standard error: the exit status still tells.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// Writes the files that scripts read, as `docker buildx build` does.
    fn metadata(&self, image: &Image) -> Result<()> {
        if let Some(path) = &self.iidfile {
            write_to(path, |file| Ok(write!(file, "{}", image.config_digest())?))?;
        }
        if let Some(path) = &self.metadata_file {
            let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
            let mut metadata = serde_json::json!({
                "containerimage.config.digest": image.config_digest().to_string(),
                "containerimage.digest": image.digest().to_string(),
                "containerimage.descriptor": {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": image.digest().to_string(),
                    "size": image.manifest.len(),
                },
            });
            if !names.is_empty() {
                metadata["image.name"] = names.join(",").into();
            }
            write_to(path, |file| Ok(writeln!(file, "{metadata:#}")?))?;
        }
        Ok(())
    }
}

fn name(text: &str) -> Result<ImageName> {
    let name: ImageName = text.parse()?;
    if name.digest().is_some() {
        return Err(Failure::usage(format!(
            "{text:?} has a digest, but an image gets its digest when it is made"
        ))
        .hint("give a name with a tag only")
        .into());
    }
    Ok(name)
}

/// Returns the one compression that options and outputs ask for.
fn compression(options: &OutputOptions, outputs: &[Output]) -> Result<Compression> {
    let mut asked: Vec<Compression> = outputs
        .iter()
        .filter_map(|output| output.compression)
        .chain(options.image.compression)
        .collect();
    asked.dedup();
    match asked.as_slice() {
        [] => Ok(Compression::default()),
        [one] => Ok(*one),
        _ => Err(Failure::usage("all outputs of one build have the same compression").into()),
    }
}

/// Reads `SOURCE_DATE_EPOCH`: seconds since 1970 (reproducible-builds.org/specs/source-date-epoch).
pub(crate) fn source_date_epoch() -> Result<Option<i64>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let seconds = text
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(|seconds| *seconds >= 0);
    match seconds {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(
            Failure::usage(format!("SOURCE_DATE_EPOCH is {}", text.display()))
                .hint("it must be a number of seconds since 1970")
                .into(),
        ),
    }
}

/// Writes to standard output for `-`, else beside the file, which is then renamed: half an archive never has its name.
pub(crate) fn write_to(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    if path.as_os_str() == "-" {
        let mut out = BufWriter::with_capacity(BUFFER, std::io::stdout().lock());
        write(&mut out)?;
        return Ok(out.flush()?);
    }
    let failed =
        |error| anyhow::Error::new(error).context(format!("cannot write {}", path.display()));
    obuild_images::replace(path, failed, |file| {
        let mut file = BufWriter::with_capacity(BUFFER, file);
        write(&mut file)?;
        file.flush().map_err(failed)
    })
}
