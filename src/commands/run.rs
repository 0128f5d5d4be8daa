// SPDX-License-Identifier: Apache-2.0
//! `obuild run SPEC [CONTEXT]`: build a spec.

use super::{open_sandbox, open_store, parse_spec, print, read_spec, runtime};
use crate::attest::{Attachments, Known, document, image_subject, tree_subject};
use crate::cli::{Global, ProgressKind, PullWhen, Run};
use crate::config::{Config, proxies};
use crate::failure::Failure;
use crate::outputs::{Outputs, write_to};
use crate::progress;
use crate::sharing::Sharing;
use crate::values::{parse_duration, parse_size};
use anyhow::{Context, Result};
use bstr::BString;
use obuild_engine::{BuildResult, Engine, NoCache, Settings};
use obuild_images::attest::{PROVENANCE, Statement};
use obuild_images::{Pull, Resolved, Tools};
use obuild_sandboxes::{Limits, Sandbox};
use obuild_specs::{BaseInfo, Diagnostic, Plan, Spec, StepId};
use obuild_stores::Store;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Events that wait for the display; more make the build wait.
const EVENTS: usize = 256;

pub(crate) fn run(global: &Global, options: &Run) -> Result<()> {
    let config = Config::read(global)?;
    let kind = progress_kind(options.quiet, options.progress, &config);
    let outputs = Outputs::parse(&options.outputs, None, kind == ProgressKind::Quiet)?;
    let takes_stdout = outputs.takes_stdout();
    let (_, result) = build_spec(global, options, &How::of(options), outputs)?;
    if takes_stdout {
        return Ok(());
    }
    print(format!("{}\n", result.snapshot))
}

/// How `run` and `verify` differ in building.
pub(crate) struct How {
    /// Steps at once.
    pub(crate) jobs: Option<usize>,
    /// Wins over what the options say of that.
    pub(crate) no_cache: Option<NoCache>,
    /// As [`Settings`] have it.
    pub(crate) elsewhere: bool,
}

impl How {
    fn of(options: &Run) -> Self {
        Self {
            jobs: options.jobs,
            no_cache: None,
            elsewhere: false,
        }
    }
}

