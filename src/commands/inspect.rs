// SPDX-License-Identifier: Apache-2.0
//! `obuild inspect ID`: everything about a step, as JSON.

use super::{ls, open_engine, print_json, runtime};
use crate::cli::{Global, Id};
use anyhow::Result;
use obuild_stores::Rootfs;
use serde_json::{Value, json};

pub(crate) fn run(global: &Global, options: &Id) -> Result<()> {
    let engine = open_engine(global)?;
    let (id, steps, digest) = runtime()?.block_on(async {
        let id = engine.find(&options.id).await?;
        let digest = engine.tree_digest(id).await?;
        Ok::<_, obuild_engine::Error>((id, engine.sized_steps().await?, digest))
    })?;
    let mut value = steps
        .iter()
        .find(|step| step.id == id)
        .map_or_else(|| json!({"id": id.to_string()}), ls::to_json);
    let children: Vec<Value> = steps
        .iter()
        .filter(|step| step.parent == Some(id))
        .map(|step| step.id.to_string().into())
        .collect();
    let rootfs = engine
        .store()
        .get(id)?
        .map(|snapshot| match snapshot.rootfs {
            Rootfs::Directory(path) => json!({"directory": path}),
            Rootfs::Dataset(dataset) => json!({"dataset": dataset.name()}),
            Rootfs::Overlay(mount) => json!({"overlay": {"lower": mount.lower}}),
        });
    let log = engine.log_path(id);
    value["digest"] = json!(digest);
    value["children"] = Value::Array(children);
    value["log"] = if log.exists() {
        json!(log)
    } else {
        Value::Null
    };
    value["rootfs"] = rootfs.unwrap_or(Value::Null);
    value["store"] = engine.store().url().into();
    print_json(&value)
}
