// SPDX-License-Identifier: Apache-2.0
//! Entries of the index's tar, written and read back: plain files only, no times, no owners.
//!
//! ustar (POSIX.1-1988, tar(5)); names that it has no room for as GNU `L` entries. opam 2.6 reads the tar itself and refuses every
//! archive that has links, devices or global headers in it; directories may be missing for all opam clients.

use bstr::BString;
use std::ops::Range;

/// What a tar is made of.
pub(super) const BLOCK: usize = 512;

/// What a tar ends with.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The name of the entry that has the name of the next in its content (GNU tar's manual, "Basic Tar Format").
const LONG_LINK: &[u8] = b"././@LongLink";

/// Appends a file.
pub(super) fn append(tar: &mut Vec<u8>, path: &[u8], content: &[u8], executable: bool) {
    if let Some((prefix, name)) = split(path) {
        tar.extend_from_slice(&header(prefix, name, content.len(), executable, b'0'));
    } else {
        let terminated = [path, &[0]].concat();
        tar.extend_from_slice(&header(b"", LONG_LINK, terminated.len(), false, b'L'));
        append_padded(tar, &terminated);
        tar.extend_from_slice(&header(b"", &path[..100], content.len(), executable, b'0'));
    }
    append_padded(tar, content);
}

fn append_padded(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// Splits a path into ustar's two fields, if it fits.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let mut fitting = slashes.filter(|(at, _)| *at <= 155 && path.len() - at - 1 <= 100);
    let (at, _) = fitting.next()?;
    Some((&path[..at], &path[at + 1..]))
}

fn header(prefix: &[u8], name: &[u8], size: usize, executable: bool, kind: u8) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, if executable { b"0000755" } else { b"0000644" });
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    // The sum is made as if its own field were blank.
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    put(345, prefix);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// A file in a tar: its path, and where it is, headers and all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: BString,
    pub(super) range: Range<usize>,
}

/// Finds the files in a tar that [`append`] wrote; nothing if it is anything else.
pub(super) fn entries(tar: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let (mut start, mut at) = (0, 0);
    let mut long = None;
    while at < tar.len() {
        let header = tar.get(at..at + BLOCK)?;
        let content = at + BLOCK;
        let size = std::str::from_utf8(&header[124..135]).ok()?;
        let size = usize::from_str_radix(size, 8).ok()?;
        at = content.checked_add(size)?.checked_next_multiple_of(BLOCK)?;
        let content = tar.get(content..content + size)?;
        tar.get(..at)?;
        match header[156] {
            b'L' if long.is_none() => long = Some(field(content).to_vec()),
            b'0' => {
                let (prefix, name) = (field(&header[345..500]), field(&header[..100]));
                let path = match long.take() {
                    Some(long) => long,
                    None if prefix.is_empty() => name.to_vec(),
                    None => [prefix, b"/", name].concat(),
                };
                entries.push(Entry {
                    path: path.into(),
                    range: start..at,
                });
                start = at;
            }
            _ => return None,
        }
    }
    long.is_none().then_some(entries)
}

fn field(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0);
    &bytes[..end.unwrap_or(bytes.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    proptest! {
        #[test]
        fn what_is_written_is_read_back_by_us_and_by_others(
            files in proptest::collection::vec(
                (proptest::collection::vec("[a-z.+~-]{1,130}", 1..5), proptest::collection::vec(any::<u8>(), 0..1500), any::<bool>()),
                0..8,
            )
        ) {
            let mut tar = Vec::new();
            let files: Vec<(String, Vec<u8>, bool)> = files
                .into_iter()
                .map(|(parts, content, executable)| (format!("p/{}", parts.join("/")), content, executable))
                .collect();
            for (path, content, executable) in &files {
                append(&mut tar, path.as_bytes(), content, *executable);
            }
            let ours = entries(&tar).expect("a tar");
            prop_assert_eq!(ours.len(), files.len());
            tar.extend_from_slice(&END);
            let mut archive = ::tar::Archive::new(tar.as_slice());
            let theirs = archive.entries().expect("a tar");
            let mut end = 0;
            for ((theirs, ours), (path, content, executable)) in theirs.zip(&ours).zip(&files) {
                let mut theirs = theirs.expect("an entry");
                prop_assert!(theirs.path_bytes() == path.as_bytes());
                prop_assert_eq!(theirs.header().mode().expect("a mode"), if *executable { 0o755 } else { 0o644 });
                let mut read = Vec::new();
                theirs.read_to_end(&mut read).expect("read");
                prop_assert_eq!(&read, content);
                prop_assert_eq!(&ours.path, path.as_str());
                prop_assert_eq!(ours.range.start, end);
                end = ours.range.end;
            }
        }

        #[test]
        fn other_bytes_are_refused_and_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = entries(&bytes);
        }
    }
}