/// Builds the spec that the options name, and writes its outputs.
pub(crate) fn build_spec(
    global: &Global,
    options: &Run,
    how: &How,
    outputs: Outputs,
) -> Result<(Arc<Engine>, BuildResult)> {
    let config = Config::read(global)?;
    let colour = progress::colour(global.color);
    let (file, context) = paths(options)?;
    let text = read_spec(&file)?;
    let spec = parse_spec(&file, &text, colour)?;
    let secrets = options
        .secrets
        .iter()
        .map(|text| secret(text))
        .collect::<Result<HashMap<_, _>>>()?;
    let sharing = Sharing::parse(
        &options.cache_to,
        match options.cache_from.as_slice() {
            [] => config.cache_from.as_slice(),
            named => named,
        },
        options
            .cache_verify
            .as_deref()
            .or(config.cache_verify.as_deref()),
    )?;
    let limits = limits(options, &config)?;
    // A key that cannot be used is found out before the build, not after it.
    let attach = Attachments::parse(
        &options.outputs.image,
        outputs.pushes(),
        true,
        options.provenance.is_some(),
    )?;
    let kind = progress_kind(options.quiet, options.progress, &config);
    let store = open_store(global, &config)?;
    let sandbox = open_sandbox(global, &options.sandbox, &config, &*store)?;
    check_limits(&*sandbox, &limits)?;
    let jobs = how.jobs.or(config.jobs).unwrap_or_else(super::processors);
    let tools = Tools {
        pull: pull(options.pull),
        ..tools(&config, &*store)
    };
    let client = tools.registry.clone();
    let caches = config.registry_client(&*store);
    let engine = Engine::open(store, sandbox, jobs)?;
    let result = runtime()?.block_on(async {
        let base_dir = if file.as_os_str() == "-" {
            context.clone()
        } else {
            directory_of(&file)
        };
        let cancel = CancellationToken::new();
        watch_signals(&cancel)?;
        let bases = resolve(&engine, &spec, &base_dir, &tools, &cancel).await?;
        let plan = lower(&spec, &bases, options.target.as_deref())?;
        let no_cache = match &how.no_cache {
            Some(no_cache) => no_cache.clone(),
            None => self::no_cache(&plan, options)?,
        };
        let imports = sharing.imports(&caches, &cancel).await?;
        let settings = Settings {
            context,
            secrets,
            limits,
            fast_sync: options.fast_sync,
            no_new_privs: options.no_new_privs,
            elsewhere: how.elsewhere,
            keep_failed: options.keep_failed,
            no_cache,
            imports: imports.clone(),
            replay: matches!(kind, ProgressKind::Plain | ProgressKind::Json),
        };
        let record = options.record_digests
            || config.record_digests.unwrap_or(false)
            || options.provenance.is_some();
        let known = (options.provenance.is_some() || attach.provenance)
            .then(|| Known::new(&file, &text, &plan, &bases, &engine, &settings, options));
        let result = build(&engine, plan, bases, settings, kind, colour, cancel.clone()).await?;
        if record {
            engine
                .record_digests(vec![result.snapshot], &cancel)
                .await?;
        }
        sharing
            .export(
                &engine,
                &caches,
                &result,
                &imports,
                kind == ProgressKind::Quiet,
                &cancel,
            )
            .await?;
        let pushed = outputs
            .write(&engine, client.clone(), result.snapshot, &cancel)
            .await?;
        let predicate = known.map(|known| known.provenance(&result, &config));
        let predicate = predicate.transpose()?;
        if let (Some(path), Some(predicate)) = (&options.provenance, &predicate) {
            let subjects = match pushed.as_slice() {
                [] => vec![tree_subject(&engine, &result).await?],
                pushed => pushed.iter().map(image_subject).collect(),
            };
            let statement = Statement::new(subjects, PROVENANCE, predicate.clone());
            let document = document(&statement, attach.key.as_ref())?;
            write_to(path, |file| Ok(writeln!(file, "{document:#}")?))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        attach
            .attach(&engine, client, result.snapshot, pushed, predicate, &cancel)
            .await?;
        anyhow::Ok(result)
    })?;
    Ok((engine, result))
}

/// Decides how to tell what happens.
pub(crate) fn progress_kind(
    quiet: bool,
    asked: Option<ProgressKind>,
    config: &Config,
) -> ProgressKind {
    progress::choose(if quiet {
        ProgressKind::Quiet
    } else {
        asked.or(config.progress).unwrap_or(ProgressKind::Auto)
    })
}

pub(crate) async fn build(
    engine: &Arc<Engine>,
    plan: Plan,
    bases: HashMap<String, Arc<Resolved>>,
    settings: Settings,
    kind: ProgressKind,
    colour: bool,
    cancel: CancellationToken,
) -> Result<BuildResult> {
    let (events, receiver) = tokio::sync::mpsc::channel(EVENTS);
    let shown = progress::show(kind, colour, receiver);
    let result = engine.build(plan, bases, settings, events, cancel).await;
    // The display ends when the build has dropped its end of the channel.
    let _ = shown.await;
    Ok(result?)
}

/// Cancels on Ctrl-C, SIGTERM and when the terminal goes away.
pub(crate) fn watch_signals(cancel: &CancellationToken) -> Result<()> {
    let watch = |kind| {
        signal(kind).map_err(|error| Failure::host(format!("cannot watch for signals: {error}")))
    };
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let mut hangup = watch(SignalKind::hangup())?;
    let cancel = cancel.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        cancel.cancel();
    });
    Ok(())
}

