// SPDX-License-Identifier: Apache-2.0
//! Which names may go on: of files, and of branches.

use super::Error;
use bstr::{BString, ByteSlice};
use std::collections::HashSet;
use std::fmt;

/// The longest path that is passed on. Real ones reach 110 bytes.
const PATH_BYTES: usize = 1024;

/// The longest part of a path: `NAME_MAX` of every file system that clients unpack on.
const NAME_BYTES: usize = 255;

/// How many directories deep files may be. opam's layout needs four and those below `files/`.
pub(super) const DEPTH: usize = 32;

/// Why a file or directory was left out, or is suspicious.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A symbolic link. Clients refuse an index that has one, and it may point anywhere.
    Link,
    /// A commit of another repository.
    Submodule,
    /// Neither file nor directory, in a plain directory.
    Special,
    /// Empty, `.`, `..`, or with bytes in it that some system takes for something else: `/`, `\`, controls, no UTF-8.
    Name,
    /// The name, or the whole path, is longer than file systems allow.
    Long,
    /// More directories deep than anything real is.
    Deep,
    /// The file is too large.
    Large {
        /// How large it is.
        bytes: u64,
    },
    /// A git tree has the name twice; the first counts.
    Twice,
    /// Another name beside it differs only in case. It is passed on, but a client on macOS or Windows sees only one of them.
    Case,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Link => "a symbolic link",
            Self::Submodule => "a submodule",
            Self::Special => "no plain file",
            Self::Name => "its name is not safe",
            Self::Long => "its name is too long",
            Self::Deep => "it is too many directories deep",
            Self::Large { bytes } => return write!(formatter, "it is too large ({bytes} bytes)"),
            Self::Twice => "the name is there twice",
            Self::Case => "another name differs from it only in case",
        })
    }
}

/// Something in a repository that was left out, or is passed on but suspicious ([`Reason::Case`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where it is. Its bytes may be anything: escape them before they are shown.
    pub path: BString,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Skipped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path.escape_bytes(), self.reason)
    }
}

/// What happens to an entry of a directory because of its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// `opam admin index` leaves it out too: it calls tar with `--exclude=.git*`.
    Ignore,
    Skip(Reason),
}

/// Judges an entry `name` of the directory `prefix` (empty, or ends in a slash).
pub(super) fn judge(prefix: &[u8], name: &[u8]) -> Verdict {
    if name.starts_with(b".git") {
        return Verdict::Ignore;
    }
    let unsafe_byte = |byte: u8| byte < b' ' || byte == 0x7f || byte == b'/' || byte == b'\\';
    // Without leaving early, so that many bytes are looked at in one step: a merge judges some 9,000 names.
    let is_unsafe = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(false, |any, byte| any | unsafe_byte(*byte))
    };
    if name.is_empty()
        || name == b"."
        || name == b".."
        || is_unsafe(name)
        || !(name.is_ascii() || name.to_str().is_ok())
    {
        return Verdict::Skip(Reason::Name);
    }
    if name.len() > NAME_BYTES || prefix.len() + name.len() > PATH_BYTES {
        return Verdict::Skip(Reason::Long);
    }
    if prefix.split(|byte| *byte == b'/').count() > DEPTH {
        return Verdict::Skip(Reason::Deep);
    }
    Verdict::Keep
}

/// Returns those of `names` that another one equals but for the case of ASCII letters.
pub(super) fn case_twins<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = names.collect();
    let folded = |name: &&[u8]| name.to_ascii_lowercase();
    // Of two twins one has a capital letter; most names have none, and most directories have one entry.
    let capital = |name: &&&[u8]| name.iter().any(u8::is_ascii_uppercase);
    let capitals: HashSet<Vec<u8>> = names.iter().filter(capital).map(folded).collect();
    if names.len() < 2 || capitals.is_empty() {
        return Vec::new();
    }
    let lengths: HashSet<usize> = capitals.iter().map(Vec::len).collect();
    names.retain(|name| lengths.contains(&name.len()) && capitals.contains(&folded(name)));
    names.sort_by_cached_key(folded);
    let mut twins: Vec<&[u8]> = names
        .windows(2)
        .filter(|pair| pair[0] != pair[1] && pair[0].eq_ignore_ascii_case(pair[1]))
        .flat_map(|pair| [pair[0], pair[1]])
        .collect();
    twins.sort_unstable();
    twins.dedup();
    twins
}

/// Refuses what git could take for something else than a branch, a tag or a commit (git-check-ref-format(1), gitrevisions(7)).
pub(super) fn check_revision(revision: &str) -> Result<(), Error> {
    let forbidden = |byte: u8| byte <= b' ' || byte == 0x7f || b"~^:?*[\\".contains(&byte);
    if revision.is_empty()
        || revision.starts_with(['-', '/', '.'])
        || revision.ends_with(['/', '.'])
        || revision.as_bytes().ends_with(b".lock")
        || revision.contains("..")
        || revision.contains("//")
        || revision.contains("@{")
        || revision.bytes().any(forbidden)
    {
        return Err(Error::NoSuchRevision {
            revision: revision.to_owned(),
        });
    }
    Ok(())
}

/// Returns what a revision may be, in the order in which it is looked for.
pub(super) fn candidates(revision: Option<&str>) -> Vec<String> {
    match revision {
        None | Some("HEAD") => vec!["HEAD".to_owned()],
        Some(name) if name.starts_with("refs/") => vec![name.to_owned()],
        Some(name) if name.parse::<super::Commit>().is_ok() => vec![name.to_owned()],
        Some(name) => vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        assert_eq!(judge(b"packages/", b"a.1~b+c"), Verdict::Keep);
        assert_eq!(judge(b"packages/", b".gitignore"), Verdict::Ignore);
        for name in [
            &b""[..],
            b".",
            b"..",
            b"a/b",
            b"a\\b",
            b"a\nb",
            b"\xff",
            b"\x7f",
        ] {
            assert_eq!(judge(b"packages/", name), Verdict::Skip(Reason::Name));
        }
        let long = [b'a'; 256];
        assert_eq!(judge(b"", &long), Verdict::Skip(Reason::Long));
        let deep = b"a/".repeat(DEPTH);
        assert_eq!(judge(&deep, b"a"), Verdict::Skip(Reason::Deep));
    }

    #[test]
    fn twins_are_found() {
        let names: [&[u8]; 5] = [b"Foo", b"bar", b"foo", b"fOO", b"baz"];
        let twins = case_twins(names.into_iter());
        assert_eq!(twins, [&b"Foo"[..], b"fOO", b"foo"]);
        assert!(case_twins([&b"a"[..], b"b"].into_iter()).is_empty());
    }

    #[test]
    fn revisions_cannot_be_expressions() {
        for good in ["master", "feature/x", "2.0", "refs/pull/1/head"] {
            check_revision(good).expect("a revision");
        }
        for bad in [
            "", "-x", "a..b", "a:b", "a^", "a~1", "@{1}", "a b", "x.lock", "a\n",
        ] {
            check_revision(bad).expect_err(bad);
        }
    }
}
