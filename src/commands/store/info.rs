// SPDX-License-Identifier: Apache-2.0
//! `obuild store info`: what the store is and how it is.

use crate::cli::{Format, Global, StoreInfo};
use crate::commands::{ls::since, open_engine, print, print_json, runtime};
use crate::values::{age, counted, size};
use anyhow::Result;
use obuild_stores::{Capabilities, Sharing};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::SystemTime;

pub(crate) fn run(global: &Global, options: &StoreInfo) -> Result<()> {
    let engine = open_engine(global)?;
    let info = runtime()?.block_on(engine.info(options.sizes))?;
    if options.format == Format::Json {
        return print_json(&to_json(&info));
    }
    print(to_text(&info))
}

/// Returns what could be better, though nothing is wrong.
fn advice(info: &obuild_engine::StoreInfo) -> Vec<String> {
    let mut advice = Vec::new();
    if let Some(file_system) = &info.file_system
        && info.kind == "btrfs"
        && !file_system.options.iter().any(|option| option == "noatime")
    {
        advice.push(format!(
            "mount {} with noatime: else every look at a file in a fresh snapshot is a write",
            file_system.mount_point.display()
        ));
    }
    if info.digests < info.snapshots {
        advice.push(format!(
            "{} of {} snapshots have no recorded digest: `obuild store check` records them",
            info.snapshots - info.digests,
            info.snapshots
        ));
    }
    advice
}

fn sharing(capabilities: Capabilities) -> &'static str {
    match capabilities.sharing {
        Sharing::Blocks => "blocks",
        Sharing::Files => "files",
        Sharing::Varies => "varies",
    }
}

fn to_json(info: &obuild_engine::StoreInfo) -> Value {
    let time = |time: Option<SystemTime>| {
        time.and_then(|time| jiff::Timestamp::try_from(time).ok())
            .map(|time| time.to_string())
    };
    let status = info.status.as_ref();
    json!({
        "url": info.url,
        "kind": info.kind,
        "format": status.map(|status| status.format),
        "state_dir": info.state_dir,
        "capabilities": info.capabilities.map(|can| json!({
            "sharing": sharing(can),
            "constant_time": can.constant_time,
            "layers": can.layers,
        })),
        "snapshots": {
            "count": info.snapshots,
            "depth": info.depth,
            "in_use": info.in_use,
            "digests": info.digests,
            "provisional": info.provisional,
        },
        "drafts": status.map(|status| status.drafts.iter().map(|draft| json!({
            "id": draft.id.map(|id| id.to_string()),
            "process": draft.process,
            "opened": time(draft.opened),
            "alive": draft.alive,
        })).collect::<Vec<_>>()),
        "trash": status.map(|status| status.trash),
        "size": {"steps": info.steps_bytes.0, "measured": info.steps_bytes.1},
        "caches": info.caches.as_ref().map(|caches| caches.iter().map(|(name, bytes)| {
            json!({"name": String::from_utf8_lossy(name), "size": bytes})
        }).collect::<Vec<_>>()),
        "space": {"total": info.space.total, "available": info.space.available},
        "file_system": info.file_system.as_ref().map(|found| json!({
            "type": found.kind,
            "mount_point": found.mount_point,
            "options": found.options,
            "reflinks": found.reflinks,
        })),
        "last_check": time(info.last_check),
        "health": {"ok": info.health.problems.is_empty(), "problems": info.health.problems},
        "advice": advice(info),
    })
}

fn to_text(info: &obuild_engine::StoreInfo) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    line("store", &info.url);
    if let Some(can) = info.capabilities {
        let shared = match can.sharing {
            Sharing::Blocks => "share blocks",
            Sharing::Files => "share whole files",
            Sharing::Varies => "share what the mode says",
        };
        let made = if can.constant_time {
            "are made in constant time"
        } else {
            "are made file by file"
        };
        line(
            "snapshots",
            &format!("{shared} with their parents and {made}"),
        );
    }
    line(
        "count",
        &format!(
            "{}, the longest chain {}, {} with a recorded digest, {} in use, {} not synced yet",
            info.snapshots, info.depth, info.digests, info.in_use, info.provisional
        ),
    );
    let (bytes, measured) = info.steps_bytes;
    match info.snapshots.saturating_sub(measured) {
        0 => line("size", &size(bytes)),
        rest => line(
            "size",
            &format!("{}, and {rest} not measured yet (--sizes)", size(bytes)),
        ),
    }
    if let Some(caches) = &info.caches {
        let total = caches.iter().map(|(_, bytes)| bytes).sum();
        line("caches", &format!("{}, {}", caches.len(), size(total)));
        for (name, bytes) in caches {
            let name = String::from_utf8_lossy(name);
            line("", &format!("{:>8}  {name}", size(*bytes)));
        }
    }
    let (free, total) = (size(info.space.available), size(info.space.total));
    line("space", &format!("{free} of {total} available"));
    if let Some(found) = &info.file_system {
        let reflinks = match found.reflinks {
            Some(true) => ", files can share blocks",
            Some(false) => ", files cannot share blocks",
            None => "",
        };
        let (place, options) = (found.mount_point.display(), found.options.join(","));
        line(
            "file system",
            &format!("{} at {place} ({options}){reflinks}", found.kind),
        );
    }
    line("state", &info.state_dir.display().to_string());
    if let Some(status) = &info.status {
        line("format", &status.format.to_string());
        line("drafts", &status.drafts.len().to_string());
        for draft in &status.drafts {
            let id = draft
                .id
                .map_or("a cache".to_owned(), |id| id.to_string()[..12].to_owned());
            let process = draft
                .process
                .map_or("?".to_owned(), |process| process.to_string());
            let state = if draft.alive { "" } else { ", dead" };
            line("", &format!("{id:<12}  by process {process}{state}"));
        }
        if status.trash > 0 {
            line("deleting", &status.trash.to_string());
        }
    }
    match info.last_check.map(|time| age(since(time))).as_deref() {
        None => line("last check", "never"),
        Some("now") => line("last check", "just now"),
        Some(age) => line("last check", &format!("{age} ago")),
    }
    match info.health.problems.len() {
        0 => line("health", "ok"),
        count => line(
            "health",
            &format!("{}, run `obuild store check`", counted(count, "problem")),
        ),
    }
    for problem in &info.health.problems {
        line("", problem);
    }
    for advice in advice(info) {
        line("advice", &advice);
    }
    out
}
