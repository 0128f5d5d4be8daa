// SPDX-License-Identifier: Apache-2.0
//! The grammar: S-expression to [`Spec`], every mistake reported.
//!
//! After a mistake the parser goes on with the next item, so the tree it then returns is incomplete and serves
//! only to find further mistakes.

use super::fields::{Content, Parser};
use super::suggest::did_you_mean;
use super::{Build, CopyOp, MAX_NESTING, Mount, Op, RunOp, Spanned, Spec, check};
use crate::diagnostic::{Collector, Diagnostic};
use crate::plan::{Network, User};
use crate::sexp::{Item, Tree, quoted};
use bstr::ByteSlice;

/// The operations by name, with how each is written.
const OPS: [(&str, &str); 7] = [
    ("comment", "(comment TEXT)"),
    ("workdir", "(workdir DIR)"),
    ("shell", "(shell PROGRAM ARG…)"),
    ("run", "(run (shell COMMAND))"),
    ("copy", "(copy (src PATH…) (dst PATH))"),
    ("user", "(user (uid NUMBER) (gid NUMBER))"),
    ("env", "(env NAME VALUE)"),
];
const USER_USAGE: &str = "write (user (uid NUMBER) (gid NUMBER)) or (user (name NAME))";

pub(super) fn parse(source: &[u8]) -> Result<Spec, Vec<Diagnostic>> {
    let tree = Tree::read(source)?;
    let mut parser = Parser {
        errors: Collector::new(),
    };
    let spec = parser.spec(tree.root(), 0);
    let mut errors = parser.errors;
    if let Err(more) = spec.check() {
        for diagnostic in more {
            errors.push(diagnostic);
        }
    }
    if errors.is_empty() {
        Ok(spec)
    } else {
        Err(errors.finish())
    }
}

/// A spec in the making.
#[derive(Default)]
struct Partial {
    builds: Vec<Build>,
    from: Option<Spanned<String>>,
    /// A base was given, or its absence was reported.
    has_base: bool,
    ops: Vec<Spanned<Op>>,
}

impl Parser {
    fn spec(&mut self, item: Item<'_>, depth: usize) -> Spec {
        let mut spec = Partial::default();
        let first = item.children().next();
        if item.is_list() && first.is_some_and(|first| !first.is_list()) {
            self.error(
                Diagnostic::error(item.span(), "a spec is a list of lists").with_help(
                    "write ((from BASE) OPERATION…): the items together are in parentheses too",
                ),
            );
        } else if item.is_list() {
            for part in item.children() {
                self.spec_item(part, depth, &mut spec);
            }
            if !spec.has_base {
                self.error(
                    Diagnostic::error(item.span(), "this build has no base")
                        .with_help("begin it with (from BASE), after any (build …)"),
                );
            }
        } else {
            self.error(
                Diagnostic::error(item.span(), "a spec is a list, not an atom")
                    .with_help("write ((from BASE) OPERATION…)"),
            );
        }
        let from = spec.from.unwrap_or_else(|| String::new().into());
        Spec {
            builds: spec.builds,
            from,
            ops: spec.ops,
        }
    }

    fn spec_item(&mut self, part: Item<'_>, depth: usize, spec: &mut Partial) {
        let Some(head) = part.children().next().filter(|_| part.is_list()) else {
            self.not_an_operation(part);
            return;
        };
        match head.atom().as_deref() {
            Some(b"build") => {
                if spec.has_base {
                    self.error(
                        Diagnostic::error(head.span(), "a nested build must come before (from …)")
                            .with_help("move it to the beginning of the build that it is in"),
                    );
                }
                spec.builds.extend(self.build(part, depth));
            }
            Some(b"from") => {
                let base = self.base(part);
                if spec.has_base {
                    self.error(
                        Diagnostic::error(
                            part.span(),
                            "a build has one base, and this is a second",
                        )
                        .with_help("use (build NAME ((from BASE) …)) for a second build"),
                    );
                } else {
                    spec.from = base;
                    spec.has_base = true;
                }
            }
            Some(name) => {
                if !spec.has_base && OPS.iter().any(|(op, _)| op.as_bytes() == name) {
                    // One such mistake is told once.
                    spec.has_base = true;
                    self.error(
                        Diagnostic::error(part.span(), "an operation must come after (from …)")
                            .with_help("begin the build with (from BASE), after any (build …)"),
                    );
                }
                if let Some(op) = self.op(head, name, part) {
                    spec.ops.push(Spanned::new(op, part.span()));
                }
            }
            None => self.not_an_operation(part),
        }
    }