/// Sorts out `SPEC [CONTEXT]` and `-f SPEC CONTEXT`.
fn paths(options: &Run) -> Result<(PathBuf, PathBuf)> {
    let (file, context) = match (&options.file, options.paths.as_slice()) {
        (Some(file), []) | (None, [file]) => (file, None),
        (Some(file), [context]) | (None, [file, context]) => (file, Some(context)),
        (Some(_), _) => {
            return Err(Failure::usage("with -f SPEC there can be one CONTEXT only").into());
        }
        (None, _) => {
            return Err(Failure::usage("which spec?")
                .hint("obuild run SPEC [CONTEXT]")
                .into());
        }
    };
    let context = match context {
        Some(context) => context.clone(),
        None if file.as_os_str() == "-" => PathBuf::from("."),
        None => directory_of(file),
    };
    let context = fs_err::canonicalize(&context)
        .map_err(|error| Failure::usage(format!("the context cannot be used: {error}")))?;
    if !context.is_dir() {
        return Err(Failure::usage(format!(
            "the context {} is not a directory",
            context.display()
        ))
        .into());
    }
    Ok((file.clone(), context))
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Parses `id=NAME,src=FILE` (as `docker build`) or `NAME:FILE` (as `OBuilder`) and reads the file.
fn secret(text: &str) -> Result<(BString, Vec<u8>)> {
    let wrong = || {
        Failure::usage(format!("{text:?} is no secret"))
            .hint("give --secret id=NAME,src=FILE or --secret NAME:FILE")
    };
    let (name, file) = if text.starts_with("id=") || text.contains(",id=") {
        let (mut name, mut file) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("id", value)) => name = Some(value),
                Some(("src" | "source", value)) => file = Some(value),
                Some(("type", "file")) => {}
                _ => return Err(wrong().into()),
            }
        }
        (name.ok_or_else(wrong)?, file.ok_or_else(wrong)?)
    } else {
        text.split_once(':').ok_or_else(wrong)?
    };
    if name.is_empty() || file.is_empty() {
        return Err(wrong().into());
    }
    let value = fs_err::read(file)
        .map_err(|error| Failure::usage(format!("cannot read the secret {name:?}: {error}")))?;
    Ok((BString::from(name), value))
}

/// Refuses limits that the sandbox could not keep.
fn check_limits(sandbox: &dyn Sandbox, limits: &Limits) -> Result<()> {
    let option = match limits {
        _ if sandbox.name() != "user" => return Ok(()),
        Limits {
            memory_bytes: Some(_),
            ..
        } => "--memory",
        Limits { cpus: Some(_), .. } => "--cpus",
        _ => return Ok(()),
    };
    Err(Failure::usage(format!(
        "{option} cannot be kept by the user sandbox: the system limits single processes, not a step"
    ))
    .hint("leave it out; --timeout and --pids-limit work")
    .into())
}

fn limits(options: &Run, config: &Config) -> Result<Limits> {
    let configured =
        |what: &str, error: String| Failure::usage(format!("{what} in the configuration: {error}"));
    let memory = match (options.memory, &config.memory) {
        (Some(memory), _) => Some(memory),
        (None, Some(text)) => Some(parse_size(text).map_err(|error| configured("memory", error))?),
        (None, None) => None,
    };
    let timeout = match (options.timeout, &config.timeout) {
        (Some(timeout), _) => Some(timeout),
        (None, Some(text)) => {
            Some(parse_duration(text).map_err(|error| configured("timeout", error))?)
        }
        (None, None) => None,
    };
    Ok(Limits {
        memory_bytes: memory,
        cpus: options.cpus.or(config.cpus),
        pids: options.pids_limit.or(config.pids_limit),
        timeout,
    })
}

