// SPDX-License-Identifier: Apache-2.0
//! From a syntax tree to the sources that a package is made of: its `url` section and every `extra-source`.
//!
//! What is wrong with one of them is noted beside it, and the rest used. There we differ from `opam admin cache` (releases 2.1 to 2.6), which
//! throws away all checksums of a source if one is of a kind that it does not know or has a wrong length, then does not fetch it, and
//! gives up altogether at a version control URL that has a checksum.

use crate::Parsed;
use crate::checksum::{Algorithm, BadChecksum, Checksum};
use crate::tree::{Block, Item, Kind, Span, Value};
use bstr::{BString, ByteSlice};
use std::fmt;

/// What a package is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// In the order of the file.
    pub sources: Vec<Source>,
    /// False if the file says `available: false` or `available: [false]`.
    pub available: bool,
    /// What is wrong with sections that name no source at all.
    pub problems: Vec<Problem>,
}

/// Which section a source is from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// `url { … }`
    Url,
    /// `extra-source "name" { … }`
    Extra(BString),
}

impl fmt::Display for Section {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => formatter.write_str("url"),
            Self::Extra(name) => write!(formatter, "extra-source {name:?}"),
        }
    }
}

/// One thing to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is declared.
    pub section: Section,
    /// Where to fetch it from.
    pub url: BString,
    /// Where the URL stands in the file.
    pub url_span: Span,
    /// Where else to fetch it from, in the order of the file.
    pub mirrors: Vec<BString>,
    /// What it must match, all of it, in the order of the file: clients ask for the first. None twice.
    pub checksums: Vec<Checksum>,
    /// What is wrong with it, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Source {
    /// Tells whether it is a repository of a version control system, which is no archive: such are not fetched.
    pub fn is_vcs(&self) -> bool {
        is_vcs(&self.url)
    }
}

/// Tells whether the URL is of a version control system: `git+https://…`, `git://…`, the same of hg and darcs. A path that
/// ends in `.git` says nothing by itself (opam `src/core/opamUrl.ml`: `of_string` does not look at suffixes).
fn is_vcs(url: &[u8]) -> bool {
    ["git", "hg", "darcs"].iter().any(|system| {
        url.strip_prefix(system.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"+") || rest.starts_with(b"://"))
    })
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// What is written cannot be meant.
    Error,
    /// The source is not kept, or not well protected.
    Warning,
}

/// Something wrong with a source, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub kind: ProblemKind,
    /// Where in the file.
    pub span: Span,
}

/// What can be wrong with a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// Nothing to verify it by.
    #[error("this source has no checksum: it cannot be verified, and is not kept")]
    NoChecksum,
    /// Only md5.
    #[error("this source has an md5 checksum only, and md5 is broken")]
    OnlyMd5,
    /// A checksum that is none; the others are used.
    #[error("{0}")]
    BadChecksum(BadChecksum),
    /// Two digests of one kind.
    #[error("two {} digests that differ: no file has both", .0.name())]
    Conflict(Algorithm),
    /// A version control URL.
    #[error("a version control repository is no archive, and is not kept")]
    Vcs,
    /// A version control URL, and checksums, which mean nothing there.
    #[error("a version control repository cannot have a checksum: opam refuses it")]
    VcsWithChecksum,
    /// A section without a URL.
    #[error("this section names no source: `src` is missing")]
    NoUrl,
    /// An empty URL, or one with blanks or control characters in it.
    #[error("this is no URL")]
    BadUrl,
    /// Something else than a string.
    #[error("`{field}` should be {wanted}")]
    WrongType {
        /// The field.
        field: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// A field that is there already; the first counts.
    #[error("`{0}` is there already: the first counts")]
    Repeated(&'static str),
    /// A second `url` section; the first counts.
    #[error("a second `url` section: the first counts")]
    SecondUrl,
    /// An `extra-source` without a name.
    #[error("an `extra-source` has a name: that of the file that it becomes")]
    NoName,
    /// An `extra-source` whose name leads elsewhere.
    #[error("this name leads out of the package's directory")]
    BadName,
}

impl ProblemKind {
    /// Returns a short name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoChecksum => "no-checksum",
            Self::OnlyMd5 => "only-md5",
            Self::BadChecksum(BadChecksum::Algorithm { .. }) => "unknown-checksum",
            Self::BadChecksum(BadChecksum::Length { .. }) => "checksum-length",
            Self::BadChecksum(BadChecksum::Digits) => "checksum-digits",
            Self::Conflict(_) => "conflicting-checksums",
            Self::Vcs => "version-control",
            Self::VcsWithChecksum => "version-control-checksum",
            Self::NoUrl => "no-url",
            Self::BadUrl => "bad-url",
            Self::WrongType { .. } => "wrong-type",
            Self::Repeated(_) => "repeated-field",
            Self::SecondUrl => "second-url",
            Self::NoName => "no-name",
            Self::BadName => "bad-name",
        }
    }

    /// Returns what to do about it.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoChecksum => Some("add `checksum: \"sha256=…\"`"),
            Self::OnlyMd5 => Some("add a sha256 or sha512 checksum beside it"),
            Self::BadChecksum(_) => Some("the other checksums of the source are used"),
            Self::Vcs | Self::VcsWithChecksum => Some("name an archive of it if it is to be kept"),
            Self::BadUrl => Some("blanks in URLs are written `%20`"),
            _ => None,
        }
    }

    /// Returns how bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoChecksum | Self::OnlyMd5 | Self::Vcs => Severity::Warning,
            _ => Severity::Error,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(formatter)
    }
}

