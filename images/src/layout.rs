// SPDX-License-Identifier: Apache-2.0
//! Reads OCI image layouts: OCI image-spec v1.1 image-layout.md, image-index.md, manifest.md, config.md.
//!
//! Documents and layers of Docker's image manifest v2 schema 2 are taken too: many tools write them into layouts.

use crate::Error;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::platform::Platform;
use bstr::BString;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The annotation that holds a tag (image-layout.md, "index.json").
const TAG: &str = "org.opencontainers.image.ref.name";
/// The largest JSON document; registries need not take larger manifests (OCI distribution-spec v1.1, "Pushing Manifests").
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// Indexes within indexes.
const MAX_NESTING: usize = 4;

/// One layer of an image.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The blob's file.
    pub(crate) path: PathBuf,
    /// Where it is in an archive of images that is held open; without one the file is the blob.
    pub(crate) part: Option<Part>,
    /// The digest of the blob, where its format has one.
    pub(crate) digest: Option<Digest>,
    /// The blob's size in bytes.
    pub(crate) size: u64,
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// What its manifest says that it is; empty where the format has none.
    pub(crate) media_type: String,
}

/// A part of an open file.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
}

/// An image: its layers, lowest first, and its configuration.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: ImageConfig,
}

/// Finds an image in the layout at `path`.
pub(crate) fn read_image(
    path: &Path,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Image, Error> {
    let layout = Layout {
        path,
        name: path,
        platform,
        fetch: None,
    };
    layout.check()?;
    let index: ImageIndex = parse(
        "image index",
        &path.join("index.json"),
        &layout.read(&path.join("index.json"))?,
    )?;
    let descriptor = layout.choose(&index, tag)?;
    let manifest = layout.manifest(descriptor, 0)?;
    layout.image(&manifest)
}

/// Fetches a document that may not be there yet: a manifest or an index when the flag is set, else a configuration.
pub(crate) type FetchDocument<'a> = &'a dyn Fn(Digest, bool) -> Result<(), Error>;

/// Reads the image whose manifest or index has this digest, from a directory of blobs that `fetch` fills. `name` is for messages.
pub(crate) fn read_fetched(
    path: &Path,
    name: &str,
    digest: Digest,
    platform: &Platform,
    fetch: FetchDocument<'_>,
) -> Result<Image, Error> {
    let layout = Layout {
        path,
        name: Path::new(name),
        platform,
        fetch: Some(fetch),
    };
    let (file, bytes) = layout.blob(digest, true)?;
    let shape: Shape = parse("image manifest", &file, &bytes)?;
    let manifest = match (&shape.manifests, &shape.layers) {
        // A document that is both could be read as either (CVE-2021-41190).
        (Some(_), Some(_)) => return Err(layout.bad("it is both an index and a manifest")),
        (Some(_), None) => layout.pick(&file, &bytes, 0)?,
        _ if shape.schema_version == Some(1) => {
            let old = "its manifest is of Docker's version 1, which is not supported; push it again with a newer tool";
            return Err(layout.bad(old));
        }
        _ => parse("image manifest", &file, &bytes)?,
    };
    layout.image(&manifest)
}

/// What tells an index from a manifest where no media type does.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

struct Layout<'a> {
    path: &'a Path,
    /// The path, or what people know the image by.
    name: &'a Path,
    platform: &'a Platform,
    fetch: Option<FetchDocument<'a>>,
}

