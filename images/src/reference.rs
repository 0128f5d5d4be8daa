// SPDX-License-Identifier: Apache-2.0
//! The names of base images, as containers-transports(5) has them.

use crate::Error;
use crate::registry::ImageName;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Names a base image. Paths in it may be relative; [`crate::resolve`] takes them relative to its base directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `oci:PATH[:TAG]`: an image in an OCI image layout. The path ends at the first colon (containers-transports(5)).
    Oci {
        /// The layout's directory.
        path: PathBuf,
        /// The image's tag; may be left out where there is only one image.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME[:TAG]|:@INDEX]`: an image in an archive of `docker save`. The path ends at the first colon.
    DockerArchive {
        /// The archive.
        path: PathBuf,
        /// The image's name, its tag, or `@` and its number from 0; may be left out where there is only one image.
        image: Option<String>,
    },
    /// `docker-daemon:NAME`: an image of the Docker daemon.
    DockerDaemon(String),
    /// `tar:FILE`: a root file system in an archive, plain or compressed.
    Tar(PathBuf),
    /// `dir:PATH`: a directory that is a root file system.
    Directory(PathBuf),
    /// `debootstrap:SUITE`: a minimal Debian or derivative, made by debootstrap.
    Debootstrap(String),
    /// `scratch`: nothing.
    Scratch,
    /// Anything else: an image in a registry.
    Registry(ImageName),
}

/// Transports of containers-transports(5) that are no registries and that we do not read.
const FOREIGN: [&str; 4] = ["oci-archive:", "containers-storage:", "ostree:", "sif:"];

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |reason: &str| Error::BadReference {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let path = |path: &str| {
            if path.is_empty() {
                Err(bad("the path is missing"))
            } else if path.contains('\0') {
                Err(bad("a path has no NUL"))
            } else {
                Ok(PathBuf::from(path))
            }
        };
        let split = |rest: &'_ str| match rest.split_once(':') {
            Some((_, "")) => Err(bad("the tag after the colon is missing")),
            Some((path, tag)) => Ok((path.to_owned(), Some(tag.to_owned()))),
            None => Ok((rest.to_owned(), None)),
        };
        if text == "scratch" {
            Ok(Self::Scratch)
        } else if let Some(rest) = text.strip_prefix("oci:") {
            let (file, tag) = split(rest)?;
            Ok(Self::Oci {
                path: path(&file)?,
                tag,
            })
        } else if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, image) = split(rest)?;
            Ok(Self::DockerArchive {
                path: path(&file)?,
                image,
            })
        } else if let Some(name) = text.strip_prefix("docker-daemon:") {
            // The name becomes a part of a request's path.
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/:._@-".contains(&byte);
            if !name.is_empty() && name.bytes().all(allowed) && !name.contains("..") {
                Ok(Self::DockerDaemon(name.to_owned()))
            } else {
                Err(bad(
                    "an image of the daemon is named like busybox:1 or by its id",
                ))
            }
        } else if let Some(rest) = text.strip_prefix("tar:") {
            path(rest).map(Self::Tar)
        } else if let Some(rest) = text.strip_prefix("dir:") {
            path(rest).map(Self::Directory)
        } else if let Some(suite) = text.strip_prefix("debootstrap:") {
            let allowed = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".+-_".contains(&byte)
            };
            // The name becomes an argument and a file name under debootstrap's scripts.
            if suite.bytes().all(allowed)
                && suite.starts_with(|first: char| first.is_ascii_alphanumeric())
            {
                Ok(Self::Debootstrap(suite.to_owned()))
            } else {
                Err(bad("a suite is named in lower case, like bookworm"))
            }
        } else if let Some(transport) = FOREIGN
            .iter()
            .find(|transport| text.starts_with(**transport))
        {
            Err(bad(&format!(
                "{transport} is not read; convert it with `skopeo copy {text} oci:PATH:TAG`"
            )))
        } else {
            text.parse().map(Self::Registry)
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oci { path, tag: None } => write!(formatter, "oci:{}", path.display()),
            Self::Oci {
                path,
                tag: Some(tag),
            } => write!(formatter, "oci:{}:{tag}", path.display()),
            Self::DockerArchive { path, image: None } => {
                write!(formatter, "docker-archive:{}", path.display())
            }
            Self::DockerArchive {
                path,
                image: Some(image),
            } => write!(formatter, "docker-archive:{}:{image}", path.display()),
            Self::DockerDaemon(name) => write!(formatter, "docker-daemon:{name}"),
            Self::Tar(path) => write!(formatter, "tar:{}", path.display()),
            Self::Directory(path) => write!(formatter, "dir:{}", path.display()),
            Self::Debootstrap(suite) => write!(formatter, "debootstrap:{suite}"),
            Self::Scratch => formatter.write_str("scratch"),
            Self::Registry(name) => name.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn every_form_is_read_and_written_back() {
        for (text, reference) in [
            (
                "oci:a/b",
                Reference::Oci {
                    path: "a/b".into(),
                    tag: None,
                },
            ),
            (
                "oci:/a:v1",
                Reference::Oci {
                    path: "/a".into(),
                    tag: Some("v1".into()),
                },
            ),
            (
                "oci:/a:x.org/n:v1",
                Reference::Oci {
                    path: "/a".into(),
                    tag: Some("x.org/n:v1".into()),
                },
            ),
            (
                "docker-archive:a.tar:x:1",
                Reference::DockerArchive {
                    path: "a.tar".into(),
                    image: Some("x:1".into()),
                },
            ),
            (
                "docker-archive:a.tar",
                Reference::DockerArchive {
                    path: "a.tar".into(),
                    image: None,
                },
            ),
            (
                "docker-daemon:a/b:1",
                Reference::DockerDaemon("a/b:1".into()),
            ),
            ("tar:a:b.tar", Reference::Tar("a:b.tar".into())),
            ("dir:.", Reference::Directory(".".into())),
            (
                "debootstrap:bookworm",
                Reference::Debootstrap("bookworm".into()),
            ),
            ("scratch", Reference::Scratch),
            (
                "registry.example/debian:12",
                Reference::Registry("registry.example/debian:12".parse().expect("a name")),
            ),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text), reference);
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in [
            "",
            "oci:",
            "oci::x",
            "oci:a:",
            "docker-archive:",
            "docker-archive:a:",
            "docker-daemon:",
            "docker-daemon:../x",
            "docker-daemon:a?b",
            "tar:",
            "dir:",
            "debootstrap:",
            "debootstrap:-x",
            "debootstrap:../x",
            "a b",
            "Debian",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        let error = "oci-archive:x.tar"
            .parse::<Reference>()
            .expect_err("refused")
            .to_string();
        assert!(error.contains("skopeo copy oci-archive:x.tar"), "{error}");
    }
}
