// SPDX-License-Identifier: Apache-2.0
//! Signatures and statements beside an image, where cosign puts them: under tags that the image's digest gives, in manifests whose layers they are
//! (cosign `specs/SIGNATURE_SPEC.md`, "Storage", and `specs/ATTESTATION_SPEC.md`). The manifests also name the image as their subject, so
//! that registries of the OCI distribution-spec v1.1 list them as its referrers.

use super::http::Call;
use super::pull::limit;
use super::push::{BlobData, PushBlob, PushImage, PushManifest, push};
use super::{Client, Error, ImageName};
use crate::attest::{AttestError, Envelope, PublicKey, SigningKey, SimpleSigning, Statement};
use crate::digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const PREDICATE_TYPE: &str = "predicateType";

/// The largest statement that is read: a bill of materials of a full desktop has some megabytes.
const MAX_STATEMENT: usize = 64 << 20;
/// As many signatures or statements of one image are looked at; whoever attaches more hides them.
const MAX_ATTACHED: usize = 256;

/// Why something could not be attached, or does not verify.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] crate::Error),
    /// The key or what was signed is wrong.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The image has no signature or statement at all.
    #[error("{image} has no {what}")]
    None {
        /// The image.
        image: String,
        /// What it has not: `signature`.
        what: &'static str,
    },
}

/// An image in a registry, as signatures name it.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Its repository; a tag in it does not matter.
    pub name: ImageName,
    /// The digest of its manifest or index.
    pub digest: Digest,
}

/// What is attached.
#[derive(Clone, Copy)]
enum Kind {
    Signatures,
    Statements,
}

impl Kind {
    fn suffix(self) -> &'static str {
        match self {
            Self::Signatures => "sig",
            Self::Statements => "att",
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Signatures => "application/vnd.dev.cosign.simplesigning.v1+json",
            Self::Statements => "application/vnd.dsse.envelope.v1+json",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Attached {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Signs an image, unless it is signed with this key already. Returns whether it was not.
pub fn sign(
    client: &Client,
    image: &Signed,
    key: &SigningKey,
    cancelled: &dyn Fn() -> bool,
) -> Result<bool, AttachError> {
    let session = Session::new(client, image, cancelled);
    let mut layers = session.attached(Kind::Signatures)?;
    for layer in &layers {
        if session.is_signed_by(layer, key.public())? {
            return Ok(false);
        }
    }
    let repository = format!("{}/{}", image.name.host(), image.name.repository());
    let payload = SimpleSigning::new(&repository, image.digest).to_bytes()?;
    let signature = STANDARD.encode(key.sign(&payload)?);
    let annotations = BTreeMap::from([(SIGNATURE.to_owned(), signature)]);
    layers.push(describe(
        Kind::Signatures.media_type(),
        &payload,
        annotations,
    ));
    session.put(Kind::Signatures, &layers, payload)?;
    Ok(true)
}

/// Attaches a signed statement to an image, in place of one of the same kind by the same key.
pub fn attach(
    client: &Client,
    image: &Signed,
    statement: &Statement,
    key: &SigningKey,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), AttachError> {
    let session = Session::new(client, image, cancelled);
    let mut layers = Vec::new();
    for layer in session.attached(Kind::Statements)? {
        let same = layer.annotations.get(PREDICATE_TYPE) == Some(&statement.predicate_type);
        if !same || session.statement(&layer, key.public())?.is_none() {
            layers.push(layer);
        }
    }
    let payload = serde_json::to_vec(&Envelope::sign(statement, key)?)
        .map_err(|error| AttestError::document("in-toto statement", error))?;
    // The signature is in the envelope; cosign leaves this one empty, but wants it.
    let annotations = BTreeMap::from([
        (SIGNATURE.to_owned(), String::new()),
        (PREDICATE_TYPE.to_owned(), statement.predicate_type.clone()),
    ]);
    layers.push(describe(
        Kind::Statements.media_type(),
        &payload,
        annotations,
    ));
    session.put(Kind::Statements, &layers, payload)
}

/// Checks that an image is signed with a key.
///
/// # Errors
///
/// [`AttachError::None`] if it has no signature, [`AttestError::BadSignature`] if none is by this key.
pub fn verify(
    client: &Client,
    image: &Signed,
    key: &PublicKey,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), AttachError> {
    let session = Session::new(client, image, cancelled);
    let layers = session.attached(Kind::Signatures)?;
    if layers.is_empty() {
        return Err(AttachError::None {
            image: session.title(),
            what: "signature",
        });
    }
    for layer in &layers {
        if session.is_signed_by(layer, key)? {
            return Ok(());
        }
    }
    Err(AttestError::BadSignature.into())
}

/// Returns the statements about an image that are signed with a key.
pub fn statements(
    client: &Client,
    image: &Signed,
    key: &PublicKey,
    cancelled: &dyn Fn() -> bool,
) -> Result<Vec<Statement>, AttachError> {
    let session = Session::new(client, image, cancelled);
    let mut statements = Vec::new();
    for layer in session.attached(Kind::Statements)? {
        statements.extend(session.statement(&layer, key)?);
    }
    Ok(statements)
}

impl Client {
    /// Asks the registry which image a name means now, to sign or to verify it.
    pub fn signed(
        &self,
        name: &ImageName,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Signed, crate::Error> {
        let digest = match name.digest() {
            Some(digest) => digest,
            None => self
                .digest_of(name, cancelled)
                .map_err(|error| crate::Error::registry(name, error))?,
        };
        Ok(Signed {
            name: name.clone(),
            digest,
        })
    }
}

fn describe(media_type: &str, bytes: &[u8], annotations: BTreeMap<String, String>) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes).to_string(),
        size: bytes.len() as u64,
        annotations,
    }
}

/// Work on what one image has.
struct Session<'a> {
    client: &'a Client,
    image: &'a Signed,
    cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Session<'a> {
    fn new(client: &'a Client, image: &'a Signed, cancelled: &'a dyn Fn() -> bool) -> Self {
        Self {
            client,
            image,
            cancelled,
        }
    }

