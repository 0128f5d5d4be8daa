// SPDX-License-Identifier: Apache-2.0
//! What a finished build was made from, step by step, as SLSA provenance has it.

use crate::{BuildResult, Engine, Error, ResultStep};
use obuild_images::Resolved;
use obuild_images::attest::ResourceDescriptor;
use obuild_specs::{CopySource, NodeIndex, Operation, Plan};
use obuild_stores::SnapshotId;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

impl BuildResult {
    /// Returns what came from outside: base images, and the files that copies took from the context.
    pub fn materials(
        &self,
        plan: &Plan,
        bases: &HashMap<String, Arc<Resolved>>,
    ) -> Vec<ResourceDescriptor> {
        let mut seen = BTreeSet::new();
        let mut materials = Vec::new();
        for built in &self.steps {
            match &plan.nodes[built.node].operation {
                Operation::Base { reference, .. } => {
                    if let Some(base) = bases.get(reference)
                        && seen.insert(reference)
                    {
                        materials.push(base.material(reference));
                    }
                }
                Operation::Copy { copy, .. } if copy.source == CopySource::Context => {
                    let sources: Vec<String> = copy.src.iter().map(ToString::to_string).collect();
                    let copied = built.copied.map(hex::encode);
                    materials.push(ResourceDescriptor {
                        name: Some("context".to_owned()),
                        digest: copied
                            .map(|digest| ("obuildCopy".to_owned(), digest))
                            .into_iter()
                            .collect::<BTreeMap<_, _>>(),
                        annotations: Map::from_iter([
                            ("step".to_owned(), built.step.to_string().into()),
                            ("src".to_owned(), sources.into()),
                        ]),
                        ..ResourceDescriptor::default()
                    });
                }
                _ => {}
            }
        }
        materials
    }

    /// Returns the steps that the result stands on, those that were cached too, sources before what uses them.
    pub fn steps(&self, plan: &Plan) -> Value {
        let ids: HashMap<NodeIndex, String> = self
            .steps
            .iter()
            .map(|built| (built.node, built.step.to_string()))
            .collect();
        let mut seen = BTreeSet::new();
        let steps = self
            .steps
            .iter()
            .filter(|built| seen.insert(built.snapshot));
        let describe = |built: &ResultStep| {
            let node = &plan.nodes[built.node];
            let (kind, parent) = match &node.operation {
                Operation::Base { .. } => ("base", None),
                Operation::Run { parent, .. } => ("run", Some(parent)),
                Operation::Copy { parent, .. } => ("copy", Some(parent)),
            };
            let mut step = json!({
                "id": built.step.to_string(),
                "kind": kind,
                "heading": node.heading,
            });
            if *built.snapshot.as_bytes() != *built.step.as_bytes() {
                step["snapshot"] = built.snapshot.to_string().into();
            }
            if let Some(id) = parent.and_then(|parent| ids.get(parent)) {
                step["from"] = id.clone().into();
            }
            if let Operation::Copy { copy, .. } = &node.operation
                && let CopySource::Node(source) = copy.source
            {
                step["reads"] = json!(ids.get(&source));
            }
            if let Some(copied) = built.copied {
                step["copied"] = hex::encode(copied).into();
            }
            step
        };
        steps.map(describe).collect()
    }
}

impl Engine {
    /// Returns the digest of a snapshot's tree, as hexadecimal digits, if [`Engine::record_digests`] has recorded it.
    pub async fn tree_digest(self: &Arc<Self>, id: SnapshotId) -> Result<Option<String>, Error> {
        let recorded = self.database().await?.digests().await?;
        Ok(recorded.get(&id).map(|recorded| hex::encode(recorded.tree)))
    }
}
