// SPDX-License-Identifier: Apache-2.0
//! Proving who we are: Basic (RFC 7617) and Bearer tokens from a token server.
//!
//! Sources: distribution.github.io/distribution, "Token Authentication Specification" and its OAuth 2 variant; RFC 9110 §11.6.1 for the
//! challenge's form.

use super::credentials::{self, Credentials};
use super::{Error, HostOptions};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a token lives that does not say (Token Authentication Specification, `expires_in`).
const TOKEN_LIFE: Duration = Duration::from_mins(1);
/// How long before its end a token is not used any more.
const MARGIN: Duration = Duration::from_secs(10);

/// What a server asks for in `WWW-Authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Headers that were accepted before, and credentials, so that a helper is asked once.
#[derive(Default)]
pub(super) struct Auth {
    /// By host, and for tokens also by scopes.
    headers: Mutex<HashMap<(String, String), Header>>,
    credentials: Mutex<HashMap<String, Option<Credentials>>>,
    /// Held while a token is fetched: many requests that begin at once fetch it once.
    pub(super) fetching: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Header {
    value: String,
    until: Option<Instant>,
}

impl Auth {
    /// Returns the header to send without being asked, if one was accepted before.
    pub(super) fn header(&self, host: &str, scopes: &str) -> Option<String> {
        let headers = self.headers.lock().expect("no holder of this lock panics");
        let key = |scopes: &str| (host.to_owned(), scopes.to_owned());
        let header = headers
            .get(&key(scopes))
            .or_else(|| headers.get(&key("")))?;
        header
            .until
            .is_none_or(|until| Instant::now() < until)
            .then(|| header.value.clone())
    }

    pub(super) fn set(&self, host: &str, scopes: &str, value: String, life: Option<Duration>) {
        let until = life.map(|life| Instant::now() + life.saturating_sub(MARGIN).max(life / 2));
        self.headers
            .lock()
            .expect("no holder of this lock panics")
            .insert(
                (host.to_owned(), scopes.to_owned()),
                Header { value, until },
            );
    }

    /// Finds the credentials for a registry. Blocks: a helper may be asked.
    pub(super) fn credentials(
        &self,
        file: Option<&PathBuf>,
        search_path: &std::ffi::OsStr,
        host: &str,
    ) -> Result<Option<Credentials>, Error> {
        let mut known = self
            .credentials
            .lock()
            .expect("no holder of this lock panics");
        if let Some(found) = known.get(host) {
            return Ok(found.clone());
        }
        let found = match file {
            Some(file) => credentials::find(file, search_path, host)?,
            None => None,
        };
        known.insert(host.to_owned(), found.clone());
        Ok(found)
    }
}

/// A request for a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenRequest {
    pub(super) url: String,
    /// A form to post; without one the request is a GET.
    pub(super) form: Option<String>,
    /// The value of `Authorization`.
    pub(super) authorization: Option<String>,
}

impl TokenRequest {
    pub(super) fn new(
        realm: &str,
        service: Option<&str>,
        scopes: &[&str],
        credentials: Option<&Credentials>,
    ) -> Self {
        let mut query = Vec::new();
        if let Some(service) = service {
            query.push(("service", service));
        }
        if let Some(Credentials::Identity(token)) = credentials {
            let scope = scopes.join(" ");
            query.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "obuild"),
                ("refresh_token", token),
                ("scope", &scope),
            ]);
            return Self {
                url: realm.to_owned(),
                form: Some(encode(&query)),
                authorization: None,
            };
        }
        query.extend(scopes.iter().map(|scope| ("scope", *scope)));
        let mut authorization = None;
        if let Some(Credentials::Password { user, password }) = credentials {
            query.push(("account", user));
            authorization = Some(Credentials::basic(user, password));
        }
        let separator = if realm.contains('?') { '&' } else { '?' };
        Self {
            url: format!("{realm}{separator}{}", encode(&query)),
            form: None,
            authorization,
        }
    }
}

/// Reads a token server's answer: the token, and how long it lives.
pub(super) fn parse_token(body: &[u8]) -> Option<(String, Duration)> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token)?;
    let fits = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    let life = answer.expires_in.map_or(TOKEN_LIFE, Duration::from_secs);
    fits.then_some((
        token,
        life.clamp(Duration::from_secs(1), Duration::from_hours(24)),
    ))
}

/// Whether a password may travel to a token server: never in the clear on behalf of a registry that is not in the clear itself.
pub(super) fn is_allowed_realm(realm: &str, registry_is_plain: bool) -> bool {
    realm.starts_with("https://") || (registry_is_plain && realm.starts_with("http://"))
}

