// SPDX-License-Identifier: Apache-2.0
//! `obuild archive image`: an image of the archive, of which only what is new is pushed.

use super::existing;
use super::meter::run_blocking;
use crate::cli::{ArchiveImage, ArchiveImageOptions, Format, Global, IndexKind, ProgressKind};
use crate::commands::{print, print_json};
use crate::config::Config;
use crate::failure::Failure;
use crate::values::{counted, size};
use anyhow::Result;
use bstr::BString;
use obuild_archive::cache::Lock;
use obuild_archive::image::{Action, Contents, ImageError, Plan, PlannedLayer, PushOptions, plan};
use obuild_images::registry::{Client, ImageName, PushReport};
use obuild_images::{NoDigests, Reference, ResolveOptions, Tools, resolve};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What became of the image at one name.
pub(super) struct Pushed {
    pub(super) name: ImageName,
    /// Nothing if it was there already.
    pub(super) report: Option<PushReport>,
}

impl Pushed {
    pub(super) fn to_json(&self) -> Value {
        let name = self.name.to_string();
        match &self.report {
            Some(report) => json!({
                "name": name,
                "sent_bytes": report.sent_bytes,
                "spared_bytes": report.spared_bytes,
                "requests": report.requests,
            }),
            None => json!({"name": name, "skipped": true}),
        }
    }

    /// Writes a line about it.
    pub(super) fn to_text(&self) -> String {
        let name = &self.name;
        match &self.report {
            Some(report) => format!(
                "{name}: sent {}, spared {}\n",
                size(report.sent_bytes),
                size(report.spared_bytes)
            ),
            None => format!("{name}: skipped, it has this image already\n"),
        }
    }
}

pub(crate) fn run(global: &Global, options: &ArchiveImage) -> Result<()> {
    existing(&options.directory)?;
    if options.image.push.is_empty() && options.to.is_none() && !options.dry_run {
        return Err(Failure::usage("nobody gets the image")
            .hint(
                "name a registry with --push or a directory with --to, or only look with --dry-run",
            )
            .into());
    }
    let work = Work::plan(
        global,
        &options.directory,
        &options.image,
        options.to.is_some(),
    )?;
    if options.dry_run {
        return match options.output.format {
            Format::Json => print_json(&to_json(&work.planned, work.will, &[], None)),
            Format::Text => print(plan_text(&work.planned, work.will, &work.names)),
        };
    }
    let layout = options.to.clone().map(|to| (to, options.tag.clone()));
    let (planned, will) = (work.planned.clone(), work.will);
    let made = work.make(options.output.progress, layout)?;
    match options.output.format {
        Format::Json => print_json(&to_json(&planned, will, &made.pushed, Some(&made.digest))),
        Format::Text => {
            let mut out = summary(&planned, will.0);
            for pushed in &made.pushed {
                out.push_str(&pushed.to_text());
            }
            print(out + &made.digest + "\n")
        }
    }
}

/// An image that was made.
pub(super) struct Made {
    pub(super) digest: String,
    pub(super) pushed: Vec<Pushed>,
    /// How long it took to make it,
    pub(super) making: Duration,
    /// and to push it.
    pub(super) pushing: Duration,
}

/// An image that is planned.
pub(super) struct Work {
    lock: Lock,
    plan: Plan,
    client: Arc<Client>,
    names: Vec<ImageName>,
    force: bool,
    pub(super) planned: Vec<PlannedLayer>,
    /// Archives that are new and their bytes; bytes to be sent.
    pub(super) will: ((u64, u64), u64),
}

impl Work {
    /// Plans the image. `layout` says that it is also written where nothing of it may be yet.
    pub(super) fn plan(
        global: &Global,
        directory: &Path,
        options: &ArchiveImageOptions,
        layout: bool,
    ) -> Result<Self> {
        let names: Vec<ImageName> = options
            .push
            .iter()
            .map(|name| {
                name.parse()
                    .map_err(|error| Failure::usage(format!("{error}")))
            })
            .collect::<Result<_, Failure>>()?;
        let config = Config::read(global)?;
        let client = config.registry_client_in(&directory.join(".obuild/image/registry"));
        let lock = Lock::take(directory, || true)?;
        let mut settings = settings(options, &client)?;
        if !layout && !options.rebase {
            settings.places = names.iter().map(ToString::to_string).collect();
        }
        let plan = plan(directory, &settings)?;
        Ok(Self {
            lock,
            planned: plan.layers.clone(),
            will: (plan.new, to_send(&plan, &names)),
            client,
            names,
            force: options.force,
            plan,
        })
    }

