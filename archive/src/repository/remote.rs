// SPDX-License-Identifier: Apache-2.0
//! A repository behind a URL: one look at its refs, and a fetch into a bare repository of ours when the branch has moved.

use super::objects::Objects;
use super::{Commit, Error, Options, names};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the last fetched commit is. git writes a ref after everything that it reaches.
const HEAD: &str = "refs/heads/head";

/// A repository that is fetched.
#[derive(Debug)]
pub(super) struct Remote {
    url: String,
    work: PathBuf,
}

impl Remote {
    pub(super) fn new(location: &str, work: &Path) -> Result<Self, Error> {
        // Neither an option, nor a helper's name (gitremote-helpers(7)), nor a file that is not there.
        let is_url = location.contains("://") || is_scp(location) || Path::new(location).is_file();
        if location.starts_with('-') || location.contains("::") || !is_url {
            return Err(Error::Location {
                location: location.to_owned(),
            });
        }
        Ok(Self {
            url: location.to_owned(),
            work: work.to_owned(),
        })
    }

    /// Returns where the objects are.
    pub(super) fn git_directory(&self) -> PathBuf {
        self.work.join("repository.git")
    }

    /// See [`super::Repository::head`].
    pub(super) fn head(&self, options: &Options) -> Result<Commit, Error> {
        fs_err::create_dir_all(&self.work).map_err(Error::io("make", &self.work))?;
        let lock = self.lock(options)?;
        self.create(options)?;
        let revision = options.revision.as_deref();
        let wanted = match revision.map(str::parse::<Commit>) {
            Some(Ok(commit)) => Wanted {
                source: commit.to_string(),
                commit,
            },
            _ => self.look(options, &lock)?,
        };
        let have = self.fetched(options)?;
        if have.as_ref() == Some(&wanted.commit) {
            return Ok(wanted.commit);
        }
        self.remove_stale()?;
        self.fetch(options, &lock, &wanted.source, have.is_none())?;
        // The branch may have moved on since we looked; what was fetched counts.
        self.fetched(options)?.ok_or_else(|| Error::Broken {
            what: "git fetched nothing".to_owned(),
        })
    }

    /// Waits for other processes that use the same directory.
    fn lock(&self, options: &Options) -> Result<File, Error> {
        let path = self.work.join("repository.lock");
        let (file, _) = fs_err::File::create(&path)
            .map_err(Error::io("make", &path))?
            .into_parts();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) if options.cancel.is_cancelled() => {
                    return Err(Error::Cancelled);
                }
                Err(std::fs::TryLockError::WouldBlock) => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(std::fs::TryLockError::Error(error)) => {
                    return Err(Error::io("lock", &path)(error));
                }
            }
        }
    }

    /// Makes the bare repository unless it is there: the three things that make a directory one (gitrepository-layout(5)).
    fn create(&self, options: &Options) -> Result<(), Error> {
        let directory = self.git_directory();
        if directory.join("HEAD").is_file() && directory.join("refs").is_dir() {
            return Ok(());
        }
        // Begun, and never finished.
        match fs_err::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &directory)(error));
            }
            _ => {}
        }
        let mut command = options.git.command(&directory);
        command.args(["init", "--quiet", "--bare", "--template="]);
        let git = &options.git;
        git.run("init", command, None, &options.cancel, &mut |_| {})?;
        Ok(())
    }

    /// Returns the commit of the last fetch.
    fn fetched(&self, options: &Options) -> Result<Option<Commit>, Error> {
        Objects::start(&self.git_directory(), &options.git, &options.cancel).commit(HEAD)
    }

    /// Asks the server where the branch is.
    fn look(&self, options: &Options, lock: &File) -> Result<Wanted, Error> {
        let candidates = names::candidates(options.revision.as_deref());
        let mut command = options.git.command(&self.git_directory());
        command.args(["ls-remote", "--quiet", "--", &self.url]);
        for name in &candidates {
            command.arg(name);
            // What a tag is of (git-ls-remote(1), "--refs").
            command.arg(format!("{name}^{{}}"));
        }
        let git = &options.git;
        let output = git.run(
            "ls-remote",
            command,
            Some(lock),
            &options.cancel,
            &mut |_| {},
        )?;
        let output = String::from_utf8_lossy(&output);
        let find = |name: &str| {
            let mut lines = output.lines().filter_map(|line| line.split_once('\t'));
            lines.find(|(_, found)| *found == name).map(|(id, _)| id)
        };
        for name in candidates {
            let peeled = find(&format!("{name}^{{}}"));
            if let Some(id) = peeled.or_else(|| find(&name)) {
                return Ok(Wanted {
                    commit: id.parse()?,
                    source: name,
                });
            }
        }
        Err(Error::NoSuchRevision {
            revision: options.revision.as_deref().unwrap_or("HEAD").to_owned(),
        })
    }

    fn fetch(
        &self,
        options: &Options,
        lock: &File,
        source: &str,
        first: bool,
    ) -> Result<(), Error> {
        let run = |shallow: bool| {
            let mut command = options.git.command(&self.git_directory());
            command.args(["fetch", "--progress", "--no-tags", "--no-write-fetch-head"]);
            command.args(["--no-recurse-submodules", "--force"]);
            if shallow {
                command.arg("--depth=1");
            }
            command.args(["--", &self.url]);
            command.arg(format!("+{source}:{HEAD}"));
            let mut line = Vec::new();
            let git = &options.git;
            git.run(
                "fetch",
                command,
                Some(lock),
                &options.cancel,
                &mut |bytes| {
                    if let Some(progress) = &options.progress {
                        tell(&mut line, bytes, progress.as_ref());
                    }
                },
            )
        };
        // History is of no use here: opam-repository has 190 MB of it before the newest 10. Some servers and
        // bundles have no part to give; they give all.
        if first && run(true).is_ok() {
            return Ok(());
        }
        if options.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        run(false).map(|_| ())
    }

    /// Removes the locks of a git that was killed. We hold the lock that any living one holds too.
    fn remove_stale(&self) -> Result<(), Error> {
        let directory = self.git_directory();
        let mut directories = vec![directory.clone(), directory.join("objects/info")];
        let mut refs = vec![directory.join("refs")];
        while let Some(next) = refs.pop() {
            for entry in fs_err::read_dir(&next).map_err(Error::io("list", &next))? {
                let entry = entry.map_err(Error::io("list", &next))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    refs.push(entry.path());
                }
            }
            directories.push(next);
        }
        for directory in directories {
            let Ok(entries) = fs_err::read_dir(&directory) else {
                continue;
            };
            for entry in entries {
                let path = entry.map_err(Error::io("list", &directory))?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "lock")
                {
                    fs_err::remove_file(&path).map_err(Error::io("remove", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// What is to be fetched, and the commit that it is expected to be.
struct Wanted {
    source: String,
    commit: Commit,
}

/// `user@host:path` (git-fetch(1), "GIT URLS"): a colon before any slash.
fn is_scp(location: &str) -> bool {
    location
        .split_once(':')
        .is_some_and(|(host, path)| !host.is_empty() && !host.contains('/') && !path.is_empty())
}

/// Passes on the lines that are complete. git ends those that it overwrites with a carriage return.
fn tell(line: &mut Vec<u8>, bytes: &[u8], progress: &(dyn Fn(&str) + Send + Sync)) {
    for byte in bytes {
        if matches!(byte, b'\r' | b'\n') {
            let text = String::from_utf8_lossy(line);
            if !text.trim().is_empty() {
                progress(text.trim());
            }
            line.clear();
        } else if line.len() < 4096 {
            line.push(*byte);
        }
    }
}
