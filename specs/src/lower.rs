// SPDX-License-Identifier: Apache-2.0
//! [`Spec`] to [`Plan`]: environment, user, working directory and shell are applied, names become edges.
//!
//! The rules are OBuilder's (614c8ac `lib/build.ml`). A nested build starts from the initial context, whatever
//! the builds around it set, and of it only its last tree is seen. Paths are joined, not normalised.

use crate::diagnostic::{Collector, Diagnostic};
use crate::plan::{
    BaseInfo, CacheMount, Copy, CopySource, Node, NodeIndex, Operation, Plan, Run, SecretMount,
    Surroundings, User,
};
use crate::sexp::quoted;
use crate::spec::{CopyOp, Mount, Op, RunOp, Spanned, Spec, from_heading, heading};
use bstr::BString;
use std::collections::HashMap;
use std::ops::Range;

/// The `PATH` of a step whose base and spec set none: the default of OCI engines (moby v27
/// `oci/defaults.go` `DefaultPathEnv`).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What lowering must be told.
#[derive(Clone, Debug)]
pub struct LowerOptions {
    /// What `run` gives its text to until the spec sets a shell.
    pub shell: Vec<BString>,
}

impl Default for LowerOptions {
    /// OBuilder's default on Unix, `/usr/bin/env bash -c`.
    fn default() -> Self {
        Self {
            shell: ["/usr/bin/env", "bash", "-c"].map(BString::from).to_vec(),
        }
    }
}

/// Turns a spec into a plan; `base` tells what is known of a base by its reference (see [`Spec::bases`]).
///
/// # Errors
///
/// Bases that `base` does not know, and what [`Spec::check`] refuses.
pub fn lower(
    spec: &Spec,
    base: &dyn Fn(&str) -> Option<BaseInfo>,
    options: &LowerOptions,
) -> Result<Plan, Vec<Diagnostic>> {
    spec.check()?;
    let mut lowering = Lowering {
        base,
        options,
        nodes: Vec::new(),
        names: Vec::new(),
        surroundings: HashMap::new(),
        scope: HashMap::new(),
        path: Vec::new(),
        errors: Collector::new(),
    };
    let target = lowering.spec(spec);
    if !lowering.errors.is_empty() {
        return Err(lowering.errors.finish());
    }
    Ok(Plan {
        nodes: lowering.nodes,
        target,
        names: lowering.names,
        surroundings: lowering.surroundings,
    })
}

struct Lowering<'a> {
    base: &'a dyn Fn(&str) -> Option<BaseInfo>,
    options: &'a LowerOptions,
    nodes: Vec<Node>,
    names: Vec<(String, NodeIndex)>,
    surroundings: HashMap<NodeIndex, Surroundings>,
    /// The last nodes of the builds that can be seen; a later one of the same name hides the earlier.
    scope: HashMap<&'a str, Vec<NodeIndex>>,
    /// The names of the builds that are being lowered, outermost first.
    path: Vec<String>,
    errors: Collector,
}

impl<'a> Lowering<'a> {
    fn spec(&mut self, spec: &'a Spec) -> NodeIndex {
        for build in &spec.builds {
            self.path.push(build.name.value.clone());
            let last = self.spec(&build.spec);
            self.names.push((self.path.join("/"), last));
            self.path.pop();
            self.scope.entry(&build.name).or_default().push(last);
        }
        let mut context = self.base(&spec.from);
        for op in &spec.ops {
            self.op(&mut context, op);
        }
        for build in &spec.builds {
            self.scope.entry(&build.name).or_default().pop();
        }
        let surroundings = Surroundings {
            env: context.env.list(),
            user: context.user,
            workdir: context.workdir,
        };
        self.surroundings.insert(context.last, surroundings);
        context.last
    }

    fn base(&mut self, from: &Spanned<String>) -> Context {
        let info = (self.base)(from).unwrap_or_else(|| {
            self.errors.push(Diagnostic::error(
                from.span.clone(),
                format!("the base {} is not known", quoted(from.as_bytes())),
            ));
            BaseInfo {
                id: crate::plan::StepId::from_digest([0; 32]),
                env: Vec::new(),
            }
        });
        let operation = Operation::Base {
            reference: from.value.clone(),
            id: info.id,
        };
        let last = self.node(operation, from_heading(from), Vec::new(), from.span.clone());
        Context {
            last,
            env: Environment::new(info.env),
            user: User::Ids { uid: 0, gid: 0 },
            workdir: "/".into(),
            shell: self.options.shell.clone(),
            preamble: Vec::new(),
        }
    }

    fn node(
        &mut self,
        operation: Operation,
        heading: String,
        preamble: Vec<String>,
        span: Range<usize>,
    ) -> NodeIndex {
        self.nodes.push(Node {
            operation,
            heading,
            preamble,
            build: self.path.clone(),
            span,
        });
        self.nodes.len() - 1
    }

