// SPDX-License-Identifier: Apache-2.0
//! Headers of tar archives, as the index and layers have them: nobody's, the same bytes for the same entry.
//!
//! Both are made by hand: there are twenty thousand in an index, and as many in each layer of archives, and a library takes ten times as long.

use tar::EntryType;

/// What a tar is made of (POSIX.1-1988, tar(5)).
pub(crate) const BLOCK: usize = 512;

/// What a tar ends with.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The name of an entry that has the name of the next in its content (GNU tar's manual, "Basic Tar Format").
pub(crate) const LONG_LINK: &[u8] = b"././@LongLink";

/// Who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// POSIX.1-1988: opam 2.6, which has a reader of its own.
    Ustar,
    /// GNU tar: what unpacks layers.
    Gnu,
}

/// What a header says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) kind: EntryType,
    /// The part of the path that is in the field for it (155 bytes); ustar only.
    pub(crate) prefix: &'a [u8],
    /// At most 100 bytes.
    pub(crate) name: &'a [u8],
    /// What a link leads to; at most 100 bytes.
    pub(crate) target: &'a [u8],
    /// Three octal digits.
    pub(crate) mode: u32,
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) modified: u64,
}

/// Makes a header.
pub(crate) fn header(dialect: Dialect, entry: &Entry<'_>) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, entry.name);
    put(100, format!("{:07o}", entry.mode).as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    if entry.size >> 33 == 0 {
        put(124, format!("{:011o}", entry.size).as_bytes());
    } else {
        // More than eleven digits hold: binary, with the first bit set (GNU tar's manual, "Extensions to tar").
        put(124, &[0x80]);
        put(128, &entry.size.to_be_bytes());
    }
    // Eleven octal digits go to the year 2242.
    put(
        136,
        format!("{:011o}", entry.modified.min((1 << 33) - 1)).as_bytes(),
    );
    // The sum is made as if its own field were blank.
    put(148, b"        ");
    put(156, &[entry.kind.as_byte()]);
    put(157, entry.target);
    match dialect {
        Dialect::Ustar => {
            put(257, b"ustar\x0000");
            put(345, entry.prefix);
        }
        Dialect::Gnu => put(257, b"ustar  \0"),
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = match dialect {
        Dialect::Ustar => format!("{sum:06o}\0 "),
        Dialect::Gnu => format!("{sum:07o}\0"),
    };
    header[148..156].copy_from_slice(sum.as_bytes());
    header
}

/// Appends a content, filled up to whole blocks.
pub(crate) fn append_padded(tar: &mut Vec<u8>, content: &[u8]) {
    tar.extend_from_slice(content);
    // What is there may be a piece of a tar that begins inside a block.
    let missing = content.len().next_multiple_of(BLOCK) - content.len();
    tar.resize(tar.len() + missing, 0);
}

/// Appends the entry that has a name which is too long for the next entry's header.
pub(crate) fn append_long(tar: &mut Vec<u8>, dialect: Dialect, kind: EntryType, text: &[u8]) {
    // GNU tar counts the NUL at the end.
    let terminated = [text, &[0]].concat();
    let entry = Entry {
        kind,
        prefix: b"",
        name: LONG_LINK,
        target: b"",
        mode: 0o644,
        size: terminated.len() as u64,
        modified: 0,
    };
    tar.extend_from_slice(&header(dialect, &entry));
    append_padded(tar, &terminated);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn gnu_headers_are_those_of_the_library(
            name in "[a-z/]{1,100}",
            target in "[a-z/]{0,100}",
            size in prop_oneof![any::<u64>(), 0..1_u64 << 34],
            modified in 0..1_u64 << 33,
        ) {
            let ours = header(Dialect::Gnu, &Entry {
                kind: EntryType::Link,
                prefix: b"",
                name: name.as_bytes(),
                target: target.as_bytes(),
                mode: 0o755,
                size,
                modified,
            });
            let mut theirs = tar::Header::new_gnu();
            theirs.set_entry_type(EntryType::Link);
            let fields = theirs.as_gnu_mut().expect("the header is GNU's");
            fields.name[..name.len()].copy_from_slice(name.as_bytes());
            fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
            theirs.set_mode(0o755);
            theirs.set_uid(0);
            theirs.set_gid(0);
            theirs.set_mtime(modified);
            theirs.set_size(size);
            theirs.set_cksum();
            prop_assert_eq!(&ours[..], &theirs.as_bytes()[..]);
        }
    }
}