/// Takes from a tree the sources of the package.
pub fn sources(parsed: &Parsed<'_>) -> Sources {
    let mut found = Sources {
        sources: Vec::new(),
        available: true,
        problems: Vec::new(),
    };
    let mut url_seen = false;
    for item in &parsed.items {
        match item {
            Item::Field(field) if field.name.text == "available" => {
                found.available &= !is_false(&field.value);
            }
            Item::Block(block) if block.kind.text == "url" => {
                if std::mem::replace(&mut url_seen, true) {
                    found.problem(ProblemKind::SecondUrl, block.kind.span);
                } else {
                    found.add(Section::Url, block, Vec::new());
                }
            }
            Item::Block(block) if block.kind.text == "extra-source" => {
                let Some((name, span)) = &block.name else {
                    found.problem(ProblemKind::NoName, block.kind.span);
                    continue;
                };
                let mut problems = Vec::new();
                if !is_inside(name) {
                    problems.push(Problem {
                        kind: ProblemKind::BadName,
                        span: *span,
                    });
                }
                found.add(Section::Extra(BString::from(&**name)), block, problems);
            }
            _ => {}
        }
    }
    found
}

/// Tells whether a relative path stays inside of the directory that it starts from.
fn is_inside(name: &[u8]) -> bool {
    !name.is_empty()
        && !name.contains(&0)
        && name
            .split(|byte| *byte == b'/')
            .all(|part| !part.is_empty() && part != b"." && part != b"..")
}

fn is_false(value: &Value<'_>) -> bool {
    matches!(value.elements(), [only] if only.kind == Kind::Bool(false))
}

impl Sources {
    fn problem(&mut self, kind: ProblemKind, span: Span) {
        self.problems.push(Problem { kind, span });
    }

    fn add(&mut self, section: Section, block: &Block<'_>, problems: Vec<Problem>) {
        let mut reader = Reader { block, problems };
        let url = match (reader.field("src"), reader.field("archive")) {
            (Some(value), _) => ("src", value),
            (None, Some(value)) => ("archive", value),
            (None, None) => {
                reader.problem(ProblemKind::NoUrl, block.kind.span);
                return self.problems.append(&mut reader.problems);
            }
        };
        let (field, value) = url;
        let Some(url) = value.as_string() else {
            let wanted = "a string";
            reader.problem(ProblemKind::WrongType { field, wanted }, value.span);
            return self.problems.append(&mut reader.problems);
        };
        let url = BString::from(url);
        reader.check_url(&url, value.span);
        let mirrors = reader.strings("mirrors");
        let mirrors = mirrors
            .into_iter()
            .map(|(mirror, span)| {
                reader.check_url(&mirror, span);
                mirror
            })
            .collect();
        let (checksums, declared) = reader.checksums();
        if is_vcs(&url) {
            let kind = if declared {
                ProblemKind::VcsWithChecksum
            } else {
                ProblemKind::Vcs
            };
            reader.problem(kind, value.span);
        } else if checksums.is_empty() {
            reader.problem(ProblemKind::NoChecksum, value.span);
        } else if checksums
            .iter()
            .all(|checksum| checksum.algorithm() == Algorithm::Md5)
        {
            reader.problem(ProblemKind::OnlyMd5, value.span);
        }
        reader.problems.sort_by_key(|problem| problem.span.start);
        self.sources.push(Source {
            section,
            url,
            url_span: value.span,
            mirrors,
            checksums,
            problems: reader.problems,
        });
    }
}

/// Reads the fields of one section.
struct Reader<'b, 'a> {
    block: &'b Block<'a>,
    problems: Vec<Problem>,
}

impl<'b, 'a> Reader<'b, 'a> {
    fn problem(&mut self, kind: ProblemKind, span: Span) {
        self.problems.push(Problem { kind, span });
    }

    /// Returns the value of a field; of several the first.
    fn field(&mut self, name: &'static str) -> Option<&'b Value<'a>> {
        let block = self.block;
        let mut fields = block.fields(name);
        let first = fields.next()?;
        for field in fields {
            self.problem(ProblemKind::Repeated(name), field.name.span);
        }
        Some(&first.value)
    }

    /// Returns the strings of a field that is a string or a list of them.
    fn strings(&mut self, field: &'static str) -> Vec<(BString, Span)> {
        let elements = self.field(field).map_or(&[][..], Value::elements);
        let mut strings = Vec::with_capacity(elements.len());
        for element in elements {
            let Some(text) = element.as_string() else {
                let wanted = "a string or a list of strings";
                self.problem(ProblemKind::WrongType { field, wanted }, element.span);
                continue;
            };
            strings.push((BString::from(text), element.span));
        }
        strings
    }

    /// Returns the checksums that are good, and whether any are declared.
    fn checksums(&mut self) -> (Vec<Checksum>, bool) {
        let declared = self.strings("checksum");
        let mut checksums: Vec<Checksum> = Vec::with_capacity(declared.len());
        for (text, span) in &declared {
            // The digest of what is no text has a wrong length or wrong digits: said as of any other.
            match text.to_str_lossy().parse::<Checksum>() {
                // The same twice says nothing new. (opam-mirror loses such a source.)
                Ok(checksum) if checksums.contains(&checksum) => {}
                Ok(checksum) => {
                    let kind = checksum.algorithm();
                    if checksums.iter().any(|other| other.algorithm() == kind) {
                        self.problem(ProblemKind::Conflict(kind), *span);
                    }
                    checksums.push(checksum);
                }
                Err(error) => self.problem(ProblemKind::BadChecksum(error), *span),
            }
        }
        (checksums, !declared.is_empty())
    }

    fn check_url(&mut self, url: &[u8], span: Span) {
        let no_place = |byte: &u8| *byte <= b' ' || *byte == 0x7f;
        if url.is_empty() || url.iter().any(no_place) {
            self.problem(ProblemKind::BadUrl, span);
        }
    }
}