    /// Makes the image, writes it into a layout if there is to be one, and pushes it.
    pub(super) fn make(
        self,
        progress: ProgressKind,
        layout: Option<(PathBuf, Option<String>)>,
    ) -> Result<Made> {
        let done = run_blocking(progress, "packed", move |counters, stop| {
            let _lock = self.lock;
            let mut tick = |bytes: u64| {
                counters.bytes.fetch_add(bytes, Ordering::Relaxed);
                stop.is_cancelled()
            };
            let cancelled = || stop.is_cancelled();
            let make = || -> Result<_, ImageError> {
                let begun = Instant::now();
                let mut image = self.plan.make(&mut tick)?;
                if let Some((root, tag)) = &layout {
                    image.write_layout(root, tag.as_deref())?;
                }
                let making = begun.elapsed();
                let begun = Instant::now();
                let mut pushed = Vec::new();
                for name in self.names {
                    let mut before = 0;
                    let mut progress = |now: obuild_images::registry::PushProgress| {
                        let more = now.done_bytes.saturating_sub(before);
                        counters.bytes.fetch_add(more, Ordering::Relaxed);
                        before = now.done_bytes;
                    };
                    let mut push = PushOptions {
                        progress: &mut progress,
                        cancelled: &cancelled,
                        force: self.force,
                    };
                    let report = image.push(&self.client, &name, &mut push)?;
                    pushed.push(Pushed { name, report });
                }
                Ok(Made {
                    digest: image.digest().to_string(),
                    pushed,
                    making,
                    pushing: begun.elapsed(),
                })
            };
            Ok(make())
        })?;
        Ok(done?)
    }
}

fn settings(
    options: &ArchiveImageOptions,
    client: &Arc<Client>,
) -> Result<obuild_archive::image::ImageOptions> {
    let reference: Reference = options.base.parse()?;
    let resolved = resolve(
        &reference,
        &ResolveOptions {
            base_dir: Path::new("."),
            digests: &NoDigests,
            tools: Tools {
                registry: Some(Arc::clone(client)),
                ..Tools::default()
            },
            remembered: None,
            cancelled: &|| false,
        },
    )?;
    let mut config = resolved.config.clone();
    if options.program.is_some() {
        config.entrypoint = Some(vec!["/usr/bin/obuild".into()]);
        config.cmd = Some(["archive", "serve", "/srv"].map(BString::from).to_vec());
    }
    let serves = |entry: &Option<Vec<BString>>| {
        let program = entry.as_ref().and_then(|words| words.first());
        program
            .is_some_and(|program| program.rsplit(|byte| *byte == b'/').next() == Some(b"obuild"))
    };
    let parts = match options.index {
        IndexKind::Auto => serves(&config.entrypoint),
        IndexKind::Parts => true,
        IndexKind::File => false,
    };
    Ok(obuild_archive::image::ImageOptions {
        base: resolved.layers()?,
        config,
        program: options.program.clone(),
        legacy: options.legacy.clone(),
        site: options.site.clone(),
        parts,
        places: Vec::new(),
    })
}

/// Returns what has to be sent, at most, to the first of the names.
fn to_send(plan: &Plan, names: &[ImageName]) -> u64 {
    let name = names.first().map(ToString::to_string).unwrap_or_default();
    plan.to_send(&name)
}

fn what(layer: &PlannedLayer) -> String {
    match layer.contents {
        Contents::Base => "base image".to_owned(),
        Contents::Program => "program".to_owned(),
        Contents::Legacy => "legacy".to_owned(),
        Contents::Archives(archives, parts, gone) => {
            let what = [
                (archives, "archive", ""),
                (parts, "part", " of the index"),
                (gone, "name", " of removed archives"),
            ];
            let what = what.iter().filter(|(number, ..)| *number > 0);
            let what: Vec<String> = what
                .map(|(number, thing, of)| counted(number, thing) + of)
                .collect();
            what.join(", ")
        }
        Contents::Site => "index and site".to_owned(),
    }
}

fn action(action: Action) -> (&'static str, Option<usize>) {
    match action {
        Action::Keep => ("keep", None),
        Action::Add => ("add", None),
        Action::Merge(packs) => ("merge", Some(packs)),
        Action::Renew => ("renew", None),
    }
}

fn to_json(
    planned: &[PlannedLayer],
    (new, to_send): ((u64, u64), u64),
    pushed: &[Pushed],
    digest: Option<&str>,
) -> Value {
    let layers: Vec<Value> = planned
        .iter()
        .map(|layer| {
            let (verb, packs) = action(layer.action);
            json!({"contents": what(layer), "action": verb, "merged": packs, "bytes": layer.size})
        })
        .collect();
    let pushed: Vec<Value> = pushed.iter().map(Pushed::to_json).collect();
    json!({
        "digest": digest,
        "new": {"archives": new.0, "bytes": new.1},
        "to_send_bytes": to_send,
        "layers": layers,
        "pushed": pushed,
    })
}

// Writing to a string cannot fail.
fn plan_text(
    planned: &[PlannedLayer],
    (new, to_send): ((u64, u64), u64),
    names: &[ImageName],
) -> String {
    let mut out = String::new();
    for layer in planned {
        let (verb, packs) = action(layer.action);
        let _ = write!(out, "{verb:<6} {:>9}  {}", size(layer.size), what(layer));
        if let Some(packs) = packs {
            let _ = write!(out, ", of {}", counted(packs, "layer"));
        }
        out.push('\n');
    }
    out.push_str(&summary(planned, new));
    if !names.is_empty() {
        let _ = writeln!(out, "to push: {} at most", size(to_send));
    }
    out
}

/// Says in a line what the image is.
pub(super) fn summary(planned: &[PlannedLayer], new: (u64, u64)) -> String {
    format!(
        "{}, {}; {}\n",
        counted(new.0, "new archive"),
        size(new.1),
        counted(planned.len(), "layer")
    )
}