    fn not_an_operation(&mut self, part: Item<'_>) {
        let inner = part
            .children()
            .next()
            .and_then(|item| item.children().next());
        let help = if part.is_list() && inner.is_some_and(|head| head.atom().is_some()) {
            "an operation begins with its name, as in (run (shell COMMAND)): are there parentheses too many?"
        } else {
            "operations look like (run (shell COMMAND)) or (env NAME VALUE)"
        };
        self.error(Diagnostic::error(part.span(), "here an operation is expected").with_help(help));
    }

    fn base(&mut self, part: Item<'_>) -> Option<Spanned<String>> {
        let value = self.only(part, "(from BASE)")?;
        let base = self.name(value, "a base")?;
        if base.is_empty() {
            self.error(Diagnostic::error(
                base.span,
                "the name of the base is empty",
            ));
            return None;
        }
        Some(base)
    }

    fn build(&mut self, part: Item<'_>, depth: usize) -> Option<Build> {
        let usage = "write (build NAME ((from BASE) …))";
        let mut values = part.children().skip(1);
        let (Some(name), Some(spec), None) = (values.next(), values.next(), values.next()) else {
            self.error(
                Diagnostic::error(part.span(), "a nested build is a name and one spec")
                    .with_help(usage),
            );
            return None;
        };
        if depth >= MAX_NESTING {
            self.error(Diagnostic::error(
                name.span(),
                format!("builds are nested deeper than {MAX_NESTING}"),
            ));
            return None;
        }
        let name = self.name(name, "the name of a build");
        let spec = self.spec(spec, depth + 1);
        Some(Build { name: name?, spec })
    }

    fn op(&mut self, head: Item<'_>, name: &[u8], part: Item<'_>) -> Option<Op> {
        let usage = OPS
            .iter()
            .find(|(op, _)| op.as_bytes() == name)
            .map_or("", |(_, usage)| usage);
        match name {
            b"comment" => {
                let text = self.only(part, usage)?;
                Some(Op::Comment(
                    self.atom(text, "a comment", Content::Any)?.value,
                ))
            }
            b"workdir" => {
                let dir = self.only(part, usage)?;
                Some(Op::Workdir(
                    self.atom(dir, "a directory", Content::NoNul)?.value,
                ))
            }
            b"shell" => {
                let words = self.atoms(part, "a word of the shell");
                Some(Op::Shell(
                    words.into_iter().map(|word| word.value).collect(),
                ))
            }
            b"env" => self.env(part, usage),
            b"user" => self.user(part).map(Op::User),
            b"run" => self.run(part).map(Op::Run),
            b"copy" => self.copy(part).map(Op::Copy),
            _ => {
                let help = did_you_mean(&name.to_str_lossy(), OPS.iter().map(|(op, _)| *op));
                let all = OPS.map(|(op, _)| op).join(", ");
                self.error(
                    Diagnostic::error(head.span(), format!("unknown operation {}", quoted(name)))
                        .with_help(help.unwrap_or_else(|| format!("the operations are {all}"))),
                );
                None
            }
        }
    }

    fn env(&mut self, part: Item<'_>, usage: &str) -> Option<Op> {
        let mut values = part.children().skip(1);
        let (Some(name), Some(value), None) = (values.next(), values.next(), values.next()) else {
            self.error(
                Diagnostic::error(part.span(), "`env` takes a name and a value").with_help(
                    format!("write {usage}; a value that holds blanks must be in double quotes"),
                ),
            );
            return None;
        };
        let name = self.atom(name, "the name of a variable", Content::NoNul);
        let value = self.atom(value, "the value of a variable", Content::NoNul);
        let (name, value) = (name?, value?);
        // OBuilder takes these too, but no program would find such a variable under its name.
        if name.is_empty() || name.contains(&b'=') {
            self.error(
                Diagnostic::error(
                    name.span,
                    format!("{} cannot name a variable", quoted(&name.value)),
                )
                .with_help("write the name and the value as two atoms: (env NAME VALUE)"),
            );
            return None;
        }
        Some(Op::Env {
            name: name.value,
            value: value.value,
        })
    }

