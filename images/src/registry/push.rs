// SPDX-License-Identifier: Apache-2.0
//! Pushing images: only what the registry lacks is sent (OCI distribution-spec v1.1, "Push").
//!
//! Blobs go first, several at once: one that the registry has is left alone, one that another of its repositories has is mounted, the rest is
//! uploaded. Manifests follow in their order, so that whoever sees one can get all that it names.

use super::http::Call;
use super::upload::Upload;
use super::{Client, Error, ImageName};
use crate::digest::Digest;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(50);

/// Something that has blobs' bytes.
pub trait BlobSource: Send + Sync {
    /// Opens a blob, past its first `offset` bytes. Called again when a connection was cut.
    fn open(&self, digest: Digest, offset: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// Where a blob's bytes are.
#[derive(Clone)]
pub enum BlobData {
    /// Here.
    Bytes(Arc<[u8]>),
    /// In a file, which has nothing else.
    File(PathBuf),
    /// Wherever this finds them.
    Source(Arc<dyn BlobSource>),
    /// In another repository, perhaps of another registry. They are fetched if they have to be sent, and kept.
    Registry(ImageName),
}

impl fmt::Debug for BlobData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(formatter, "Bytes({} bytes)", bytes.len()),
            Self::File(path) => write!(formatter, "File({})", path.display()),
            Self::Source(_) => formatter.write_str("Source"),
            Self::Registry(name) => write!(formatter, "Registry({name})"),
        }
    }
}

impl BlobData {
    /// Opens the blob.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is in a registry.
    pub fn reader(&self, digest: Digest) -> io::Result<Box<dyn Read + Send>> {
        self.open(digest, 0)
    }

    pub(super) fn open(&self, digest: Digest, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Bytes(bytes) => {
                let mut reader = io::Cursor::new(Arc::clone(bytes));
                reader.set_position(offset);
                Ok(Box::new(reader))
            }
            Self::File(path) => {
                let mut file: File = fs_err::File::open(path)?.into_parts().0;
                file.seek(SeekFrom::Start(offset))?;
                Ok(Box::new(file))
            }
            Self::Source(source) => source.open(digest, offset),
            Self::Registry(_) => Err(io::Error::other("it was not fetched")),
        }
    }
}

/// A blob to be there.
#[derive(Clone, Debug)]
pub struct PushBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, read only if the registry lacks them.
    pub data: BlobData,
}

/// A manifest or an index.
#[derive(Clone, Debug)]
pub struct PushManifest {
    /// Its media type.
    pub media_type: String,
    /// The document.
    pub bytes: Vec<u8>,
}

/// What is pushed.
#[derive(Clone, Debug, Default)]
pub struct PushImage {
    /// Layers and configurations.
    pub blobs: Vec<PushBlob>,
    /// Manifests, each after those that it names. The last one gets the name's tag, the others only their digest.
    pub manifests: Vec<PushManifest>,
}

/// How far a push is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushProgress {
    /// Bytes of blobs that the registry has now, sent or spared.
    pub done_bytes: u64,
    /// Bytes of all blobs.
    pub total_bytes: u64,
}

/// What a push did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushReport {
    /// The digest of the last manifest, by which the image can be pulled.
    pub digest: Digest,
    /// Bytes of blobs and manifests that were sent, those sent twice after a cut included.
    pub sent_bytes: u64,
    /// Bytes of blobs that the registry had, or has mounted.
    pub spared_bytes: u64,
    /// Requests that were made.
    pub requests: u64,
}

/// Counts what happens, for progress and report.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) done: AtomicU64,
    pub(super) sent: AtomicU64,
    spared: AtomicU64,
}

/// Pushes an image, and returns what that took. A name without a tag gets none.
///
/// # Errors
///
/// When the registry refuses or fails, or a blob's bytes cannot be read or are not what its digest says. No manifest is sent before all
/// blobs are there. What was sent stays with the registry, and the next push spares it.
pub fn push(
    client: &Client,
    to: &ImageName,
    image: &PushImage,
    progress: &mut dyn FnMut(PushProgress),
    cancelled: &dyn Fn() -> bool,
) -> Result<PushReport, crate::Error> {
    let pushed = client.wait(cancelled, client.push(to, image, progress));
    pushed.map_err(|error| crate::Error::registry(to, error))
}

impl Client {
    /// Returns the file of a blob that was fetched before and is kept.
    pub fn kept_blob(&self, digest: Digest) -> Option<PathBuf> {
        Some(self.blobs.path(digest)).filter(|path| path.is_file())
    }

