// SPDX-License-Identifier: Apache-2.0
//! `file:` URLs.

use super::{FetchError, Fetched, Fetcher};
use crate::cache::{Cache, Counters};
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use reqwest::Url;
use std::io::{self, Read};
use std::sync::Arc;

impl Fetcher {
    pub(super) async fn fetch_file(
        &self,
        url: &Url,
        cache: &Cache,
        sha384: bool,
    ) -> Result<Fetched, FetchError> {
        let path = url
            .to_file_path()
            .map_err(|()| FetchError::Url("it has no path on this machine".to_owned()))?;
        let (cache, counters) = (cache.clone(), Arc::clone(&self.counters));
        let largest = self.options.largest;
        let _permit = self.jobs.acquire().await.expect("it is never closed");
        let copy = move || {
            // A pipe or a device would never end; opening one must not wait either.
            let mut file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
                .open(path)
                .map_err(FetchError::File)?;
            if !file.metadata().map_err(FetchError::File)?.is_file() {
                let error = io::Error::other("it is no regular file");
                return Err(FetchError::File(error));
            }
            let mut incoming = cache.receive(sha384)?;
            let mut buffer = vec![0; 128 * 1024];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => {
                        Counters::add(&counters.bytes, read as u64);
                        incoming.write(&buffer[..read])?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(FetchError::File(error)),
                }
                if incoming.size() > largest {
                    return Err(FetchError::TooLarge(largest));
                }
            }
            Ok(Fetched {
                file: incoming.finish()?,
                html: false,
                resumed: false,
            })
        };
        tokio::task::spawn_blocking(copy)
            .await
            .unwrap_or_else(|error| Err(FetchError::Transport(error.to_string())))
    }
}
