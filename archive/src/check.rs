// SPDX-License-Identifier: Apache-2.0
//! Looking through opam files for what an archive cannot use: mistakes of syntax, sources that cannot be kept or verified, and, over all
//! files together, one URL for which different digests are declared.

use crate::opam::{Algorithm, Checksum, MAX_FILE_BYTES, Severity, Source, Span, parse, sources};
use bstr::BString;
use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A short name of its kind, for programs.
    pub code: &'static str,
    /// What is wrong, in one line.
    pub message: String,
    /// Where in the file.
    pub span: Span,
    /// Another place in the file that it has to do with, and how.
    pub related: Option<(Span, &'static str)>,
    /// Remarks.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Option<&'static str>,
}

impl Finding {
    /// Returns what stands for a file that cannot be read.
    pub fn unreadable(error: &io::Error) -> Self {
        Self {
            severity: Severity::Error,
            code: "unreadable",
            message: error.to_string(),
            span: Span::default(),
            related: None,
            notes: Vec::new(),
            help: None,
        }
    }
}

/// Looks through files one after the other, and remembers which digests they declare of which URLs.
#[derive(Debug, Default)]
pub struct Checker {
    /// What was first declared of each URL, and by which file.
    declared: HashMap<BString, Vec<(Checksum, usize)>>,
    /// The files.
    paths: Vec<PathBuf>,
}

impl Checker {
    /// Makes one that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns what is wrong with the file, in the order of its text; `path` is its name where others speak of it.
    pub fn check(&mut self, path: &Path, text: &[u8]) -> Vec<Finding> {
        let parsed = parse(text);
        let mut findings: Vec<Finding> = parsed
            .errors
            .iter()
            .map(|error| Finding {
                severity: Severity::Error,
                code: "syntax",
                message: error.message.clone(),
                span: error.span,
                related: error.related,
                notes: Vec::new(),
                help: None,
            })
            .collect();
        let read = sources(&parsed);
        self.paths.push(path.to_owned());
        for source in &read.sources {
            findings.extend(self.conflicts(source));
        }
        let of_sources = read.sources.iter().flat_map(|source| &source.problems);
        findings.extend(of_sources.chain(&read.problems).map(|problem| Finding {
            severity: problem.kind.severity(),
            code: problem.kind.code(),
            message: problem.to_string(),
            span: problem.span,
            related: None,
            notes: Vec::new(),
            help: problem.kind.help(),
        }));
        findings.sort_by_key(|finding| finding.span.start);
        findings
    }

    /// Returns what was declared otherwise before, and remembers what is declared now.
    fn conflicts(&mut self, source: &Source) -> Vec<Finding> {
        let this = self.paths.len() - 1;
        let known = self.declared.entry(source.url.clone()).or_default();
        let mut findings = Vec::new();
        for algorithm in Algorithm::ALL {
            let of_kind = |checksum: &&Checksum| checksum.algorithm() == algorithm;
            let Some(now) = source.checksums.iter().find(of_kind) else {
                continue;
            };
            let before = known.iter().find(|(checksum, _)| of_kind(&checksum));
            match before {
                None => known.push((now.clone(), this)),
                Some((before, file)) if before != now => findings.push(Finding {
                    severity: Severity::Error,
                    code: "conflicting-sources",
                    message: format!(
                        "another {} digest is declared of the same URL elsewhere",
                        algorithm.name()
                    ),
                    span: source.url_span,
                    related: None,
                    notes: vec![
                        format!("here: {now}"),
                        format!("in {}: {before}", self.paths[*file].display()),
                    ],
                    help: Some("one of the two packages cannot be fetched"),
                }),
                Some(_) => {}
            }
        }
        findings
    }
}

/// Returns the opam files in a directory, sorted: those of `packages/` if there is that, as in a repository, else all that are named
/// `opam` or `*.opam`. Links are not followed.
pub fn opam_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let packages = directory.join("packages");
    let root = if packages.is_dir() {
        packages
    } else {
        directory.to_owned()
    };
    let mut files = Vec::new();
    let mut left = vec![root];
    while let Some(directory) = left.pop() {
        for entry in fs_err::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = entry.file_name();
            if kind.is_dir() {
                if name != ".git" {
                    left.push(entry.path());
                }
            } else if kind.is_file()
                && (name == "opam" || name.as_encoded_bytes().ends_with(b".opam"))
            {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file, unless it is longer than [`MAX_FILE_BYTES`].
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs_err::File::open(path)?;
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} is too large for an opam file", path.display()),
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{Checker, opam_files, read_file};
    use crate::opam::MAX_FILE_BYTES;
    use std::path::Path;

    fn codes(checker: &mut Checker, path: &str, text: &str) -> Vec<&'static str> {
        let findings = checker.check(Path::new(path), text.as_bytes());
        findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn one_url_with_two_digests_is_found_over_all_files() {
        let mut checker = Checker::new();
        let package = |digit: &str, kind: &str, digits: usize| {
            let digest = digit.repeat(digits);
            format!("url {{\n src: \"https://a/b.tar\"\n checksum: \"{kind}={digest}\"\n}}\n")
        };
        assert_eq!(
            codes(&mut checker, "a", &package("0", "sha256", 64)),
            [""; 0]
        );
        assert_eq!(
            codes(&mut checker, "b", &package("0", "sha512", 128)),
            [""; 0]
        );
        assert_eq!(
            codes(&mut checker, "c", &package("0", "sha256", 64)),
            [""; 0]
        );
        let text = package("1", "sha512", 128);
        let findings = checker.check(Path::new("d"), text.as_bytes());
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].code, "conflicting-sources");
        assert_eq!(&text[findings[0].span.range()], "\"https://a/b.tar\"");
        assert!(findings[0].notes[1].starts_with("in b: sha512=00"));
    }

    #[test]
    fn findings_are_in_the_order_of_the_text() {
        let text = "url {\n src: \"git+https://a/b\"\n checksum: \"sha1=00\"\n}\nname \"x\"\n";
        assert_eq!(
            codes(&mut Checker::new(), "a", text),
            ["version-control-checksum", "unknown-checksum", "syntax"]
        );
    }

    #[test]
    fn the_files_of_a_repository_are_those_of_its_packages() {
        let scratch = tempfile::tempdir().expect("a directory");
        let root = scratch.path();
        for path in [
            "opam",
            "packages/b/b.1/opam",
            "packages/a/a.1/opam",
            "packages/a/a.1/files/x",
        ] {
            let path = root.join(path);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs_err::write(path, "").expect("a file");
        }
        std::os::unix::fs::symlink("..", root.join("packages/loop")).expect("a link");
        let files = opam_files(root).expect("a directory");
        assert_eq!(
            files,
            [
                root.join("packages/a/a.1/opam"),
                root.join("packages/b/b.1/opam")
            ]
        );
        assert_eq!(
            opam_files(&root.join("packages/a"))
                .expect("a directory")
                .len(),
            1
        );
    }

    #[test]
    fn a_huge_file_is_not_read() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("opam");
        let file = fs_err::File::create(&path).expect("a file");
        file.set_len(MAX_FILE_BYTES).expect("room");
        assert_eq!(read_file(&path).expect("read").len() as u64, MAX_FILE_BYTES);
        file.set_len(1 << 40).expect("room");
        assert!(read_file(&path).is_err());
    }
}
