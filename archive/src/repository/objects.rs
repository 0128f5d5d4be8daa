// SPDX-License-Identifier: Apache-2.0
//! Objects of a git repository: read in place where that can be done ([`Local`]), else asked of git ([`CatFile`]).
//!
//! Questions are sent many at once and answered in their order.

use super::ahead::Ahead;
use super::cat_file::{CatFile, Header, Kind, broken};
use super::git::Git;
use super::local::{Local, Place};
use super::{Commit, Error};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// The objects of one repository.
#[derive(Debug)]
pub(super) struct Objects {
    local: Option<Local>,
    /// Runs once so much was asked at once that it is worth it.
    ahead: Option<Ahead>,
    /// Runs once it was asked something.
    git: Option<CatFile>,
    directory: PathBuf,
    program: Git,
    cancel: CancellationToken,
    questions: VecDeque<Question>,
    answer: Answer,
}

/// What was asked, and who answers.
#[derive(Debug)]
enum Question {
    /// With its name.
    Local(Place, Vec<u8>),
    /// It is being read already.
    Ahead(Place, Vec<u8>),
    Git,
}

/// From so many asked at once on, objects are read ahead, by more threads than one.
const AHEAD: usize = 256;

/// Where the content of the answer that was begun is.
#[derive(Debug)]
enum Answer {
    None,
    Here(Vec<u8>),
    Git,
    /// A git for this one alone, because the other has answers in line that are wanted later.
    Alone(CatFile),
}

impl Objects {
    /// Opens the repository.
    pub(super) fn start(directory: &Path, git: &Git, cancel: &CancellationToken) -> Self {
        Self {
            local: Local::open(directory),
            ahead: None,
            git: None,
            directory: directory.to_owned(),
            program: git.clone(),
            cancel: cancel.clone(),
            questions: VecDeque::new(),
            answer: Answer::None,
        }
    }

    fn cat_file(&self) -> Result<CatFile, Error> {
        CatFile::start(&self.directory, &self.program, &self.cancel)
    }

    fn git(&mut self) -> Result<&mut CatFile, Error> {
        let git = match self.git.take() {
            Some(git) => git,
            None => self.cat_file()?,
        };
        Ok(self.git.insert(git))
    }

    /// Asks for the contents of objects; the answers are to be taken in the same order.
    pub(super) fn ask<'a>(&mut self, ids: impl Iterator<Item = &'a [u8]>) -> Result<(), Error> {
        let find = |id: &'a [u8]| (id, self.local.as_ref().and_then(|local| local.find(id)));
        let found: Vec<(&[u8], Option<Place>)> = ids.map(find).collect();
        let (here, others): (Vec<_>, Vec<_>) = found.iter().partition(|(_, place)| place.is_some());
        if !others.is_empty() {
            self.git()?.ask(others.into_iter().map(|(id, _)| *id));
        }
        let is_ahead = here.len() >= AHEAD;
        if let Some(local) = self.local.as_ref().filter(|_| is_ahead) {
            let wanted = here
                .into_iter()
                .filter_map(|(id, place)| Some((place.clone()?, id.to_vec())));
            let ahead = self.ahead.get_or_insert_with(|| local.ahead());
            ahead.read(wanted);
        }
        self.questions
            .extend(found.into_iter().map(|(id, place)| match place {
                Some(place) if is_ahead => Question::Ahead(place, id.to_vec()),
                Some(place) => Question::Local(place, id.to_vec()),
                None => Question::Git,
            }));
        Ok(())
    }

    /// Returns the commit that a name means, following tags.
    pub(super) fn commit(&mut self, name: &str) -> Result<Option<Commit>, Error> {
        match self.local.as_mut().and_then(|local| local.commit(name)) {
            Some(id) => hex::encode(id).parse().map(Some),
            None => self.git()?.commit(name),
        }
    }

    /// Returns the object that a commit names, which should be one.
    fn object(&mut self, commit: &Commit) -> Result<Option<(Kind, Vec<u8>)>, Error> {
        let id = hex::decode(commit.as_str()).expect("a commit is digits");
        self.ask([id.as_slice()].into_iter())?;
        let Some(header) = self.header()? else {
            return Ok(None);
        };
        let text = self.content(&header)?;
        Ok(Some((header.kind, text)))
    }

    /// Returns when a commit was made, in seconds since 1970; nothing if it is not there or does not say.
    pub(super) fn committed(&mut self, commit: &Commit) -> Result<Option<u64>, Error> {
        let Some((_, text)) = self.object(commit)? else {
            return Ok(None);
        };
        // `committer NAME <ADDRESS> SECONDS ZONE` (git-commit-tree(1)); the message comes after an empty line.
        let mut lines = text
            .split(|byte| *byte == b'\n')
            .take_while(|line| !line.is_empty());
        let line = lines.find(|line| line.starts_with(b"committer "));
        let seconds = line.and_then(|line| line.rsplit(|byte| *byte == b' ').nth(1));
        Ok(seconds.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
    }

    /// Returns the root tree of a commit, and nothing if there is no such commit.
    pub(super) fn root(&mut self, commit: &Commit) -> Result<Option<Vec<u8>>, Error> {
        let Some((kind, text)) = self.object(commit)? else {
            return Ok(None);
        };
        // git-commit-tree(1) writes the tree first.
        let id = (text.strip_prefix(b"tree ").filter(|_| kind == Kind::Commit))
            .and_then(|rest| rest.get(..commit.as_str().len()))
            .and_then(|digits| hex::decode(digits).ok());
        id.map(Some)
            .ok_or_else(|| broken(format!("the commit {commit} names no tree")))
    }

    /// Takes the start of the next answer; nothing if the object is not there.
    pub(super) fn header(&mut self) -> Result<Option<Header>, Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (place, id, ahead) = match self.questions.pop_front() {
            Some(Question::Local(place, id)) => (place, id, None),
            Some(Question::Ahead(place, id)) => {
                let object = self.ahead.as_mut().and_then(Ahead::next);
                (place, id, object)
            }
            Some(Question::Git) | None => {
                self.answer = Answer::Git;
                return self.git()?.header();
            }
        };
        let mut read = || self.local.as_mut()?.read(&place, &id).ok();
        if let Some((kind, content)) = ahead.or_else(&mut read) {
            let size = content.len() as u64;
            self.answer = Answer::Here(content);
            return Ok(Some(Header { kind, size }));
        }
        let mut alone = self.cat_file()?;
        alone.ask([id.as_slice()].into_iter());
        let header = alone.header();
        self.answer = Answer::Alone(alone);
        header
    }

    /// Takes the rest of the answer.
    pub(super) fn content(&mut self, header: &Header) -> Result<Vec<u8>, Error> {
        match std::mem::replace(&mut self.answer, Answer::None) {
            Answer::Here(content) => Ok(content),
            Answer::Alone(mut git) => git.content(header),
            Answer::Git | Answer::None => self.git()?.content(header),
        }
    }

    /// Throws the rest of the answer away.
    pub(super) fn skip(&mut self, header: &Header) -> Result<(), Error> {
        match std::mem::replace(&mut self.answer, Answer::None) {
            Answer::Here(_) => Ok(()),
            Answer::Alone(mut git) => git.skip(header),
            Answer::Git | Answer::None => self.git()?.skip(header),
        }
    }
}
