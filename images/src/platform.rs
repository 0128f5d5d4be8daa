// SPDX-License-Identifier: Apache-2.0
//! Platforms of images: operating system, architecture, variant (OCI image-spec v1.1 image-index.md, "platform").

use crate::Error;
use crate::architecture::host_architecture;
use std::fmt;
use std::str::FromStr;

/// What an image runs on, written `linux/amd64` or `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// The operating system.
    pub os: String,
    /// The architecture, as Go names it.
    pub architecture: String,
    /// The variant, where the architecture has several.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns this machine's.
    pub fn host() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: host_architecture().to_owned(),
            variant: None,
        }
    }

    /// Returns whether an image for `other` will do.
    pub(crate) fn takes(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        self.os == os
            && self.architecture == architecture
            && match (&self.variant, variant) {
                (Some(wanted), Some(found)) => wanted == found,
                _ => true,
            }
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => return Err(Error::BadPlatform(text.to_owned())),
        };
        let word = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.')
        };
        if !parts.iter().all(|part| word(part)) {
            return Err(Error::BadPlatform(text.to_owned()));
        }
        // Names of kernels and of Go for the same thing (containerd v1.7 platforms/database.go).
        let (architecture, variant) = match (architecture, variant) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", None) => ("arm", Some("v7")),
            ("armel", None) => ("arm", Some("v6")),
            ("i386" | "i686", variant) => ("386", variant),
            other => other,
        };
        let variant = variant.filter(|variant| (architecture, *variant) != ("arm64", "v8"));
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Platform;

    #[test]
    fn platforms_are_read() {
        for (text, same) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), same);
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
        let arm: Platform = "linux/arm/v7".parse().expect("a platform");
        assert!(arm.takes("linux", "arm", Some("v7")) && arm.takes("linux", "arm", None));
        assert!(!arm.takes("linux", "arm", Some("v6")) && !arm.takes("linux", "arm64", None));
    }
}
