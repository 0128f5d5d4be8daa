// SPDX-License-Identifier: Apache-2.0
//! A step's log: written by whoever runs the step, read by all who follow, with secrets masked.

use crate::Error;
use fs_err::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// What a follower must know: which file it is reading, and how much of it there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Grows when the log is begun anew.
    pub(crate) attempt: u32,
    /// Bytes written so far.
    pub(crate) length: u64,
}

/// Writes one attempt's log.
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    position: Position,
    published: watch::Sender<Position>,
    mask: Mask,
    failed: Option<std::io::Error>,
}

impl Writer {
    /// Begins the log anew. Readers of an earlier attempt keep their file.
    pub(crate) fn create(
        path: &Path,
        published: &watch::Sender<Position>,
        secrets: Vec<Vec<u8>>,
    ) -> Result<Self, Error> {
        let io = |action, source| Error::Io {
            action,
            path: path.to_owned(),
            source,
        };
        let mut new = fs_err::OpenOptions::new();
        new.create_new(true).append(true);
        let file = match new.open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                fs_err::remove_file(path).map_err(|error| io("replace", error))?;
                new.open(path)
            }
            result => result,
        };
        let file = file.map_err(|error| io("create", error))?;
        let position = Position {
            attempt: published.borrow().attempt + 1,
            length: 0,
        };
        // Nobody needs to wake for a log without content.
        published.send_if_modified(|old| {
            *old = position;
            false
        });
        Ok(Self {
            path: path.to_owned(),
            file,
            position,
            published: published.clone(),
            mask: Mask::new(secrets),
            failed: None,
        })
    }

    /// Adds output. A disk that is full is reported by [`Writer::finish`], so that a step's output never blocks.
    pub(crate) fn write(&mut self, data: &[u8]) {
        let masked = self.mask.push(data);
        self.append(&masked);
    }

    fn append(&mut self, data: &[u8]) {
        if data.is_empty() || self.failed.is_some() {
            return;
        }
        if let Err(error) = self.file.write_all(data) {
            self.failed = Some(error);
            return;
        }
        self.position.length += data.len() as u64;
        self.published.send_replace(self.position);
    }

    /// Ends the log.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        let rest = self.mask.finish();
        self.append(&rest);
        match self.failed {
            Some(source) => Err(Error::Io {
                action: "write",
                path: self.path,
                source,
            }),
            None => Ok(()),
        }
    }
}

/// Follows the log of a step that runs in this or in another process.
pub(crate) struct Reader {
    path: PathBuf,
    file: Option<(u32, File)>,
    offset: u64,
}

impl Reader {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            offset: 0,
        }
    }

    /// Returns the next piece up to `position`, or `None` when all of it has been read.
    pub(crate) fn next(&mut self, position: Position) -> Result<Option<Vec<u8>>, Error> {
        if position.length == 0 {
            // Most steps say nothing, and a cached build looks at all of their logs.
            return Ok(None);
        }
        if self
            .file
            .as_ref()
            .is_none_or(|(attempt, _)| *attempt != position.attempt)
        {
            match File::open(&self.path) {
                Ok(file) => {
                    self.file = Some((position.attempt, file));
                    self.offset = 0;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(source) => {
                    return Err(Error::Io {
                        action: "open",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
        let Some((_, file)) = &mut self.file else {
            return Ok(None);
        };
        let left = position.length.saturating_sub(self.offset).min(64 * 1024);
        if left == 0 {
            return Ok(None);
        }
        let mut data = Vec::new();
        file.take(left)
            .read_to_end(&mut data)
            .map_err(|source| Error::Io {
                action: "read",
                path: self.path.clone(),
                source,
            })?;
        self.offset += data.len() as u64;
        Ok(if data.is_empty() { None } else { Some(data) })
    }
}

/// How often a log that another process writes is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Replaces secrets in a stream by `***`.
///
/// A value is looked for as given and without its final line break. Values under four bytes are not masked: they
/// would turn ordinary output to stars and hide nothing.
pub(crate) struct Mask {
    secrets: Vec<Vec<u8>>,
    longest: usize,
    pending: Vec<u8>,
}

const STARS: &[u8] = b"***";

impl Mask {
    pub(crate) fn new(values: Vec<Vec<u8>>) -> Self {
        let mut secrets: Vec<Vec<u8>> = values
            .into_iter()
            .map(|mut value| {
                while value
                    .last()
                    .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
                {
                    value.pop();
                }
                value
            })
            .filter(|value| value.len() >= 4)
            .collect();
        // Longest first, so that a secret that contains another is masked whole.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        let longest = secrets.first().map_or(0, Vec::len);
        Self {
            secrets,
            longest,
            pending: Vec::new(),
        }
    }

    /// Takes a piece of the stream and returns what can be told already.
    pub(crate) fn push(&mut self, data: &[u8]) -> Vec<u8> {
        if self.secrets.is_empty() {
            return data.to_vec();
        }
        self.pending.extend_from_slice(data);
        let mut out = Vec::with_capacity(self.pending.len());
        let mut at = 0;
        while at < self.pending.len() {
            let rest = &self.pending[at..];
            if let Some(secret) = self.secrets.iter().find(|secret| rest.starts_with(secret)) {
                out.extend_from_slice(STARS);
                at += secret.len();
            } else if rest.len() < self.longest
                && self.secrets.iter().any(|secret| secret.starts_with(rest))
            {
                break;
            } else {
                out.push(rest[0]);
                at += 1;
            }
        }
        self.pending.drain(..at);
        out
    }

    /// Returns what was held back because it could have been a secret's beginning.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(secrets: &[&str], pieces: &[&str]) -> String {
        let mut mask = Mask::new(secrets.iter().map(|s| s.as_bytes().to_vec()).collect());
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(mask.push(piece.as_bytes()));
        }
        out.extend(mask.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secrets_are_masked_wherever_the_pieces_end() {
        assert_eq!(masked(&["hunter2"], &["a hunter2 b"]), "a *** b");
        assert_eq!(
            masked(&["hunter2\n"], &["a hun", "ter", "2 b hunt"]),
            "a *** b hunt"
        );
        assert_eq!(masked(&["abcd", "abcdef"], &["abcdef abcde"]), "*** ***e");
        assert_eq!(masked(&["aaab"], &["aaaab"]), "a***");
        assert_eq!(masked(&["no"], &["no"]), "no");
        assert_eq!(masked(&[], &["x"]), "x");
    }

    #[test]
    fn a_reader_follows_attempts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (sender, receiver) = watch::channel(Position::default());
        let mut reader = Reader::new(path.clone());
        assert_eq!(reader.next(*receiver.borrow()).unwrap(), None);
        let mut writer = Writer::create(&path, &sender, vec![]).unwrap();
        writer.write(b"one");
        assert_eq!(
            reader.next(*receiver.borrow()).unwrap().as_deref(),
            Some(b"one".as_slice())
        );
        assert_eq!(reader.next(*receiver.borrow()).unwrap(), None);
        writer.finish().unwrap();
        let mut writer = Writer::create(&path, &sender, vec![]).unwrap();
        writer.write(b"two");
        assert_eq!(
            reader.next(*receiver.borrow()).unwrap().as_deref(),
            Some(b"two".as_slice())
        );
    }
}
