// SPDX-License-Identifier: Apache-2.0
//! Sharing results between machines: `--cache-to` and `--cache-from`, as `docker buildx build` writes them.

use crate::attest::{read_public_key, registry_failure};
use crate::failure::Failure;
use crate::values;
use anyhow::Result;
use obuild_engine::{BuildResult, Engine, ExportMode};
use obuild_images::attest::PublicKey;
use obuild_images::registry::{Client, verify};
use obuild_images::{CacheImport, CachePlace};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Returns exactly that cache of the place which the key has signed: the name may mean another a moment later.
fn signed(
    place: &CachePlace,
    client: &Client,
    key: &PublicKey,
    cancelled: &dyn Fn() -> bool,
) -> Result<CachePlace> {
    let CachePlace::Registry(name) = place else {
        return Err(Failure::usage("a directory has no signatures").into());
    };
    let signed = client.signed(name, cancelled)?;
    verify(client, &signed, key, cancelled).map_err(registry_failure)?;
    let exact = format!("{}/{}@{}", name.host(), name.repository(), signed.digest);
    Ok(CachePlace::Registry(exact.parse()?))
}

/// The tag in a layout when none is named.
const TAG: &str = "latest";

/// What `--cache-to` and `--cache-from` ask for, checked before anything is built.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    to: Vec<(CachePlace, ExportMode)>,
    from: Vec<CachePlace>,
    /// By what key the caches must be signed that are used.
    key: Option<Arc<PublicKey>>,
}

impl Sharing {
    pub(crate) fn parse(to: &[String], from: &[String], key: Option<&Path>) -> Result<Self> {
        let to = to
            .iter()
            .map(|text| parse("--cache-to", text, "dest"))
            .collect::<Result<_>>()?;
        let from = from
            .iter()
            .map(|text| Ok(parse("--cache-from", text, "src")?.0))
            .collect::<Result<Vec<_>>>()?;
        let key = key.map(read_public_key).transpose()?.map(Arc::new);
        if key.is_some()
            && from
                .iter()
                .any(|place| matches!(place, CachePlace::Local { .. }))
        {
            return Err(Failure::usage(
                "--cache-verify is for caches in registries: a directory has no signatures",
            )
            .into());
        }
        Ok(Self { to, from, key })
    }

    /// Finds out what the caches hold. One that cannot be read is a warning: the build does without.
    pub(crate) async fn imports(
        &self,
        client: &Arc<Client>,
        cancel: &CancellationToken,
    ) -> Result<Vec<Arc<CacheImport>>> {
        let mut opening = Vec::new();
        for place in self.from.clone() {
            let (client, token) = (Arc::clone(client), cancel.clone());
            let key = self.key.clone();
            opening.push(tokio::task::spawn_blocking(move || {
                let cancelled = || token.is_cancelled();
                let opened = match &key {
                    Some(key) => signed(&place, &client, key, &cancelled).and_then(|place| {
                        CacheImport::open(&place, &client, &cancelled).map_err(Into::into)
                    }),
                    None => {
                        CacheImport::open(&place, &client, &cancelled).map_err(anyhow::Error::from)
                    }
                };
                (place, opened)
            }));
        }
        let mut imports = Vec::new();
        for opened in opening {
            let (place, opened) = opened.await?;
            match opened {
                Ok(import) => imports.push(Arc::new(import)),
                Err(_) if cancel.is_cancelled() => {
                    return Err(obuild_engine::Error::Cancelled.into());
                }
                Err(error) => {
                    let (text, _) = crate::failure::describe(&error);
                    tell(&format!("warning: the cache {place} is not used: {text}\n"));
                }
            }
        }
        Ok(imports)
    }

