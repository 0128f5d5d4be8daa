// SPDX-License-Identifier: Apache-2.0
//! Why an archive did not come.

use crate::cache::CacheError;
use std::error::Error;
use std::time::Duration;

/// Why an archive did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody can read the URL.
    #[error("the URL cannot be read: {0}")]
    Url(String),
    /// The URL is not one for archives.
    #[error(
        "{0}: URLs are not fetched, only http, https and file; `mirrors:` beside it or --upstream-cache can name a place that has it"
    )]
    Scheme(String),
    /// A repository that is not local names a local file.
    #[error("file: URLs are followed in local repositories only, unless --file-urls is given")]
    FilesForbidden,
    /// The server says no.
    #[error("the server answers {status}{}", wait_text(.retry_after.as_ref()))]
    Status {
        /// The status and its usual name.
        status: reqwest::StatusCode,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke.
    #[error("{0}")]
    Transport(String),
    /// The server sends nothing, or next to nothing.
    #[error("the server has sent {bytes} bytes in {} seconds", .time.as_secs())]
    Stalled {
        /// How much came.
        bytes: u64,
        /// In which time.
        time: Duration,
    },
    /// It would not end.
    #[error("it was not complete after {} seconds", .0.as_secs())]
    Deadline(Duration),
    /// The server sends more than an archive can have.
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// From one URL to another without end.
    #[error("too many redirects")]
    Redirects,
    /// The server does not continue where it was asked to.
    #[error("the server sent another range than was asked for")]
    Range,
    /// A local file cannot be read.
    #[error("the file cannot be read: {0}")]
    File(#[source] std::io::Error),
    /// The client cannot be set up.
    #[error("no client can be made: {0}")]
    Client(String),
    /// Our own disk: it is no use to go on.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl FetchError {
    pub(super) fn client(error: reqwest::Error) -> Self {
        Self::Client(chain(&error.without_url()))
    }

    pub(super) fn transport(error: reqwest::Error) -> Self {
        if error.is_redirect() {
            return Self::Redirects;
        }
        Self::Transport(chain(&error.without_url()))
    }

    /// Returns whether it may go better in a moment.
    pub(super) fn passes(&self) -> bool {
        match self {
            // RFC 9110 §15: these say nothing of the resource, only of now.
            Self::Status { status, .. } => {
                matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504)
            }
            Self::Transport(_) | Self::Stalled { .. } | Self::Range => true,
            _ => false,
        }
    }

    /// Returns how long the server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

fn wait_text(wait: Option<&Duration>) -> String {
    wait.map_or_else(String::new, |wait| {
        format!(", to be asked again after {} seconds", wait.as_secs())
    })
}

/// Returns an error with its causes, each once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}
