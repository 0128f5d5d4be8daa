// SPDX-License-Identifier: Apache-2.0
//! Runs one step to its end: a draft is prepared, filled, and committed or thrown away. Blocking.

use crate::elsewhere;
use crate::fetch::Fetch;
use crate::log::Writer;
use crate::users;
use crate::{Engine, Error, Settings};
use obuild_images::Fetching;
use obuild_images::tree::{self, CopyRequest, Manifest, ScanRequest, SourceKind};
use obuild_sandboxes::{Cancel, Command, Exit, Mount, MountSource, Network, Secret, Stdio, User};
use obuild_specs::{Copy, Run, StepId};
use obuild_stores::{CacheLease, Draft, OverlayMount, SnapshotId, Store};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

/// One step, with everything that running it needs.
pub(crate) struct Job {
    /// The step's identity.
    pub(crate) step: StepId,
    /// The name its result gets; differs from `step` when `--no-cache` runs it again.
    pub(crate) id: SnapshotId,
    pub(crate) heading: String,
    pub(crate) work: Work,
    pub(crate) settings: Arc<Settings>,
    /// What a step whose result is fetched waits for, while its layer comes.
    pub(crate) ready: Option<Ready>,
}

/// Ends when what a step stands on is there.
pub(crate) type Ready = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// What a step does, with its sources known by their snapshots.
pub(crate) enum Work {
    Base(Arc<obuild_images::Resolved>),
    /// Its result is fetched.
    Fetch(Box<Fetch>),
    Run {
        parent: SnapshotId,
        run: Run,
    },
    Copy {
        parent: SnapshotId,
        copy: Copy,
        from: Source,
        scanned: Option<Arc<Scanned>>,
    },
}

/// Where a copy reads from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Context(PathBuf),
    Snapshot(SnapshotId),
}

/// What a copy copies, with the root that it was found in held open: a tree that is mounted anew would have another
/// device number, and its files would seem to have changed.
pub(crate) struct Scanned {
    pub(crate) manifest: Manifest,
    pub(crate) root: OwnedFd,
}

/// How far a base import is: bytes done and in all.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, Option<u64>);

