// SPDX-License-Identifier: Apache-2.0
//! Names the machine that figures were taken on, and how busy it was.

use crate::cmd::Cmd;
use crate::workspace;
use std::fmt::Write as _;
use std::path::Path;

/// Returns Markdown lines that describe this machine.
pub(crate) fn describe(scratch: &Path) -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let read = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let processor = field(&processor, "model name")
        .unwrap_or("unknown processor")
        .to_owned();
    let memory = read("/proc/meminfo");
    let memory_kib: u64 = field(&memory, "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let filesystem = Cmd::new("findmnt")
        .args(["-n", "-o", "FSTYPE,OPTIONS", "-T"])
        .arg(scratch)
        .quiet()
        .output()
        .unwrap_or_default();
    let mut text = String::new();
    writeln!(
        text,
        "- machine: {cores} cores ({processor}), {} MiB memory",
        memory_kib / 1024
    )
    .expect("a string takes everything");
    writeln!(text, "- kernel: {}", kernel.trim()).expect("a string takes everything");
    writeln!(text, "- file system: {}", filesystem.trim()).expect("a string takes everything");
    for (name, arguments) in [
        ("runc", ["--version"]),
        ("btrfs", ["--version"]),
        ("dockerd", ["--version"]),
        ("buildah", ["--version"]),
    ] {
        if workspace::find_program(name).is_some()
            && let Ok(version) = Cmd::new(name).args(arguments).quiet().output()
        {
            let line = version.lines().next().unwrap_or_default();
            writeln!(text, "- {name}: {line}").expect("a string takes everything");
        }
    }
    text.trim_end().to_owned()
}

/// Returns how busy the processors are: the share of the last ten seconds in which something had to wait.
pub(crate) fn load() -> String {
    let pressure = fs_err::read_to_string("/proc/pressure/cpu").unwrap_or_default();
    let average = pressure
        .split_whitespace()
        .find_map(|word| word.strip_prefix("avg10="));
    if let Some(average) = average {
        return format!("cpu pressure {average} %");
    }
    let load = fs_err::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", load.split(' ').next().unwrap_or_default())
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}
