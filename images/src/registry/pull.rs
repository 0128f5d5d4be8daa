// SPDX-License-Identifier: Apache-2.0
//! From a name to an image whose layers can be fetched (OCI distribution-spec v1.1, "Pull").

use super::answer::Fetched;
use super::download::{Download, Wanted};
use super::http::Call;
use super::{Client, Error, ImageName};
use crate::digest::Digest;
use crate::layout::{self, Image, Layer, MAX_DOCUMENT};
use crate::platform::Platform;
use crate::resolve::{Pull, Remote};
use reqwest::header::{ACCEPT, HeaderName};
use reqwest::{Method, StatusCode};
use std::sync::Arc;

/// What manifests and indexes we read.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.v2+json";
/// The header with a manifest's digest (OCI distribution-spec v1.1, "Pulling manifests").
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl Client {
    /// Finds out what a name means, and reads that image's documents. `remembered` is the digest that it had the last time.
    pub(crate) fn resolve(
        &self,
        name: &ImageName,
        platform: Option<&Platform>,
        pull: Pull,
        remembered: Option<Digest>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Digest, Image), crate::Error> {
        let wrong = |error| crate::Error::registry(name, error);
        let known = name
            .digest()
            .or(remembered.filter(|_| pull != Pull::Always));
        let digest = match known {
            Some(digest) => digest,
            None if pull == Pull::Never => return Err(wrong(not_here(name))),
            None => self.digest_of(name, cancelled).map_err(wrong)?,
        };
        match self.read(name, digest, platform, pull, cancelled) {
            // The registry does not have any more what the tag meant once.
            Err(crate::Error::Registry { source, .. })
                if matches!(&*source, Error::NotFound { .. })
                    && name.digest().is_none()
                    && known.is_some() =>
            {
                let digest = self.digest_of(name, cancelled).map_err(wrong)?;
                let image = self.read(name, digest, platform, pull, cancelled)?;
                Ok((digest, image))
            }
            image => Ok((digest, image?)),
        }
    }

    /// Reads the documents of an image, fetching those that are not here.
    fn read(
        &self,
        name: &ImageName,
        digest: Digest,
        platform: Option<&Platform>,
        pull: Pull,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Image, crate::Error> {
        let fetch = |digest: Digest, is_manifest: bool| {
            let path = self.blobs.path(digest);
            // A damaged one is fetched again.
            if fs_err::read(&path).is_ok_and(|bytes| Digest::of(&bytes) == digest) {
                return Ok(());
            }
            if pull == Pull::Never {
                return Err(crate::Error::registry(name, not_here(name)));
            }
            self.fetch_document(name, digest, is_manifest, cancelled)
                .map_err(|error| crate::Error::registry(name, error))
        };
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        let title = name.to_string();
        let image = layout::read_fetched(self.blobs.root(), &title, digest, wanted, &fetch)?;
        let found = &image.config;
        // An image for one platform has no index in which to look for another.
        if platform.is_some_and(|wanted| {
            !found.architecture.is_empty()
                && !wanted.takes(&found.os, &found.architecture, found.variant.as_deref())
        }) {
            return Err(crate::Error::NoSuchPlatform {
                layout: title.into(),
                wanted: wanted.to_string(),
                platforms: vec![format!("{}/{}", found.os, found.architecture)],
            });
        }
        Ok(image)
    }

    /// Asks which manifest a tag means at this moment.
    pub(super) fn digest_of(
        &self,
        name: &ImageName,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Digest, Error> {
        let reference = name.reference();
        self.on_hosts(name.host(), cancelled, &|host| {
            let reference = reference.clone();
            async move {
                let repository = name.repository();
                let address = format!("/v2/{repository}/manifests/{reference}");
                let mut call = Call::new(Method::HEAD, &host, address)
                    .scope(repository, "pull")
                    .header(ACCEPT, MANIFESTS)
                    .what(format!("{repository}:{reference}"));
                let head = self.transport.fetch(&call, 0).await?;
                if head.status.is_success()
                    && let Some(digest) = content_digest(&head)
                {
                    return Ok(digest);
                }
                // Some registries do not say without sending it; and an error's words come only with a body.
                call.method = Method::GET;
                let got = self.transport.fetch(&call, limit()).await?;
                if !got.status.is_success() {
                    return Err(got.error(&call));
                }
                let found = Digest::of(&got.body);
                if content_digest(&got).is_some_and(|digest| digest != found) {
                    return Err(Error::Lied {
                        url: got.url,
                        what: format!("its digest is {found}, not what the answer says"),
                    });
                }
                self.blobs.put(found, &got.body)?;
                Ok(found)
            }
        })
    }

    pub(super) fn fetch_document(
        &self,
        name: &ImageName,
        digest: Digest,
        is_manifest: bool,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        self.on_hosts(name.host(), cancelled, &|host| async move {
            let repository = name.repository();
            let kind = if is_manifest { "manifests" } else { "blobs" };
            let mut call = Call::new(
                Method::GET,
                &host,
                format!("/v2/{repository}/{kind}/{digest}"),
            )
            .scope(repository, "pull")
            .what(format!("{repository}@{digest}"));
            if is_manifest {
                call = call.header(ACCEPT, MANIFESTS);
            }
            let got = self.transport.fetch(&call, limit()).await?;
            if got.status != StatusCode::OK {
                return Err(got.error(&call));
            }
            let found = Digest::of(&got.body);
            if found != digest {
                return Err(Error::Lied {
                    url: got.url,
                    what: format!("its digest is {found}"),
                });
            }
            self.blobs.put(digest, &got.body)
        })
    }

    /// Does something with each mirror of a registry until one succeeds, and with the registry itself last.
    fn on_hosts<T, F: Future<Output = Result<T, Error>>>(
        &self,
        host: &str,
        cancelled: &dyn Fn() -> bool,
        action: &dyn Fn(String) -> F,
    ) -> Result<T, Error> {
        self.wait(cancelled, async {
            let mut last = None;
            for host in self.hosts(host) {
                match action(host).await {
                    Ok(result) => return Ok(result),
                    Err(error @ (Error::Io { .. } | Error::Cancelled)) => return Err(error),
                    Err(error) => {
                        if let Some(earlier) = last.replace(error) {
                            tracing::warn!(error = %earlier, "the mirror does not help");
                        }
                    }
                }
            }
            Err(last.unwrap_or(Error::Cancelled))
        })
    }

    /// Says what is to be fetched, and from where.
    pub(super) fn wanted(&self, name: &ImageName, digest: Digest, size: u64) -> Wanted {
        Wanted {
            digest,
            size,
            hosts: self.hosts(name.host()),
            repository: name.repository().to_owned(),
        }
    }

    /// Returns where to look for what a registry has: at its mirrors, then at itself.
    fn hosts(&self, host: &str) -> Vec<String> {
        let options = self.transport.options.hosts.get(host);
        let mut hosts = options.map_or_else(Vec::new, |options| options.mirrors.clone());
        hosts.push(host.to_owned());
        hosts
    }
}

impl Remote {
    /// Begins to fetch a layer, unless it is here.
    pub(crate) fn download(&self, layer: &Layer) -> Result<Option<Download>, crate::Error> {
        let Some(digest) = layer.digest else {
            return Ok(None);
        };
        let client = &self.client;
        if client.blobs.has(digest, layer.size) {
            return Ok(None);
        }
        if !self.fetch {
            return Err(crate::Error::registry(&self.name, not_here(&self.name)));
        }
        let runtime = client
            .runtime()
            .map_err(|error| crate::Error::registry(&self.name, error))?;
        client
            .known
            .add(self.name.host(), self.name.repository(), digest);
        Ok(Some(Download::start(
            runtime,
            Arc::clone(&client.transport),
            Arc::clone(&client.turns),
            client.blobs.clone(),
            client.wanted(&self.name, digest, layer.size),
        )))
    }

    /// Throws away a layer that was kept and is damaged.
    pub(crate) fn forget(&self, layer: &Layer) {
        if let Some(digest) = layer.digest {
            self.client.blobs.remove(digest);
        }
    }
}

/// Reads the digest that a registry says an answer is about.
pub(super) fn content_digest(answer: &Fetched) -> Option<Digest> {
    let value = answer.headers.get(CONTENT_DIGEST)?;
    Digest::parse(value.to_str().ok()?).ok()
}

fn not_here(name: &ImageName) -> Error {
    Error::NotHere {
        image: name.to_string(),
    }
}

/// The size above which no answer but a blob is read.
pub(super) fn limit() -> usize {
    usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX)
}
