// SPDX-License-Identifier: Apache-2.0
//! From a reference to an identity and a configuration, without unpacking anything.

use crate::architecture::host_architecture;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::docker::{self, DaemonImage};
use crate::layout::{Image, Layer, read_image};
use crate::platform::Platform;
use crate::registry::{Client, ImageName};
use crate::stamp::{FileDigests, file_digest};
use crate::{Error, Reference};
use obuild_stores::SnapshotId;
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What resolving needs from its caller.
pub struct ResolveOptions<'a> {
    /// What relative paths are relative to.
    pub base_dir: &'a Path,
    /// Digests of archives that were read before.
    pub digests: &'a dyn FileDigests,
    /// How programs are found and run, for `debootstrap:`.
    pub tools: Tools,
    /// The manifest that an image in a registry had when it was resolved last (see [`Resolved::manifest`]).
    pub remembered: Option<Digest>,
    /// Asked now and then while a large file is hashed.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// How the host's programs are found and run.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The search path, as in `PATH`.
    pub path: OsString,
    /// Variables that name proxies (`http_proxy`, `https_proxy`, `no_proxy`, …), for programs that use the network.
    pub proxies: Vec<(OsString, OsString)>,
    /// The directory of the host's apt configuration.
    pub apt: PathBuf,
    /// What talks to registries; without it only what needs none is resolved.
    pub registry: Option<Arc<Client>>,
    /// When registries are asked.
    pub pull: Pull,
    /// The platform to take of images that are for several; this machine's if none is named.
    pub platform: Option<Platform>,
    /// The Engine API's socket, for `docker-daemon:`.
    pub docker_socket: PathBuf,
}

/// When a registry is asked what a tag means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// Each time.
    Always,
    /// When the image was never resolved before.
    #[default]
    Missing,
    /// Never, and nothing is fetched.
    Never,
}

impl Default for Tools {
    fn default() -> Self {
        Self {
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            proxies: Vec::new(),
            apt: "/etc/apt".into(),
            registry: None,
            pull: Pull::default(),
            platform: None,
            docker_socket: "/var/run/docker.sock".into(),
        }
    }
}

/// A base image whose identity is known and that can be imported.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The snapshot that holds its tree once it is imported. Images with the same layers share it.
    pub id: SnapshotId,
    /// What the image says about processes in it.
    pub config: ImageConfig,
    /// The reference, with absolute paths.
    pub reference: Reference,
    /// The digest of the manifest or index that a registry's tag or digest means, to be remembered.
    pub manifest: Option<Digest>,
    pub(crate) source: Source,
}

/// Where the tree comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Layers {
        layers: Vec<ChainLayer>,
        /// Where layers come from that are not here.
        remote: Option<Remote>,
    },
    Daemon(DaemonImage),
    Tar {
        path: PathBuf,
        digest: Digest,
    },
    Directory {
        path: PathBuf,
        digest: [u8; 32],
    },
    Debootstrap {
        suite: String,
        architecture: String,
        tools: Tools,
    },
    Scratch,
}

/// A repository that has the layers.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) client: Arc<Client>,
    pub(crate) name: ImageName,
    /// Whether layers may be fetched.
    pub(crate) fetch: bool,
}

/// A layer with the snapshot that it and those below it make.
#[derive(Clone, Debug)]
pub(crate) struct ChainLayer {
    pub(crate) id: SnapshotId,
    pub(crate) layer: Layer,
}

impl Resolved {
    fn of_image(
        image: Image,
        reference: Reference,
        manifest: Option<Digest>,
        remote: Option<Remote>,
    ) -> Self {
        let layers = chain(image.layers);
        Self {
            id: layers.last().map_or_else(scratch, |layer| layer.id),
            config: image.config,
            reference,
            manifest,
            source: Source::Layers { layers, remote },
        }
    }
}

