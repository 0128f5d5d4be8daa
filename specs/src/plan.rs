// SPDX-License-Identifier: Apache-2.0
//! The build graph that every front end lowers to and that the engine executes.
//!
//! Nothing after a [`Plan`] knows which language it came from.

use bstr::BString;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// The identity of one step: SHA-256 over everything that can change its result.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepId([u8; 32]);

impl StepId {
    /// Wraps a digest that a hash function in this workspace has just made.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Returns the raw digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StepId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "StepId({self})")
    }
}

impl FromStr for StepId {
    type Err = hex::FromHexError;

    /// Parses 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest)?;
        Ok(Self(digest))
    }
}

/// The position of a node in [`Plan::nodes`].
pub type NodeIndex = usize;

/// A graph of steps; every edge points to a lower index, so the order of `nodes` is an execution order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The steps, sources before those that use them.
    pub nodes: Vec<Node>,
    /// The node whose result is wanted.
    pub target: NodeIndex,
    /// The last node of every named build, by its path of names (`dev`, `dev/inner`), for `--target`.
    pub names: Vec<(String, NodeIndex)>,
    /// What each build set for what would come after its last node, by that node.
    pub surroundings: HashMap<NodeIndex, Surroundings>,
}

/// What a process sees around it: what an image says that is made of a build's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The whole environment, in order, without duplicate names.
    pub env: Vec<(BString, BString)>,
    /// Who runs it.
    pub user: User,
    /// Absolute working directory.
    pub workdir: BString,
}

/// One step with what a person sees of it.
#[derive(Clone, Debug)]
pub struct Node {
    /// What the step does.
    pub operation: Operation,
    /// The step as the log's heading shows it, for example `/src: (run (shell "make"))`.
    pub heading: String,
    /// Headings of the operations before this one that run nothing (comment, env, user, workdir, shell).
    pub preamble: Vec<String>,
    /// The named build that the step belongs to, outermost name first; empty for the main build.
    pub build: Vec<String>,
    /// Byte range of the step in the source text.
    pub span: std::ops::Range<usize>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Starts from an image that was resolved before lowering.
    Base {
        /// The reference as written in the spec.
        reference: String,
        /// The identity of the image's content, from [`BaseInfo::id`].
        id: StepId,
    },
    /// Runs a command on the parent's tree.
    Run {
        /// The tree that the command starts from.
        parent: NodeIndex,
        /// The command.
        run: Run,
    },
    /// Copies files onto the parent's tree.
    Copy {
        /// The tree that is copied onto.
        parent: NodeIndex,
        /// What is copied where.
        copy: Copy,
    },
}

/// A command and everything about it that can change its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Program and arguments; the program is looked up in the environment's `PATH` inside the tree.
    pub argv: Vec<BString>,
    /// The whole environment, in order, without duplicate names.
    pub env: Vec<(BString, BString)>,
    /// Who runs it.
    pub user: User,
    /// Absolute working directory, made (root, 0755) when missing.
    pub workdir: BString,
    /// Which network it sees.
    pub network: Network,
    /// Persistent caches mounted into the step.
    pub caches: Vec<CacheMount>,
    /// Secrets mounted into the step; their values are never part of a plan.
    pub secrets: Vec<SecretMount>,
}

/// The user of a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum User {
    /// Numeric ids.
    Ids {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// A name to be looked up in the tree's `/etc/passwd` when the step runs.
    Name(BString),
}

/// Which network a step sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// Its own loopback only.
    None,
    /// The host's.
    Host,
}

/// A persistent cache directory mounted into a step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheMount {
    /// The cache's name, shared by all builds on the store.
    pub id: BString,
    /// Where the step sees it; absolute.
    pub target: BString,
}

/// A secret mounted into a step as a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SecretMount {
    /// The name that `--secret id=NAME,…` gives a value to.
    pub id: BString,
    /// Where the step sees it; absolute.
    pub target: BString,
}

/// Files copied onto a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Where the files come from.
    pub source: CopySource,
    /// Paths below the source's root. A leading `/` is harmless; `..` was refused by the parser.
    pub src: Vec<BString>,
    /// Absolute destination, not normalised; a trailing `/` means "into this directory".
    pub dst: BString,
    /// Base names left out at every level below a `src`.
    pub exclude: Vec<BString>,
    /// Owner of everything that is created.
    pub user: User,
}

/// Where a copy reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CopySource {
    /// The build context on the host.
    Context,
    /// The result of another node.
    Node(NodeIndex),
}

/// What lowering must know of a base image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseInfo {
    /// The identity of the image's content.
    pub id: StepId,
    /// The image's environment, in image order.
    pub env: Vec<(BString, BString)>,
}
