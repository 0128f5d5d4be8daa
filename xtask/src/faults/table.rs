// SPDX-License-Identifier: Apache-2.0
//! What there is to break, on what; and how it came out.

use super::case::{Case, StoreKind};
use super::{damage, docker, full, kill, many};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt;

/// The stores. A new one is a line here.
pub(super) const STORES: &[StoreKind] = &[
    StoreKind {
        kind: "overlay",
        file_system: "ext4",
    },
    StoreKind {
        kind: "overlay",
        file_system: "xfs",
    },
    StoreKind {
        kind: "btrfs",
        file_system: "btrfs",
    },
    StoreKind {
        kind: "zfs",
        file_system: "zfs",
    },
    StoreKind {
        kind: "xfs",
        file_system: "xfs",
    },
    StoreKind {
        kind: "rsync",
        file_system: "ext4",
    },
    StoreKind {
        kind: "docker",
        file_system: "ext4",
    },
];

/// The sandboxes. A new one is a word here.
pub(super) const SANDBOXES: &[&str] = &["native", "runc", "docker", "user"];

/// Says why a sandbox does not work with a store, if so.
pub(super) fn refused(store: StoreKind, sandbox: &str) -> Option<&'static str> {
    let mounted = ["overlay", "docker"].contains(&store.kind);
    (sandbox == "user" && mounted).then_some("build users need whole directories")
}

/// One way to break things.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// How often a full run tries it on each store and sandbox.
    pub(super) count: u64,
    /// How often it is tried as one of many tests.
    pub(super) few: u64,
    /// Whether each run wants a small disk of its own.
    pub(super) small: bool,
    /// Whether the disk has to be one that can be cut off.
    pub(super) cuts: bool,
    /// Whether the images of a docker store are to be on that disk as well.
    pub(super) images_too: bool,
    /// Says why it cannot be tried, if so.
    pub(super) lacks: fn(StoreKind, &str) -> Option<String>,
    pub(super) run: fn(&mut Case<'_>) -> Result<()>,
}

impl Fault {
    const fn new(name: &'static str, run: fn(&mut Case<'_>) -> Result<()>) -> Self {
        Self {
            name,
            count: 100,
            few: 1,
            small: false,
            cuts: false,
            images_too: false,
            lacks: |_, _| None,
            run,
        }
    }
}

/// The faults.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        few: 4,
        ..Fault::new("kill-obuild", kill::obuild)
    },
    Fault::new("kill-init", kill::init),
    Fault {
        few: 3,
        lacks: |store, sandbox| {
            let docker = store.kind == "docker" || sandbox == "docker";
            (!docker).then(|| "neither store nor sandbox is docker's".to_owned())
        },
        ..Fault::new("kill-docker", docker::kill)
    },
    Fault {
        small: true,
        images_too: true,
        ..Fault::new("disk-full", full::full)
    },
    Fault {
        small: true,
        count: 30,
        lacks: |store, _| {
            let zfs = store.kind == "zfs";
            zfs.then(|| "zfs-fuse does not make what is mounted read-only".to_owned())
        },
        ..Fault::new("read-only", full::read_only)
    },
    Fault {
        small: true,
        cuts: true,
        images_too: true,
        lacks: |store, _| {
            let able = ["btrfs", "ext4", "xfs"].contains(&store.file_system);
            (!able).then(|| format!("{} cannot be cut off", store.file_system))
        },
        ..Fault::new("power-cut", full::power_cut)
    },
    Fault::new("snapshot-deleted", damage::snapshot_deleted),
    Fault::new("database", damage::database),
    Fault {
        count: 20,
        few: 1,
        ..Fault::new("eight-processes", many::eight_processes)
    },
    Fault {
        count: 1,
        few: 0,
        ..Fault::new("stress", many::stress)
    },
];

/// Returns how often a fault is tried as one of many tests: all of them where all the rest is cheap, and one of the rest.
pub(super) fn few(fault: &Fault, store: StoreKind, sandbox: &str) -> u64 {
    let only = |names: &[&str]| {
        if names.contains(&fault.name) {
            fault.few
        } else {
            0
        }
    };
    match (store.kind, sandbox) {
        ("overlay" | "btrfs", "native" | "runc") => fault.few,
        ("zfs" | "xfs" | "rsync", "native") => u64::from(fault.name == "kill-obuild"),
        ("xfs", "user") => only(&["kill-init"]),
        ("docker", "docker") => only(&["kill-init", "kill-docker"]),
        _ => 0,
    }
}

/// Runs and failures of each combination.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<(String, String, &'static str), Row>);

#[derive(Debug, Default)]
struct Row {
    runs: u64,
    failed: u64,
    /// Runs that were run once more, as zfs-fuse was lost.
    lost: u64,
    skipped: bool,
    notes: Vec<String>,
}

impl Table {
    fn row(&mut self, fault: &Fault, store: StoreKind, sandbox: &str) -> &mut Row {
        self.0
            .entry((store.name(), sandbox.to_owned(), fault.name))
            .or_default()
    }

    pub(super) fn skip(&mut self, fault: &Fault, store: StoreKind, sandbox: &str) {
        self.row(fault, store, sandbox).skipped = true;
    }

    pub(super) fn add(
        &mut self,
        fault: &Fault,
        store: StoreKind,
        sandbox: &str,
        outcome: Option<Vec<String>>,
    ) {
        let row = self.row(fault, store, sandbox);
        row.runs += 1;
        row.failed += u64::from(outcome.is_none());
        row.notes.extend(outcome.unwrap_or_default());
    }

    pub(super) fn lose(&mut self, fault: &Fault, store: StoreKind, sandbox: &str) {
        self.row(fault, store, sandbox).lost += 1;
    }

    pub(super) fn failures(&self) -> u64 {
        self.0.values().map(|row| row.failed).sum()
    }

    pub(super) fn line(&mut self, fault: &Fault, store: StoreKind, sandbox: &str) -> String {
        let name = store.name();
        let Row { runs, failed, .. } = self.row(fault, store, sandbox);
        format!(
            "{:<18} {name:<14} {sandbox:<8} {runs} runs, {failed} failed",
            fault.name
        )
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "| store | sandbox | fault | runs | failed | |")?;
        writeln!(formatter, "|---|---|---|--:|--:|---|")?;
        for ((store, sandbox, fault), row) in &self.0 {
            let note = if row.skipped {
                "skipped".to_owned()
            } else {
                row.notes.join("; ")
            };
            let Row { runs, failed, .. } = row;
            let note = match row.lost {
                0 => note,
                lost => format!("zfs-fuse was lost {lost} times {note}"),
            };
            writeln!(
                formatter,
                "| `{store}` | {sandbox} | {fault} | {runs} | {failed} | {note} |"
            )?;
        }
        Ok(())
    }
}