impl Job {
    /// Returns the kind that the database and people know the step by.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.work {
            Work::Base(_) => "base",
            Work::Run { .. } => "run",
            Work::Copy { .. } => "copy",
            Work::Fetch(fetch) => fetch.kind(),
        }
    }

    /// Returns the snapshot that the step starts from.
    pub(crate) fn parent(&self) -> Option<SnapshotId> {
        match &self.work {
            Work::Base(_) => None,
            Work::Fetch(fetch) => Some(fetch.parent()),
            Work::Run { parent, .. } | Work::Copy { parent, .. } => Some(*parent),
        }
    }

    /// Runs the step and commits its result.
    pub(crate) fn execute(
        &self,
        engine: &Engine,
        fetching: Option<Fetching>,
        log: &mut Writer,
        cancel: &Cancel,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        obuild_images::forget_layers_of(engine.store(), self.id).map_err(Error::Image)?;
        match &self.work {
            Work::Fetch(fetch) => {
                let fetching = match fetching {
                    Some(fetching) => fetching,
                    None => fetch.start()?,
                };
                fetch.execute(engine, self.id, fetching, log, cancel, progress)
            }
            Work::Base(resolved) => Self::import(resolved, engine, log, cancel, progress),
            Work::Run { parent, run } => self.run(engine, *parent, run, log, cancel),
            Work::Copy {
                parent,
                copy,
                from,
                scanned,
            } => self.copy(engine, *parent, copy, from, scanned.as_deref(), cancel),
        }
    }

    fn import(
        resolved: &obuild_images::Resolved,
        engine: &Engine,
        log: &mut Writer,
        cancel: &Cancel,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let mut tell = |event: obuild_images::Progress<'_>| match event {
            obuild_images::Progress::Unpack { bytes, total, .. }
            | obuild_images::Progress::Fetch { bytes, total } => progress(bytes, Some(total)),
            obuild_images::Progress::Copy { bytes } => progress(bytes, None),
            obuild_images::Progress::Present { .. } => {}
            obuild_images::Progress::Line(line) => {
                log.write(line);
                log.write(b"\n");
            }
        };
        match obuild_images::import(resolved, engine.store(), &mut tell, &|| {
            cancel.is_cancelled()
        }) {
            Ok(_) => Ok(()),
            Err(obuild_images::Error::Cancelled) => Err(Error::Cancelled),
            Err(source) => Err(Error::Base {
                reference: resolved.reference.to_string(),
                source: Box::new(source),
            }),
        }
    }

    fn run(
        &self,
        engine: &Engine,
        parent: SnapshotId,
        run: &Run,
        log: &mut Writer,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let store = engine.store();
        let draft = store.prepare(self.id, Some(parent)).map_err(Error::Store)?;
        let mut leases = Vec::new();
        let result = self.run_in(engine, &draft, run, &mut leases, log, cancel);
        // Also after a failure: a download that was made is worth keeping (OBuilder `lib/build.ml`).
        for lease in leases {
            if let Err(error) = store.release_cache(lease) {
                tracing::warn!(%error, "a cache could not be given back; its changes are lost");
            }
        }
        let exit = match result {
            Ok(exit) => exit,
            Err(error) => {
                discard(store, draft);
                return Err(error);
            }
        };
        let reason = match exit {
            Exit::Status(0) => {
                store.commit(draft).map_err(Error::Store)?;
                return Ok(());
            }
            Exit::Cancelled => {
                discard(store, draft);
                return Err(Error::Cancelled);
            }
            Exit::Status(status) => format!("exit status {status}"),
            Exit::Signal(signal) => format!("killed by signal {signal}"),
            Exit::OutOfMemory => {
                "killed because it used more memory than --memory allows".to_owned()
            }
            Exit::TimedOut => match self.settings.limits.timeout {
                Some(timeout) => format!("timed out after {} s", timeout.as_secs_f64()),
                None => "timed out".to_owned(),
            },
        };
        if self.settings.keep_failed {
            self.keep_failed(store, draft)?;
        } else {
            discard(store, draft);
        }
        Err(Error::StepFailed {
            heading: self.heading.clone(),
            id: self.step,
            reason,
        })
    }

    /// Keeps a failed step's tree under an id of its own, so that it can never be taken for a result.
    fn keep_failed(&self, store: &dyn Store, mut draft: Draft) -> Result<(), Error> {
        let id = crate::ids::failed(self.id);
        match store.remove(id) {
            Ok(()) | Err(obuild_stores::Error::HasChildren { .. }) => {}
            Err(error) => return Err(Error::Store(error)),
        }
        draft.rename(id);
        store.commit(draft).map(drop).map_err(Error::Store)
    }

    fn run_in(
        &self,
        engine: &Engine,
        draft: &Draft,
        run: &Run,
        leases: &mut Vec<CacheLease>,
        log: &mut Writer,
        cancel: &Cancel,
    ) -> Result<Exit, Error> {
        let owner = if run.caches.is_empty() {
            (0, 0)
        } else {
            owner(draft, &run.user)?
        };
        let mut mounts = Vec::with_capacity(run.caches.len());
        for cache in &run.caches {
            let lease = engine
                .store()
                .lease_cache(&cache.id, owner)
                .map_err(Error::Store)?;
            mounts.push(Mount {
                source: MountSource::Tree(sandbox_rootfs(&lease.rootfs)),
                target: cache.target.clone(),
                readonly: false,
            });
            leases.push(lease);
        }
        let mut secrets = Vec::with_capacity(run.secrets.len());
        for secret in &run.secrets {
            let value =
                self.settings
                    .secrets
                    .get(&secret.id)
                    .ok_or_else(|| Error::MissingSecret {
                        id: secret.id.to_string(),
                        heading: self.heading.clone(),
                    })?;
            secrets.push(Secret {
                target: secret.target.clone(),
                value: value.clone(),
            });
        }
        let mut command = Command {
            argv: run.argv.clone(),
            env: run.env.clone(),
            workdir: run.workdir.clone(),
            user: match &run.user {
                obuild_specs::User::Ids { uid, gid } => User::Ids {
                    uid: *uid,
                    gid: *gid,
                },
                obuild_specs::User::Name(name) => User::Name(name.clone()),
            },
            // OBuilder's, and part of no id.
            hostname: "builder".to_owned(),
            network: match run.network {
                obuild_specs::Network::None => Network::None,
                obuild_specs::Network::Host => Network::Host,
            },
            mounts,
            secrets,
            limits: self.settings.limits.clone(),
            fast_sync: self.settings.fast_sync,
            no_new_privs: self.settings.no_new_privs,
            variation: None,
        };
        if self.settings.elsewhere {
            elsewhere::vary(&mut command, engine.sandbox().name());
        }
        let mut sink = |data: &[u8]| log.write(data);
        engine
            .sandbox()
            .run(
                &command,
                &step_rootfs(draft.rootfs()),
                Stdio::Capture(&mut sink),
                cancel,
            )
            .map_err(|source| Error::Sandbox {
                heading: self.heading.clone(),
                source,
            })
    }

    fn copy(
        &self,
        engine: &Engine,
        parent: SnapshotId,
        copy: &Copy,
        from: &Source,
        scanned: Option<&Scanned>,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let store = engine.store();
        let now;
        let Scanned {
            manifest,
            root: source,
        } = if let Some(scanned) = scanned {
            scanned
        } else {
            now = scan(
                &self.heading,
                copy,
                from,
                store,
                &mut tree::DigestMemo::default(),
                cancel,
            )?;
            &now
        };
        let draft = store.prepare(self.id, Some(parent)).map_err(Error::Store)?;
        let filled = (|| {
            let owner = owner(&draft, &copy.user)?;
            let root = open_root(&draft)?;
            let upper = draft.rootfs().open_upper().map_err(Error::Store)?;
            let request = CopyRequest {
                dst: &copy.dst,
                owner,
                upper: upper.as_ref().map(AsFd::as_fd),
            };
            tree::copy(manifest, source.as_fd(), root.as_fd(), &request, &|| {
                cancel.is_cancelled()
            })
            .map_err(|source| {
                if cancel.is_cancelled() {
                    Error::Cancelled
                } else {
                    Error::CopyFailed {
                        heading: self.heading.clone(),
                        source: Box::new(source),
                    }
                }
            })
        })();
        match filled {
            Ok(_) => {
                store.commit(draft).map_err(Error::Store)?;
                tracing::debug!(id = %self.id, took = ?began.elapsed(), "copied");
                Ok(())
            }
            Err(error) => {
                discard(store, draft);
                Err(error)
            }
        }
    }
}

