// SPDX-License-Identifier: Apache-2.0
//! The image's documents: OCI image-spec v1.1 config.md and manifest.md. The same layers give the same bytes: no time is in them.

use super::Layer;
use bstr::{BString, ByteSlice};
use obuild_images::{Digest, ImageConfig, host_architecture};
use serde_json::{Map, Value, json};

/// The media type of manifests.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Returns the configuration.
pub(super) fn config(config: &ImageConfig, layers: &[Layer]) -> Vec<u8> {
    let text = |bytes: &BString| Value::from(bytes.to_str_lossy());
    let list = |words: &Vec<BString>| words.iter().map(text).collect::<Value>();
    let mut processes = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            processes.insert(name.to_owned(), value);
        }
    };
    set(
        "User",
        (!config.user.is_empty()).then(|| text(&config.user)),
    );
    let env = config
        .env
        .iter()
        .map(|(name, value)| Value::from(format!("{name}={value}")));
    set(
        "Env",
        (!config.env.is_empty()).then(|| env.collect::<Value>()),
    );
    set("Entrypoint", config.entrypoint.as_ref().map(list));
    set("Cmd", config.cmd.as_ref().map(list));
    set(
        "WorkingDir",
        (!config.workdir.is_empty()).then(|| text(&config.workdir)),
    );
    set(
        "Labels",
        (!config.labels.is_empty()).then(|| json!(config.labels)),
    );
    set(
        "StopSignal",
        config.stop_signal.as_ref().map(|name| json!(name)),
    );
    for (name, members) in [
        ("ExposedPorts", &config.exposed_ports),
        ("Volumes", &config.volumes),
    ] {
        let members: Map<String, Value> = members
            .iter()
            .map(|member| (member.clone(), json!({})))
            .collect();
        set(name, (!members.is_empty()).then(|| Value::Object(members)));
    }
    let or = |value: &str, default: &str| if value.is_empty() { default } else { value }.to_owned();
    let mut document = json!({
        "architecture": or(&config.architecture, host_architecture()),
        "os": or(&config.os, "linux"),
        "config": processes,
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| layer.diff_id.to_string()).collect::<Vec<_>>(),
        },
    });
    if let Some(variant) = &config.variant {
        document["variant"] = json!(variant);
    }
    document.to_string().into_bytes()
}

/// Returns the manifest.
pub(super) fn manifest(config: &[u8], layers: &[Layer]) -> Vec<u8> {
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": layer.media_type,
                "digest": layer.digest.to_string(),
                "size": layer.size,
            })
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(config).to_string(),
            "size": config.len(),
        },
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}
