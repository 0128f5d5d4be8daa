// SPDX-License-Identifier: Apache-2.0
//! The documents of an image: OCI image-spec v1.1 config.md and manifest.md. The same image gives the same bytes.

use crate::{Digest, ImageConfig, host_architecture};
use bstr::{BString, ByteSlice};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

/// The media type of manifests.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of configurations.
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

#[derive(Serialize)]
struct Document<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    architecture: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    os: &'a str,
    config: Processes<'a>,
    rootfs: RootFs,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    history: Vec<History<'a>>,
}

/// Go's spelling; `Shell` and `OnBuild` are of Docker's image specification v1.2.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Processes<'a> {
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<String, Nothing>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    volumes: BTreeMap<String, Nothing>,
    #[serde(skip_serializing_if = "String::is_empty")]
    working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<Vec<String>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    on_build: &'a [String],
}

/// The value of a set's members: an object without anything in it.
type Nothing = BTreeMap<String, String>;

#[derive(Serialize)]
struct RootFs {
    r#type: &'static str,
    diff_ids: Vec<String>,
}

#[derive(Serialize)]
struct History<'a> {
    created: String,
    created_by: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    empty_layer: bool,
}

/// Something that a document refers to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor<'a> {
    pub(super) media_type: &'a str,
    pub(super) digest: String,
    pub(super) size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Descriptor<'a>,
    layers: Vec<Descriptor<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

fn text(bytes: &BString) -> String {
    // JSON holds nothing else.
    bytes.to_str_lossy().into_owned()
}

fn texts(list: Option<&Vec<BString>>) -> Option<Vec<String>> {
    list.map(|list| list.iter().map(text).collect())
}

/// Returns the configuration of an image whose uncompressed layers have these digests. `history` tells, for each step, what it was and whether
/// it left no layer.
pub(super) fn config(
    config: &ImageConfig,
    diff_ids: impl Iterator<Item = Digest>,
    history: &[(String, bool)],
    created: Option<i64>,
) -> Vec<u8> {
    let created = created.map(rfc3339);
    let or = |value: &'_ str, default: &'static str| {
        if value.is_empty() {
            default.to_owned()
        } else {
            value.to_owned()
        }
    };
    let (architecture, os) = (
        or(&config.architecture, host_architecture()),
        or(&config.os, "linux"),
    );
    let set = |names: &'_ [String]| -> BTreeMap<String, Nothing> {
        names
            .iter()
            .map(|name| (name.clone(), Nothing::new()))
            .collect()
    };
    let document = Document {
        created: created.clone(),
        architecture: &architecture,
        variant: config.variant.as_deref(),
        os: &os,
        config: Processes {
            user: text(&config.user),
            exposed_ports: set(&config.exposed_ports),
            env: config
                .env
                .iter()
                .map(|(name, value)| format!("{}={}", text(name), text(value)))
                .collect(),
            entrypoint: texts(config.entrypoint.as_ref()),
            cmd: texts(config.cmd.as_ref()),
            volumes: set(&config.volumes),
            working_dir: text(&config.workdir),
            labels: &config.labels,
            stop_signal: config.stop_signal.as_deref(),
            shell: texts(config.shell.as_ref()),
            on_build: &config.on_build,
        },
        rootfs: RootFs {
            r#type: "layers",
            diff_ids: diff_ids.map(|digest| digest.to_string()).collect(),
        },
        history: history
            .iter()
            .map(|(created_by, empty_layer)| History {
                created: created.clone().unwrap_or_default(),
                created_by,
                empty_layer: *empty_layer,
            })
            .collect(),
    };
    serde_json::to_vec(&document).expect("it has string keys only")
}

/// Returns the manifest of an image with this configuration.
pub(super) fn manifest<'a>(
    config: &[u8],
    layers: impl Iterator<Item = Descriptor<'a>>,
    annotations: &BTreeMap<String, String>,
) -> Vec<u8> {
    let document = Manifest {
        schema_version: 2,
        media_type: MANIFEST,
        config: Descriptor {
            media_type: CONFIG,
            digest: Digest::of(config).to_string(),
            size: config.len() as u64,
        },
        layers: layers.collect(),
        annotations,
    };
    serde_json::to_vec(&document).expect("it has string keys only")
}

/// Writes seconds since 1970 as RFC 3339 has them, with years of four digits.
fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds.max(0))
        .unwrap_or(Timestamp::MAX)
        .strftime("%FT%TZ")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times() {
        // As `date -u -d @… +%FT%TZ` has them.
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(315_532_800), "1980-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(rfc3339(-1), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(i64::MAX), "9999-12-30T22:00:00Z");
    }
}