/// Returns the user's ids, from the draft's own `/etc/passwd` for a name.
fn owner(draft: &Draft, user: &obuild_specs::User) -> Result<(u32, u32), Error> {
    let (uid, gid) = match user {
        obuild_specs::User::Ids { uid, gid } => (*uid, *gid),
        obuild_specs::User::Name(name) => users::look_up(open_root(draft)?.as_fd(), name)?,
    };
    obuild_rootless::owner(uid, gid).map_err(Error::Unmapped)
}

impl Source {
    /// Opens the root of what is copied from.
    pub(crate) fn open(&self, store: &dyn Store) -> Result<OwnedFd, Error> {
        match self {
            Self::Context(path) => rustix::fs::open(
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|error| Error::Io {
                action: "open the context",
                path: path.clone(),
                source: error.into(),
            }),
            Self::Snapshot(id) => {
                let snapshot = store
                    .get(*id)
                    .and_then(|snapshot| snapshot.ok_or(obuild_stores::Error::NoSuchSnapshot(*id)))
                    .map_err(Error::Store)?;
                snapshot.rootfs.open().map_err(Error::Store)
            }
        }
    }
}

/// Finds out what a copy step copies.
pub(crate) fn scan(
    heading: &str,
    copy: &Copy,
    from: &Source,
    store: &dyn Store,
    memo: &mut tree::DigestMemo,
    cancel: &Cancel,
) -> Result<Scanned, Error> {
    let root = from.open(store)?;
    let kind = match from {
        Source::Context(_) => SourceKind::Context,
        Source::Snapshot(_) => SourceKind::Build,
    };
    let request = ScanRequest {
        src: &copy.src,
        exclude: &copy.exclude,
        kind,
    };
    match tree::scan(root.as_fd(), &request, memo, &|| cancel.is_cancelled()) {
        Ok(manifest) => Ok(Scanned { manifest, root }),
        Err(_) if cancel.is_cancelled() => Err(Error::Cancelled),
        Err(source) => Err(Error::CopyFailed {
            heading: heading.to_owned(),
            source: Box::new(source),
        }),
    }
}

fn open_root(draft: &Draft) -> Result<OwnedFd, Error> {
    draft.rootfs().open().map_err(Error::Store)
}

fn discard(store: &dyn Store, draft: Draft) {
    if let Err(error) = store.discard(draft) {
        tracing::warn!(%error, "a draft could not be removed; the next start does it");
    }
}

/// Turns the tree of a step that is to run into a sandbox's.
fn step_rootfs(rootfs: &obuild_stores::Rootfs) -> obuild_sandboxes::Rootfs {
    let mut turned = sandbox_rootfs(rootfs);
    if let (
        obuild_stores::Rootfs::Overlay(OverlayMount {
            points: Some(points),
            ..
        }),
        obuild_sandboxes::Rootfs::Overlay(mount),
    ) = (rootfs, &mut turned)
    {
        mount.lower.push(points.clone());
    }
    turned
}

/// Turns a store's tree into a sandbox's.
pub fn sandbox_rootfs(rootfs: &obuild_stores::Rootfs) -> obuild_sandboxes::Rootfs {
    match rootfs {
        obuild_stores::Rootfs::Directory(path) => obuild_sandboxes::Rootfs::Directory(path.clone()),
        // Whoever runs something in it holds it open, which keeps it mounted.
        obuild_stores::Rootfs::Dataset(dataset) => {
            obuild_sandboxes::Rootfs::Directory(dataset.mount_point().to_owned())
        }
        obuild_stores::Rootfs::Overlay(mount) => {
            obuild_sandboxes::Rootfs::Overlay(obuild_sandboxes::OverlayMount {
                lower: mount.lower.clone(),
                upper: mount.upper.as_ref().map(|upper| obuild_sandboxes::Upper {
                    upper: upper.upper.clone(),
                    work: upper.work.clone(),
                }),
            })
        }
    }
}