/// Finds out what the spec's base images are, without unpacking any.
async fn resolve(
    engine: &Arc<Engine>,
    spec: &Spec,
    base_dir: &Path,
    tools: &Tools,
    cancel: &CancellationToken,
) -> Result<HashMap<String, Arc<Resolved>>> {
    let mut resolved = HashMap::new();
    for base in spec.bases() {
        let image = engine
            .resolve(&base.value, base_dir, tools.clone(), cancel)
            .await?;
        resolved.insert(base.value, Arc::new(image));
    }
    Ok(resolved)
}

/// How programs of the host (`debootstrap`) and registries are found and reached.
pub(crate) fn tools(config: &Config, store: &dyn Store) -> Tools {
    let mut tools = Tools {
        proxies: proxies(),
        registry: Some(config.registry_client(store)),
        ..Tools::default()
    };
    if let Some(mut path) = std::env::var_os("PATH") {
        if obuild_rootless::current().is_some() {
            // Where ordinary users do not look: debootstrap and chroot are there.
            path.push(":/usr/local/sbin:/usr/sbin:/sbin");
        }
        tools.path = path;
    }
    // Docker's own programs take other transports too, which are not for us.
    if let Ok(host) = std::env::var("DOCKER_HOST")
        && let Some(path) = host.strip_prefix("unix://")
    {
        tools.docker_socket = path.into();
    }
    tools
}

/// What an option of the command line means to `images`.
pub(crate) fn pull(when: PullWhen) -> Pull {
    match when {
        PullWhen::Always => Pull::Always,
        PullWhen::Missing => Pull::Missing,
        PullWhen::Never => Pull::Never,
    }
}

fn lower(
    spec: &Spec,
    bases: &HashMap<String, Arc<Resolved>>,
    target: Option<&str>,
) -> Result<Plan> {
    let info = |reference: &str| {
        bases.get(reference).map(|image| BaseInfo {
            id: StepId::from_digest(*image.id.as_bytes()),
            env: image.config.env.clone(),
        })
    };
    let mut plan = obuild_specs::lower(spec, &info, &obuild_specs::LowerOptions::default())
        .map_err(|errors| Failure::usage(messages(&errors)))?;
    if let Some(name) = target {
        plan.target = plan.find(name).ok_or_else(|| unknown_target(&plan, name))?;
    }
    Ok(plan)
}

/// What lowering refuses was refused by the parser before, but for a base that is not known.
pub(crate) fn messages(errors: &[Diagnostic]) -> String {
    errors
        .iter()
        .map(|error| error.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

fn unknown_target(plan: &Plan, name: &str) -> Failure {
    let failure = Failure::usage(format!("the spec has no build {name:?}"));
    let near = plan.suggest(name);
    match near.as_slice() {
        [] if plan.names.is_empty() => failure.hint("it has no nested build at all"),
        [] => failure,
        near => failure.hint(format!("it has {}", near.join(", "))),
    }
}

/// Finds the step that `--no-cache-from` means: a nested build's name, or text that one step's heading holds.
fn no_cache(plan: &Plan, options: &Run) -> Result<NoCache> {
    if options.no_cache {
        return Ok(NoCache::All);
    }
    let Some(text) = &options.no_cache_from else {
        return Ok(NoCache::Never);
    };
    if let Some(first) = plan
        .nodes
        .iter()
        .position(|node| node.build.join("/") == *text && !text.is_empty())
    {
        // The whole nested build: its steps all stand on its first.
        return Ok(NoCache::From(first));
    }
    let fitting: Vec<usize> = plan
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.heading.contains(text.as_str()))
        .map(|(i, _)| i)
        .collect();
    match fitting.as_slice() {
        [step] => Ok(NoCache::From(*step)),
        [] => Err(
            Failure::usage(format!("no step of the spec has {text:?} in it"))
                .hint("give a nested build's name, or a piece of the step's text")
                .into(),
        ),
        several => Err(Failure::usage(format!(
            "{} steps of the spec have {text:?} in them",
            several.len()
        ))
        .hint("give a longer piece of the step's text")
        .into()),
    }
}
