// SPDX-License-Identifier: Apache-2.0
//! Changes of an image's configuration: `--change` with a Dockerfile instruction, as `docker commit` has it.

use crate::failure::Failure;
use anyhow::Result;
use bstr::BString;
use obuild_images::ImageConfig;

/// One change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Cmd(Vec<BString>),
    Entrypoint(Vec<BString>),
    Env(BString, BString),
    Expose(String),
    Label(String, String),
    StopSignal(String),
    User(BString),
    Volume(Vec<String>),
    Workdir(BString),
}

impl Change {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            Failure::usage(format!("--change {text:?}: {reason}"))
                .hint("give a Dockerfile's instruction, for example 'CMD [\"/bin/sh\"]', 'USER 1000' or 'ENV A=b'")
        };
        let (instruction, rest) = text
            .trim()
            .split_once(|c: char| c.is_ascii_whitespace())
            .ok_or_else(|| wrong("there is nothing after the instruction"))?;
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(wrong("there is nothing after the instruction").into());
        }
        let list = || -> Result<Option<Vec<String>>> {
            if !rest.starts_with('[') {
                return Ok(None);
            }
            match serde_json::from_str(rest) {
                Ok(list) => Ok(Some(list)),
                Err(error) => Err(wrong(&format!("the list is no JSON: {error}")).into()),
            }
        };
        // The shell form, as in a Dockerfile.
        let command = || -> Result<Vec<BString>> {
            let list = list()?
                .unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()]);
            Ok(list.into_iter().map(BString::from).collect())
        };
        let pair = || {
            let (name, value) = rest.split_once('=')?;
            let quoted = |text: &str| {
                let inner = text.strip_prefix('"')?.strip_suffix('"')?;
                (!inner.contains('"')).then(|| inner.to_owned())
            };
            let value = quoted(value).unwrap_or_else(|| value.to_owned());
            (!name.is_empty()).then(|| (name.to_owned(), value))
        };
        Ok(match instruction.to_ascii_uppercase().as_str() {
            "CMD" => Self::Cmd(command()?),
            "ENTRYPOINT" => Self::Entrypoint(command()?),
            "ENV" => {
                let (name, value) = pair().ok_or_else(|| wrong("NAME=VALUE is missing"))?;
                Self::Env(name.into(), value.into())
            }
            "LABEL" => {
                let (name, value) = pair().ok_or_else(|| wrong("NAME=VALUE is missing"))?;
                Self::Label(name, value)
            }
            "EXPOSE" => {
                let (port, protocol) = rest.split_once('/').unwrap_or((rest, "tcp"));
                let good = port.parse::<u16>().is_ok_and(|port| port > 0)
                    && matches!(protocol, "tcp" | "udp" | "sctp");
                if !good {
                    return Err(wrong("it is no port").into());
                }
                Self::Expose(format!("{port}/{protocol}"))
            }
            "STOPSIGNAL" => Self::StopSignal(rest.to_owned()),
            "USER" => Self::User(rest.into()),
            "VOLUME" => Self::Volume(list()?.unwrap_or_else(|| vec![rest.to_owned()])),
            "WORKDIR" if rest.starts_with('/') => Self::Workdir(rest.into()),
            "WORKDIR" => return Err(wrong("the path must be absolute").into()),
            _ => {
                return Err(wrong(
                    "it must be CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR",
                )
                .into());
            }
        })
    }

    pub(super) fn apply(&self, config: &mut ImageConfig) {
        match self {
            Self::Cmd(command) => config.cmd = Some(command.clone()),
            Self::Entrypoint(command) => {
                config.entrypoint = Some(command.clone());
                // A command that was meant for another entry point (Dockerfile reference, "ENTRYPOINT").
                config.cmd = None;
            }
            Self::Env(name, value) => {
                match config.env.iter_mut().find(|(known, _)| known == name) {
                    Some((_, old)) => old.clone_from(value),
                    None => config.env.push((name.clone(), value.clone())),
                }
            }
            Self::Expose(port) => push(&mut config.exposed_ports, port),
            Self::Label(name, value) => {
                config.labels.insert(name.clone(), value.clone());
            }
            Self::StopSignal(signal) => config.stop_signal = Some(signal.clone()),
            Self::User(user) => config.user.clone_from(user),
            Self::Volume(paths) => {
                for path in paths {
                    push(&mut config.volumes, path);
                }
            }
            Self::Workdir(path) => config.workdir.clone_from(path),
        }
    }
}

fn push(set: &mut Vec<String>, member: &str) {
    if !set.iter().any(|known| known == member) {
        set.push(member.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::Change;
    use obuild_images::ImageConfig;

    #[test]
    fn changes() {
        let mut config = ImageConfig::default();
        for text in [
            "CMD [\"old\"]",
            "entrypoint [\"/bin/a\", \"b c\"]",
            "ENV A=1",
            "ENV A=\"two words\"",
            "LABEL org.opencontainers.image.title=x",
            "EXPOSE 80",
            "EXPOSE 53/udp",
            "USER 1000:1000",
            "VOLUME [\"/data\"]",
            "WORKDIR /src",
            "STOPSIGNAL SIGINT",
        ] {
            Change::parse(text).unwrap().apply(&mut config);
        }
        assert_eq!(config.entrypoint, Some(vec!["/bin/a".into(), "b c".into()]));
        assert_eq!(config.cmd, None);
        assert_eq!(config.env, [("A".into(), "two words".into())]);
        assert_eq!(config.exposed_ports, ["80/tcp", "53/udp"]);
        assert_eq!(
            (config.user, config.workdir),
            ("1000:1000".into(), "/src".into())
        );
        let shell = Change::parse("CMD make test").unwrap();
        assert_eq!(
            shell,
            Change::Cmd(vec!["/bin/sh".into(), "-c".into(), "make test".into()])
        );
        for wrong in [
            "",
            "CMD",
            "CMD [",
            "RUN x",
            "ENV A",
            "EXPOSE 0",
            "EXPOSE x",
            "WORKDIR a",
        ] {
            assert!(Change::parse(wrong).is_err(), "{wrong}");
        }
    }
}
