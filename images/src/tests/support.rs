// SPDX-License-Identifier: Apache-2.0
//! What these tests share: a store that counts, layers and layouts made by hand.

use crate::{Digest, Error, NoDigests, Progress, ResolveOptions, Resolved, Tools, import, resolve};
use obuild_fixtures::{FileSystem, root, scratch};
use obuild_stores::{CacheLease, Draft, Options, Snapshot, SnapshotId, Space, Store};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// A scratch directory with a store in it.
pub(super) struct Area {
    pub(super) directory: TempDir,
    pub(super) store: Counting,
}

impl Area {
    /// Makes one, or returns `None` after a loud skip.
    pub(super) fn new() -> Option<Self> {
        if !root() {
            return None;
        }
        let directory = scratch(FileSystem::Default)?;
        let store = open_store(&directory.path().join("store"));
        Some(Self {
            directory,
            store: Counting {
                inner: store,
                prepared: AtomicUsize::new(0),
            },
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Resolves a reference relative to the scratch directory.
    pub(super) fn resolve(&self, reference: &str) -> Result<Resolved, Error> {
        let options = ResolveOptions {
            remembered: None,
            base_dir: self.directory.path(),
            digests: &NoDigests,
            tools: Tools::default(),
            cancelled: &|| false,
        };
        resolve(&reference.parse()?, &options)
    }

    /// Resolves and imports.
    pub(super) fn import(&self, reference: &str) -> Result<SnapshotId, Error> {
        import(
            &self.resolve(reference)?,
            &self.store,
            &mut |_: Progress<'_>| {},
            &|| false,
        )
    }

    /// Opens the tree of a snapshot; what it names is reached through `/proc/self/fd`.
    pub(super) fn tree(&self, id: SnapshotId) -> Tree {
        let snapshot = self
            .store
            .get(id)
            .expect("the store works")
            .expect("the snapshot is there");
        Tree(snapshot.rootfs.open().expect("it opens"))
    }

    /// Says that the store holds nothing: no snapshot and no draft.
    pub(super) fn assert_empty(&self) {
        assert_eq!(self.store.list().expect("the store works"), []);
        let drafts = fs_err::read_dir(self.path("store/drafts")).expect("it is there");
        let left: Vec<PathBuf> = drafts
            .map(|entry| entry.expect("readable").path())
            .filter(|path| fs_err::read_dir(path).is_ok_and(|mut content| content.next().is_some()))
            .collect();
        assert_eq!(left, [] as [PathBuf; 0]);
    }
}

/// Something mounted on a directory until the end of the test.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    /// Runs `mount ARGUMENTS DIRECTORY`; `None` when the machine does not let us.
    pub(super) fn new(arguments: &[&str], directory: &Path) -> Option<Self> {
        let status = Command::new("mount")
            .args(arguments)
            .arg(directory)
            .status();
        status
            .is_ok_and(|status| status.success())
            .then(|| Self(directory.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "{} stays mounted",
            self.0.display()
        );
    }
}

pub(super) fn open_store(path: &Path) -> Arc<dyn Store> {
    let url = format!("overlay:{}", path.display())
        .parse()
        .expect("a good URL");
    obuild_stores::open(&url, &Options::default())
        .expect("an overlay store opens on the test's file system")
}

/// An open tree.
pub(super) struct Tree(OwnedFd);

impl Tree {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).expect("the file is there")
    }

    /// Returns the sorted names in a directory.
    pub(super) fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs_err::read_dir(self.path(directory)).expect("the directory is there");
        let mut names: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

/// Counts how often a snapshot was prepared.
pub(super) struct Counting {
    inner: Arc<dyn Store>,
    prepared: AtomicUsize,
}

impl Counting {
    pub(super) fn prepared(&self) -> usize {
        self.prepared.load(Ordering::SeqCst)
    }
}

impl Store for Counting {
    fn url(&self) -> String {
        self.inner.url()
    }
    fn state_dir(&self) -> &Path {
        self.inner.state_dir()
    }
    fn prepare(
        &self,
        id: SnapshotId,
        parent: Option<SnapshotId>,
    ) -> Result<Draft, obuild_stores::Error> {
        self.prepared.fetch_add(1, Ordering::SeqCst);
        self.inner.prepare(id, parent)
    }
    fn commit(&self, draft: Draft) -> Result<Snapshot, obuild_stores::Error> {
        self.inner.commit(draft)
    }
    fn discard(&self, draft: Draft) -> Result<(), obuild_stores::Error> {
        self.inner.discard(draft)
    }
    fn get(&self, id: SnapshotId) -> Result<Option<Snapshot>, obuild_stores::Error> {
        self.inner.get(id)
    }
    fn remove(&self, id: SnapshotId) -> Result<(), obuild_stores::Error> {
        self.inner.remove(id)
    }
    fn list(&self) -> Result<Vec<(SnapshotId, Option<SnapshotId>)>, obuild_stores::Error> {
        self.inner.list()
    }
    fn size(&self, id: SnapshotId) -> Result<u64, obuild_stores::Error> {
        self.inner.size(id)
    }
    fn space(&self) -> Result<Space, obuild_stores::Error> {
        self.inner.space()
    }
    fn lease_cache(
        &self,
        name: &[u8],
        owner: (u32, u32),
    ) -> Result<CacheLease, obuild_stores::Error> {
        self.inner.lease_cache(name, owner)
    }
    fn release_cache(&self, lease: CacheLease) -> Result<(), obuild_stores::Error> {
        self.inner.release_cache(lease)
    }
    fn caches(&self) -> Result<Vec<(Vec<u8>, u64)>, obuild_stores::Error> {
        self.inner.caches()
    }
    fn delete_cache(&self, name: &[u8]) -> Result<(), obuild_stores::Error> {
        self.inner.delete_cache(name)
    }
    fn sync(&self) -> Result<(), obuild_stores::Error> {
        self.inner.sync()
    }
    fn sweep(&self) -> Result<(), obuild_stores::Error> {
        self.inner.sweep()
    }
}

/// Makes an archive of files.
pub(super) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, content.as_bytes())
            .expect("a vector takes it");
    }
    builder.into_inner().expect("a vector takes it")
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("a vector takes it");
    encoder.finish().expect("a vector takes it")
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("a vector takes it")
}

