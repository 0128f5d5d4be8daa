// SPDX-License-Identifier: Apache-2.0
//! What a plan asks for, as far as the plan alone tells.

use super::NoCache;
use crate::{Error, Settings};
use obuild_specs::{NodeIndex, Operation, Plan};

/// Returns the nodes that the target needs, in the order of the plan.
pub(super) fn reachable(plan: &Plan) -> Vec<NodeIndex> {
    let mut needed = vec![false; plan.nodes.len()];
    let mut stack = vec![plan.target];
    while let Some(index) = stack.pop() {
        if !std::mem::replace(&mut needed[index], true) {
            stack.extend(plan.nodes[index].operation.edges());
        }
    }
    (0..needed.len()).filter(|index| needed[*index]).collect()
}

/// Returns which nodes run although their result may be there.
pub(super) fn forced(plan: &Plan, no_cache: &NoCache) -> Vec<bool> {
    let mut forced = vec![false; plan.nodes.len()];
    for (index, node) in plan.nodes.iter().enumerate() {
        forced[index] = match no_cache {
            NoCache::Never => false,
            NoCache::All => !matches!(node.operation, Operation::Base { .. }),
            NoCache::From(first) => {
                // Edges point to lower indices, so those are decided already.
                (index == *first && !matches!(node.operation, Operation::Base { .. }))
                    || node.operation.edges().any(|source| forced[source])
            }
        };
    }
    forced
}

pub(super) fn check_secrets(
    plan: &Plan,
    needed: &[NodeIndex],
    settings: &Settings,
) -> Result<(), Error> {
    for &index in needed {
        let node = &plan.nodes[index];
        if let Operation::Run { run, .. } = &node.operation
            && let Some(secret) = run
                .secrets
                .iter()
                .find(|secret| !settings.secrets.contains_key(&secret.id))
        {
            return Err(Error::MissingSecret {
                id: secret.id.to_string(),
                heading: node.heading.clone(),
            });
        }
    }
    Ok(())
}
