// SPDX-License-Identifier: Apache-2.0
//! How far a sync is, for whoever shows it.

use crate::cache::Counters;
use std::sync::{Arc, Mutex};

/// How far a sync is; read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    /// Archives and bytes.
    pub counters: Arc<Counters>,
    now: Mutex<(Stage, String)>,
}

/// The parts of a sync, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Nothing yet.
    #[default]
    Starting,
    /// Another process works on the archive.
    Waiting,
    /// The repository is asked where its branch is, and fetched if that is news.
    Looking,
    /// Changed opam files are read.
    Reading,
    /// Archives are fetched.
    Fetching,
    /// Index and state are written.
    Writing,
}

impl Progress {
    /// Returns the part that it is in, and what was last said about it.
    ///
    /// # Panics
    ///
    /// Never: nobody panics who has it.
    pub fn now(&self) -> (Stage, String) {
        self.now.lock().expect("nobody panics with it").clone()
    }

    pub(super) fn enter(&self, stage: Stage) {
        *self.now.lock().expect("nobody panics with it") = (stage, String::new());
    }

    pub(super) fn say(&self, line: &str) {
        line.clone_into(&mut self.now.lock().expect("nobody panics with it").1);
    }
}
