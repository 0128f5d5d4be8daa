// SPDX-License-Identifier: Apache-2.0
//! The HTTP client for one host: TLS, proxies, patience.

use super::answer::{authority, reason};
use super::auth::is_plain;
use super::{ClientOptions, Error};
use reqwest::Url;
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);

/// Makes a client for an address; `streams` are requests whose body may take long.
pub(super) fn connect(
    options: &ClientOptions,
    url: &Url,
    streams: bool,
) -> Result<reqwest::Client, Error> {
    let authority = authority(url);
    let wrong = |reason: String| Error::Setup {
        host: authority.clone(),
        reason,
    };
    choose_cryptography();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("obuild/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .http2_adaptive_window(true)
        .connect_timeout(CONNECT.min(options.timeout));
    if !streams {
        builder = builder.read_timeout(options.timeout);
    }
    if url.scheme() == "http" {
        // Else the system's certificates would be read for nothing.
        builder = builder.tls_certs_only([]);
    } else if let Some(path) = options
        .hosts
        .get(&authority)
        .and_then(|host| host.ca.as_ref())
    {
        let text = fs_err::read(path).map_err(|error| Error::io("read", path, error))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&text)
            .map_err(|error| wrong(format!("{} is no CA file: {error}", path.display())))?;
        if certificates.is_empty() {
            return Err(wrong(format!("{} has no certificate", path.display())));
        }
        builder = builder.tls_certs_only(certificates);
    }
    // As everywhere, this machine itself is not behind a proxy (golang.org/x/net/http/httpproxy).
    if !is_plain(&authority, None) {
        for proxy in proxies(options, &authority)? {
            builder = builder.proxy(proxy);
        }
    }
    builder.build().map_err(|error| wrong(reason(&error)))
}

/// Says which cryptography TLS uses; clients without TLS want to know it too.
pub(crate) fn choose_cryptography() {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn proxies(options: &ClientOptions, authority: &str) -> Result<Vec<reqwest::Proxy>, Error> {
    let get = |name: &str| {
        let found = |wanted: &str| {
            let mut named = options.proxies.iter();
            named
                .find(|(name, _)| name == wanted)
                .and_then(|(_, value)| value.to_str())
        };
        let value = found(name).or_else(|| found(&name.to_ascii_uppercase()));
        value.filter(|value| !value.is_empty())
    };
    let except = get("no_proxy").and_then(reqwest::NoProxy::from_string);
    let mut proxies = Vec::new();
    for name in ["http_proxy", "https_proxy"] {
        let Some(value) = get(name) else { continue };
        let proxy = if name == "http_proxy" {
            reqwest::Proxy::http(value)
        } else {
            reqwest::Proxy::https(value)
        };
        let proxy = proxy.map_err(|error| Error::Setup {
            host: authority.to_owned(),
            reason: format!("{name} is no address: {}", reason(&error)),
        })?;
        proxies.push(proxy.no_proxy(except.clone()));
    }
    Ok(proxies)
}
