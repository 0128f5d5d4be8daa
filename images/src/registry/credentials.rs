// SPDX-License-Identifier: Apache-2.0
//! Credentials from Docker's configuration file and the helper programs that it names.
//!
//! Format: docs.docker.com, "docker login", "Credential stores" and "Credential helpers"; protocol of the helpers:
//! github.com/docker/docker-credential-helpers, README.

use super::Error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The key of `docker.io` in the file (Docker's `registry.IndexServer`).
const DOCKER_IO: &str = "https://index.docker.io/v1/";
/// The user name that says that the secret is an identity token (docker-credential-helpers, README).
const TOKEN_USER: &str = "<token>";

/// What proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    /// A name and a password.
    Password { user: String, password: String },
    /// A token that a token server takes for another (OAuth 2 `refresh_token`).
    Identity(String),
}

/// Secrets are not for logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(…)")
    }
}

impl Credentials {
    /// Returns the value of an `Authorization` header (RFC 7617).
    pub(super) fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Finds the credentials for a registry, if there are any. Runs a helper where the file names one.
pub(super) fn find(
    file: &Path,
    search_path: &OsStr,
    host: &str,
) -> Result<Option<Credentials>, Error> {
    let bad = |from: &Path, reason: String| Error::Credentials {
        host: host.to_owned(),
        from: from.to_owned(),
        reason,
    };
    let text = match fs_err::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", file, error)),
    };
    let content: File =
        serde_json::from_slice(&text).map_err(|error| bad(file, error.to_string()))?;
    let keys = keys(host);
    let helper = keys
        .iter()
        .find_map(|key| Some((content.cred_helpers.get(key)?, key)))
        .or_else(|| Some((content.creds_store.as_ref()?, keys.first()?)));
    if let Some((helper, key)) = helper.filter(|(helper, _)| !helper.is_empty()) {
        let program = PathBuf::from(format!("docker-credential-{helper}"));
        let found = ask(&program, search_path, key).map_err(|reason| bad(&program, reason))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    // Old files have whole addresses as keys.
    let entry = keys
        .iter()
        .find_map(|key| content.auths.get(key))
        .or_else(|| {
            let bare = |key: &str| {
                let key = key
                    .strip_prefix("https://")
                    .or(key.strip_prefix("http://"))
                    .unwrap_or(key);
                key.split('/').next().map(str::to_owned)
            };
            content
                .auths
                .iter()
                .find(|(key, _)| bare(key).as_deref() == Some(host))
                .map(|(_, entry)| entry)
        });
    let Some(entry) = entry else { return Ok(None) };
    if let Some(token) = entry
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(Credentials::Identity(token.clone())));
    }
    if let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) {
        let not_valid = || {
            bad(
                file,
                "its `auth` is not `user:password` in base64".to_owned(),
            )
        };
        let plain = STANDARD.decode(auth.trim()).map_err(|_| not_valid())?;
        let plain = String::from_utf8(plain).map_err(|_| not_valid())?;
        let (user, password) = plain.split_once(':').ok_or_else(not_valid)?;
        return Ok(Some(Credentials::Password {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }));
    }
    match (&entry.username, &entry.password) {
        (Some(user), Some(password)) => Ok(Some(Credentials::Password {
            user: user.clone(),
            password: password.clone(),
        })),
        _ => Ok(None),
    }
}

fn keys(host: &str) -> Vec<String> {
    if host == "docker.io" {
        vec![DOCKER_IO.to_owned(), host.to_owned()]
    } else {
        vec![host.to_owned(), format!("https://{host}")]
    }
}

/// Asks a helper; its answer "not found" is none.
fn ask(program: &Path, search_path: &OsStr, key: &str) -> Result<Option<Credentials>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let path = std::env::split_paths(search_path)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .ok_or("there is no such program")?;
    // It needs the user's own environment: its keychain and its sockets are named there.
    let mut child = Command::new(path)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading has its reasons, and an exit status.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        // The helpers' common words for "none" (docker-credential-helpers, credentials/error.go).
        return if words.contains("credentials not found") {
            Ok(None)
        } else {
            Err(format!("it failed ({}): {words}", output.status))
        };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| "its answer is no JSON".to_owned())?;
    Ok(Some(if answer.username == TOKEN_USER {
        Credentials::Identity(answer.secret)
    } else {
        Credentials::Password {
            user: answer.username,
            password: answer.secret,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::{Credentials, find};
    use obuild_fixtures::write_program;

    #[test]
    fn every_place_of_the_file_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let helper = directory.path().join("docker-credential-test");
        write_program(
            &helper,
            "#!/bin/sh\nread host\ncase $host in\n\
             store.example) echo '{\"ServerURL\":\"x\",\"Username\":\"<token>\",\"Secret\":\"idt\"}' ;;\n\
             broken.example) echo oops; exit 2 ;;\n\
             *) echo credentials not found in native keychain; exit 1 ;;\nesac\n",
        );
        let file = directory.path().join("config.json");
        // `dTpwOnE=` is `u:p:q`.
        fs_err::write(
            &file,
            r#"{"auths":{"registry.example":{"auth":"dTpwOnE="},"https://old.example/v1/":{"auth":"dTpwOnE="},
               "https://index.docker.io/v1/":{"identitytoken":"tok"},"empty.example":{},"bad.example":{"auth":"!"}},
               "credHelpers":{"store.example":"test","broken.example":"test","registry.example":"test","gone.example":"nosuch"},"other":1}"#,
        )
        .unwrap();
        // The helper's shell needs nothing from the search path.
        let find = |host| find(&file, directory.path().as_os_str(), host);
        let password = Some(Credentials::Password {
            user: "u".into(),
            password: "p:q".into(),
        });
        assert_eq!(find("registry.example").unwrap(), password);
        assert_eq!(find("old.example").unwrap(), password);
        assert_eq!(
            find("docker.io").unwrap(),
            Some(Credentials::Identity("tok".into()))
        );
        assert_eq!(
            find("store.example").unwrap(),
            Some(Credentials::Identity("idt".into()))
        );
        assert_eq!(find("empty.example").unwrap(), None);
        assert_eq!(find("other.example").unwrap(), None);
        for host in ["bad.example", "broken.example", "gone.example"] {
            let error = find(host).unwrap_err();
            assert!(
                error.hint().is_some() && !error.to_string().is_empty(),
                "{host}"
            );
        }
        let absent = super::find(
            &directory.path().join("none"),
            "".as_ref(),
            "registry.example",
        );
        assert_eq!(absent.unwrap(), None);
    }
}
