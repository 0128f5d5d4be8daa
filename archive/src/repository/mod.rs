// SPDX-License-Identifier: Apache-2.0
//! Reads an opam repository, and of it only what changed: from a git URL, a local git repository or a plain directory.
//!
//! There is never a checkout. A git repository is read object by object, in place or by `git cat-file --batch-command`: the trees of two
//! commits are compared from the top, and only the trees and files that differ are looked at. A repository that is somebody else's is
//! never written to; what a URL names is fetched into a bare repository of our own.
//!
//! What is not plain files below `packages/`, `repo` and `version` does not exist here; what cannot be passed on (links, names
//! that are no names, files without end) is left out and reported, see [`Reason`].

mod ahead;
mod cat_file;
mod directory;
mod error;
mod git;
mod local;
mod names;
mod objects;
mod packs;
mod remote;
#[cfg(test)]
mod tests;
mod tree;

pub use error::Error;
pub use git::Git;
pub use names::{Reason, Skipped};

use bstr::BString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The state of a repository: a git commit's full name, or for a plain directory a SHA-256 over all that is in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Commit(Box<str>);

impl Commit {
    /// Returns the name, in full and in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Commit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        // SHA-1 and SHA-256: gitformat-index(5) and every other format know these two.
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if matches!(text.len(), 40 | 64) && text.bytes().all(hexadecimal) {
            Ok(Self(text.into()))
        } else {
            Err(Error::NoSuchRevision {
                revision: text.to_owned(),
            })
        }
    }
}

impl TryFrom<String> for Commit {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Commit> for String {
    fn from(commit: Commit) -> Self {
        commit.0.into()
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A file that differs between two states of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it is: `packages/…`, `repo` or `version`, without `.`, `..` and empty parts.
    pub path: BString,
    /// What is in it now; nothing if it is not there any more.
    pub content: Option<Vec<u8>>,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// What a repository may be made of.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file larger than this is left out.
    pub file_bytes: u64,
    /// A state with more files than this is refused: a few kilobytes of git trees can name billions.
    pub files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 16 << 20,
            files: 2_000_000,
        }
    }
}

/// Is told lines of progress.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// How a repository is read.
#[derive(Clone, Default)]
pub struct Options {
    /// A branch, a tag, a full ref or a commit; without it the repository's own choice (`HEAD`).
    pub revision: Option<String>,
    /// How git is run.
    pub git: Git,
    /// What is too much.
    pub limits: Limits,
    /// Ends everything, children too.
    pub cancel: CancellationToken,
    /// Is told what git says of its progress while it fetches.
    pub progress: Option<Progress>,
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("revision", &self.revision)
            .field("git", &self.git)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// An opam repository. All calls block; [`Options::cancel`] ends them within a tenth of a second.
#[derive(Debug)]
pub struct Repository {
    source: Source,
    options: Options,
    /// Runs from the first question to the end of a comparison.
    objects: Option<objects::Objects>,
}

#[derive(Debug)]
enum Source {
    /// Fetched into a repository of ours.
    Remote(remote::Remote),
    /// Read in place.
    Git(PathBuf),
    /// No git at all.
    Directory(directory::Directory),
}

impl Repository {
    /// Opens what `location` names: a directory (a git repository, bare or not, or a plain one) if there is one, else
    /// what git takes for a URL. What has to be remembered goes below `work`, which belongs to this repository alone.
    ///
    /// Nothing is fetched yet. Two processes may open the same `work`; they wait for each other where they must.
    pub fn open(location: &str, work: &Path, options: Options) -> Result<Self, Error> {
        if let Some(revision) = &options.revision {
            names::check_revision(revision)?;
        }
        let path = Path::new(location);
        let source = if path.is_dir() {
            match git_directory(path) {
                Some(directory) => Source::Git(directory),
                None => Source::Directory(directory::Directory::new(path, work)),
            }
        } else {
            Source::Remote(remote::Remote::new(location, work)?)
        };
        Ok(Self {
            source,
            options,
            objects: None,
        })
    }

    /// Returns when a commit was made, in seconds since 1970; a plain directory does not say.
    pub fn committed(&mut self, commit: &Commit) -> Result<Option<u64>, Error> {
        let git = match &self.source {
            Source::Remote(remote) => remote.git_directory(),
            Source::Git(directory) => directory.clone(),
            Source::Directory(_) => return Ok(None),
        };
        open_objects(&mut self.objects, &git, &self.options).committed(commit)
    }

    /// Returns the state that the branch is in now, and makes sure that it can be read.
    ///
    /// For a URL this is one look at its refs, and a fetch only if the branch has moved. A plain directory is walked; files whose size,
    /// times and inode are as they were are not read.
    pub fn head(&mut self) -> Result<Commit, Error> {
        self.objects = None;
        match &mut self.source {
            Source::Remote(remote) => remote.head(&self.options),
            Source::Git(directory) => {
                let revision = self.options.revision.as_deref();
                let directory = directory.clone();
                let objects = open_objects(&mut self.objects, &directory, &self.options);
                for candidate in names::candidates(revision) {
                    if let Some(commit) = objects.commit(&candidate)? {
                        return Ok(commit);
                    }
                }
                Err(Error::NoSuchRevision {
                    revision: revision.unwrap_or("HEAD").to_owned(),
                })
            }
            Source::Directory(directory) => directory.head(&self.options),
        }
    }

    /// Passes on every file that differs between two states, in the order of their paths; without `from`, all files of `to`.
    ///
    /// Returns what was left out of what was looked at. A file that is left out now and was there before is passed on as gone.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchCommit`] when `from` is not known (any more): then only a reading from nothing helps. What `visit` returns.
    pub fn changes<E: From<Error>>(
        &mut self,
        from: Option<&Commit>,
        to: &Commit,
        visit: &mut dyn FnMut(Change) -> Result<(), E>,
    ) -> Result<Vec<Skipped>, E> {
        if from == Some(to) {
            return Ok(Vec::new());
        }
        let git = match &mut self.source {
            Source::Directory(directory) => {
                return directory.changes(from, to, &self.options, visit);
            }
            Source::Remote(remote) => remote.git_directory(),
            Source::Git(directory) => directory.clone(),
        };
        let objects = open_objects(&mut self.objects, &git, &self.options);
        let result = tree::changes(objects, from, to, &self.options, visit);
        // Nothing is kept running between two comparisons.
        self.objects = None;
        result
    }
}

fn open_objects<'a>(
    slot: &'a mut Option<objects::Objects>,
    directory: &Path,
    options: &Options,
) -> &'a mut objects::Objects {
    slot.get_or_insert_with(|| objects::Objects::start(directory, &options.git, &options.cancel))
}

/// Returns the git directory of a repository: `.git` in it (also a file that names another place, gitrepository-layout(5)), or it itself.
fn git_directory(path: &Path) -> Option<PathBuf> {
    let inside = path.join(".git");
    if inside.exists() {
        return Some(inside);
    }
    let bare = path.join("HEAD").is_file() && path.join("objects").is_dir();
    (bare && path.join("refs").is_dir()).then(|| path.to_owned())
}