/// An image layout that is written by hand.
pub(super) struct Layout {
    pub(super) path: PathBuf,
    pub(super) manifests: Vec<Value>,
}

/// Media types of one vendor.
#[derive(Clone, Copy)]
pub(super) struct Types {
    pub(super) index: &'static str,
    pub(super) manifest: &'static str,
    pub(super) config: &'static str,
    pub(super) layer: &'static str,
}

pub(super) const OCI: Types = Types {
    index: "application/vnd.oci.image.index.v1+json",
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

pub(super) const DOCKER: Types = Types {
    index: "application/vnd.docker.distribution.manifest.list.v2+json",
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

impl Layout {
    pub(super) fn new(path: PathBuf) -> Self {
        fs_err::create_dir_all(path.join("blobs/sha256")).expect("made");
        fs_err::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("written");
        Self {
            path,
            manifests: Vec::new(),
        }
    }

    pub(super) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.digits())
    }

    /// Writes a blob and returns its descriptor.
    pub(super) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs_err::write(self.blob_path(digest), bytes).expect("written");
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Writes an image of layers (blob and uncompressed archive) and returns its manifest's descriptor.
    pub(super) fn image(&self, types: Types, layers: &[(Vec<u8>, &[u8])], config: &Value) -> Value {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|(_, plain)| Digest::of(plain).to_string())
            .collect();
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|(blob, _)| self.blob(types.layer, blob))
            .collect();
        self.image_of(types, &json!(descriptors), &json!(diff_ids), config)
    }

    pub(super) fn image_of(
        &self,
        types: Types,
        layers: &Value,
        diff_ids: &Value,
        config: &Value,
    ) -> Value {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.blob(types.config, config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "mediaType": types.manifest, "config": config, "layers": layers});
        self.blob(types.manifest, manifest.to_string().as_bytes())
    }

    /// Lists an image in the index under a tag.
    pub(super) fn tag(&mut self, mut descriptor: Value, tag: Option<&str>) {
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        self.manifests.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs_err::write(self.path.join("index.json"), index.to_string()).expect("written");
    }
}
