// SPDX-License-Identifier: Apache-2.0
//! Parses every opam file of a pack and says how many there were: what `cargo xtask bench opam` measures.
//!
//! A pack is one file after the other, each behind a line with its length: so that reading files costs nothing.

use bstr::ByteSlice;
use obuild_opam::parse;
use std::io::{self, Write};
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from);
    let path = path.ok_or_else(|| io::Error::other("usage: opam_pack PACK"))?;
    let pack = fs_err::read(path)?;
    let mut rest = &pack[..];
    let (mut files, mut items, mut mistakes) = (0_usize, 0, 0);
    while let Some((line, after)) = rest.split_once_str("\n") {
        let length: usize = line
            .to_str()
            .ok()
            .and_then(|line| line.parse().ok())
            .filter(|length| *length <= after.len())
            .ok_or_else(|| io::Error::other("this is no pack"))?;
        let parsed = parse(&after[..length]);
        files += 1;
        items += parsed.items.len();
        mistakes += parsed.errors.len();
        rest = &after[length..];
    }
    writeln!(
        io::stdout(),
        "{files} files, {items} items, {mistakes} mistakes"
    )
}
