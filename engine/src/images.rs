// SPDX-License-Identifier: Apache-2.0
//! Images made of results: their configuration is noted when they are built, so that they can be made at any time later.

use crate::{Engine, Error, blocking};
use bstr::BString;
use obuild_images::{Image, ImageConfig, ImageRequest, LayerOptions, Resolved};
use obuild_specs::{NodeIndex, Operation, Plan, Run, User};
use obuild_stores::SnapshotId;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// How an image is made of a result.
#[derive(Clone, Debug, Default)]
pub struct ImageSettings {
    /// Whether each step has a layer of its own; else what the build changed is one.
    pub per_step: bool,
    /// How layers are made.
    pub layers: LayerOptions,
    /// What it says of the processes that run in it; see [`Engine::image_config`].
    pub config: ImageConfig,
    /// What its manifest says besides.
    pub annotations: BTreeMap<String, String>,
}

impl Engine {
    /// Returns what a build that had this result said of processes: its last environment, user and working directory, and what its base image has besides.
    /// Of a result in the middle of a build, or of a step that failed, what the last command saw; of one that nothing is known of, the default.
    pub async fn image_config(&self, id: SnapshotId) -> Result<ImageConfig, Error> {
        if let Some(config) = self.remembered_config(id)? {
            return Ok(config);
        }
        let config = self.database().await?.config(id).await?;
        Ok(config
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default())
    }

    fn remembered_config(&self, id: SnapshotId) -> Result<Option<ImageConfig>, Error> {
        let path = self.config_path(id);
        match fs_err::read(&path) {
            // What a crash has damaged comes back with the next build.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    fn config_path(&self, id: SnapshotId) -> PathBuf {
        self.state().join("configs").join(id.to_string())
    }

    /// Notes a result's configuration, and what the images were that it may stand on.
    pub(crate) fn remember_images(
        &self,
        id: SnapshotId,
        config: &ImageConfig,
        bases: &HashMap<String, Arc<Resolved>>,
    ) -> Result<(), Error> {
        for base in bases.values() {
            obuild_images::remember_base(self.store(), base).map_err(Error::Image)?;
        }
        let path = self.config_path(id);
        if self.remembered_config(id)?.as_ref() == Some(config) {
            return Ok(());
        }
        let failed = |source| Error::Io {
            action: "write",
            path: path.clone(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs_err::create_dir_all(directory).map_err(failed)?;
        }
        let text = serde_json::to_vec(config).map_err(|error| failed(error.into()))?;
        obuild_images::replace(&path, failed, |file| file.write_all(&text).map_err(failed))
    }

    /// Forgets layers and configurations of results that are gone.
    pub(crate) fn sweep_images(&self) -> Result<(), Error> {
        obuild_images::forget_layers(self.store()).map_err(Error::Image)?;
        for name in ["configs", "bases"] {
            let directory = self.state().join(name);
            let Ok(entries) = fs_err::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let id = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok());
                let stays = match id {
                    Some(id) => self.store().get(id).map_err(Error::Store)?.is_some(),
                    None => false,
                };
                if !stays {
                    // Somebody else may have done it.
                    let _ = fs_err::remove_file(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Makes an image of a result. What was made of it before is not made again.
    pub async fn image(
        self: &Arc<Self>,
        id: SnapshotId,
        settings: ImageSettings,
        cancel: &CancellationToken,
    ) -> Result<Image, Error> {
        let engine = Arc::clone(self);
        let chain = blocking(move || {
            let mut chain = Vec::new();
            let mut next = Some(id);
            while let Some(id) = next {
                chain.push(id);
                let snapshot = engine.store().get(id).map_err(Error::Store)?;
                next = snapshot
                    .ok_or_else(|| Error::NoSuchStep(id.to_string()))?
                    .parent;
            }
            Ok(chain)
        })
        .await?;
        let headings = self.database().await?.headings(&chain).await?;
        let (engine, token) = (Arc::clone(self), cancel.clone());
        blocking(move || {
            let request = ImageRequest {
                snapshot: id,
                per_step: settings.per_step,
                layers: settings.layers,
                config: settings.config,
                annotations: settings.annotations,
                heading: &|id| headings.get(&id).cloned(),
            };
            match Image::assemble(engine.store(), &request, &|| token.is_cancelled()) {
                Err(obuild_images::Error::Cancelled) => Err(Error::Cancelled),
                image => image.map_err(Error::Image),
            }
        })
        .await
    }
}

/// Returns what an image of a plan's target says of processes.
pub(crate) fn config_of(plan: &Plan, bases: &HashMap<String, Arc<Resolved>>) -> ImageConfig {
    let mut config = base_of(plan, plan.target)
        .and_then(|reference| bases.get(reference))
        .map(|base| base.config.clone())
        .unwrap_or_default();
    let Some(last) = plan.surroundings.get(&plan.target) else {
        return config;
    };
    config.env.clone_from(&last.env);
    config.workdir.clone_from(&last.workdir);
    config.user = user(&last.user);
    config
}

/// Returns what a command sees around it, for the database.
pub(crate) fn config_around(run: &Run) -> Option<String> {
    let config = ImageConfig {
        env: run.env.clone(),
        workdir: run.workdir.clone(),
        user: user(&run.user),
        ..ImageConfig::default()
    };
    serde_json::to_string(&config).ok()
}

/// As images say it: nothing is root.
fn user(user: &User) -> BString {
    match user {
        User::Ids { uid: 0, gid: 0 } => BString::default(),
        User::Ids { uid, gid } => format!("{uid}:{gid}").into(),
        User::Name(name) => name.clone(),
    }
}

fn base_of(plan: &Plan, mut node: NodeIndex) -> Option<&str> {
    loop {
        match &plan.nodes.get(node)?.operation {
            Operation::Base { reference, .. } => return Some(reference),
            Operation::Run { parent, .. } | Operation::Copy { parent, .. } => node = *parent,
        }
    }
}