    async fn push(
        &self,
        to: &ImageName,
        image: &PushImage,
        progress: &mut dyn FnMut(PushProgress),
    ) -> Result<PushReport, Error> {
        let before = self.transport.requests();
        let counters = Arc::new(Counters::default());
        let total_bytes = image.blobs.iter().map(|blob| blob.size).sum();
        let mut tasks = tokio::task::JoinSet::new();
        let mut seen = std::collections::HashSet::new();
        for blob in &image.blobs {
            if !seen.insert(blob.digest) {
                counters.done.fetch_add(blob.size, Ordering::Relaxed);
                continue;
            }
            let sender = Sender {
                upload: Upload {
                    transport: Arc::clone(&self.transport),
                    host: to.host().to_owned(),
                    repository: to.repository().to_owned(),
                    counters: Arc::clone(&counters),
                },
                elsewhere: self
                    .known
                    .find(to.host(), blob.digest)
                    .into_iter()
                    .filter(|repository| repository != to.repository())
                    .take(1)
                    .collect(),
                kept: self.kept_blob(blob.digest),
                fetched: None,
                blob: blob.clone(),
            };
            let sender = self.with_origin(sender, to);
            let turns = Arc::clone(&self.turns);
            tasks.spawn(async move {
                let _turn = turns.acquire_owned().await;
                sender.send().await
            });
        }
        loop {
            let now = PushProgress {
                done_bytes: counters.done.load(Ordering::Relaxed),
                total_bytes,
            };
            progress(now);
            tokio::select! {
                biased;
                ended = tasks.join_next() => match ended {
                    // The set stops the others when it is dropped.
                    Some(result) => {
                        let digest = result.unwrap_or(Err(Error::Cancelled))?;
                        self.known.add(to.host(), to.repository(), digest);
                    }
                    None => break,
                },
                () = tokio::time::sleep(TICK) => {}
            }
        }
        let mut last = None;
        for (index, manifest) in image.manifests.iter().enumerate() {
            let digest = Digest::of(&manifest.bytes);
            let tag = to.tag().filter(|_| index + 1 == image.manifests.len());
            let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
            self.put_manifest(to, &name, digest, manifest).await?;
            counters
                .sent
                .fetch_add(manifest.bytes.len() as u64, Ordering::Relaxed);
            last = Some(digest);
        }
        Ok(PushReport {
            digest: last.unwrap_or_else(|| Digest::of(b"")),
            sent_bytes: counters.sent.load(Ordering::Relaxed),
            spared_bytes: counters.spared.load(Ordering::Relaxed),
            requests: self.transport.requests() - before,
        })
    }

    /// Sees to it that a blob of another repository is mounted from there, or fetched.
    fn with_origin(&self, mut sender: Sender, to: &ImageName) -> Sender {
        let BlobData::Registry(origin) = &sender.blob.data else {
            return sender;
        };
        if origin.host() == to.host() && origin.repository() != to.repository() {
            sender.elsewhere.insert(0, origin.repository().to_owned());
            sender.elsewhere.truncate(1);
        }
        if sender.kept.is_none() {
            sender.fetched = Some(Origin {
                wanted: self.wanted(origin, sender.blob.digest, sender.blob.size),
                blobs: self.blobs.clone(),
            });
        }
        sender
    }

    async fn put_manifest(
        &self,
        to: &ImageName,
        name: &str,
        digest: Digest,
        manifest: &PushManifest,
    ) -> Result<(), Error> {
        let repository = to.repository();
        let mut call = Call::new(
            Method::PUT,
            to.host(),
            format!("/v2/{repository}/manifests/{name}"),
        )
        .scope(repository, "pull,push")
        .header(CONTENT_TYPE, manifest.media_type.clone())
        .what(format!("push to {repository}"));
        call.body = manifest.bytes.clone().into();
        let put = self.transport.fetch(&call, super::pull::limit()).await?;
        if !put.status.is_success() {
            return Err(put.error(&call));
        }
        match super::pull::content_digest(&put) {
            Some(theirs) if theirs != digest => Err(Error::Lied {
                url: put.url,
                what: format!("it took the manifest {digest} for {theirs}"),
            }),
            _ => Ok(()),
        }
    }
}

/// Where a blob that may have to be sent comes from.
struct Origin {
    wanted: super::download::Wanted,
    blobs: super::blobs::Blobs,
}

/// Brings one blob to the registry.
struct Sender {
    upload: Upload,
    blob: PushBlob,
    /// A repository of the registry that has it.
    elsewhere: Vec<String>,
    /// The file of a copy that was fetched before.
    kept: Option<PathBuf>,
    fetched: Option<Origin>,
}

impl Sender {
    async fn send(self) -> Result<Digest, Error> {
        let (digest, size) = (self.blob.digest, self.blob.size);
        let counters = Arc::clone(&self.upload.counters);
        let spared = || {
            counters.spared.fetch_add(size, Ordering::Relaxed);
            counters.done.fetch_add(size, Ordering::Relaxed);
            Ok(digest)
        };
        if self.upload.is_there(digest).await? {
            return spared();
        }
        let location = match self.elsewhere.first() {
            Some(repository) => match self.upload.mount(digest, repository).await? {
                Some(location) => Some(location),
                None => return spared(),
            },
            None => None,
        };
        let data = match (self.blob.data, self.kept) {
            (BlobData::Registry(_), Some(path)) => BlobData::File(path),
            (BlobData::Registry(_), None) => {
                if let Some(Origin { wanted, blobs }) = &self.fetched {
                    super::download::fetch(&self.upload.transport, blobs, wanted).await?;
                    BlobData::File(blobs.path(digest))
                } else {
                    BlobData::Bytes(Arc::default())
                }
            }
            (data, _) => data,
        };
        self.upload.send(digest, size, &data, location).await?;
        Ok(digest)
    }
}
