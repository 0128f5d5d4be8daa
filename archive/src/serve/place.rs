// SPDX-License-Identifier: Apache-2.0
//! From the path of a request to the place of a file, without looking at the disk.
//!
//! What a place may be is said here and nowhere else: names that are not the layout's (of half-fetched archives, of the archive's own state) lead
//! nowhere.

use crate::{Algorithm, Checksum};

/// Files at the top of an archive's directory that clients fetch.
const TOP: [&str; 4] = ["repo", "index.tar.gz", "urls.txt", "version"];

/// What kind of file a place has, which decides on caching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its name is the digest of what is in it: it never changes.
    Archive(Checksum),
    /// The index, or a file of a package: it is another one after the next merge.
    Index,
}

/// Where a request leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A file below the archive's directory, or else one of the same name below the legacy directory.
    Archive {
        /// Relative, without dots and empty names.
        path: String,
        kind: Kind,
    },
    /// A file below the legacy directory only.
    Legacy(String),
}

/// Why a path leads nowhere, as a status.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Nowhere {
    /// 400: no path at all.
    Malformed,
    /// 404: a path that cannot have a file.
    Missing,
}

/// Finds the place for a path that begins with `/` and is still percent-encoded.
pub(super) fn find(path: &str) -> Result<Place, Nowhere> {
    let path = decode(path)?;
    let relative = path.strip_prefix('/').ok_or(Nowhere::Malformed)?;
    if relative
        .split('/')
        .any(|name| name == "." || name == ".." || name.len() > 255)
    {
        return Err(Nowhere::Malformed);
    }
    let (directories, last) = relative.rsplit_once('/').unwrap_or(("", relative));
    if !directories.is_empty() && directories.split('/').any(str::is_empty)
        || relative.starts_with('/')
    {
        return Err(Nowhere::Missing);
    }
    if let Some(rest) = relative.strip_prefix("cache/") {
        return archive(rest).map(|checksum| Place::Archive {
            path: format!("cache/{rest}"),
            kind: Kind::Archive(checksum),
        });
    }
    let is_index = TOP.contains(&relative)
        || (relative.starts_with("packages/") && !last.is_empty() && !last.starts_with('.'));
    if is_index {
        return Ok(Place::Archive {
            path: relative.to_owned(),
            kind: Kind::Index,
        });
    }
    // RFC 8615: where ACME clients, among others, put what they are to be known by.
    let rest = relative.strip_prefix(".well-known/").unwrap_or(relative);
    if rest.split('/').any(|name| name.starts_with('.')) {
        return Err(Nowhere::Missing);
    }
    Ok(Place::Legacy(relative.to_owned()))
}

/// Reads `KIND/<2>/DIGEST`.
fn archive(rest: &str) -> Result<Checksum, Nowhere> {
    let mut names = rest.split('/');
    let (Some(kind), Some(two), Some(digest), None) =
        (names.next(), names.next(), names.next(), names.next())
    else {
        return Err(Nowhere::Missing);
    };
    let algorithm = Algorithm::from_name(kind).ok_or(Nowhere::Missing)?;
    let checksum = Checksum::new(algorithm, digest).map_err(|_| Nowhere::Missing)?;
    // The layout is in lower case, and so are the names that clients ask for.
    if checksum.digest() != digest || !digest.starts_with(two) || two.len() != 2 {
        return Err(Nowhere::Missing);
    }
    Ok(checksum)
}

/// Undoes percent-encoding. Control characters, `\` and what is no UTF-8 are in no name that is served.
fn decode(path: &str) -> Result<String, Nowhere> {
    let mut bytes = path.bytes();
    let mut decoded = Vec::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || {
                let digit = bytes.next().map(char::from)?.to_digit(16)?;
                u8::try_from(digit).ok()
            };
            let (Some(high), Some(low)) = (digit(), digit()) else {
                return Err(Nowhere::Malformed);
            };
            high << 4 | low
        } else {
            byte
        };
        if byte.is_ascii_control() || byte == b'\\' {
            return Err(Nowhere::Malformed);
        }
        decoded.push(byte);
    }
    String::from_utf8(decoded).map_err(|_| Nowhere::Malformed)
}

