// SPDX-License-Identifier: Apache-2.0
//! Random specs whose results are known before they are built.
//!
//! Every step has a token in its text, so that it is no step of any other spec, and says it at its beginning and end, so that
//! its log can be checked. What a step does to the tree is done to a [`Tree`] in memory at the same time.

use super::random::Random;
use super::tree::{Entry, Kind, Tree};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

/// What recipes start from.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// The base's archive.
    pub(super) base: Arc<Path>,
    /// The base's tree.
    pub(super) base_tree: Arc<Tree>,
    /// The tree of the context.
    pub(super) context: Arc<Tree>,
    /// Whether steps run as build users: the tree is their home directory, and everything in a result is root's.
    pub(super) by_users: bool,
}

/// The name of the one secret.
pub(super) const SECRET: &str = "word";
/// Its value.
pub(super) const SECRET_VALUE: &str = "correct-horse-battery\n";
/// The caches that steps use.
pub(super) const CACHES: [&str; 2] = ["first", "second/../odd"];

/// A spec being written.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    surroundings: Surroundings,
    random: Random,
    token: String,
    builds: String,
    operations: String,
    number: usize,
    as_user: bool,
    /// What the result must be.
    pub(super) tree: Tree,
    /// What each step must have said, by its token.
    pub(super) logs: BTreeMap<String, String>,
}

impl Recipe {
    /// Begins a spec on the base. `token` sets its steps apart from all others'.
    pub(super) fn new(surroundings: &Surroundings, random: Random, token: &str) -> Self {
        Self {
            surroundings: surroundings.clone(),
            random,
            token: token.to_owned(),
            builds: String::new(),
            operations: String::new(),
            number: 0,
            as_user: false,
            tree: surroundings.base_tree.as_ref().clone(),
            logs: BTreeMap::new(),
        }
    }

    /// Writes a spec of `steps` random steps.
    pub(super) fn random(
        surroundings: &Surroundings,
        random: Random,
        token: &str,
        steps: usize,
    ) -> Self {
        let mut recipe = Self::new(surroundings, random, token);
        recipe.add(steps);
        recipe
    }

    /// Returns a copy that goes on in its own way.
    pub(super) fn branch(&self, random: Random, token: &str) -> Self {
        Self {
            random,
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// Adds random steps.
    pub(super) fn add(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.random.below(10) {
                0 | 1 => self.copy_from_context(),
                2 => self.copy_from_build(),
                3 => self.use_cache(),
                4 => self.use_secret(),
                _ => self.run(),
            }
        }
    }

    /// Returns the spec's text.
    pub(super) fn text(&self) -> String {
        let base = self.surroundings.base.display();
        format!(
            "({}(from tar:{base}) (shell /bin/sh -c)\n{})\n",
            self.builds, self.operations
        )
    }

    /// Returns where the tree's root is, for a command.
    fn root(&self) -> &'static str {
        if self.surroundings.by_users {
            "$HOME"
        } else {
            ""
        }
    }

    fn name(&mut self) -> String {
        self.number += 1;
        format!("{}-{}", self.token, self.number)
    }