    /// Writes the build's results where they were asked for.
    pub(crate) async fn export(
        &self,
        engine: &Arc<Engine>,
        client: &Arc<Client>,
        result: &BuildResult,
        imports: &[Arc<CacheImport>],
        quiet: bool,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let threads = crate::commands::processors();
        for (place, mode) in &self.to {
            let export = engine
                .export_cache(result, *mode, imports, threads, cancel)
                .await?;
            let steps = export.steps();
            let (client, token, to) = (Arc::clone(client), cancel.clone(), place.clone());
            let report = tokio::task::spawn_blocking(move || {
                export.write(&to, &client, &mut |_| {}, &|| token.is_cancelled())
            })
            .await??;
            if !quiet {
                tell(&format!(
                    "shared {} in {place}: {} sent, {} spared, {}\n",
                    values::counted(steps, "step"),
                    values::size(report.sent_bytes),
                    values::size(report.spared_bytes),
                    report.digest
                ));
            }
        }
        Ok(())
    }
}

fn tell(text: &str) {
    // Nobody reads standard error: the exit status still tells.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Parses `type=registry,ref=NAME` or `type=local,DIRECTORY_KEY=PATH`; a bare name is one in a registry.
fn parse(option: &str, text: &str, directory_key: &str) -> Result<(CachePlace, ExportMode)> {
    let wrong = |reason: String| {
        Failure::usage(format!("{option} {text}: {reason}")).hint(format!(
            "for example type=registry,ref=REGISTRY/NAME:TAG · type=local,{directory_key}=DIRECTORY"
        ))
    };
    let (mut kind, mut name, mut directory, mut tag) = (None, None, None, TAG);
    let mut mode = ExportMode::Min;
    if text.contains('=') {
        for part in text.split(',') {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match (key, value) {
                ("type", "registry" | "local") => kind = Some(value),
                ("type", other) => return Err(wrong(format!("{other:?} is no type")).into()),
                (_, "") => return Err(wrong(format!("{key:?} has no value")).into()),
                ("ref", value) => name = Some(value),
                ("tag", value) => tag = value,
                ("mode", "min") if directory_key == "dest" => mode = ExportMode::Min,
                ("mode", "max") if directory_key == "dest" => mode = ExportMode::Max,
                (key, value) if key == directory_key => directory = Some(value),
                _ => return Err(wrong(format!("{part:?} is not known")).into()),
            }
        }
    } else {
        (kind, name) = (Some("registry"), Some(text));
    }
    let place = match (kind, name, directory) {
        (Some("registry"), Some(name), None) => CachePlace::Registry(name.parse()?),
        (Some("registry"), ..) => return Err(wrong("ref is missing".to_owned()).into()),
        (Some("local"), None, Some(directory)) => CachePlace::Local {
            directory: directory.into(),
            tag: tag.to_owned(),
        },
        (Some("local"), ..) => {
            return Err(wrong(format!("{directory_key} is missing")).into());
        }
        _ => return Err(wrong("the type is missing".to_owned()).into()),
    };
    if let (CachePlace::Registry(name), "dest") = (&place, directory_key)
        && name.digest().is_some()
    {
        return Err(wrong("what is written has a tag, no digest".to_owned()).into());
    }
    Ok((place, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let registry = |name: &str| CachePlace::Registry(name.parse().unwrap());
        let local = |tag: &str| CachePlace::Local {
            directory: "/c".into(),
            tag: tag.to_owned(),
        };
        for (text, wanted) in [
            (
                "type=registry,ref=r/a:1",
                (registry("r/a:1"), ExportMode::Min),
            ),
            (
                "type=registry,ref=r/a:1,mode=max",
                (registry("r/a:1"), ExportMode::Max),
            ),
            ("r/a:1", (registry("r/a:1"), ExportMode::Min)),
            ("type=local,dest=/c", (local("latest"), ExportMode::Min)),
            (
                "mode=max,type=local,dest=/c,tag=x",
                (local("x"), ExportMode::Max),
            ),
        ] {
            assert_eq!(parse("--cache-to", text, "dest").unwrap(), wanted, "{text}");
        }
        for wrong in [
            "type=inline",
            "type=registry",
            "type=local,src=/c",
            "type=local",
            "dest=/c",
            "type=registry,ref=r/a:1,mode=most",
            "type=registry,ref=",
        ] {
            assert!(parse("--cache-to", wrong, "dest").is_err(), "{wrong}");
        }
        assert!(parse("--cache-from", "type=local,src=/c", "src").is_ok());
        assert!(parse("--cache-from", "r/a:1,mode=max", "src").is_err());
    }
}
