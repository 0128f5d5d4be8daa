// SPDX-License-Identifier: Apache-2.0
//! Archives from the network: http, https and file.
//!
//! What a server sends goes straight to a file of the cache and through the hashes; memory holds a quarter of a megabyte of
//! a download at most. Nothing here judges whether the bytes are right: that is for checksums, so a page of HTML with
//! status 200 is a download like any other.

mod error;
mod hosts;
mod http;
mod local;
mod wait;

pub use error::FetchError;
pub(crate) use error::chain;
pub(crate) use wait::back_off;

use crate::cache::{Cache, Counters, Finished};
use hosts::Hosts;
use reqwest::Url;
use reqwest::redirect::Policy;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How archives are fetched.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Requests under way at once.
    pub jobs: usize,
    /// Those of them that go to one host.
    pub per_host: usize,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// A server that sends less than [`slowest`](Self::slowest) over this time is given up.
    pub stall_timeout: Duration,
    /// The least bytes a second.
    pub slowest: u64,
    /// How long one archive may take from one URL, however steadily it comes.
    pub deadline: Duration,
    /// How often a URL is tried when the failure may pass, the first time included.
    pub attempts: u32,
    /// The wait before the second attempt; it doubles each time.
    pub back_off: Duration,
    /// The longest wait between attempts. A server that asks for a longer one is left for another day.
    pub longest_wait: Duration,
    /// The most redirects followed.
    pub redirects: usize,
    /// Nothing larger is an archive.
    pub largest: u64,
    /// The proxy for all requests.
    pub proxy: Option<String>,
    /// Whether `file:` URLs are followed. A repository from elsewhere has no business with files of this machine.
    pub files: bool,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            jobs: 32,
            per_host: 8,
            connect_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(30),
            slowest: 1024,
            deadline: Duration::from_mins(30),
            attempts: 4,
            back_off: Duration::from_secs(1),
            longest_wait: Duration::from_secs(30),
            redirects: 10,
            largest: 4 << 30,
            proxy: None,
            files: false,
        }
    }
}

/// Fetches, with all the limits.
#[derive(Debug)]
pub struct Fetcher {
    client: reqwest::Client,
    options: FetchOptions,
    hosts: Hosts,
    jobs: Semaphore,
    counters: Arc<Counters>,
}

/// Something came.
#[derive(Debug)]
pub struct Fetched {
    /// What came, hashed and not yet judged.
    pub file: Finished,
    /// Whether the server called it a page of HTML.
    pub html: bool,
    /// Whether an earlier process received the beginning of it.
    pub resumed: bool,
}

impl Fetcher {
    /// Makes a client.
    pub fn new(options: FetchOptions, counters: Arc<Counters>) -> Result<Self, FetchError> {
        // Somebody may have chosen one before; ring it is then, or whatever they chose.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("obuild/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            .redirect(Policy::limited(options.redirects))
            .pool_max_idle_per_host(options.per_host)
            .referer(false)
            .no_proxy();
        if let Some(proxy) = &options.proxy {
            client = client.proxy(reqwest::Proxy::all(proxy).map_err(FetchError::client)?);
        }
        Ok(Self {
            client: client.build().map_err(FetchError::client)?,
            hosts: Hosts::new(options.per_host),
            jobs: Semaphore::new(options.jobs.max(1)),
            options,
            counters,
        })
    }

    /// Fetches what a URL leads to into a file beside the cache. `trusted` URLs may be of local files in any case.
    ///
    /// # Cancel safety
    ///
    /// What has come is thrown away, but for the beginning of a long archive, with which [`Cache::resume`] goes on.
    pub async fn fetch(
        &self,
        url: &str,
        trusted: bool,
        cache: &Cache,
        sha384: bool,
    ) -> Result<Fetched, FetchError> {
        let url = Url::parse(url).map_err(|error| FetchError::Url(error.to_string()))?;
        let fetched = async {
            match url.scheme() {
                "http" | "https" => self.fetch_http(&url, cache, sha384).await,
                "file" if self.options.files || trusted => {
                    self.fetch_file(&url, cache, sha384).await
                }
                "file" => Err(FetchError::FilesForbidden),
                scheme => Err(FetchError::Scheme(scheme.to_owned())),
            }
        };
        tokio::time::timeout(self.options.deadline, fetched)
            .await
            .unwrap_or(Err(FetchError::Deadline(self.options.deadline)))
    }
}

/// Returns the host that a URL leads to, for queues and limits.
pub(crate) fn host(url: &str) -> String {
    Url::parse(url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default()
}