    fn user(&mut self, part: Item<'_>) -> Option<User> {
        let ([uid, gid, name], sound) =
            self.fields("user", part.children().skip(1), ["uid", "gid", "name"]);
        match (uid, gid, name) {
            _ if !sound => None,
            (Some(uid_field), Some(gid_field), None) => {
                let (uid, gid) = (self.id(uid_field, "uid"), self.id(gid_field, "gid"));
                if gid_field.span().start < uid_field.span().start {
                    self.error(
                        Diagnostic::error(gid_field.span(), "`gid` must come after `uid`")
                            .with_help("write (user (uid NUMBER) (gid NUMBER))"),
                    );
                }
                Some(User::Ids {
                    uid: uid?,
                    gid: gid?,
                })
            }
            (None, None, Some(name)) => {
                let name = self.only(name, "(name NAME)")?;
                let name = self.atom(name, "the name of a user", Content::NoNul)?;
                if name.is_empty() {
                    self.error(Diagnostic::error(
                        name.span,
                        "the name of the user is empty",
                    ));
                    return None;
                }
                Some(User::Name(name.value))
            }
            (Some(_), None, None) => {
                self.error(
                    Diagnostic::error(part.span(), "`user` lacks (gid NUMBER)")
                        .with_help(USER_USAGE),
                );
                None
            }
            (None, Some(_), None) => {
                self.error(
                    Diagnostic::error(part.span(), "`user` lacks (uid NUMBER)")
                        .with_help(USER_USAGE),
                );
                None
            }
            (None, None, None) => {
                self.error(
                    Diagnostic::error(part.span(), "`user` names nobody").with_help(USER_USAGE),
                );
                None
            }
            (_, _, Some(name)) => {
                self.error(
                    Diagnostic::error(name.span(), "a user is given by ids or by name, not both")
                        .with_help(USER_USAGE),
                );
                None
            }
        }
    }

    fn run(&mut self, part: Item<'_>) -> Option<RunOp> {
        let fields = part.children().skip(1);
        let ([cache, network, secrets, shell], sound) =
            self.fields("run", fields, ["cache", "network", "secrets", "shell"]);
        let cache = cache.map_or_else(Vec::new, |field| self.mounts(field, "cache"));
        let network = network.map_or(Network::None, |field| self.network(field));
        let secrets = secrets.map_or_else(Vec::new, |field| self.mounts(field, "secret"));
        let Some(shell) = shell else {
            if sound {
                self.missing("run", part.span(), "(shell COMMAND)");
            }
            return None;
        };
        let command = self.only(shell, "(shell COMMAND)")?;
        let shell = self.atom(command, "a command", Content::NoNul)?;
        Some(RunOp {
            cache,
            network,
            secrets,
            shell,
        })
    }

    /// OBuilder's runc sandbox takes `(network)` and `(network host)`, and fails on others when the step runs.
    fn network(&mut self, field: Item<'_>) -> Network {
        let mut values = field.children().skip(1);
        match (values.next(), values.next()) {
            (None, _) => Network::None,
            (Some(value), None) if value.atom().as_deref() == Some(b"host") => Network::Host,
            (Some(first), second) => {
                let wrong = second
                    .filter(|_| first.atom().as_deref() == Some(b"host"))
                    .unwrap_or(first);
                self.error(
                    Diagnostic::error(wrong.span(), "there is no such network")
                        .with_help("write (network host), or leave the field out to have none"),
                );
                Network::None
            }
        }
    }

    fn mounts(&mut self, field: Item<'_>, kind: &str) -> Vec<Mount> {
        field
            .children()
            .skip(1)
            .filter_map(|item| self.mount(item, kind))
            .collect()
    }

