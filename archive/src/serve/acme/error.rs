// SPDX-License-Identifier: Apache-2.0
//! Why no certificate came.

use super::super::certificate::Wrong;
use crate::state::StateError;
use std::time::Duration;

/// Why no certificate came.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// The account or the certificate cannot be kept.
    #[error("cannot keep the account or the certificate")]
    Keep(#[source] StateError),
    /// The authority cannot be reached, refuses, or answers nonsense.
    #[error("the certificate authority gives none")]
    Authority(#[from] instant_acme::Error),
    /// It did not find the proof.
    #[error("the certificate authority does not believe that {name} is ours")]
    Unproved {
        name: String,
        #[source]
        problem: Option<instant_acme::Problem>,
    },
    /// It wants another proof.
    #[error("the certificate authority does not let {name} be proved by {challenge}")]
    NotOffered {
        name: String,
        challenge: &'static str,
    },
    /// It wants a proof for a name that was not ordered.
    #[error("the certificate authority asks about {0}, which was not ordered")]
    NotOrdered(String),
    /// The certificate for a proof cannot be made.
    #[error("cannot make a proof")]
    Proof(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The certificate is none, or the key is not its own.
    #[error("the certificate that came is wrong: {}", match .0 { Wrong::Certificate(reason) | Wrong::Key(reason) => reason })]
    Wrong(Wrong),
    /// The certificate is for others.
    #[error("the certificate that came is not for all names")]
    Names,
    /// It is no good any more.
    #[error("the certificate that came has ended already, or the clock is wrong")]
    Over,
    /// All of it took too long.
    #[error("no certificate came within {0:?}")]
    Deadline(Duration),
}
