// SPDX-License-Identifier: Apache-2.0
//! `obuild archive image`: an image of the archive, of which only what is new is pushed.

use super::existing;
use super::meter::run_blocking;
use crate::cli::{ArchiveImage, Format, Global};
use crate::commands::{print, print_json};
use crate::config::Config;
use crate::failure::Failure;
use crate::values::size;
use anyhow::Result;
use bstr::BString;
use obuild_archive::cache::Lock;
use obuild_archive::image::{
    Action, Contents, ImageError, ImageOptions, Plan, PlannedLayer, PushOptions, plan,
};
use obuild_images::registry::{Client, ImageName, PushReport};
use obuild_images::{NoDigests, Reference, ResolveOptions, Tools, resolve};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What became of the image at one name.
struct Pushed {
    name: ImageName,
    /// Nothing if it was there already.
    report: Option<PushReport>,
}

pub(crate) fn run(global: &Global, options: &ArchiveImage) -> Result<()> {
    existing(&options.directory)?;
    if options.push.is_empty() && options.to.is_none() && !options.dry_run {
        return Err(Failure::usage("nobody gets the image")
            .hint(
                "name a registry with --push or a directory with --to, or only look with --dry-run",
            )
            .into());
    }
    let names: Vec<ImageName> = options
        .push
        .iter()
        .map(|name| {
            name.parse()
                .map_err(|error| Failure::usage(format!("{error}")))
        })
        .collect::<Result<_, Failure>>()?;
    let config = Config::read(global)?;
    let client = config.registry_client_in(&options.directory.join(".obuild/image/registry"));
    let lock = Lock::take(&options.directory, || true)?;
    let settings = settings(options, &client)?;
    let plan = plan(&options.directory, &settings)?;
    let planned = plan.layers.clone();
    let will = (plan.new, to_send(&plan, &names));
    if options.dry_run {
        return match options.format {
            Format::Json => print_json(&to_json(&planned, will, &[], None)),
            Format::Text => print(plan_text(&planned, will, &names)),
        };
    }
    let (to, tag, force) = (options.to.clone(), options.tag.clone(), options.force);
    let done = run_blocking(options.progress, "packed", move |counters, stop| {
        let _lock = lock;
        let mut tick = |bytes: u64| {
            counters.bytes.fetch_add(bytes, Ordering::Relaxed);
            stop.is_cancelled()
        };
        let cancelled = || stop.is_cancelled();
        let make = || -> Result<_, ImageError> {
            let mut image = plan.make(&mut tick)?;
            if let Some(root) = &to {
                image.write_layout(root, tag.as_deref())?;
            }
            let mut pushed = Vec::new();
            for name in names {
                let mut before = 0;
                let mut progress = |now: obuild_images::registry::PushProgress| {
                    counters
                        .bytes
                        .fetch_add(now.done_bytes - before, Ordering::Relaxed);
                    before = now.done_bytes;
                };
                let push = PushOptions {
                    progress: &mut progress,
                    cancelled: &cancelled,
                    force,
                };
                let report = image.push(&client, &name, push)?;
                pushed.push(Pushed { name, report });
            }
            Ok((image.digest(), pushed))
        };
        Ok(make())
    })?;
    let (digest, pushed) = done?;
    match options.format {
        Format::Json => print_json(&to_json(&planned, will, &pushed, Some(&digest.to_string()))),
        Format::Text => print(done_text(&planned, will.0, &pushed, &digest.to_string())),
    }
}

fn settings(options: &ArchiveImage, client: &Arc<Client>) -> Result<ImageOptions> {
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
    Ok(ImageOptions {
        base: resolved.layers()?,
        config,
        program: options.program.clone(),
        legacy: options.legacy.clone(),
        site: options.site.clone(),
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
        Contents::Archives(number) => format!("{number} archives"),
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
    let pushed: Vec<Value> = pushed
        .iter()
        .map(|pushed| match &pushed.report {
            Some(report) => json!({
                "name": pushed.name.to_string(),
                "sent_bytes": report.sent_bytes,
                "spared_bytes": report.spared_bytes,
                "requests": report.requests,
            }),
            None => json!({"name": pushed.name.to_string(), "skipped": true}),
        })
        .collect();
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
            let _ = write!(out, ", of {packs} layers");
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "{} new archives, {}; {} layers",
        new.0,
        size(new.1),
        planned.len()
    );
    if !names.is_empty() {
        let _ = writeln!(out, "to push: {} at most", size(to_send));
    }
    out
}

// Writing to a string cannot fail.
fn done_text(planned: &[PlannedLayer], new: (u64, u64), pushed: &[Pushed], digest: &str) -> String {
    let mut out = format!(
        "{} new archives, {}; {} layers\n",
        new.0,
        size(new.1),
        planned.len()
    );
    for pushed in pushed {
        let name = &pushed.name;
        let _ = match &pushed.report {
            Some(report) => writeln!(
                out,
                "{name}: sent {}, spared {}",
                size(report.sent_bytes),
                size(report.spared_bytes)
            ),
            None => writeln!(out, "{name}: skipped, it has this image already"),
        };
    }
    let _ = writeln!(out, "{digest}");
    out
}
