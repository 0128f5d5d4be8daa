// SPDX-License-Identifier: Apache-2.0
//! One `--output`, as `docker buildx build` writes it: `type=oci,dest=FILE`, or a bare path.

use crate::failure::Failure;
use anyhow::Result;
use obuild_images::Compression;
use std::path::PathBuf;

/// One place that a result goes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) kind: Kind,
    /// Where to; `-` is standard output.
    pub(super) dest: PathBuf,
    pub(super) names: Vec<String>,
    pub(super) compression: Option<Compression>,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An OCI image layout, in a directory or in an archive.
    Oci { tar: bool },
    /// What `docker load` reads.
    Docker,
    /// The tree, in an archive.
    Tar,
    /// The tree, in a directory.
    Local,
    /// The image, to a registry.
    Push,
}

impl Kind {
    pub(super) fn is_image(self) -> bool {
        !matches!(self, Self::Tar | Self::Local)
    }
}

impl Output {
    /// Returns what `--push` asks for.
    pub(super) fn push() -> Self {
        Self {
            kind: Kind::Push,
            dest: PathBuf::new(),
            names: Vec::new(),
            compression: None,
        }
    }

    /// Parses `dir:PATH` and `tar:FILE`.
    pub(super) fn to(text: &str) -> Result<Self> {
        let (kind, dest) = match text.split_once(':') {
            Some(("dir", dest)) if !dest.is_empty() => (Kind::Local, dest),
            Some(("tar", dest)) if !dest.is_empty() => (Kind::Tar, dest),
            _ => {
                return Err(Failure::usage(format!("{text:?} is no place to export to"))
                    .hint("give dir:PATH, tar:FILE or tar:-")
                    .into());
            }
        };
        Ok(Self {
            kind,
            dest: dest.into(),
            ..Self::push()
        })
    }

    pub(super) fn to_stdout(&self) -> bool {
        self.dest.as_os_str() == "-"
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: String| {
            Failure::usage(format!("--output {text}: {reason}")).hint(
                "for example type=oci,dest=image.tar · type=docker,dest=image.tar · type=tar,dest=tree.tar · \
                 type=local,dest=DIRECTORY · type=image,name=REGISTRY/NAME:TAG,push=true",
            )
        };
        if !text.contains('=') {
            // As docker takes it: a directory, or the tree as an archive to standard output.
            let kind = if text == "-" { Kind::Tar } else { Kind::Local };
            return Ok(Self {
                kind,
                dest: text.into(),
                ..Self::push()
            });
        }
        let mut output = Self::push();
        let (mut kind, mut tar, mut push, mut level) = (None, None, false, None);
        let mut method = None;
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            let truth = || {
                value
                    .parse::<bool>()
                    .map_err(|_| wrong(format!("{key} is true or false")))
            };
            match key {
                "type" => kind = Some(value),
                "dest" | "output" => output.dest = value.into(),
                "name" => output.names.push(value.to_owned()),
                "push" => push = truth()?,
                "tar" => tar = Some(truth()?),
                "compression" => method = Some(value),
                "compression-level" => {
                    level = Some(
                        value
                            .parse()
                            .map_err(|_| wrong(format!("{value:?} is no level")))?,
                    );
                }
                // What it asks for is so anyway, or there is nothing else.
                "oci-mediatypes" | "rewrite-timestamp" => {
                    truth()?;
                }
                _ => return Err(wrong(format!("{key:?} is not known")).into()),
            }
        }
        if method.is_some() || level.is_some() {
            let method = method.unwrap_or("gzip");
            output.compression = Some(compression(method, level).map_err(wrong)?);
        }
        let is_tar = || {
            tar.unwrap_or_else(|| {
                output.to_stdout()
                    || output
                        .dest
                        .extension()
                        .is_some_and(|ending| ending == "tar")
            })
        };
        output.kind = match kind {
            Some("oci") => Kind::Oci { tar: is_tar() },
            Some("docker") => Kind::Docker,
            Some("tar") => Kind::Tar,
            Some("local") => Kind::Local,
            Some("image") if push => Kind::Push,
            Some("registry") => Kind::Push,
            Some("image") => {
                return Err(wrong(
                    "there is no place for images but a registry: push=true is missing".to_owned(),
                )
                .into());
            }
            Some(other) => return Err(wrong(format!("{other:?} is no type")).into()),
            None => return Err(wrong("the type is missing".to_owned()).into()),
        };
        if output.kind == Kind::Push {
            if !output.dest.as_os_str().is_empty() {
                return Err(wrong("what is pushed has a name, no dest".to_owned()).into());
            }
        } else if output.dest.as_os_str().is_empty() {
            return Err(wrong("dest is missing".to_owned()).into());
        }
        if output.to_stdout() && matches!(output.kind, Kind::Local | Kind::Oci { tar: false }) {
            return Err(wrong("a directory cannot go to standard output".to_owned()).into());
        }
        Ok(output)
    }
}