    fn mount(&mut self, item: Item<'_>, kind: &str) -> Option<Mount> {
        let usage = format!("(ID (target PATH)), for example ({kind}-id (target /path))");
        let Some(id) = item.children().next().filter(|id| id.atom().is_some()) else {
            self.error(
                Diagnostic::error(
                    item.span(),
                    format!("a {kind} is a list that begins with its id"),
                )
                .with_help(format!("write {usage}")),
            );
            return None;
        };
        let id = self.atom(id, "an id", Content::NoNul);
        let ([target, options], sound) = self.fields(
            kind,
            item.children().skip(1),
            ["target", "buildkit_options"],
        );
        let buildkit_options = options.map_or_else(Vec::new, |field| self.options(field));
        let Some(target) = target else {
            if sound {
                self.missing(kind, item.span(), "(target PATH)");
            }
            return None;
        };
        let target = self.only(target, "(target PATH)")?;
        let target = self.atom(target, "a target", Content::NoNul)?;
        if target.is_empty() {
            self.error(Diagnostic::error(target.span, "the target is empty"));
            return None;
        }
        Some(Mount {
            id: id?,
            target,
            buildkit_options,
        })
    }

    /// The list of pairs in `(buildkit_options ((K V)…))`.
    fn options(&mut self, field: Item<'_>) -> Vec<(bstr::BString, bstr::BString)> {
        let usage = "write (buildkit_options ((NAME VALUE) (NAME VALUE)…))";
        let Some(list) = self.only(field, "(buildkit_options ((NAME VALUE)…))") else {
            return Vec::new();
        };
        let mut pairs = Vec::new();
        if !list.is_list() {
            self.error(
                Diagnostic::error(list.span(), "options are a list of pairs").with_help(usage),
            );
        }
        for pair in list.children() {
            let mut atoms = pair.children().map(Item::atom);
            match (atoms.next().flatten(), atoms.next().flatten(), atoms.next()) {
                (Some(name), Some(value), None) => {
                    pairs.push((name.into_owned().into(), value.into_owned().into()));
                }
                _ => self.error(
                    Diagnostic::error(pair.span(), "an option is a pair of name and value")
                        .with_help(usage),
                ),
            }
        }
        pairs
    }

    fn copy(&mut self, part: Item<'_>) -> Option<CopyOp> {
        let fields = part.children().skip(1);
        let ([from, src, dst, exclude], sound) =
            self.fields("copy", fields, ["from", "src", "dst", "exclude"]);
        let from = from.and_then(|field| self.source(field));
        let exclude = exclude.map_or_else(Vec::new, |field| self.atoms(field, "a name to exclude"));
        if src.is_none() && sound {
            self.missing("copy", part.span(), "(src PATH…)");
        }
        if dst.is_none() && sound {
            self.missing("copy", part.span(), "(dst PATH)");
        }
        let src_field = src?;
        let src = self.atoms(src_field, "a source path");
        let dst = self.only(dst?, "(dst PATH)")?;
        let dst = self.atom(dst, "a destination", Content::NoNul)?;
        if src_field.children().nth(1).is_none() {
            self.error(check::no_sources(src_field.span()));
            return None;
        }
        // A source that was refused is known already; without any, the check would report it once more.
        (!src.is_empty()).then(|| CopyOp {
            from,
            src,
            dst,
            exclude: exclude.into_iter().map(|name| name.value).collect(),
        })
    }

    fn source(&mut self, field: Item<'_>) -> Option<Spanned<String>> {
        let usage = "write (from context) or (from (build NAME))";
        let value = self.only(field, "(from context) or (from (build NAME))")?;
        let mut parts = value.children();
        match (
            value.atom().as_deref(),
            parts.next().and_then(Item::atom),
            parts.next(),
            parts.next(),
        ) {
            (Some(b"context"), ..) => None,
            (Some(name), ..) => {
                let help = did_you_mean(&name.to_str_lossy(), ["context"]);
                self.error(
                    Diagnostic::error(value.span(), "a copy is from `context` or from a build")
                        .with_help(
                            help.unwrap_or_else(|| {
                                format!("write (from (build {}))", quoted(name))
                            }),
                        ),
                );
                None
            }
            (None, Some(head), Some(name), None) if *head == *b"build" => {
                self.name(name, "the name of a build")
            }
            _ => {
                self.error(
                    Diagnostic::error(value.span(), "a copy is from `context` or from a build")
                        .with_help(usage),
                );
                None
            }
        }
    }
}
