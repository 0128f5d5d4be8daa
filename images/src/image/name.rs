// SPDX-License-Identifier: Apache-2.0
//! Names of images, as `docker build -t` takes them.

use crate::Error;
use std::fmt;
use std::str::FromStr;

/// A name with a tag: `ocaml/opam:debian`, `localhost:5000/app:1.2`. Without a tag it is `latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    repository: String,
    tag: String,
}

impl ImageName {
    /// Returns the tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = Error;

    /// The rules are those of OCI distribution-spec v1.1 ("Pulling manifests"), after an optional host.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::BadName {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        if text.contains('@') {
            return Err(wrong("an image that is written gets its digest then"));
        }
        let start = text.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match text[start..].find(':') {
            Some(colon) => (&text[..start + colon], &text[start + colon + 1..]),
            None => (text, "latest"),
        };
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let good_tag = tag.bytes().next().is_some_and(word)
            && tag.len() <= 128
            && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte));
        if !good_tag {
            return Err(wrong(
                "its tag must be of letters, digits, `_`, `.` and `-`",
            ));
        }
        let (host, path) = match repository.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
            _ => ("", repository),
        };
        let good_host = host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
        if !good_host {
            return Err(wrong("its host is none"));
        }
        let good_part = |part: &str| {
            let bytes = part.as_bytes();
            let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            bytes.first().is_some_and(plain)
                && bytes.last().is_some_and(plain)
                && bytes
                    .iter()
                    .all(|byte| plain(byte) || b"._-".contains(byte))
        };
        if !path.split('/').all(good_part) {
            return Err(wrong(
                "its parts must be of lower-case letters and digits, with `.`, `_` and `-` between them",
            ));
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ImageName;

    #[test]
    fn names() {
        for (text, shown) in [
            ("a", "a:latest"),
            ("a/b-c:1.2", "a/b-c:1.2"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("127.0.0.1:5000/a/b:T_x", "127.0.0.1:5000/a/b:T_x"),
        ] {
            let name: ImageName = text.parse().unwrap();
            assert_eq!(name.to_string(), shown);
        }
        for wrong in [
            "",
            "A",
            "a:",
            "a:-b",
            "a//b",
            "a b",
            "a@sha256:00",
            "-a",
            "a:b:c",
        ] {
            assert!(wrong.parse::<ImageName>().is_err(), "{wrong}");
        }
    }
}