/// Finds out what a reference means at this moment.
///
/// Costs a few small reads, except that an archive or a directory whose digest is not remembered is read once.
///
/// # Errors
///
/// When there is no such image or its description is damaged. Whether all of its layers are there and undamaged only
/// [`crate::import`] finds out.
pub fn resolve(reference: &Reference, options: &ResolveOptions<'_>) -> Result<Resolved, Error> {
    let absolute = |path: &Path| options.base_dir.join(path);
    let platform = || {
        options
            .tools
            .platform
            .clone()
            .unwrap_or_else(Platform::host)
    };
    match reference {
        Reference::Scratch => Ok(Resolved {
            id: scratch(),
            config: ImageConfig::default(),
            reference: Reference::Scratch,
            manifest: None,
            source: Source::Scratch,
        }),
        Reference::Oci { path, tag } => {
            let path = absolute(path);
            let image = read_image(&path, tag.as_deref(), &platform())?;
            let reference = Reference::Oci {
                path,
                tag: tag.clone(),
            };
            Ok(Resolved::of_image(image, reference, None, None))
        }
        Reference::DockerArchive { path, image } => {
            let path = absolute(path);
            let file = open_archive(&path)?;
            let client = options.tools.registry.as_ref();
            let file = docker::expand(file, &path, client, options.cancelled)?;
            let found = docker::read_archive(file, &path, image.as_deref())?;
            let reference = Reference::DockerArchive {
                path,
                image: image.clone(),
            };
            Ok(Resolved::of_image(found, reference, None, None))
        }
        Reference::DockerDaemon(name) => {
            let tools = &options.tools;
            let without = || Error::Daemon {
                socket: tools.docker_socket.clone(),
                reason: "this host has no client for it".to_owned(),
            };
            let client = tools.registry.as_ref().ok_or_else(without)?;
            let socket = &tools.docker_socket;
            let (image, diff_ids, config) =
                docker::inspect(client, socket, name, options.cancelled)?;
            let id = chain_id(&diff_ids).map_err(|reason| Error::BadImage {
                layout: reference.to_string().into(),
                reason,
            })?;
            Ok(Resolved {
                id,
                config,
                reference: reference.clone(),
                manifest: None,
                source: Source::Daemon(image),
            })
        }
        Reference::Tar(path) => {
            let path = absolute(path);
            let file = open_archive(&path)?;
            let digest = file_digest(&path, &file, options.digests, options.cancelled)?;
            Ok(Resolved {
                id: identity(b"tar", &[digest.as_bytes()]),
                config: ImageConfig::default(),
                reference: Reference::Tar(path.clone()),
                manifest: None,
                source: Source::Tar { path, digest },
            })
        }
        Reference::Directory(path) => {
            let path = absolute(path);
            let digest = crate::directory::digest(&path, options)?;
            Ok(Resolved {
                id: identity(b"dir", &[&digest]),
                config: ImageConfig::default(),
                reference: Reference::Directory(path.clone()),
                manifest: None,
                source: Source::Directory { path, digest },
            })
        }
        Reference::Debootstrap(suite) => {
            let architecture = host_architecture().to_owned();
            let parts: [&[u8]; 3] = [suite.as_bytes(), architecture.as_bytes(), b"minbase"];
            let config = ImageConfig {
                architecture: architecture.clone(),
                os: "linux".into(),
                ..ImageConfig::default()
            };
            Ok(Resolved {
                id: identity(b"debootstrap", &parts),
                config,
                reference: reference.clone(),
                manifest: None,
                source: Source::Debootstrap {
                    suite: suite.clone(),
                    architecture,
                    tools: options.tools.clone(),
                },
            })
        }
        Reference::Registry(name) => {
            let tools = &options.tools;
            let never = || {
                let image = name.to_string();
                Error::registry(name, crate::registry::Error::NotHere { image })
            };
            let client = tools.registry.as_ref().ok_or_else(never)?;
            let (manifest, image) = client.resolve(
                name,
                tools.platform.as_ref(),
                tools.pull,
                options.remembered,
                options.cancelled,
            )?;
            let remote = Remote {
                client: Arc::clone(client),
                name: name.clone(),
                fetch: tools.pull != Pull::Never,
            };
            Ok(Resolved::of_image(
                image,
                reference.clone(),
                Some(manifest),
                Some(remote),
            ))
        }
    }
}

/// Opens an archive, and refuses what is no file: a pipe would make the caller wait for ever.
pub(crate) fn open_archive(path: &Path) -> Result<File, Error> {
    let not_usable = |reason: &str| Error::NotUsable {
        path: path.to_owned(),
        wanted: "an archive of a root file system",
        reason: reason.to_owned(),
    };
    match fs_err::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
            return Err(not_usable("it is empty"));
        }
        Ok(metadata) if metadata.is_file() => {}
        Ok(metadata) if metadata.is_dir() => {
            return Err(not_usable("it is a directory (use dir:PATH)"));
        }
        Ok(_) => return Err(not_usable("it is no file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(not_usable("there is no such file"));
        }
        Err(error) => return Err(Error::io("open", path, error)),
    }
    let file = fs_err::File::open(path).map_err(|error| Error::io("open", path, error))?;
    Ok(file.into_parts().0)
}

/// Returns the snapshot of a chain of layers.
fn chain_id(diff_ids: &[String]) -> Result<SnapshotId, String> {
    let mut below = None;
    for diff_id in diff_ids {
        below = Some(link(below, Digest::parse(diff_id)?));
    }
    Ok(below.map_or_else(scratch, |chain| identity(b"layers", &[chain.as_bytes()])))
}

/// Adds a layer to a chain.
fn link(below: Option<Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// Names each layer by the chain that ends with it (OCI image-spec v1.1 config.md, "Layer `ChainID`").
pub(crate) fn chain(layers: Vec<Layer>) -> Vec<ChainLayer> {
    let mut below: Option<Digest> = None;
    let name = |layer: Layer| {
        let chain = link(below, layer.diff_id);
        below = Some(chain);
        ChainLayer {
            id: identity(b"layers", &[chain.as_bytes()]),
            layer,
        }
    };
    layers.into_iter().map(name).collect()
}

/// The id of the empty tree.
pub(crate) fn scratch() -> SnapshotId {
    identity(b"scratch", &[])
}

/// Hashes a kind and length-prefixed parts, apart from all other uses of SHA-256 in a store.
fn identity(kind: &[u8], parts: &[&[u8]]) -> SnapshotId {
    let mut hash = Sha256::new();
    hash.update(b"obuild base image 1\0");
    for part in std::iter::once(&kind).chain(parts) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    SnapshotId::from_digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::{Layer, chain};
    use crate::digest::Digest;

    #[test]
    fn layers_are_named_by_their_chain() {
        let layer = |byte| Layer {
            path: "x".into(),
            part: None,
            digest: None,
            size: 1,
            diff_id: Digest([byte; 32]),
            media_type: String::new(),
        };
        let one = chain(vec![layer(1), layer(2), layer(3)]);
        let other = chain(vec![layer(1), layer(2), layer(4)]);
        let swapped = chain(vec![layer(2), layer(1)]);
        assert_eq!(one[1].id, other[1].id);
        assert_ne!(one[2].id, other[2].id);
        assert_ne!(one[1].id, swapped[1].id);
        assert_ne!(one[0].id, one[1].id);
    }
}