    fn title(&self) -> String {
        let Signed { name, digest } = self.image;
        format!("{}/{}@{digest}", name.host(), name.repository())
    }

    fn failed(&self, error: Error) -> AttachError {
        crate::Error::registry(&self.image.name, error).into()
    }

    /// Fetches a document of the repository from the registry itself: a mirror may lag behind. `None` if there is none.
    fn fetch(
        &self,
        path: &str,
        accept: &str,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, AttachError> {
        let repository = self.image.name.repository();
        let host = self.image.name.host();
        let call = Call::new(Method::GET, host, format!("/v2/{repository}/{path}"))
            .scope(repository, "pull")
            .header(ACCEPT, accept)
            .what(format!("{repository}: {path}"));
        let got = self.client.wait(self.cancelled, async {
            let got = self.client.transport.fetch(&call, limit).await?;
            match got.status {
                StatusCode::OK => Ok(Some(got.body)),
                StatusCode::NOT_FOUND => Ok(None),
                _ => Err(got.error(&call)),
            }
        });
        got.map_err(|error| self.failed(error))
    }

    /// Returns what is attached already.
    fn attached(&self, kind: Kind) -> Result<Vec<Descriptor>, AttachError> {
        let path = format!("manifests/{}", self.tag(kind));
        let Some(bytes) = self.fetch(&path, MANIFEST, limit())? else {
            return Ok(Vec::new());
        };
        let manifest: Attached = serde_json::from_slice(&bytes)
            .map_err(|error| AttestError::document("list of signatures", error))?;
        let mut layers = manifest.layers;
        layers.retain(|layer| layer.media_type == kind.media_type());
        if layers.len() > MAX_ATTACHED {
            let reason = format!("it has more than {MAX_ATTACHED}");
            return Err(AttestError::document("list of signatures", reason).into());
        }
        Ok(layers)
    }

    /// cosign `specs/SIGNATURE_SPEC.md`, "Tag-based Discovery".
    fn tag(&self, kind: Kind) -> String {
        format!("sha256-{}.{}", self.image.digest.digits(), kind.suffix())
    }

    /// Fetches what a descriptor is of; `None` if that is not there, or is something else.
    fn payload(&self, layer: &Descriptor) -> Result<Option<Vec<u8>>, AttachError> {
        let Ok(digest) = Digest::parse(&layer.digest) else {
            return Ok(None);
        };
        if layer.size > MAX_STATEMENT as u64 {
            return Ok(None);
        }
        let bytes = self.fetch(&format!("blobs/{digest}"), "*/*", MAX_STATEMENT)?;
        Ok(bytes.filter(|bytes| Digest::of(bytes) == digest))
    }

    fn is_signed_by(&self, layer: &Descriptor, key: &PublicKey) -> Result<bool, AttachError> {
        let signature = layer.annotations.get(SIGNATURE);
        let Some(signature) = signature.and_then(|text| STANDARD.decode(text).ok()) else {
            return Ok(false);
        };
        let Some(payload) = self.payload(layer)? else {
            return Ok(false);
        };
        Ok(key.verify(&payload, &signature).is_ok()
            && SimpleSigning::check(&payload, self.image.digest).is_ok())
    }

    /// Returns a statement if it is signed with the key and about this image.
    fn statement(
        &self,
        layer: &Descriptor,
        key: &PublicKey,
    ) -> Result<Option<Statement>, AttachError> {
        let Some(payload) = self.payload(layer)? else {
            return Ok(None);
        };
        let statement = Envelope::parse(&payload).and_then(|envelope| envelope.verify(key));
        let digits = self.image.digest.digits();
        Ok(statement
            .ok()
            .filter(|statement| statement.is_about(&digits)))
    }

    /// Writes the manifest anew: those that were there, and the last one with its payload.
    fn put(&self, kind: Kind, layers: &[Descriptor], payload: Vec<u8>) -> Result<(), AttachError> {
        let path = format!("manifests/{}", self.image.digest);
        let accept = super::pull::MANIFESTS;
        let Some(subject) = self.fetch(&path, accept, limit())? else {
            return Err(AttachError::None {
                image: self.title(),
                what: "manifest",
            });
        };
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = json!({
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, &config, BTreeMap::new()),
            "layers": layers,
            "subject": describe(&media_type(&subject), &subject, BTreeMap::new()),
        });
        let blob = |bytes: Vec<u8>| PushBlob {
            digest: Digest::of(&bytes),
            size: bytes.len() as u64,
            data: BlobData::Bytes(bytes.into()),
        };
        let parts = PushImage {
            blobs: vec![blob(payload), blob(config)],
            manifests: vec![PushManifest {
                media_type: MANIFEST.to_owned(),
                bytes: manifest.to_string().into_bytes(),
            }],
        };
        let Signed { name, .. } = self.image;
        let to = format!("{}/{}:{}", name.host(), name.repository(), self.tag(kind));
        push(
            self.client,
            &to.parse()?,
            &parts,
            &mut |_| {},
            self.cancelled,
        )?;
        Ok(())
    }
}

/// Returns what a manifest says that it is.
fn media_type(manifest: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice(manifest) {
        Ok(Shape {
            media_type: Some(media_type),
            ..
        }) => media_type,
        Ok(Shape {
            manifests: Some(_), ..
        }) => "application/vnd.oci.image.index.v1+json".to_owned(),
        _ => MANIFEST.to_owned(),
    }
}
