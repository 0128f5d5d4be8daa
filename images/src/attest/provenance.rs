// SPDX-License-Identifier: Apache-2.0
//! SLSA provenance v1: how something was built, by whom, from what. slsa.dev/spec/v1.0/provenance.

use super::ResourceDescriptor;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The predicate.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What was asked for.
    pub build_definition: BuildDefinition,
    /// What happened.
    pub run_details: RunDetails,
}

/// What was asked for, and what was used.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// What the parameters mean.
    pub build_type: String,
    /// What the user chose.
    pub external_parameters: Map<String, Value>,
    /// What the builder chose.
    pub internal_parameters: Map<String, Value>,
    /// What the build started from.
    pub resolved_dependencies: Vec<ResourceDescriptor>,
}

/// Who built, and when.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// Who.
    pub builder: Builder,
    /// When.
    pub metadata: Metadata,
}

/// Who built.
#[derive(Clone, Debug, Serialize)]
pub struct Builder {
    /// A URI that names what the reader has to trust.
    pub id: String,
    /// Versions of its parts.
    pub version: BTreeMap<String, String>,
}

/// When it was built, as RFC 3339 has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The beginning.
    pub started_on: String,
    /// The end.
    pub finished_on: String,
}
