// SPDX-License-Identifier: Apache-2.0
//! What several commands need to make and sign statements: keys from files, and the provenance of a build.

use crate::cli::{ImageOptions, Run};
use crate::commands::sbom::bill;
use crate::config::Config;
use crate::failure::Failure;
use anyhow::{Context, Result};
use jiff::Timestamp;
use obuild_engine::{BuildResult, Engine, Kind, Settings};
use obuild_images::attest::{
    AttestError, BuildDefinition, Builder, Envelope, Metadata, PROVENANCE, Provenance, PublicKey,
    ResourceDescriptor, RunDetails, SPDX, SigningKey, Statement, sha256,
};
use obuild_images::registry::{AttachError, Client, Signed, attach, sign};
use obuild_images::sbom::Subject;
use obuild_images::{Digest, Resolved};
use obuild_specs::Plan;
use obuild_stores::SnapshotId;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the parameters of our provenance mean: docs/src/provenance.md, "Provenance of builds".
const BUILD_TYPE: &str = "urn:obuild:build:1";
/// Who has built, where the configuration does not say.
const BUILDER: &str = "urn:obuild:builder:local";

/// Reads a private key. The password of one that cosign encrypted is where cosign itself looks for it.
pub(crate) fn read_signing_key(path: &Path) -> Result<SigningKey> {
    let password = std::env::var_os("COSIGN_PASSWORD");
    let password = password.as_deref().map(std::ffi::OsStr::as_encoded_bytes);
    let text = read(path)?;
    SigningKey::parse(&text, password).map_err(|error| key_failure(path, &error))
}

/// Reads a public key.
pub(crate) fn read_public_key(path: &Path) -> Result<PublicKey> {
    PublicKey::parse(&read(path)?).map_err(|error| key_failure(path, &error))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs_err::read(path)
        .map_err(|error| Failure::usage(format!("cannot read the key: {error}")).into())
}

fn key_failure(path: &Path, error: &AttestError) -> anyhow::Error {
    let failure = Failure::usage(format!("{} cannot be used: {error}", path.display()));
    match error {
        AttestError::NoPassword => failure.hint("give it in COSIGN_PASSWORD"),
        AttestError::BadKey { .. } => failure.hint("`obuild key generate` makes a pair of keys"),
        _ => failure,
    }
    .into()
}

/// Turns what is wrong with a signature into an answer: no is a result, and no failure of the host.
pub(crate) fn refused(what: &str, error: &AttestError) -> Failure {
    Failure {
        kind: Kind::Build,
        message: format!("{what}: {error}"),
        hint: None,
    }
}

/// Returns a statement as a document: signed with the key, if there is one.
pub(crate) fn document(statement: &Statement, key: Option<&SigningKey>) -> Result<Value> {
    Ok(match key {
        Some(key) => serde_json::to_value(Envelope::sign(statement, key)?)?,
        None => serde_json::to_value(statement)?,
    })
}

/// What is attached to an image when it is pushed.
pub(crate) struct Attachments {
    pub(crate) key: Option<SigningKey>,
    /// Whether provenance is.
    pub(crate) provenance: bool,
    sbom: bool,
}

impl Attachments {
    /// Sorts out the options, before anything is built. `builds` says that something is built, `file` that its provenance goes to a file too.
    pub(crate) fn parse(
        options: &ImageOptions,
        pushes: bool,
        builds: bool,
        file: bool,
    ) -> Result<Self> {
        let (mut provenance, mut sbom) = (false, false);
        for text in &options.attest {
            match text.as_str() {
                "type=provenance" => provenance = true,
                "type=sbom" => sbom = true,
                _ => {
                    return Err(Failure::usage(format!("{text:?} cannot be attached"))
                        .hint("give type=provenance or type=sbom")
                        .into());
                }
            }
        }
        let path = options.sign_key.as_deref();
        if provenance && !builds {
            return Err(
                Failure::usage("how an old result was built is not known any more")
                    .hint("attach it when it is built: obuild run --push --attest type=provenance")
                    .into(),
            );
        }
        if !pushes && (path.is_some() && !file || !options.attest.is_empty()) {
            return Err(
                Failure::usage("there is nothing to sign: no image is pushed")
                    .hint("add --push and a name with -t")
                    .into(),
            );
        }
        Ok(Self {
            key: path.map(read_signing_key).transpose()?,
            provenance,
            sbom,
        })
    }

    /// Signs the images that were pushed, and attaches what is wanted.
    pub(crate) async fn attach(
        self,
        engine: &Arc<Engine>,
        client: Option<Arc<Client>>,
        id: SnapshotId,
        pushed: Vec<Signed>,
        provenance: Option<Value>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let (Some(key), Some(client), Some(first)) = (self.key, client, pushed.first()) else {
            return Ok(());
        };
        let mut predicates = Vec::new();
        if self.provenance {
            predicates.extend(provenance.map(|provenance| (PROVENANCE, provenance)));
        }
        if self.sbom {
            let subject = Subject {
                name: format!("{}/{}", first.name.host(), first.name.repository()),
                digest: Some(first.digest.digits()),
            };
            predicates.push((SPDX, bill(engine, id, subject).await?.to_spdx()));
        }
        let token = cancel.clone();
        tokio::task::spawn_blocking(move || {
            let cancelled = || token.is_cancelled();
            for image in &pushed {
                for (kind, predicate) in &predicates {
                    let subject = vec![image_subject(image)];
                    let statement = Statement::new(subject, kind, predicate.clone());
                    attach(&client, image, &statement, &key, &cancelled)
                        .map_err(registry_failure)?;
                }
                sign(&client, image, &key, &cancelled).map_err(registry_failure)?;
            }
            Ok(())
        })
        .await
        .context("signing ended early")?
    }
}