    fn op(&mut self, context: &mut Context, op: &Spanned<Op>) {
        let heading = heading(context.workdir.as_ref(), op);
        let parent = context.last;
        let operation = match &op.value {
            Op::Run(run) => Operation::Run {
                parent,
                run: context.run(run),
            },
            Op::Copy(copy) => {
                let source = match &copy.from {
                    None => CopySource::Context,
                    Some(name) => match self.scope.get(&*name.value).and_then(|nodes| nodes.last())
                    {
                        Some(node) => CopySource::Node(*node),
                        // `Spec::check` has found it in the same scope.
                        None => return,
                    },
                };
                Operation::Copy {
                    parent,
                    copy: context.copy(copy, source),
                }
            }
            preparing => {
                context.apply(preparing);
                context.preamble.push(heading);
                return;
            }
        };
        let preamble = std::mem::take(&mut context.preamble);
        context.last = self.node(operation, heading, preamble, op.span.clone());
    }
}

/// What the operations so far have set.
struct Context {
    last: NodeIndex,
    env: Environment,
    user: User,
    workdir: BString,
    shell: Vec<BString>,
    preamble: Vec<String>,
}

impl Context {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Workdir(dir) => self.workdir = join(&self.workdir, dir),
            Op::Shell(words) => self.shell.clone_from(words),
            Op::User(user) => self.user = user.clone(),
            Op::Env { name, value } => self.env.set(name, value),
            Op::Comment(_) | Op::Run(_) | Op::Copy(_) => {}
        }
    }

    fn run(&self, run: &RunOp) -> Run {
        let mut argv = self.shell.clone();
        argv.push(run.shell.value.clone());
        let target = |mount: &Mount| join(b"/", &mount.target);
        Run {
            argv,
            env: self.env.list(),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            network: run.network,
            caches: run
                .cache
                .iter()
                .map(|cache| CacheMount {
                    id: cache.id.value.clone(),
                    target: target(cache),
                })
                .collect(),
            secrets: run
                .secrets
                .iter()
                .map(|secret| SecretMount {
                    id: secret.id.value.clone(),
                    target: target(secret),
                })
                .collect(),
        }
    }

    fn copy(&self, copy: &CopyOp, source: CopySource) -> Copy {
        Copy {
            source,
            src: copy.src.iter().map(|src| src.value.clone()).collect(),
            dst: join(&self.workdir, &copy.dst),
            exclude: copy.exclude.clone(),
            user: self.user.clone(),
        }
    }
}

/// Returns `path` if it is absolute, else `directory`, a `/` unless it ends in one, and `path`.
///
/// OCaml's `Filename.concat`, which OBuilder uses for destinations. For the working directory it puts the `/`
/// always, and so has `//src` after `(workdir src)` at the root; that is the same place.
pub(crate) fn join(directory: &[u8], path: &[u8]) -> BString {
    if path.starts_with(b"/") {
        return path.into();
    }
    let separator: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
    [directory, separator, path].concat().into()
}

/// Variables: those that the spec set, the latest first, then those of the base.
struct Environment {
    /// In the order of setting; a variable that was set again is `None` at its earlier place.
    set: Vec<Option<(BString, BString)>>,
    place: HashMap<BString, usize>,
    base: Vec<(BString, BString)>,
}

impl Environment {
    /// Of a name that an image has twice the last value counts, as in OCI engines.
    fn new(base: Vec<(BString, BString)>) -> Self {
        let mut kept: Vec<(BString, BString)> = Vec::with_capacity(base.len());
        let mut place = HashMap::new();
        for (name, value) in base {
            if let Some(at) = place.get(&name) {
                let entry: &mut (BString, BString) = &mut kept[*at];
                entry.1 = value;
            } else {
                place.insert(name.clone(), kept.len());
                kept.push((name, value));
            }
        }
        Self {
            set: Vec::new(),
            place: HashMap::new(),
            base: kept,
        }
    }

    fn set(&mut self, name: &BString, value: &BString) {
        let name = name.clone();
        if let Some(before) = self.place.insert(name.clone(), self.set.len()) {
            self.set[before] = None;
        }
        self.set.push(Some((name, value.clone())));
        // Setting one variable over and over must not make the list longer and longer.
        if self.set.len() > 2 * self.place.len() + 8 {
            self.set.retain(Option::is_some);
            self.place.clear();
            for (at, (name, _)) in self.set.iter().flatten().enumerate() {
                self.place.insert(name.clone(), at);
            }
        }
    }

    fn list(&self) -> Vec<(BString, BString)> {
        let base = self
            .base
            .iter()
            .filter(|(name, _)| !self.place.contains_key(name));
        let mut list: Vec<_> = self
            .set
            .iter()
            .rev()
            .flatten()
            .chain(base)
            .cloned()
            .collect();
        if !list.iter().any(|(name, _)| name == "PATH") {
            list.push(("PATH".into(), DEFAULT_PATH.into()));
        }
        list
    }
}

#[cfg(test)]
mod tests;