    /// Returns files (or directories) below `/w`.
    fn existing(&self, directories: bool) -> Vec<String> {
        self.tree
            .0
            .iter()
            .filter(|(name, entry)| {
                name.starts_with("w/")
                    && match entry.kind {
                        Kind::Directory => directories,
                        Kind::File(_) => !directories,
                        Kind::Link(_) => false,
                    }
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn put(&mut self, name: &str, entry: Entry) {
        self.tree.0.insert(name.to_owned(), entry);
    }

    /// Adds a run with these fields before its command.
    fn script(&mut self, fields: &str, token: &str, commands: &[String], said: &str) {
        if std::mem::take(&mut self.as_user) {
            self.operations.push_str(" (user (uid 0) (gid 0))\n");
        }
        let commands = commands.join("; ");
        writeln!(
            self.operations,
            " (run {fields} (shell \"set -e; echo begin {token}; {commands}; echo end {token}\"))"
        )
        .expect("a string takes all");
        let log = format!("begin {token}\n{said}end {token}\n");
        self.logs.insert(token.to_owned(), log);
    }

    /// Adds a step that changes this and that.
    fn run(&mut self) {
        let token = self.name();
        let mut commands = Vec::new();
        for _ in 0..=self.random.below(4) {
            commands.push(self.change());
        }
        if self.random.once_in(3) {
            commands.push(format!("sleep 0.0{}", self.random.below(6)));
        }
        if self.random.once_in(6) {
            // Outlives its step's command, if it can. Its output must not keep the log open.
            commands.push("(sleep 60 > /dev/null 2>&1 &)".to_owned());
        }
        self.script("", &token, &commands, "");
    }

    fn change(&mut self) -> String {
        let name = format!("w/{}", self.name());
        let (files, directories) = (self.existing(false), self.existing(true));
        let (kind, at) = (self.random.below(14), self.root());
        if kind >= 4 && (files.is_empty() || directories.is_empty()) {
            return self.make_directory(&name);
        }
        let file = |recipe: &mut Self| recipe.random.pick(&files).clone();
        match kind {
            0 => {
                self.put(&name, Entry::file(format!("{name}\n").into_bytes()));
                format!("echo {name} > {at}/{name}")
            }
            1 => {
                let size = self.random.below(300_000);
                let line = format!("{name}\n");
                let content: Vec<u8> = line.bytes().cycle().take(size).collect();
                self.put(&name, Entry::file(content));
                format!("yes {name} | head -c {size} > {at}/{name}")
            }
            2 | 3 => self.make_directory(&name),
            4 | 5 => {
                let file = file(self);
                self.append(&file, &name);
                format!("echo {name} >> {at}/{file}")
            }
            6 => {
                let file = file(self);
                self.tree.remove(&file);
                format!("rm {at}/{file}")
            }
            7 => {
                let directory = self.random.pick(&directories).clone();
                self.tree.remove(&directory);
                format!("rm -r {at}/{directory}")
            }
            8 => {
                // The old content must not shine through the new directory.
                let directory = self.random.pick(&directories).clone();
                self.tree.remove(&directory);
                self.put(&directory, Entry::directory());
                let inside = format!("{directory}/again");
                self.put(&inside, Entry::file(format!("{name}\n").into_bytes()));
                format!(
                    "rm -r {at}/{directory}; mkdir {at}/{directory}; echo {name} > {at}/{inside}"
                )
            }
            9 => {
                let from = file(self);
                self.rename(&from, &name);
                format!("mv {at}/{from} {at}/{name}")
            }
            10 => {
                let from = self.random.pick(&directories).clone();
                self.rename(&from, &name);
                format!("mv {at}/{from} {at}/{name}")
            }
            11 => {
                let target = file(self);
                self.put(&name, Entry::link(&format!("/{target}")));
                format!("ln -s /{target} {at}/{name}")
            }
            12 => {
                let file = file(self);
                // Who is not root cannot write to what is only to be read.
                let unwritten = if self.surroundings.by_users {
                    0o640
                } else {
                    0o444
                };
                let mode = *self.random.pick(&[0o600, 0o755, unwritten, 0o1751]);
                self.entry(&file).mode = mode;
                format!("chmod {mode:o} {at}/{file}")
            }
            // Who is not root can give nothing away.
            _ if self.surroundings.by_users => self.make_directory(&name),
            _ => {
                let file = file(self);
                self.entry(&file).owner = (1000, 2000);
                format!("chown 1000:2000 /{file}")
            }
        }
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        self.tree.0.get_mut(name).expect("it was picked from it")
    }

    fn make_directory(&mut self, name: &str) -> String {
        let inside = format!("{name}/inside");
        self.put(name, Entry::directory());
        self.put(&inside, Entry::file(format!("{name}\n").into_bytes()));
        let at = self.root();
        format!("mkdir {at}/{name}; echo {name} > {at}/{inside}")
    }

    fn append(&mut self, file: &str, line: &str) {
        let entry = self.entry(file);
        if let Kind::File(content) = &entry.kind {
            let mut content = content.to_vec();
            content.extend_from_slice(format!("{line}\n").as_bytes());
            entry.kind = Kind::File(content.into());
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        let entries = self.tree.moved(from, to);
        self.tree.remove(from);
        self.tree.0.extend(entries);
    }

    /// Adds a copy of something to `/w`, which then belongs to the user of the moment.
    fn copy(&mut self, from: &str, source: &Tree, path: &str) {
        self.as_user = self.random.once_in(3) && !self.surroundings.by_users;
        let (id, user) = if self.as_user {
            (1000, " (user (uid 1000) (gid 1000))\n")
        } else {
            (0, " (user (uid 0) (gid 0))\n")
        };
        let name = format!("w/{}", self.name());
        let mut target = format!("/{name}");
        let mut place = name.clone();
        if self.random.once_in(2) {
            // Into a new directory, under its own name.
            let mut made = Entry::directory();
            made.owner = (id, id);
            self.put(&name, made);
            let last = path.rsplit('/').next().unwrap_or(path);
            place = format!("{name}/{last}");
            target.push('/');
        }
        for (name, mut entry) in source.moved(path, &place) {
            entry.owner = (id, id);
            self.put(&name, entry);
        }
        writeln!(
            self.operations,
            "{user} (copy {from} (src {path}) (dst {target}))"
        )
        .expect("a string takes all");
    }

    fn copy_from_context(&mut self) {
        let context = Arc::clone(&self.surroundings.context);
        let paths: Vec<String> = context.0.keys().cloned().collect();
        let path = self.random.pick(&paths).clone();
        self.copy("", &context, &path);
    }

    fn copy_from_build(&mut self) {
        let name = self.name();
        let mut inner = Self::new(&self.surroundings, self.random.fork(), &name);
        for _ in 0..=self.random.below(2) {
            inner.run();
        }
        let made = inner.name();
        let text = inner.make_directory(&format!("w/{made}"));
        inner.script("", &made, &[text], "");
        writeln!(self.builds, "(build {name} {})", inner.text().trim_end())
            .expect("a string takes all");
        let paths: Vec<String> = inner
            .tree
            .0
            .keys()
            .filter(|path| path.starts_with("w/"))
            .cloned()
            .collect();
        let path = self.random.pick(&paths).clone();
        self.logs.append(&mut inner.logs);
        let tree = inner.tree;
        self.copy(&format!("(from (build {name}))"), &tree, &path);
    }

    /// Adds a step that checks what is in a cache and leaves something there.
    pub(super) fn use_cache(&mut self) {
        let token = self.name();
        let cache = *self.random.pick(&CACHES);
        let at = self.root();
        let commands = [
            // A file that is there must be whole. `set -e` ends the step where `test` fails.
            format!(
                "for f in {at}/cache/*; do if test -e $f; then read word < $f; test x$word = x${{f##*/}}; fi; done"
            ),
            // A step that fails gives its copy back as it is, so whatever uses a cache writes beside and renames.
            format!("echo {token} > {at}/cache/.new; mv {at}/cache/.new {at}/cache/{token}"),
            format!("echo {token} > {at}/w/{token}"),
        ];
        let name = format!("w/{token}");
        self.put(&name, Entry::file(format!("{token}\n").into_bytes()));
        let field = format!("(cache (\"{cache}\" (target /cache)))");
        self.script(&field, &token, &commands, "");
    }

    /// Adds a step that reads a secret, whose value must not reach the log.
    fn use_secret(&mut self) {
        let token = self.name();
        let name = format!("w/{token}");
        let size = SECRET_VALUE.len();
        self.put(&name, Entry::file(format!("{size}\n").into_bytes()));
        let at = self.root();
        let commands = [
            format!("cat {at}/run/secret/word"),
            format!("wc -c < {at}/run/secret/word > {at}/{name}"),
        ];
        let field = format!("(secrets ({SECRET} (target /run/secret/word)))");
        self.script(&field, &token, &commands, "***\n");
    }

    /// Adds a step that writes `bytes` bytes, which may be more than there is room for.
    pub(super) fn write_much(&mut self, bytes: usize) {
        let token = self.name();
        let name = format!("w/{token}");
        self.put(&name, Entry::file(vec![0; bytes]));
        let command = format!("head -c {bytes} /dev/zero > {}/{name}", self.root());
        self.script("", &token, &[command], "");
    }

    /// Adds a step that says `lines` lines of 100 bytes.
    pub(super) fn say_much(&mut self, lines: usize) {
        let token = self.name();
        let line = "x".repeat(99);
        let command = format!("yes {line} | head -n {lines}");
        let said = format!("{line}\n").repeat(lines);
        self.script("", &token, &[command], &said);
    }

    /// Adds a run that does no more than leave a word.
    pub(super) fn leave_word(&mut self) {
        let token = self.name();
        let name = format!("w/{token}");
        self.put(&name, Entry::file(format!("{token}\n").into_bytes()));
        let command = format!("echo {token} > {}/{name}", self.root());
        self.script("", &token, &[command], "");
    }

    /// Adds a step as OBuilder's stress program has them (`stress/stress.ml`): few different ones, so that specs written apart share many.
    pub(super) fn append_number(&mut self) {
        let number = self.random.below(3).to_string();
        self.token.push_str(&number);
        let (token, at) = (self.token.clone(), self.root());
        let mut entry = self.tree.0.remove("w/output");
        let entry = entry.get_or_insert_with(|| Entry::file(Vec::new()));
        if let Kind::File(content) = &entry.kind {
            let content = [content, number.as_bytes()].concat();
            self.put("w/output", Entry::file(content));
        }
        let command = format!("echo {number} | head -c 1 >> {at}/w/output");
        let field = format!("(cache (\"{}\" (target /cache)))", CACHES[0]);
        self.script(&field, &token, &[command], "");
    }

    /// Adds a step that finds by itself whether the numbers are right.
    pub(super) fn check_numbers(&mut self) {
        let token = format!("{}-checked", self.token);
        let Some(Kind::File(content)) = self.tree.0.get("w/output").map(|entry| &entry.kind) else {
            return;
        };
        let numbers = String::from_utf8_lossy(content);
        let command = format!("test x$(cat {}/w/output) = x{numbers}", self.root());
        self.script("", &token, &[command], "");
    }
}
