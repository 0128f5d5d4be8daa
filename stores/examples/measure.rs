// SPDX-License-Identifier: Apache-2.0
//! Measures what a step costs in a store, without the command: a chain of steps that each write one file.
//!
//! ```text
//! cargo run --release -p obuild-stores --example measure -- overlay:/var/tmp/measured 200 [/a/tree [RSYNC-MODE [RSYNC]]]
//! ```
//!
//! With a tree, the chain stands on a copy of it. The store is left behind; times are medians in milliseconds, and the processor time (user and system) of the
//! whole chain by the step.
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use obuild_stores::{Error, Options, Rootfs, SnapshotId, StoreUrl, open};
use rustix::fs::{Mode, OFlags};
use std::time::{Duration, Instant};

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let url: StoreUrl = arguments.next().unwrap_or_default().parse()?;
    let steps = arguments
        .next()
        .and_then(|steps| steps.parse().ok())
        .unwrap_or(200);
    let tree = arguments.next();
    let mode = arguments.next().and_then(|mode| mode.parse().ok());
    let options = Options {
        rsync_mode: mode,
        rsync_program: arguments.next().map(Into::into),
        ..Options::default()
    };
    let opening = Instant::now();
    let store = open(&url, &options)?;
    println!("{url}: opened in {:.2} ms", milliseconds(opening.elapsed()));
    let base = id(0);
    if store.get(base)?.is_none() {
        let draft = store.prepare(base, None)?;
        if let (Some(tree), Rootfs::Directory(directory)) = (tree, draft.rootfs()) {
            let copied = std::process::Command::new("cp")
                .args(["-a", "--reflink=auto", "-T", &tree])
                .arg(directory)
                .status();
            assert!(copied.is_ok_and(|status| status.success()), "cp failed");
        }
        store.commit(draft)?;
    }
    let mut phases: [Vec<Duration>; 4] = Default::default();
    let names = ["prepare", "open", "write", "commit"];
    let mut parent = base;
    let before = processor_time();
    for step in 1..=steps {
        let next = id(step);
        let mut last = Instant::now();
        let mut lap = |phase: usize| {
            phases[phase].push(last.elapsed());
            last = Instant::now();
        };
        let draft = store.prepare(next, Some(parent))?;
        lap(0);
        let top = draft.rootfs().open()?;
        lap(1);
        let flags = OFlags::WRONLY | OFlags::CREATE;
        let name = format!("file-{step}");
        let file = rustix::fs::openat(&top, name, flags, Mode::RUSR | Mode::WUSR);
        file.and_then(|file| rustix::io::write(&file, b"x"))
            .expect("a byte can be written");
        drop(top);
        lap(2);
        store.commit(draft)?;
        lap(3);
        parent = next;
    }
    let spent = processor_time().saturating_sub(before) / steps;
    let total: Duration = phases.iter().flatten().sum();
    for (name, phase) in names.iter().zip(&mut phases) {
        phase.sort();
        let at = |part: usize| milliseconds(phase[part * (phase.len() - 1) / 100]);
        println!(
            "{name:>8}: min {:.3}  median {:.3}  p90 {:.3}",
            at(0),
            at(50),
            at(90)
        );
    }
    let mean = milliseconds(total) / f64::from(steps);
    println!(
        "   whole: mean {mean:.3}  processor time {:.3}",
        milliseconds(spent)
    );
    let syncing = Instant::now();
    store.sync()?;
    println!("    sync: {:.2}", milliseconds(syncing.elapsed()));
    let removing = Instant::now();
    for step in (0..=steps).rev() {
        store.remove(id(step))?;
    }
    println!(
        "  remove: mean {:.3}",
        milliseconds(removing.elapsed()) / f64::from(steps)
    );
    Ok(())
}

fn id(number: u32) -> SnapshotId {
    let mut digest = [0x5e; 32];
    digest[..4].copy_from_slice(&number.to_be_bytes());
    SnapshotId::from_digest(digest)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Returns the processor time of this thread, the only one: nanoseconds, first in the file (linux
/// Documentation/scheduler/sched-stats.rst).
fn processor_time() -> Duration {
    let text = fs_err::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text
        .split(' ')
        .next()
        .and_then(|nanoseconds| nanoseconds.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
