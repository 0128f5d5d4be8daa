// SPDX-License-Identifier: Apache-2.0
//! The values that orders are made of, checked when they are read.

use reqwest::Url;
use rustls::pki_types::DnsName;
use std::str::FromStr;

/// The name of a host, in lower case: `mirror.example.org`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// Why a text is no such value.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum ValueError {
    /// It is no name of a host.
    #[error("not the name of a host such as mirror.example.org")]
    HostName,
    /// It is no URL that can be trusted.
    #[error("not an https URL")]
    Authority,
}

impl HostName {
    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let name = text.to_ascii_lowercase();
        // Wildcards can be proved by DNS only; a name with a dot at its end is another one in a certificate.
        let fits = DnsName::try_from(name.as_str()).is_ok() && !name.ends_with('.');
        fits.then_some(Self(name)).ok_or(ValueError::HostName)
    }
}

/// Where an authority's directory is (RFC 8555 §7.1.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority(Url);

impl Authority {
    /// Returns the URL.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for Authority {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let url = Url::parse(text).map_err(|_| ValueError::Authority)?;
        is_safe(&url)
            .then_some(Self(url))
            .ok_or(ValueError::Authority)
    }
}

/// Returns whether nobody between us and the authority can change what it says (RFC 8555 §6.1: HTTPS only). Nobody is between us and ourselves.
pub(super) fn is_safe(url: &Url) -> bool {
    let loopback = ["localhost", "127.0.0.1", "[::1]"];
    match url.scheme() {
        "https" => url.has_host(),
        "http" => url.host_str().is_some_and(|host| loopback.contains(&host)),
        _ => false,
    }
}

/// How it is proved that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// By a file at port 80 (RFC 8555 §8.3).
    Http01,
    /// By a certificate at port 443 (RFC 8737).
    TlsAlpn01,
}

#[cfg(test)]
mod tests {
    use super::{Authority, HostName};

    #[test]
    fn names_and_authorities() {
        let name: HostName = "Mirror.Example.org".parse().unwrap();
        assert_eq!(name.as_str(), "mirror.example.org");
        for wrong in ["", "*.example.org", "a b", "example.org.", "a/b", "1.2.3.4"] {
            assert!(wrong.parse::<HostName>().is_err(), "{wrong}");
        }
        for good in [
            "https://ca.example/dir",
            "http://localhost:1/dir",
            "http://[::1]/",
        ] {
            assert!(good.parse::<Authority>().is_ok(), "{good}");
        }
        for wrong in [
            "http://ca.example/dir",
            "ftp://localhost/",
            "file:///dir",
            "dir",
        ] {
            assert!(wrong.parse::<Authority>().is_err(), "{wrong}");
        }
    }
}
