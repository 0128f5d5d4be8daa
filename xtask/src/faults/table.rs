// SPDX-License-Identifier: Apache-2.0
//! What there is to break, on what; and how it came out.

use super::case::{Case, StoreKind};
use super::kill;
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
];

/// The sandboxes. A new one is a word here.
pub(super) const SANDBOXES: &[&str] = &["native", "runc"];

/// One way to break things.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    /// How often a full run tries it on each store and sandbox.
    pub(super) count: u64,
    /// Says why it cannot be tried, if so.
    pub(super) lacks: fn(StoreKind, &str) -> Option<String>,
    pub(super) run: fn(&mut Case<'_>) -> Result<()>,
}

fn nothing(_: StoreKind, _: &str) -> Option<String> {
    None
}

/// The faults.
pub(super) const FAULTS: &[Fault] = &[
    Fault {
        name: "kill-obuild",
        count: 100,
        lacks: nothing,
        run: kill::obuild,
    },
    Fault {
        name: "kill-init",
        count: 100,
        lacks: nothing,
        run: kill::init,
    },
];

/// Runs and failures of each combination.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<(String, String, &'static str), Row>);

#[derive(Debug, Default)]
struct Row {
    runs: u64,
    failed: u64,
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

    pub(super) fn add(&mut self, fault: &Fault, store: StoreKind, sandbox: &str, failed: bool) {
        let row = self.row(fault, store, sandbox);
        row.runs += 1;
        row.failed += u64::from(failed);
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
            writeln!(
                formatter,
                "| `{store}` | {sandbox} | {fault} | {runs} | {failed} | {note} |"
            )?;
        }
        Ok(())
    }
}