impl Layout<'_> {
    /// Tells a missing or foreign directory from a damaged layout.
    fn check(&self) -> Result<(), Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let not_usable = |reason: &str| Error::NotUsable {
            path: self.path.to_owned(),
            wanted: "an OCI image layout",
            reason: reason.to_owned(),
        };
        match fs_err::metadata(self.path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(not_usable("it is no directory")),
            Err(error) if is_missing(&error) => {
                return Err(not_usable("there is no such directory"));
            }
            Err(error) => return Err(Error::io("open", self.path, error)),
        }
        let file = self.path.join("oci-layout");
        if matches!(fs_err::metadata(&file), Err(error) if is_missing(&error)) {
            return Err(not_usable("it has no oci-layout file"));
        }
        let marker: Marker = parse("OCI layout marker", &file, &self.read(&file)?)?;
        if !marker.image_layout_version.starts_with("1.") {
            return Err(not_usable(&format!(
                "its version is {}, not 1",
                marker.image_layout_version
            )));
        }
        Ok(())
    }

    /// Reads a small file.
    fn read(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let missing = |what: &str| Error::MissingBlob {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        // Opening a pipe would wait for ever.
        if fs_err::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(self.bad(format!("{} is no file", path.display())));
        }
        let file = match fs_err::File::open(path) {
            Ok(file) => file,
            Err(error) if is_missing(&error) => return Err(missing("a document of the image")),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", path, error))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(self.bad(format!("{} is larger than 4 MiB", path.display())));
        }
        Ok(bytes)
    }

    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadImage {
            layout: self.name.to_owned(),
            reason: reason.into(),
        }
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.digits())
    }

    fn digest(&self, text: &str) -> Result<Digest, Error> {
        Digest::parse(text).map_err(|reason| self.bad(reason))
    }

    /// Reads a document and checks that it is the one that the descriptor means.
    fn document(&self, descriptor: &Descriptor) -> Result<(PathBuf, Vec<u8>), Error> {
        let expected = self.digest(descriptor.digest().as_ref())?;
        self.blob(expected, kind_of(descriptor.media_type()).is_some())
    }

    fn blob(&self, expected: Digest, is_manifest: bool) -> Result<(PathBuf, Vec<u8>), Error> {
        if let Some(fetch) = self.fetch {
            fetch(expected, is_manifest)?;
        }
        let path = self.blob_path(expected);
        let bytes = self.read(&path)?;
        let found = Digest::of(&bytes);
        if found != expected {
            return Err(Error::Digest {
                path,
                what: "its digest",
                expected,
                found,
            });
        }
        Ok((path, bytes))
    }

    /// Picks the image with the tag, or the only one.
    fn choose<'i>(
        &self,
        index: &'i ImageIndex,
        tag: Option<&str>,
    ) -> Result<&'i Descriptor, Error> {
        let tag_of = |descriptor: &'i Descriptor| {
            descriptor
                .annotations()
                .as_ref()?
                .get(TAG)
                .map(String::as_str)
        };
        let candidates: Vec<&Descriptor> = index
            .manifests()
            .iter()
            .filter(|descriptor| tag.is_none() || tag_of(descriptor) == tag)
            .collect();
        let tags = || {
            let mut tags: Vec<String> = index
                .manifests()
                .iter()
                .filter_map(tag_of)
                .map(str::to_owned)
                .collect();
            tags.sort();
            tags.dedup();
            tags
        };
        match (candidates.as_slice(), tag) {
            ([], None) => Err(self.bad("it holds no images")),
            ([], Some(tag)) => Err(Error::NoSuchTag {
                layout: self.path.to_owned(),
                tag: tag.to_owned(),
                tags: tags(),
            }),
            ([one], _) => Ok(one),
            (several, _) => {
                let fitting: Vec<_> = several
                    .iter()
                    .filter(|candidate| self.fits(candidate))
                    .collect();
                match fitting.as_slice() {
                    [one] => Ok(one),
                    [] => Err(self.no_platform(several.iter().copied())),
                    _ => Err(Error::Ambiguous {
                        layout: self.path.to_owned(),
                        count: fitting.len(),
                        tags: tags(),
                    }),
                }
            }
        }
    }

    /// Returns whether a descriptor is for the wanted platform; one that does not say may be.
    fn fits(&self, descriptor: &Descriptor) -> bool {
        descriptor.platform().as_ref().is_none_or(|platform| {
            self.platform.takes(
                &platform.os().to_string(),
                &platform.architecture().to_string(),
                platform.variant().as_deref(),
            )
        })
    }

    fn no_platform<'i>(&self, descriptors: impl Iterator<Item = &'i Descriptor>) -> Error {
        let mut platforms: Vec<String> = descriptors
            .filter_map(|descriptor| descriptor.platform().as_ref())
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            // BuildKit keeps attestations in the index under this platform.
            .filter(|platform| platform != "unknown/unknown")
            .collect();
        platforms.sort();
        platforms.dedup();
        Error::NoSuchPlatform {
            layout: self.name.to_owned(),
            wanted: self.platform.to_string(),
            platforms,
        }
    }

    /// Follows indexes down to the manifest for this machine.
    fn manifest(&self, descriptor: &Descriptor, nesting: usize) -> Result<ImageManifest, Error> {
        match kind_of(descriptor.media_type()) {
            Some(Document::Manifest) => {
                let (path, bytes) = self.document(descriptor)?;
                parse("image manifest", &path, &bytes)
            }
            Some(Document::Index) if nesting < MAX_NESTING => {
                let (path, bytes) = self.document(descriptor)?;
                self.pick(&path, &bytes, nesting)
            }
            Some(Document::Index) => Err(self.bad("its indexes are nested too deeply")),
            None => Err(self.bad(format!(
                "it is a {}, not a container image",
                descriptor.media_type()
            ))),
        }
    }

    /// Picks the manifest for the platform out of an index.
    fn pick(&self, path: &Path, bytes: &[u8], nesting: usize) -> Result<ImageManifest, Error> {
        let index: ImageIndex = parse("image index", path, bytes)?;
        let chosen = index
            .manifests()
            .iter()
            .find(|descriptor| self.fits(descriptor));
        let chosen = chosen.ok_or_else(|| self.no_platform(index.manifests().iter()))?;
        self.manifest(chosen, nesting + 1)
    }

    fn image(&self, manifest: &ImageManifest) -> Result<Image, Error> {
        let kind = manifest.config().media_type().to_string();
        if !matches!(
            kind.as_str(),
            "application/vnd.oci.image.config.v1+json"
                | "application/vnd.docker.container.image.v1+json"
        ) {
            return Err(self.bad(format!(
                "its configuration is a {kind}: it is an artifact, not a container image"
            )));
        }
        let (path, bytes) = self.document(manifest.config())?;
        let (diff_ids, config) = read_configuration(&path, &bytes)?;
        if diff_ids.len() != manifest.layers().len() {
            return Err(self.bad(format!(
                "its manifest has {} layers, but its configuration {}",
                manifest.layers().len(),
                diff_ids.len()
            )));
        }
        let layers = manifest
            .layers()
            .iter()
            .zip(&diff_ids)
            .map(|(descriptor, diff_id)| self.layer(descriptor, diff_id));
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Image { layers, config })
    }

    fn layer(&self, descriptor: &Descriptor, diff_id: &str) -> Result<Layer, Error> {
        let kind = descriptor.media_type().to_string();
        match kind.as_str() {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {}
            _ if kind.contains("nondistributable") || kind.contains("foreign") => {
                return Err(self.bad(format!("a layer of it may not be distributed ({kind})")));
            }
            _ => return Err(self.bad(format!("a layer of it is of the unknown type {kind}"))),
        }
        let digest = self.digest(descriptor.digest().as_ref())?;
        Ok(Layer {
            path: self.blob_path(digest),
            part: None,
            digest: Some(digest),
            size: descriptor.size(),
            diff_id: self.digest(diff_id)?,
            media_type: descriptor.media_type().to_string(),
        })
    }
}

