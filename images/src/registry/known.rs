// SPDX-License-Identifier: Apache-2.0
//! Which repositories of a registry are known to have a blob, so that a push to another one can ask for it to be mounted.
//!
//! One file a registry, one line a fact, appended. It is a hint: a registry that cannot mount a blob takes it as an upload (OCI
//! distribution-spec v1.1, "Mounting a blob from another repository").

use crate::digest::Digest;
use std::io::Write;
use std::path::PathBuf;

/// Above this size the older half of a file is forgotten.
const MAX_BYTES: u64 = 1 << 20;

/// What is known, in a directory.
#[derive(Debug)]
pub(super) struct Known {
    directory: PathBuf,
}

impl Known {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn file(&self, host: &str) -> PathBuf {
        // Hosts are letters, digits, dots, dashes, colons and brackets: good file names.
        self.directory.join(host)
    }

    /// Notes that a repository has a blob. Failing is harmless.
    pub(super) fn add(&self, host: &str, repository: &str, digest: Digest) {
        if self
            .find(host, digest)
            .iter()
            .any(|known| known == repository)
        {
            return;
        }
        let path = self.file(host);
        let add = || -> std::io::Result<()> {
            fs_err::create_dir_all(&self.directory)?;
            if fs_err::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_BYTES) {
                let text = fs_err::read_to_string(&path)?;
                let half = text[text.len() / 2..]
                    .split_once('\n')
                    .map_or("", |(_, rest)| rest);
                crate::replace(&path, |error| error, |file| file.write_all(half.as_bytes()))?;
            }
            let mut file = fs_err::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)?;
            // One write, so that lines of several processes do not mix (open(2), O_APPEND).
            file.write_all(format!("{digest} {repository}\n").as_bytes())
        };
        if let Err(error) = add() {
            tracing::debug!(%error, "cannot note where a blob is");
        }
    }

    /// Returns the repositories that are known to have a blob, the one noted last first.
    pub(super) fn find(&self, host: &str, digest: Digest) -> Vec<String> {
        let text = fs_err::read_to_string(self.file(host)).unwrap_or_default();
        let wanted = digest.to_string();
        let facts = text.lines().rev().filter_map(|line| line.split_once(' '));
        facts
            .filter(|(digest, _)| *digest == wanted)
            .map(|(_, repository)| repository.to_owned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_again_and_old_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let known = Known::new(directory.path().join("known"));
        let digest = Digest::of(b"x");
        for repository in ["a", "b/c", "a"] {
            known.add("registry.example:5000", repository, digest);
        }
        assert_eq!(known.find("registry.example:5000", digest), ["b/c", "a"]);
        assert!(known.find("other.example", digest).is_empty());
        let filler = format!("{} filler\n", Digest::of(b"y")).repeat(20_000);
        fs_err::write(directory.path().join("known/registry.example:5000"), filler).unwrap();
        known.add("registry.example:5000", "new", digest);
        assert_eq!(known.find("registry.example:5000", digest), ["new"]);
        let size = fs_err::metadata(directory.path().join("known/registry.example:5000"));
        assert!(size.unwrap().len() < MAX_BYTES);
    }
}
