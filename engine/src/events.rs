// SPDX-License-Identifier: Apache-2.0
//! What a build tells while it runs. The JSON form is documented in `docs/src/events.md` and stable.

use serde::Serialize;
use std::time::Duration;

/// One thing that happened in a build. In JSON: one object a line, told apart by `event`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The build knows what it has to do.
    BuildStarted {
        /// How many steps the target needs, cached ones included.
        steps: usize,
    },
    /// A step begins, or its cached result is about to be told.
    StepStarted {
        /// The step's number, from 0, in the order of the plan; other events refer to it.
        step: usize,
        /// The step's id, 64 hexadecimal digits.
        id: String,
        /// Names of the nested build it belongs to, outermost first.
        build: Vec<String>,
        /// The step as the spec has it.
        heading: String,
        /// Operations before it that run nothing (comment, env, user, workdir, shell).
        preamble: Vec<String>,
    },
    /// Another process is running the same step; its output follows.
    StepShared {
        /// The step.
        step: usize,
    },
    /// A piece of the step's output, as it came; pieces end anywhere.
    StepOutput {
        /// The step.
        step: usize,
        /// The bytes; invalid UTF-8 appears as U+FFFD in JSON.
        #[serde(serialize_with = "lossy")]
        data: Vec<u8>,
    },
    /// How far a base import is.
    StepProgress {
        /// The step.
        step: usize,
        /// Bytes read so far.
        done_bytes: u64,
        /// Bytes in all, where known.
        total_bytes: Option<u64>,
    },
    /// A step has its result.
    StepFinished {
        /// The step.
        step: usize,
        /// The step's id.
        id: String,
        /// Where the result came from.
        outcome: Outcome,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        duration: Duration,
    },
    /// A step failed; the build ends.
    StepFailed {
        /// The step.
        step: usize,
        /// The step's id; `obuild log` shows its log.
        id: String,
        /// Why.
        error: String,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        duration: Duration,
    },
    /// Something a person should know.
    Warning {
        /// The text.
        message: String,
    },
    /// The build is done.
    BuildFinished {
        /// The target's id.
        id: String,
        /// Steps that ran.
        built: usize,
        /// Steps whose result was there.
        cached: usize,
        /// Steps whose result was fetched from a cache.
        fetched: usize,
        /// How long it took.
        #[serde(rename = "seconds", serialize_with = "seconds")]
        duration: Duration,
    },
}

/// Where a step's result came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was in the store.
    Cached,
    /// This build ran the step.
    Built,
    /// Another build, in this or another process, ran it meanwhile.
    Shared,
    /// It was in a cache of another machine's.
    Fetched,
}

/// Where events go. Bounded, so that a slow reader slows the build and not its memory.
pub type EventSender = tokio::sync::mpsc::Sender<Event>;

fn lossy<S: serde::Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(data))
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
