// SPDX-License-Identifier: Apache-2.0
//! Finds where two files differ: lines of text, members of archives, bytes of anything else.

use crate::stream::read_full;
use bstr::{BString, ByteSlice};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

/// Larger files are compared byte by byte only.
const LARGEST: u64 = 64 << 20;
/// How many lines or members are told of one file.
const MOST: usize = 5;
/// Bytes that are shown around the first difference.
const SHOWN: usize = 16;

/// Where two files differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The lines from this one on, counted from 1: what they were, and what they are; a few only.
    Lines(usize, Vec<BString>, Vec<BString>),
    /// Members of an archive; a few only.
    Members(Vec<Member>),
    /// The first byte that differs, some from there on in both, and both sizes.
    Bytes {
        /// How many bytes are the same.
        offset: u64,
        /// What was there.
        was: Vec<u8>,
        /// What is there.
        now: Vec<u8>,
        /// The sizes of both files.
        sizes: (u64, u64),
    },
}

/// A member of an archive that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: BString,
    /// What differs: `only in the first`, `content`, `time`, `order`, …
    pub what: &'static str,
}

/// Returns where two files differ; nothing if they are the same.
pub(super) fn pieces(one: File, other: File) -> io::Result<Option<Piece>> {
    let sizes = (one.metadata()?.len(), other.metadata()?.len());
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    let mut offset = 0;
    let (was, now) = loop {
        let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let (some, more) = (
            read_full(&mut one, &mut left)?,
            read_full(&mut other, &mut right)?,
        );
        left.truncate(some);
        right.truncate(more);
        if left != right {
            let equal = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
            offset += equal as u64;
            let cut = |bytes: &[u8]| bytes[equal..bytes.len().min(equal + SHOWN)].to_vec();
            break (cut(&left), cut(&right));
        }
        if left.is_empty() {
            return Ok(None);
        }
        offset += left.len() as u64;
    };
    if sizes.0.max(sizes.1) <= LARGEST {
        one.rewind()?;
        other.rewind()?;
        let (mut left, mut right) = (Vec::new(), Vec::new());
        one.read_to_end(&mut left)?;
        other.read_to_end(&mut right)?;
        if let Some(members) = members(&left, &right) {
            return Ok(Some(Piece::Members(members)));
        }
        if let Some(piece) = lines(&left, &right) {
            return Ok(Some(piece));
        }
    }
    Ok(Some(Piece::Bytes {
        offset,
        was,
        now,
        sizes,
    }))
}

/// Compares text, by lines between those that both begin and end with.
fn lines(one: &[u8], other: &[u8]) -> Option<Piece> {
    let is_text = |bytes: &[u8]| !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
    if !is_text(one) || !is_text(other) {
        return None;
    }
    let (left, right): (Vec<&[u8]>, Vec<&[u8]>) = (
        one.lines_with_terminator().collect(),
        other.lines_with_terminator().collect(),
    );
    let before = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let (left, right) = (&left[before..], &right[before..]);
    let after = left
        .iter()
        .rev()
        .zip(right.iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let cut = |lines: &[&[u8]]| {
        let lines = lines[..lines.len() - after].iter().take(MOST);
        lines
            .map(|line| BString::from(line.trim_end_with(|c| c == '\n')))
            .collect()
    };
    Some(Piece::Lines(before + 1, cut(left), cut(right)))
}

/// What is compared of a member.
#[derive(PartialEq, Eq)]
struct Facts {
    content: [u8; 32],
    time: u64,
    owner: (u64, u64),
    mode: u32,
}

/// Compares two archives of the same kind; `None` when they are none, or differ in nothing that is told of members.
fn members(one: &[u8], other: &[u8]) -> Option<Vec<Member>> {
    let (left, right) = (read(one)?, read(other)?);
    let order = |list: &[(BString, Facts)]| list.iter().map(|(name, _)| name.clone()).collect();
    let (left_order, right_order): (Vec<BString>, Vec<BString>) = (order(&left), order(&right));
    let (left, right): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (left.into_iter().collect(), right.into_iter().collect());
    let mut found = Vec::new();
    for (name, was) in &left {
        let what = match right.get(name) {
            None => "only in the first",
            Some(now) if now.content != was.content => "content",
            Some(now) if now.time != was.time => "time",
            Some(now) if now.owner != was.owner => "owner",
            Some(now) if now.mode != was.mode => "mode",
            Some(_) => continue,
        };
        found.push(Member {
            name: name.clone(),
            what,
        });
    }
    for name in right.keys().filter(|name| !left.contains_key(*name)) {
        found.push(Member {
            name: name.clone(),
            what: "only in the second",
        });
    }
    if found.is_empty() {
        let (name, _) = left_order
            .iter()
            .zip(&right_order)
            .find(|(one, other)| one != other)?;
        found.push(Member {
            name: name.clone(),
            what: "order",
        });
    }
    found.truncate(MOST);
    Some(found)
}

/// Reads the members of a tar archive, compressed or not, or of an `ar` archive (a static library, a Debian package).
fn read(bytes: &[u8]) -> Option<Vec<(BString, Facts)>> {
    if let Some(rest) = bytes.strip_prefix(b"!<arch>\n") {
        return ar(rest);
    }
    let limit = 4 * LARGEST;
    let mut content = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => {
            let decoder = flate2::bufread::MultiGzDecoder::new(bytes);
            decoder.take(limit).read_to_end(&mut content).ok()?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = zstd::stream::read::Decoder::new(bytes).ok()?;
            decoder.take(limit).read_to_end(&mut content).ok()?;
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let decoder = lzma_rust2::XzReader::new(bytes, true);
            decoder.take(limit).read_to_end(&mut content).ok()?;
        }
        _ => content.extend_from_slice(bytes),
    }
    if content.get(257..262) != Some(b"ustar") {
        return None;
    }
    let mut archive = tar::Archive::new(&content[..]);
    let mut members = Vec::new();
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match entry.read(&mut buffer).ok()? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        hash.update(entry.link_name_bytes().unwrap_or_default());
        let header = entry.header();
        let facts = Facts {
            content: hash.finalize().into(),
            time: header.mtime().unwrap_or(0),
            owner: (header.uid().unwrap_or(0), header.gid().unwrap_or(0)),
            mode: header.mode().unwrap_or(0),
        };
        members.push((BString::from(entry.path_bytes().into_owned()), facts));
    }
    Some(members)
}