/// Whether a host is talked to without TLS: when the configuration says so, else when it is this machine itself.
pub(super) fn is_plain(host: &str, options: Option<&HostOptions>) -> bool {
    if options.is_some_and(|options| options.ca.is_some()) {
        return false;
    }
    options
        .and_then(|options| options.insecure)
        .unwrap_or_else(|| is_loopback(host))
}

/// Whether a host is this machine (Docker's `isSecureIndex`: loopback registries need no TLS).
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Encodes a form (URL standard, "application/x-www-form-urlencoded percent-encode set").
pub(super) fn encode(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte) {
                text.push(char::from(byte));
            } else {
                // Writing to a string cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// Reads `WWW-Authenticate` headers; Bearer is preferred. What is not understood is left out.
pub(super) fn parse_challenges<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        for (scheme, parameters) in split(header) {
            if scheme.eq_ignore_ascii_case("bearer") {
                let get = |name: &str| {
                    let found = parameters
                        .iter()
                        .find(|(n, _)| n.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.clone())
                };
                if let Some(realm) = get("realm") {
                    return Some(Challenge::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

type Parameters = Vec<(String, String)>;

/// Splits a header into its challenges: a scheme, then parameters between commas, quoted or not.
fn split(header: &str) -> Vec<(String, Parameters)> {
    let mut challenges: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let length = rest.find([' ', '=', ',', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(length);
        let after = after.trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let value = value.trim_start();
            let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
                unquote(quoted)
            } else {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            };
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.push((word.to_owned(), value));
            }
            rest = after;
        } else {
            challenges.push((word.to_owned(), Vec::new()));
            rest = after;
        }
        let shorter = rest.trim_start_matches([' ', ',', '\t']);
        if word.is_empty() && shorter.len() == rest.len() {
            // Neither a word nor a separator: nothing more to be understood.
            break;
        }
        rest = shorter;
    }
    challenges
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, character)| character)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        for (header, challenge) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#,
                bearer(
                    "https://auth.example/token",
                    Some("registry.example"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                r#"bearer realm="x\"y" , service=z"#,
                bearer("x\"y", Some("z"), None),
            ),
            (
                r#"Basic realm="x", Bearer realm="y""#,
                bearer("y", None, None),
            ),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Negotiate", None),
            ("Bearer service=x", None),
            ("", None),
        ] {
            assert_eq!(
                parse_challenges([header].into_iter()),
                challenge,
                "{header}"
            );
        }
    }

    #[test]
    fn tokens_are_asked_for() {
        let password = Credentials::Password {
            user: "u".into(),
            password: "p w".into(),
        };
        let request = TokenRequest::new(
            "https://a.example/t?x=1",
            Some("s 1"),
            &["repository:a:pull"],
            Some(&password),
        );
        assert_eq!(
            request.url,
            "https://a.example/t?x=1&service=s%201&scope=repository:a:pull&account=u"
        );
        assert_eq!(request.authorization.as_deref(), Some("Basic dTpwIHc="));
        let identity = Credentials::Identity("t+/".into());
        let request = TokenRequest::new("https://a.example/t", None, &["a", "b"], Some(&identity));
        assert_eq!(
            request.form.as_deref(),
            Some("grant_type=refresh_token&client_id=obuild&refresh_token=t%2B/&scope=a%20b")
        );
        assert_eq!(request.url, "https://a.example/t");
    }

    #[test]
    fn tokens_are_taken_with_their_life() {
        let token = |text: &str| parse_token(text.as_bytes());
        assert_eq!(token(r#"{"token":"a"}"#), Some(("a".into(), TOKEN_LIFE)));
        assert_eq!(
            token(r#"{"access_token":"b","expires_in":300}"#),
            Some(("b".into(), Duration::from_mins(5)))
        );
        for bad in ["", "{}", r#"{"token":""}"#, r#"{"token":"a\r\nX: y"}"#] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_plain_by_itself() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.9.9.9",
            "[::1]:5",
        ] {
            assert!(is_plain(host, None), "{host}");
        }
        for host in [
            "registry.example",
            "128.0.0.1",
            "localhost.example",
            "[2001:db8::1]:5",
        ] {
            assert!(!is_plain(host, None), "{host}");
        }
        let insecure = |insecure| HostOptions {
            insecure: Some(insecure),
            ..HostOptions::default()
        };
        assert!(is_plain("registry.example", Some(&insecure(true))));
        assert!(!is_plain("localhost", Some(&insecure(false))));
        assert!(!is_allowed_realm("http://auth.example", false));
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in "[a-zA-Z=\",\\\\ \té]{0,40}") {
            parse_challenges([header.as_str()].into_iter());
        }
    }
}
