// SPDX-License-Identifier: Apache-2.0
//! Names of images in registries, completed as Docker completes them.
//!
//! Grammar and completion: `docker.io` is the registry of a name without one, `library` the namespace of its one-word names, `latest`
//! the tag of a name without tag and digest (github.com/distribution/reference v0.6, reference.go and normalize.go).

use crate::Error;
use crate::digest::Digest;
use std::fmt;
use std::str::FromStr;

/// The registry of names without one.
const DEFAULT_HOST: &str = "docker.io";
/// Where that registry's API is.
const DEFAULT_API: &str = "registry-1.docker.io";

/// Names an image in a registry, in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageName {
    /// Returns the registry's host, with its port if the name has one.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository, such as `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; a name with a digest may have none.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest of the manifest, if the name has it. It wins over the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Returns the name as the registry's API has it after `/manifests/`.
    pub(super) fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            // A parser makes names, and it gives each a tag or a digest.
            (None, None) => "latest".to_owned(),
        }
    }
}

/// Returns the host that serves a registry's API.
pub(super) fn api_host(host: &str) -> &str {
    if host == DEFAULT_HOST {
        DEFAULT_API
    } else {
        host
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text.strip_prefix("docker://").unwrap_or(text)).map_err(|reason| {
            Error::BadReference {
                text: text.to_owned(),
                reason,
            }
        })
    }
}

fn parse(text: &str) -> Result<ImageName, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (text, None),
    };
    // A colon before the last slash is a port's.
    let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match rest[name_start..].split_once(':') {
        Some((last, tag)) => (&rest[..name_start + last.len()], Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(format!(
            "{tag:?} is no tag: tags are letters, digits, '_', '.' and '-'"
        ));
    }
    let (host, path) = match path.split_once('/') {
        Some((host, path)) if names_host(host) => (host, path),
        _ => (DEFAULT_HOST, path),
    };
    let host = if host == "index.docker.io" {
        DEFAULT_HOST
    } else {
        host
    };
    if !is_host(host) {
        return Err(format!("{host:?} is no host"));
    }
    let repository = if host == DEFAULT_HOST && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if path.is_empty() || !path.split('/').all(is_component) {
        return Err(if path.chars().any(|c| c.is_ascii_uppercase()) {
            "repositories are named in lower case".to_owned()
        } else {
            format!("{path:?} is no name of a repository")
        });
    }
    if repository.len() > 255 {
        return Err("the repository's name is longer than 255 characters".to_owned());
    }
    if host == DEFAULT_HOST && path.len() == 64 && path.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are an id, not a name".to_owned());
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(ImageName {
        host: host.to_owned(),
        repository,
        tag,
        digest,
    })
}

/// Whether the first part of a name is a registry's host rather than a namespace.
fn names_host(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.chars().any(|c| c.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            (
                "v6",
                port.strip_prefix(':').or((!port.is_empty()).then_some("")),
            )
        }
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Whether the text is words of lower-case letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut gap: &str = "";
    let mut rest = text;
    if !text.bytes().next().is_some_and(alphanumeric)
        || !text.bytes().last().is_some_and(alphanumeric)
    {
        return false;
    }
    while !rest.is_empty() {
        if !matches!(gap, "" | "." | "_" | "__") && !gap.bytes().all(|b| b == b'-') {
            return false;
        }
        let word = rest.bytes().take_while(|b| alphanumeric(*b)).count();
        let after = &rest[word..];
        let length = after.bytes().take_while(|b| !alphanumeric(*b)).count();
        if !after.is_char_boundary(length) {
            return false;
        }
        (gap, rest) = after.split_at(length);
    }
    true
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ImageName;
    use proptest::prelude::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_completed() {
        for (text, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("docker://debian:12", "docker.io/library/debian:12"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("ocaml/opam:x_1-2.3", "docker.io/ocaml/opam:x_1-2.3"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x/y", "localhost:5000/x/y:latest"),
            ("Example/x", "Example/x:latest"),
            (
                "registry.example/a/b__c/d--e:v1",
                "registry.example/a/b__c/d--e:v1",
            ),
            ("127.0.0.1:80/x", "127.0.0.1:80/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ] {
            let name: ImageName = text.parse().expect(text);
            assert_eq!(name.to_string(), full, "{text}");
            assert_eq!(full.parse::<ImageName>().expect(full), name);
        }
        let digest = format!("registry.example/x@sha256:{HEX}");
        let name: ImageName = digest.parse().expect("a digest");
        assert_eq!((name.to_string(), name.tag()), (digest, None));
        let both = format!("registry.example/x:v1@sha256:{HEX}");
        let name: ImageName = both.parse().expect("tag and digest");
        assert_eq!(name.reference(), format!("sha256:{HEX}"));
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "Debian",
            "a/B",
            "a:",
            "a:-x",
            "a:b:c",
            "a b",
            "a@",
            "a@sha256:12",
            "a@md5:00",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "a._b",
            "é",
            "aé/b",
            "a.é.b",
            "registry.example:x/a",
            "registry.example:70000/a",
            "[::1/a",
            "[zz]:1/a",
            HEX,
            "a:b/c",
        ] {
            assert!(text.parse::<ImageName>().is_err(), "{text:?}");
        }
        let long = format!("registry.example/{}", "a".repeat(256));
        assert!(long.parse::<ImageName>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_survives_printing(text in "[a-zA-Z0-9.:@/_\\-é\\[\\]]{0,24}") {
            if let Ok(name) = text.parse::<ImageName>() {
                prop_assert_eq!(name.to_string().parse::<ImageName>().ok(), Some(name));
            }
        }
    }
}
