// SPDX-License-Identifier: Apache-2.0
//! Software bills of materials: which packages a tree holds, as its package databases have it.
//!
//! [`survey`] reads the databases of dpkg, apk and opam, and os-release; [`Bill`] makes a document of what it found, in SPDX 2.3 or
//! `CycloneDX` 1.6. The databases are hostile: whatever is in them gives a bill, an [`SbomError`] or an entry that is left out
//! with a warning, never a panic, and no more memory than a limit allows. The same tree always gives the same bytes.

mod apk;
mod cyclonedx;
mod document;
mod dpkg;
mod files;
mod licence;
mod opam;
mod paragraphs;
mod spdx;
mod system;
#[cfg(test)]
mod tests;

pub use document::{Bill, Subject};

use crate::tree::{Cancelled, TreeError};
use bstr::BString;
use files::Files;
use packageurl::PackageUrl;
use std::os::fd::BorrowedFd;

/// The most bytes of package databases that are read of one tree; a full desktop's have about 20 MB. What is kept of them is less.
const DATABASES: u64 = 256 << 20;

/// Packages of one tree; beyond it there is something else in the database.
const PACKAGES: usize = 200_000;

/// Why no bill could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SbomError {
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A package database is larger than any real one.
    #[error("the package database {path:?} is too large: more than {limit} bytes have been read")]
    TooLarge {
        /// Where it is in the tree.
        path: BString,
        /// What is read at most.
        limit: u64,
    },
    /// There are more packages than any real tree has.
    #[error("the tree's databases have more than {limit} packages")]
    TooMany {
        /// How many are taken at most.
        limit: usize,
    },
}

/// What is in a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The operating system, if the tree says which it is.
    pub system: Option<System>,
    /// The packages, each once, in the order of their package URLs.
    pub packages: Vec<Package>,
}

/// An operating system, by os-release(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// `ID`: `debian`.
    pub id: String,
    /// `VERSION_ID`: `12`.
    pub version: Option<String>,
    /// `PRETTY_NAME`, else `NAME`.
    pub name: Option<String>,
}

/// A package that a database says is installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// The package URL, which is also what it is identified by.
    pub url: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as the database gives it; often an SPDX expression.
    pub licence: Option<String>,
    /// Who looks after it.
    pub maintainer: Option<String>,
    /// One line that says what it is.
    pub summary: Option<String>,
    /// Its home page.
    pub homepage: Option<String>,
    /// Where its source was fetched from.
    pub source: Option<String>,
    /// Checksums, of the package or of its source, as hexadecimal digits.
    pub checksums: Vec<Checksum>,
}

/// A checksum that a database gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checksum {
    /// By which algorithm.
    pub algorithm: Algorithm,
    /// Lower-case hexadecimal digits.
    pub digits: String,
}

/// Algorithms that package databases use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// MD5.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Checksum {
    /// Makes one of hexadecimal digits, if there are as many of them as the algorithm gives.
    fn parse(algorithm: Algorithm, digits: &str) -> Option<Self> {
        let bytes = match algorithm {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        };
        (digits.len() == 2 * bytes && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then(
            || Self {
                algorithm,
                digits: digits.to_ascii_lowercase(),
            },
        )
    }
}

/// Finds out which packages the tree at `root` holds. Nobody changes it meanwhile.
///
/// # Errors
///
/// When the tree cannot be read, or its databases are larger than any real ones.
pub fn survey(root: BorrowedFd<'_>, cancelled: Cancelled<'_>) -> Result<Inventory, SbomError> {
    let files = Files::new(root, cancelled);
    let system = system::read(&files)?;
    let mut found = Found::default();
    dpkg::read(&files, system.as_ref(), &mut found)?;
    apk::read(&files, system.as_ref(), &mut found)?;
    opam::read(&files, &mut found)?;
    let mut packages = found.packages;
    // Of several records with one URL the first is kept: the sort is stable.
    packages.sort_by(|one, other| one.url.cmp(&other.url));
    packages.dedup_by(|later, first| later.url == first.url);
    Ok(Inventory { system, packages })
}

/// Collects packages.
#[derive(Default)]
struct Found {
    packages: Vec<Package>,
}

impl Found {
    fn add(&mut self, package: Package) -> Result<(), SbomError> {
        if self.packages.len() >= PACKAGES {
            return Err(SbomError::TooMany { limit: PACKAGES });
        }
        self.packages.push(package);
        Ok(())
    }
}

/// Makes a package URL. `None` for what cannot be in one.
///
/// The types' rules are purl-spec's `types/*-definition.json`; qualifiers that are empty are left out, as it wants.
fn package_url(
    kind: &'static str,
    namespace: Option<&str>,
    name: &str,
    version: &str,
    qualifiers: &[(&'static str, &str)],
) -> Option<String> {
    if version.is_empty() {
        return None;
    }
    let mut url = PackageUrl::new(kind, name).ok()?;
    if let Some(namespace) = namespace {
        url.with_namespace(namespace).ok()?;
    }
    url.with_version(version).ok()?;
    for (key, value) in qualifiers {
        if !value.is_empty() {
            url.add_qualifier(*key, *value).ok()?;
        }
    }
    Some(url.to_string())
}

/// Says that records of a database were left out.
fn warn_of_records(path: &[u8], count: usize) {
    if count > 0 {
        tracing::warn!(
            "{count} records of the package database {:?} have no usable name or version and are left out",
            bstr::BStr::new(path)
        );
    }
}