/// Returns an image in a registry as a statement's subject.
pub(crate) fn image_subject(image: &Signed) -> ResourceDescriptor {
    ResourceDescriptor {
        name: Some(format!("{}/{}", image.name.host(), image.name.repository())),
        digest: sha256(image.digest.digits()),
        ..ResourceDescriptor::default()
    }
}

/// What is known of a build before it begins.
pub(crate) struct Known<'a> {
    pub(crate) spec: ResourceDescriptor,
    pub(crate) plan: Plan,
    pub(crate) bases: HashMap<String, Arc<Resolved>>,
    pub(crate) internal: Map<String, Value>,
    pub(crate) options: &'a Run,
    pub(crate) started: Timestamp,
}

impl<'a> Known<'a> {
    /// Takes down what is known before the build begins.
    pub(crate) fn new(
        file: &Path,
        text: &[u8],
        plan: &Plan,
        bases: &HashMap<String, Arc<Resolved>>,
        engine: &Engine,
        settings: &Settings,
        options: &'a Run,
    ) -> Self {
        let name = file.file_name().unwrap_or(file.as_os_str());
        let url = engine.store().url();
        let kind = url.split(':').next().unwrap_or_default();
        let limits = &settings.limits;
        let internal = json!({
            "store": kind,
            "sandbox": engine.sandbox().name(),
            "fastSync": settings.fast_sync,
            "noNewPrivs": settings.no_new_privs,
            "limits": {
                "memoryBytes": limits.memory_bytes,
                "cpus": limits.cpus,
                "pids": limits.pids,
                "timeoutSeconds": limits.timeout.map(|time| time.as_secs()),
            },
        });
        Self {
            spec: ResourceDescriptor {
                name: Some(name.to_string_lossy().into_owned()),
                digest: sha256(Digest::of(text).digits()),
                ..ResourceDescriptor::default()
            },
            plan: plan.clone(),
            bases: bases.clone(),
            internal: internal.as_object().cloned().unwrap_or_default(),
            options,
            started: Timestamp::now(),
        }
    }

    /// Returns the provenance of the build that has just ended.
    pub(crate) fn provenance(self, result: &BuildResult, config: &Config) -> Result<Value> {
        let mut external = Map::new();
        external.insert("spec".into(), serde_json::to_value(&self.spec)?);
        if let Some(target) = &self.options.target {
            external.insert("target".into(), target.clone().into());
        }
        if self.options.no_cache {
            external.insert("noCache".into(), true.into());
        }
        if let Some(step) = &self.options.no_cache_from {
            external.insert("noCacheFrom".into(), step.clone().into());
        }
        let mut internal = self.internal;
        internal.insert("steps".into(), result.steps(&self.plan));
        let builder = config.builder_id.clone();
        let provenance = Provenance {
            build_definition: BuildDefinition {
                build_type: BUILD_TYPE.to_owned(),
                external_parameters: external,
                internal_parameters: internal,
                resolved_dependencies: result.materials(&self.plan, &self.bases),
            },
            run_details: RunDetails {
                builder: Builder {
                    id: builder.unwrap_or_else(|| BUILDER.to_owned()),
                    version: BTreeMap::from([(
                        "obuild".to_owned(),
                        env!("CARGO_PKG_VERSION").to_owned(),
                    )]),
                },
                metadata: Metadata {
                    started_on: second(self.started)?,
                    finished_on: second(Timestamp::now())?,
                },
            },
        };
        Ok(serde_json::to_value(provenance)?)
    }
}

/// RFC 3339, to the second.
fn second(time: Timestamp) -> Result<String> {
    let time = Timestamp::from_second(time.as_second()).context("the clock is wrong")?;
    Ok(time.to_string())
}

/// Returns a result that is in no registry as a statement's subject: its id, and the digest of its tree.
pub(crate) async fn tree_subject(
    engine: &Arc<Engine>,
    result: &BuildResult,
) -> Result<ResourceDescriptor> {
    let tree = engine.tree_digest(result.snapshot).await?;
    Ok(ResourceDescriptor {
        name: Some(result.snapshot.to_string()),
        digest: tree
            .map(|tree| ("obuildTree".to_owned(), tree))
            .into_iter()
            .collect(),
        ..ResourceDescriptor::default()
    })
}

/// Turns what went wrong with an image's signatures into an error with the right exit status.
pub(crate) fn registry_failure(error: AttachError) -> anyhow::Error {
    match error {
        AttachError::Registry(error) => error.into(),
        AttachError::Attest(error) => refused("the image", &error).into(),
        none @ AttachError::None { .. } => Failure {
            kind: Kind::Build,
            message: none.to_string(),
            hint: None,
        }
        .into(),
    }
}