/// ar(5): headers of 60 bytes (name 16, time 12, owner 6, group 6, mode 8, size 10, two of end), contents at even places.
fn ar(mut rest: &[u8]) -> Option<Vec<(BString, Facts)>> {
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (header, after) = rest.split_at_checked(60)?;
        let number = |from: usize, to: usize, radix: u32| {
            let text = std::str::from_utf8(&header[from..to]).ok()?.trim();
            u64::from_str_radix(if text.is_empty() { "0" } else { text }, radix).ok()
        };
        let size = usize::try_from(number(48, 58, 10)?).ok()?;
        let content = after.get(..size)?;
        let facts = Facts {
            content: Sha256::digest(content).into(),
            time: number(16, 28, 10)?,
            owner: (number(28, 34, 10)?, number(34, 40, 10)?),
            mode: u32::try_from(number(40, 48, 8)?).ok()?,
        };
        members.push((
            BString::from(header[..16].trim_end_with(|c| c == ' ')),
            facts,
        ));
        rest = after.get(size.next_multiple_of(2)..).unwrap_or_default();
    }
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn compare(one: &[u8], other: &[u8]) -> Option<Piece> {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            file
        };
        pieces(file(one), file(other)).unwrap()
    }

    fn archive(members: &[(&str, &str, u64)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content, time) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mtime(*time);
            archive
                .append_data(&mut header, name, content.as_bytes())
                .unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn differences_are_told_as_finely_as_the_format_allows() {
        assert_eq!(compare(b"same", b"same"), None);
        assert_eq!(
            compare(b"a\nb\nc\nd\n", b"a\nx\ny\nd\n"),
            Some(Piece::Lines(
                2,
                vec!["b".into(), "c".into()],
                vec!["x".into(), "y".into()]
            ))
        );
        assert_eq!(
            compare(b"a\n", b"a\nb\n"),
            Some(Piece::Lines(2, vec![], vec!["b".into()]))
        );
        assert_eq!(
            compare(b"\0\x01\x02", b"\0\x01\x03\x04"),
            Some(Piece::Bytes {
                offset: 2,
                was: vec![2],
                now: vec![3, 4],
                sizes: (3, 4)
            })
        );
        let one = archive(&[("a", "1", 7), ("b", "2", 7), ("c", "3", 7)]);
        let member = |name: &str, what| Member {
            name: name.into(),
            what,
        };
        let other = archive(&[("a", "1", 8), ("b", "x", 7), ("d", "4", 7)]);
        let wanted = vec![
            member("a", "time"),
            member("b", "content"),
            member("c", "only in the first"),
            member("d", "only in the second"),
        ];
        assert_eq!(compare(&one, &other), Some(Piece::Members(wanted)));
        let swapped = archive(&[("b", "2", 7), ("a", "1", 7), ("c", "3", 7)]);
        let wanted = vec![member("a", "order")];
        assert_eq!(compare(&one, &swapped), Some(Piece::Members(wanted)));
        let library = |time: &str| {
            let mut bytes = b"!<arch>\n".to_vec();
            bytes.extend(
                format!(
                    "{:<16}{time:<12}0     0     644     {:<10}`\nabc\n",
                    "x.o/", 3
                )
                .bytes(),
            );
            bytes
        };
        assert_eq!(
            compare(&library("1"), &library("2")),
            Some(Piece::Members(vec![member("x.o/", "time")]))
        );
    }
}
