// SPDX-License-Identifier: Apache-2.0
//! Measures scanning and copying a context of 10,000 files (100 MB) beside `cp -a` of the same.
//!
//! `cargo run --release -p obuild-images --example copy_bench -- DIRECTORY [ROUNDS]`. The directory must be on the file system
//! that is to be measured. Nothing is deleted before the end, since ext4 is slow to create files for a while after many
//! were deleted.

#![expect(clippy::print_stdout, reason = "the figures are the output")]

use anyhow::{Context, ensure};
use bstr::BString;
use obuild_images::tree::{
    self, CopyRequest, DigestMemo, ScanRequest, SourceKind, copy, export_dir, export_tar, scan,
};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let directory = arguments
        .next()
        .context("usage: copy_bench DIRECTORY [ROUNDS]")?;
    let rounds: usize = match arguments.next() {
        Some(rounds) => rounds.to_string_lossy().parse()?,
        None => 5,
    };
    let scratch = tempfile::Builder::new()
        .prefix("copy-bench-")
        .tempdir_in(directory)?;
    let context = scratch.path().join("context");
    make_context(&context)?;
    // A file must be older than this to be remembered.
    std::thread::sleep(Duration::from_millis(2100));
    let figures = [
        "scan, cold",
        "copy",
        "scan and copy",
        "cp -a",
        "scan, unchanged",
        "memo, load",
        "memo, save",
        "digest",
        "export to a directory",
        "export to a tar (dropped)",
    ];
    let mut times = vec![Vec::new(); figures.len()];
    for round in 0..rounds {
        for (all, one) in times
            .iter_mut()
            .zip(measure(scratch.path(), &context, round)?)
        {
            all.push(one);
        }
    }
    println!("10,000 files, 100 MB, {rounds} rounds; ms");
    for (name, mut times) in figures.iter().zip(times) {
        times.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!(
            "{name:26} median {:8.2}  min {:8.2}  max {:8.2}",
            ms(times[times.len() / 2]),
            ms(times[0]),
            ms(times[times.len() - 1]),
        );
    }
    Ok(())
}

/// Makes 100 directories of 100 files of 10,000 bytes, no two alike.
fn make_context(context: &Path) -> anyhow::Result<()> {
    let mut bytes: Vec<u8> = (0..10_000_u32)
        .map(|byte| (byte * 31 % 251) as u8)
        .collect();
    for directory in 0..100_u8 {
        let path = context.join(format!("directory-{directory:03}"));
        fs_err::create_dir_all(&path)?;
        for file in 0..100_u8 {
            bytes[0] = directory;
            bytes[1] = file;
            fs_err::write(path.join(format!("file-{file:03}.txt")), &bytes)?;
        }
    }
    Ok(())
}

fn measure(scratch: &Path, context: &Path, round: usize) -> anyhow::Result<Vec<Duration>> {
    let source = fs_err::File::open(context)?;
    let source = source.file().as_fd();
    let src = [BString::from(".")];
    let request = ScanRequest {
        src: &src,
        exclude: &[],
        kind: SourceKind::Context,
    };
    let go_on: tree::Cancelled = &|| false;

    let by_cp = scratch.join(format!("cp-{round}"));
    let copied_by_cp = {
        let start = Instant::now();
        let status = Command::new("cp")
            .arg("-a")
            .arg(context)
            .arg(&by_cp)
            .status()?;
        ensure!(status.success(), "cp failed");
        start.elapsed()
    };

    let to = scratch.join(format!("copy-{round}"));
    fs_err::create_dir(&to)?;
    let to = fs_err::File::open(&to)?;
    let start = Instant::now();
    let mut memo = DigestMemo::default();
    let manifest = scan(source, &request, &mut memo, go_on)?;
    let digest = manifest.digest();
    let cold = start.elapsed();
    let copied = {
        let start = Instant::now();
        let request = CopyRequest {
            dst: b"/srv/",
            owner: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            upper: None,
        };
        let stats = copy(&manifest, source, to.file().as_fd(), &request, go_on)?;
        ensure!(stats.files == 10_000, "not everything was copied");
        start.elapsed()
    };
    ensure!(memo.len() == 10_000, "not everything is remembered");

    let start = Instant::now();
    let bytes = memo.to_bytes();
    let saved = start.elapsed();
    let start = Instant::now();
    let mut memo = DigestMemo::from_bytes(&bytes);
    let loaded = start.elapsed();
    let start = Instant::now();
    let again = scan(source, &request, &mut memo, go_on)?;
    let warm = start.elapsed();
    let start = Instant::now();
    ensure!(again.digest() == digest, "the digest differs");
    let digested = start.elapsed();

    let start = Instant::now();
    export_dir(
        source,
        &scratch.join(format!("export-{round}")),
        &mut |_| {},
        go_on,
    )?;
    let exported = start.elapsed();
    let start = Instant::now();
    export_tar(source, &mut std::io::sink(), None, &mut |_| {}, go_on)?;
    let archived = start.elapsed();
    Ok(vec![
        cold,
        copied,
        cold + copied,
        copied_by_cp,
        warm,
        loaded,
        saved,
        digested,
        exported,
        archived,
    ])
}
