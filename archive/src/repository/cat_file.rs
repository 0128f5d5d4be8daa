// SPDX-License-Identifier: Apache-2.0
//! Objects of a git repository, by one `git cat-file --batch-command --buffer` (git 2.36 or later; git-cat-file(1)).
//!
//! Questions are sent many at once and answered in their order. A thread of its own writes them, because git stops reading
//! while nobody takes its answers, and pipes may be as small as one page.

use super::git::{self, Git};
use super::{Commit, Error};
use rustix::event::{PollFd, PollFlags};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What an answer starts with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) size: u64,
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Blob,
    Tree,
    Commit,
    Tag,
}

impl Kind {
    /// Returns what git calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Tree => "tree",
            Self::Commit => "commit",
            Self::Tag => "tag",
        }
    }

    /// Reads what git calls it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let kinds = [Self::Blob, Self::Tree, Self::Commit, Self::Tag];
        kinds.into_iter().find(|kind| kind.name() == text)
    }
}

/// A running `git cat-file`.
#[derive(Debug)]
pub(super) struct CatFile {
    child: Child,
    questions: Option<mpsc::Sender<Vec<u8>>>,
    writer: Option<std::thread::JoinHandle<()>>,
    answers: BufReader<Answers>,
    line: Vec<u8>,
}

impl CatFile {
    /// Starts git on the repository.
    pub(super) fn start(
        directory: &Path,
        git: &Git,
        cancel: &CancellationToken,
    ) -> Result<Self, Error> {
        let mut command = git.command(directory);
        command
            .args(["cat-file", "--batch-command", "--buffer"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Whatever it complains of shows in its answers too.
            .stderr(Stdio::null());
        let mut child = git.spawn(&mut command)?;
        let mut stdin = child.stdin.take().expect("asked for");
        let pipe = child.stdout.take().expect("asked for");
        let (questions, received) = mpsc::channel::<Vec<u8>>();
        let writer = std::thread::spawn(move || {
            for text in received {
                // When git is gone, its answers end, and that is noticed.
                if stdin.write_all(&text).is_err() {
                    break;
                }
            }
        });
        let answers = Answers {
            pipe,
            cancel: cancel.clone(),
        };
        Ok(Self {
            child,
            questions: Some(questions),
            writer: Some(writer),
            answers: BufReader::with_capacity(256 << 10, answers),
            line: Vec::new(),
        })
    }

    /// Asks for the contents of objects; the answers are to be taken in the same order.
    pub(super) fn ask<'a>(&self, ids: impl Iterator<Item = &'a [u8]>) {
        let mut text = Vec::new();
        for id in ids {
            text.extend_from_slice(b"contents ");
            let start = text.len();
            text.resize(start + 2 * id.len(), 0);
            hex::encode_to_slice(id, &mut text[start..]).expect("the room is right");
            text.push(b'\n');
        }
        self.send(text);
    }

    fn send(&self, mut text: Vec<u8>) {
        text.extend_from_slice(b"flush\n");
        if let Some(questions) = &self.questions {
            // The writer ends before us only when git does; then the answers end.
            let _ = questions.send(text);
        }
    }

    /// Returns the commit that a name means, following tags.
    pub(super) fn commit(&mut self, name: &str) -> Result<Option<Commit>, Error> {
        self.send(format!("info {name}^{{commit}}\n").into_bytes());
        let header = self.header()?;
        let id = self.line.split(|byte| *byte == b' ').next();
        match header {
            Some(Header {
                kind: Kind::Commit, ..
            }) => {
                let id = String::from_utf8_lossy(id.unwrap_or_default());
                Ok(Some(id.parse()?))
            }
            Some(_) => Err(broken(format!("{name} is no commit"))),
            None => Ok(None),
        }
    }

    /// Takes the start of the next answer; nothing if the object is not there.
    pub(super) fn header(&mut self) -> Result<Option<Header>, Error> {
        self.line.clear();
        self.answers
            .read_until(b'\n', &mut self.line)
            .map_err(ended)?;
        if self.line.pop() != Some(b'\n') {
            return Err(broken("git ended too early".to_owned()));
        }
        if self.line.ends_with(b" missing") {
            return Ok(None);
        }
        let text = std::str::from_utf8(&self.line).unwrap_or_default();
        let mut words = text.split(' ').skip(1);
        let kind = words.next().and_then(Kind::parse);
        let kind = kind.ok_or_else(|| broken(format!("git answered {text:?}")))?;
        let size = words.next().and_then(|word| word.parse().ok());
        let size = size.ok_or_else(|| broken(format!("git answered {text:?}")))?;
        Ok(Some(Header { kind, size }))
    }

    /// Takes the rest of the answer.
    pub(super) fn content(&mut self, header: &Header) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(header.size)
            .map_err(|_| broken(format!("an object has {} bytes", header.size)))?;
        let mut content = vec![0; size];
        self.answers.read_exact(&mut content).map_err(ended)?;
        self.newline()?;
        Ok(content)
    }

    /// Throws the rest of the answer away.
    pub(super) fn skip(&mut self, header: &Header) -> Result<(), Error> {
        let mut rest = (&mut self.answers).take(header.size);
        std::io::copy(&mut rest, &mut std::io::sink()).map_err(ended)?;
        self.newline()
    }

    fn newline(&mut self) -> Result<(), Error> {
        let mut byte = [0];
        self.answers.read_exact(&mut byte).map_err(ended)?;
        if byte == *b"\n" {
            Ok(())
        } else {
            Err(broken("git's answers are out of step".to_owned()))
        }
    }
}

impl Drop for CatFile {
    fn drop(&mut self) {
        // The end of the questions ends git, unless there are answers that nobody took.
        drop(self.questions.take());
        if self.answers.buffer().is_empty() && !self.answers.get_ref().cancel.is_cancelled() {
            for _ in 0..40 {
                if matches!(self.child.try_wait(), Ok(Some(_))) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_micros(500));
            }
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            git::end(&mut self.child);
        }
        if let Some(writer) = self.writer.take() {
            // It only writes to a pipe that is closed now.
            let _ = writer.join();
        }
    }
}

/// The answers, read only while nobody cancels.
#[derive(Debug)]
struct Answers {
    pipe: ChildStdout,
    cancel: CancellationToken,
}

impl Read for Answers {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        git::wait(&mut fds, &self.cancel).map_err(std::io::Error::other)?;
        git::read(&mut self.pipe, buffer)
    }
}

/// Finds our own error again that went through [`Read`].
fn ended(error: std::io::Error) -> Error {
    let shown = error.to_string();
    match error
        .into_inner()
        .map(<dyn std::error::Error + Send + Sync>::downcast::<Error>)
    {
        Some(Ok(own)) => *own,
        _ => broken(format!("git ended too early: {shown}")),
    }
}

pub(super) fn broken(what: String) -> Error {
    Error::Broken { what }
}