/// Reads an image's configuration: the digests of its uncompressed layers, and what it says about processes.
pub(crate) fn read_configuration(
    path: &Path,
    bytes: &[u8],
) -> Result<(Vec<String>, ImageConfig), Error> {
    let configuration: ImageConfiguration = parse("image configuration", path, bytes)?;
    let extension: Extension = parse("image configuration", path, bytes)?;
    let config = image_config(path, &configuration, extension)?;
    Ok((configuration.rootfs().diff_ids().clone(), config))
}

fn parse<T: DeserializeOwned>(what: &'static str, path: &Path, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json {
        path: path.to_owned(),
        what,
        source,
    })
}

enum Document {
    Index,
    Manifest,
}

fn kind_of(media_type: &MediaType) -> Option<Document> {
    match media_type.to_string().as_str() {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Document::Index),
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Some(Document::Manifest),
        _ => None,
    }
}

/// What Docker adds to the configuration (Docker image specification v1.2).
#[derive(Default, Deserialize)]
struct Extension {
    #[serde(default)]
    config: Option<ExtensionConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExtensionConfig {
    #[serde(default)]
    shell: Option<Vec<String>>,
    #[serde(default)]
    on_build: Option<Vec<String>>,
}

fn image_config(
    path: &Path,
    configuration: &ImageConfiguration,
    extension: Extension,
) -> Result<ImageConfig, Error> {
    let texts = |texts: &Vec<String>| {
        texts
            .iter()
            .map(|text| BString::from(text.as_str()))
            .collect()
    };
    let extension = extension.config.unwrap_or_default();
    let mut result = ImageConfig {
        architecture: configuration.architecture().to_string(),
        variant: configuration.variant().clone(),
        os: configuration.os().to_string(),
        shell: extension.shell.as_ref().map(texts),
        on_build: extension.on_build.unwrap_or_default(),
        ..ImageConfig::default()
    };
    let Some(config) = configuration.config() else {
        return Ok(result);
    };
    for entry in config.env().iter().flatten() {
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => result.env.push((name.into(), value.into())),
            _ => {
                return Err(Error::BadEnvironment {
                    path: path.to_owned(),
                    entry: entry.as_str().into(),
                });
            }
        }
    }
    result.user = config.user().clone().unwrap_or_default().into();
    result.workdir = config.working_dir().clone().unwrap_or_default().into();
    result.entrypoint = config.entrypoint().as_ref().map(texts);
    result.cmd = config.cmd().as_ref().map(texts);
    result.labels = config
        .labels()
        .iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    result.exposed_ports = config.exposed_ports().clone().unwrap_or_default();
    result.volumes = config.volumes().clone().unwrap_or_default();
    result.stop_signal.clone_from(config.stop_signal());
    Ok(result)
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}
