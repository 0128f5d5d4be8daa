// SPDX-License-Identifier: Apache-2.0
//! Entries of the index's tar, written and read back: plain files only, no times, no owners.
//!
//! ustar (POSIX.1-1988, tar(5)); names that it has no room for as GNU `L` entries. opam 2.6 reads the tar itself and refuses every
//! archive that has links, devices or global headers in it; directories may be missing for all opam clients.

pub(super) use crate::tar::END;
use crate::tar::{self, BLOCK, Dialect, append_long, append_padded};
use bstr::BString;
use std::ops::Range;

/// Appends a file.
pub(super) fn append(tar: &mut Vec<u8>, path: &[u8], content: &[u8], executable: bool) {
    if let Some((prefix, name)) = split(path) {
        tar.extend_from_slice(&header(prefix, name, content.len(), executable));
    } else {
        append_long(tar, Dialect::Ustar, ::tar::EntryType::GNULongName, path);
        tar.extend_from_slice(&header(b"", &path[..100], content.len(), executable));
    }
    append_padded(tar, content);
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

fn header(prefix: &[u8], name: &[u8], size: usize, executable: bool) -> [u8; BLOCK] {
    let entry = tar::Entry {
        kind: ::tar::EntryType::Regular,
        prefix,
        name,
        target: b"",
        mode: if executable { 0o755 } else { 0o644 },
        size: size as u64,
        modified: 0,
    };
    tar::header(Dialect::Ustar, &entry)
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
