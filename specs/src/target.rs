// SPDX-License-Identifier: Apache-2.0
//! Parts of a plan: the node that a name means, and what one node needs.

use crate::plan::{CopySource, NodeIndex, Operation, Plan};
use std::collections::{HashMap, HashSet};

impl Plan {
    /// Returns the last node of the named build: a path of names as in [`Plan::names`], or the name alone
    /// where it is the only one. Of several builds with one path the last is meant.
    pub fn find(&self, name: &str) -> Option<NodeIndex> {
        let exact = self.names.iter().rev().find(|(path, _)| path == name);
        if let Some((_, node)) = exact {
            return Some(*node);
        }
        let mut ends = self
            .names
            .iter()
            .filter(|(path, _)| path.rsplit('/').next() == Some(name));
        match (ends.next(), ends.next()) {
            (Some((_, node)), None) => Some(*node),
            _ => None,
        }
    }

    /// Returns the build names nearest to one that [`Plan::find`] did not find, or all of a few.
    pub fn suggest(&self, name: &str) -> Vec<&str> {
        let names = || self.names.iter().map(|(name, _)| &**name);
        match crate::spec::suggest::nearest(name, names()) {
            Some(nearest) => vec![nearest],
            None if self.names.len() <= 8 => names().collect(),
            None => Vec::new(),
        }
    }

    /// Returns the plan for one node: itself and what it needs.
    ///
    /// # Panics
    ///
    /// When there is no such node.
    #[must_use]
    pub fn slice(&self, target: NodeIndex) -> Self {
        let mut needed = HashSet::from([target]);
        for index in (0..=target).rev() {
            if needed.contains(&index) {
                needed.extend(self.nodes[index].operation.edges());
            }
        }
        let mut place = HashMap::new();
        let mut nodes = Vec::with_capacity(needed.len());
        for (index, node) in self
            .nodes
            .iter()
            .enumerate()
            .filter(|(index, _)| needed.contains(index))
        {
            place.insert(index, nodes.len());
            let mut node = node.clone();
            node.operation.map_edges(|edge| place[&edge]);
            nodes.push(node);
        }
        let names = self
            .names
            .iter()
            .filter_map(|(name, node)| place.get(node).map(|node| (name.clone(), *node)))
            .collect();
        let surroundings = self
            .surroundings
            .iter()
            .filter_map(|(node, set)| place.get(node).map(|node| (*node, set.clone())))
            .collect();
        Self {
            nodes,
            target: place[&target],
            names,
            surroundings,
        }
    }
}

impl Operation {
    /// Returns the nodes that this one needs: the tree that it starts from, then the one that it copies from.
    pub fn edges(&self) -> impl Iterator<Item = NodeIndex> {
        let (parent, source) = match self {
            Self::Base { .. } => (None, None),
            Self::Run { parent, .. } => (Some(*parent), None),
            Self::Copy { parent, copy } => match copy.source {
                CopySource::Node(node) => (Some(*parent), Some(node)),
                CopySource::Context => (Some(*parent), None),
            },
        };
        parent.into_iter().chain(source)
    }

    /// Returns the node that it starts from; a base starts from none.
    pub fn parent(&self) -> Option<NodeIndex> {
        match self {
            Self::Base { .. } => None,
            Self::Run { parent, .. } | Self::Copy { parent, .. } => Some(*parent),
        }
    }

    fn map_edges(&mut self, map: impl Fn(NodeIndex) -> NodeIndex) {
        match self {
            Self::Base { .. } => {}
            Self::Run { parent, .. } => *parent = map(*parent),
            Self::Copy { parent, copy } => {
                *parent = map(*parent);
                if let CopySource::Node(node) = &mut copy.source {
                    *node = map(*node);
                }
            }
        }
    }
}