/// Returns the media type for a file's name. Archives are sent as they are: `Content-Encoding` would make clients unpack them.
pub(super) fn media_type(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit('.').next().unwrap_or_default() {
        "gz" | "tgz" => "application/gzip",
        "bz2" | "tbz" => "application/x-bzip2",
        "xz" | "txz" => "application/x-xz",
        "zip" => "application/zip",
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "xml" | "atom" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "ico" => "image/vnd.microsoft.icon",
        "txt" | "md" | "opam" | "repo" | "version" | "descr" | "url" | "patch" | "diff"
        | "install" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Nowhere, Place, find, media_type};
    use proptest::prelude::*;

    #[test]
    fn what_is_served_has_its_place() {
        let digest = "2c".repeat(32);
        let path = format!("/cache/sha256/2c/{digest}");
        let Ok(Place::Archive { path, kind }) = find(&path) else {
            panic!("an archive");
        };
        assert_eq!(path, format!("cache/sha256/2c/{digest}"));
        assert!(matches!(kind, Kind::Archive(_)));
        for name in [
            "/repo",
            "/index.tar.gz",
            "/packages/a/a.1/opam",
            "/packages/a/a%2B1/opam",
        ] {
            assert!(
                matches!(
                    find(name),
                    Ok(Place::Archive {
                        kind: Kind::Index,
                        ..
                    })
                ),
                "{name}"
            );
        }
        assert_eq!(
            find("/1.2.2/urls.txt"),
            Ok(Place::Legacy("1.2.2/urls.txt".into()))
        );
        let challenge = ".well-known/acme-challenge/x";
        assert_eq!(
            find(&format!("/{challenge}")),
            Ok(Place::Legacy(challenge.into()))
        );
        assert_eq!(find("/"), Ok(Place::Legacy(String::new())));
    }

    #[test]
    fn nothing_else_has_one() {
        let digest = "2c".repeat(32);
        for path in [
            "/../etc/passwd",
            "/packages/../state",
            "/packages/%2e%2e/state",
            "/%2e%2e%2fetc/passwd",
            "/packages/..%2f..%2fetc/passwd",
            "/packages/%00",
            "/packages/a%0d%0ab",
            "/packages/..\\x",
            "/%",
            "/%2",
            "/%zz",
            "/%ff",
            "repo",
            "*",
        ] {
            assert_eq!(find(path), Err(Nowhere::Malformed), "{path}");
        }
        for path in [
            "//etc/passwd".to_owned(),
            "/packages//opam".to_owned(),
            "/packages/.git".to_owned(),
            "/.git/config".to_owned(),
            "/.well-known/.git/config".to_owned(),
            "/x/.well-known/y".to_owned(),
            "/1.2.2/.htpasswd".to_owned(),
            "/cache/".to_owned(),
            "/cache/sha256".to_owned(),
            format!("/cache/sha1/2c/{digest}"),
            format!("/cache/sha256/2d/{digest}"),
            format!("/cache/sha256/2c/{}", digest.to_uppercase()),
            format!("/cache/sha256/2c/{digest}/"),
            format!("/cache/sha256/2c/{digest}.part"),
            format!("/cache/sha256/2c2c/{digest}"),
        ] {
            assert_eq!(find(&path), Err(Nowhere::Missing), "{path}");
        }
    }

    #[test]
    fn types_follow_names() {
        assert_eq!(media_type("index.tar.gz"), "application/gzip");
        assert_eq!(
            media_type("packages/a/a.1/opam"),
            "text/plain; charset=utf-8"
        );
        assert_eq!(media_type("x/unknown"), "application/octet-stream");
    }

    proptest! {
        #[test]
        fn a_place_stays_below_its_directory(path in "/([./%\\\\a-f0-9]|%2e|%2f|packages/){0,30}") {
            if let Ok(Place::Archive { path, .. } | Place::Legacy(path)) = find(&path) {
                prop_assert!(!path.starts_with('/'));
                prop_assert!(path.split('/').all(|name| name != ".." && name != "."));
            }
        }
    }
}
