// SPDX-License-Identifier: Apache-2.0
//! A base image as provenance names it.

use crate::Reference;
use crate::attest::{ResourceDescriptor, sha256};
use crate::digest::Digest;
use crate::resolve::{Resolved, Source};
use std::collections::BTreeMap;

impl Resolved {
    /// Describes the base that a spec calls `written`, by digests that other tools can check where there are such.
    pub fn material(&self, written: &str) -> ResourceDescriptor {
        let mut base = ResourceDescriptor::default();
        match &self.reference {
            // The whole name, with the registry that a short one means; but not this machine's absolute paths.
            Reference::Registry(name) => base.uri = Some(format!("docker://{name}")),
            _ if written.contains(':') => base.uri = Some(written.to_owned()),
            _ => base.name = Some(written.to_owned()),
        }
        let layers = match &self.source {
            Source::Layers { layers, .. } => layers.as_slice(),
            _ => &[],
        };
        base.digest = match (&self.source, self.manifest) {
            (_, Some(manifest)) => sha256(manifest.digits()),
            (Source::Tar { digest, .. }, _) => sha256(digest.digits()),
            (Source::Directory { digest, .. }, _) => own("obuildDirectory", hex::encode(digest)),
            _ => BTreeMap::new(),
        };
        // OCI image-spec v1.1 config.md, "Layer ChainID": what is in the tree, however the layers are compressed.
        let chain = layers.iter().fold(None, |below: Option<Digest>, layer| {
            let diff_id = layer.layer.diff_id;
            Some(match below {
                None => diff_id,
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            })
        });
        if let Some(chain) = chain {
            base.digest.insert("ociChainId".to_owned(), chain.digits());
        }
        base
    }
}

fn own(name: &str, digits: String) -> BTreeMap<String, String> {
    BTreeMap::from([(name.to_owned(), digits)])
}
