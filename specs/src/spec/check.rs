// SPDX-License-Identifier: Apache-2.0
//! Rules beyond the grammar: which builds a copy can see, and what a copy can copy.
//!
//! Scope, as in OBuilder 614c8ac `lib_spec/spec.ml` `validate`: a build sees its earlier siblings and what its
//! parent sees; names inside a nested build are not seen outside it. The rules for sources are those of its
//! `lib/manifest.ml` and `lib/build.ml`, which apply them only when the step runs.

use super::suggest::did_you_mean;
use super::{Build, CopyOp, Op, Spec};
use crate::diagnostic::{Collector, Diagnostic};
use crate::sexp::quoted;
use std::collections::HashMap;
use std::ops::Range;

pub(super) fn check(spec: &Spec) -> Result<(), Vec<Diagnostic>> {
    let mut checker = Checker {
        errors: Collector::new(),
        scope: HashMap::new(),
        root: spec,
    };
    checker.spec(spec);
    if checker.errors.is_empty() {
        Ok(())
    } else {
        Err(checker.errors.finish())
    }
}

pub(super) fn no_sources(span: Range<usize>) -> Diagnostic {
    Diagnostic::error(span, "no source items for copy")
        .with_help("name what to copy: (src PATH…); (src .) is everything")
}

struct Checker<'s> {
    errors: Collector,
    /// Names of builds that can be seen, with how many of each.
    scope: HashMap<&'s str, usize>,
    root: &'s Spec,
}

impl<'s> Checker<'s> {
    fn spec(&mut self, spec: &'s Spec) {
        for build in &spec.builds {
            self.spec(&build.spec);
            *self.scope.entry(&build.name).or_default() += 1;
        }
        for op in &spec.ops {
            if let Op::Copy(copy) = &op.value {
                self.copy(copy, &op.span);
            }
        }
        for build in &spec.builds {
            if let Some(count) = self.scope.get_mut(&*build.name.value) {
                *count -= 1;
                if *count == 0 {
                    self.scope.remove(&*build.name.value);
                }
            }
        }
    }

    fn copy(&mut self, copy: &CopyOp, span: &Range<usize>) {
        if self.errors.is_full() {
            return;
        }
        if let Some(name) = &copy.from
            && !self.scope.contains_key(&*name.value)
        {
            let diagnostic = Diagnostic::error(
                name.span.clone(),
                format!("unknown build {}", quoted(name.as_bytes())),
            );
            self.errors.push(self.explain(diagnostic, name));
        }
        if copy.src.is_empty() {
            self.errors.push(no_sources(span.clone()));
        }
        for src in &copy.src {
            if src.split(|byte| *byte == b'/').any(|part| part == b"..") {
                self.errors.push(
                    Diagnostic::error(src.span.clone(), "a source path cannot hold `..`")
                        .with_note("sources are below the root of the context or build that is copied from"),
                );
            }
        }
        if copy.src.len() > 1 && copy.dst.last().is_some_and(|last| *last != b'/') {
            self.errors.push(
                Diagnostic::error(
                    copy.dst.span.clone(),
                    "when several items are copied, the destination must end with `/`",
                )
                .with_note_at(copy.src[1].span.clone(), "the second item")
                .with_help(format!(
                    "write {}",
                    quoted(&[copy.dst.as_slice(), b"/"].concat())
                )),
            );
        }
    }

    /// Adds to an unknown name the nearest one, or where a build of that name is.
    fn explain(&self, diagnostic: Diagnostic, name: &str) -> Diagnostic {
        if let Some(build) = find(self.root, name) {
            return diagnostic
                .with_note_at(
                    build.name.span.clone(),
                    "a build of this name is here, but not seen from the copy",
                )
                .with_help("a copy sees builds that come before it in the builds that it is in");
        }
        let mut names: Vec<&str> = self.scope.keys().copied().collect();
        names.sort_unstable();
        let help = did_you_mean(name, names.iter().copied());
        diagnostic.with_help_if(help.or_else(|| match names.len() {
            0 => {
                Some("there is none; write (build NAME ((from BASE) …)) before (from …)".to_owned())
            }
            1..=8 => {
                let names: Vec<_> = names.iter().map(|name| quoted(name.as_bytes())).collect();
                Some(format!("builds seen here: {}", names.join(", ")))
            }
            _ => None,
        }))
    }
}

fn find<'s>(spec: &'s Spec, name: &str) -> Option<&'s Build> {
    spec.builds.iter().find_map(|build| {
        if *build.name.value == *name {
            Some(build)
        } else {
            find(&build.spec, name)
        }
    })
}

/// Returns remarks on a sound spec: builds that nothing copies from, and builds that hide an earlier one.
pub fn warnings(spec: &Spec) -> Vec<Diagnostic> {
    let mut found = Collector::new();
    let mut scope = Vec::new();
    let mut used = Vec::new();
    warn(spec, &mut scope, &mut HashMap::new(), &mut used, &mut found);
    for (build, used) in scope.into_iter().zip(used) {
        if !used {
            found.push(
                Diagnostic::warning(
                    build.name.span.clone(),
                    format!(
                        "nothing copies from build {}",
                        quoted(build.name.as_bytes())
                    ),
                )
                .with_note("it will not be run"),
            );
        }
    }
    found.finish()
}

/// `all` gets every build in order, `used` whether it is copied from; `visible` maps a name to its place in them.
fn warn<'s>(
    spec: &'s Spec,
    all: &mut Vec<&'s Build>,
    visible: &mut HashMap<&'s str, usize>,
    used: &mut Vec<bool>,
    found: &mut Collector,
) {
    let mut hidden = Vec::new();
    for build in &spec.builds {
        warn(&build.spec, all, visible, used, found);
        all.push(build);
        used.push(false);
        let before = visible.insert(&build.name, all.len() - 1);
        if let Some(before) = before {
            found.push(
                Diagnostic::warning(
                    build.name.span.clone(),
                    format!(
                        "a second build named {} hides the first",
                        quoted(build.name.as_bytes())
                    ),
                )
                .with_note_at(all[before].name.span.clone(), "the first is here"),
            );
        }
        hidden.push((&*build.name.value, before));
    }
    for op in &spec.ops {
        if let Op::Copy(CopyOp {
            from: Some(name), ..
        }) = &op.value
            && let Some(at) = visible.get(&*name.value)
        {
            used[*at] = true;
        }
    }
    for (name, before) in hidden.into_iter().rev() {
        match before {
            Some(before) => visible.insert(name, before),
            None => visible.remove(name),
        };
    }
}