fn compression(method: &str, level: Option<u32>) -> Result<Compression, String> {
    let within = |default: u32, least: u32, most: u32| {
        let level = level.unwrap_or(default);
        (least..=most)
            .contains(&level)
            .then_some(level)
            .ok_or_else(|| format!("levels of {method} go from {least} to {most}"))
    };
    match method {
        "gzip" => Ok(Compression::Gzip(within(6, 0, 9)?)),
        "zstd" => {
            let level = i32::try_from(within(3, 1, 19)?).unwrap_or(3);
            Ok(Compression::Zstd(level))
        }
        "uncompressed" | "none" if level.is_none() => Ok(Compression::None),
        "uncompressed" | "none" => Err("what is not compressed has no level".to_owned()),
        other => Err(format!(
            "{other:?} is no compression: use gzip, zstd or uncompressed"
        )),
    }
}

/// Parses `--compression`: a method, and a level after a colon.
pub(crate) fn parse_compression(text: &str) -> Result<Compression, String> {
    match text.split_once(':') {
        None => compression(text, None),
        Some((method, level)) => {
            let level = level
                .parse()
                .map_err(|_| format!("{level:?} is no level"))?;
            compression(method, Some(level))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs() {
        let output = |kind, dest: &str| Output {
            kind,
            dest: dest.into(),
            ..Output::push()
        };
        for (text, wanted) in [
            ("out", output(Kind::Local, "out")),
            ("-", output(Kind::Tar, "-")),
            (
                "type=oci,dest=a.tar",
                output(Kind::Oci { tar: true }, "a.tar"),
            ),
            ("type=oci,dest=a", output(Kind::Oci { tar: false }, "a")),
            (
                "type=oci,dest=a,tar=true",
                output(Kind::Oci { tar: true }, "a"),
            ),
            ("type=oci,dest=-", output(Kind::Oci { tar: true }, "-")),
            ("type=docker,dest=a", output(Kind::Docker, "a")),
        ] {
            assert_eq!(Output::parse(text).unwrap(), wanted, "{text}");
        }
        let pushed =
            Output::parse("type=image,name=r/a:1,push=true,compression=zstd,compression-level=9");
        let pushed = pushed.unwrap();
        assert_eq!(pushed.kind, Kind::Push);
        assert_eq!(pushed.names, ["r/a:1"]);
        assert_eq!(pushed.compression, Some(Compression::Zstd(9)));
        for wrong in [
            "type=oci",
            "dest=a",
            "type=x,dest=a",
            "type=image,name=a",
            "type=oci,dest=a,tar=maybe",
            "type=oci,dest=a,compression=lzma",
            "type=oci,dest=a,compression=gzip,compression-level=10",
            "type=local,dest=-",
            "type=registry,dest=a",
            "type=oci,dest=a,nonsense=1",
        ] {
            assert!(Output::parse(wrong).is_err(), "{wrong}");
        }
    }
}
